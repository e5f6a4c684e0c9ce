//! Where the bytes are, on whatever filesystem `BHATTI_TEST_ROOT` names: compared with what the filesystem itself says is
//! free before and after, and with `compsize` where that answers.
//!
//! What is free is compared only where nobody else writes: on a mount of the test's own, which `.config/nextest.toml`
//! gives to one of these tests at a time.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bhatti_storage::{
    Figures, ImageRecord, ImageRef, Manifest, Store, TrialSize, Usage, UsageKind, UsageMethod, clone_file,
};
use types::{Arch, Bytes, Owner, SandboxId};

const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;

struct Bench {
    dir: tempfile::TempDir,
    root: PathBuf,
    store: Store,
    /// The mount point, if nobody else writes there.
    own_mount: Option<PathBuf>,
}

fn open() -> Bench {
    let parent = std::env::var_os("BHATTI_TEST_ROOT")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    fs::create_dir_all(&parent).unwrap();
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    let own_mount = (device(&parent) != device(&parent.join(".."))).then(|| parent.clone());
    let dir = tempfile::tempdir_in(parent).unwrap();
    let store = Store::open(&dir.path().join("data")).unwrap();
    Bench { root: store.root().to_owned(), store, dir, own_mount }
}

impl Bench {
    /// What is free, with nothing left to be written or given back.
    fn free(&self) -> u64 {
        let mount = self.own_mount.as_ref().unwrap();
        // xfs gives back what removed files had in its own time; freezing waits for that (xfs_inodegc_stop).
        for flag in ["-f", "-u"] {
            assert!(Command::new("fsfreeze").arg(flag).arg(mount).status().unwrap().success());
        }
        self.store.free_after_sync().unwrap().0
    }

    fn total(&self) -> Figures {
        self.store.usage().unwrap().total
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }
}

/// Bytes that nothing compresses, different for each seed.
fn random(seed: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn text(len: u64) -> Vec<u8> {
    b"what repeats itself can be told in fewer bytes\n"
        .iter()
        .copied()
        .cycle()
        .take(usize::try_from(len).unwrap())
        .collect()
}

/// A file of pieces at their offsets, on the disk.
fn write(path: &Path, len: u64, pieces: &[(u64, Vec<u8>)]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
    file.set_len(len).unwrap();
    for (at, bytes) in pieces {
        file.write_all_at(bytes, *at).unwrap();
    }
    file.sync_all().unwrap();
}

fn image(store: &Store) -> ImageRecord {
    let staged = store.images().stage().unwrap();
    let file = File::options().write(true).open(staged.path()).unwrap();
    file.set_len(64 * MIB).unwrap();
    file.write_all_at(&random(1, 12 * MIB), MIB).unwrap();
    file.write_all_at(&text(8 * MIB), 20 * MIB).unwrap();
    drop(file);
    staged.commit(&"minimal".parse().unwrap(), Arch::Amd64, "test").unwrap()
}

/// A sandbox by hand: a clone of the image with three megabytes of its own in the middle.
fn sandbox(bench: &Bench, image: &ImageRecord, name: &str, owner: &Owner, seed: u64) -> SandboxId {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/manifest-1.json");
    let manifest = Manifest::decode(&fs::read(&golden).unwrap(), &golden).unwrap();
    let manifest = Manifest {
        id: SandboxId::random(),
        name: name.parse().unwrap(),
        owner: owner.clone(),
        image: ImageRef { name: image.name.clone(), id: image.id.clone() },
        ..manifest
    };
    let dir = bench.path("sandboxes").join(manifest.id.as_str());
    fs::create_dir(&dir).unwrap();
    clone_file(&bench.store.images().object_path(&image.id), &dir.join("rootfs.ext4")).unwrap();
    write(&dir.join("rootfs.ext4"), 64 * MIB, &[(4 * MIB, random(seed, 3 * MIB))]);
    write(&dir.join("config.ext4"), MIB, &[(0, text(8 * KIB))]);
    write(&dir.join("mem.snap"), 512 * MIB, &[(0, random(seed + 1, 5 * MIB)), (100 * MIB, text(2 * MIB))]);
    fs::write(dir.join("manifest.json"), manifest.encode()).unwrap();
    manifest.id
}

struct Made {
    image: ImageRecord,
    one: SandboxId,
    two: SandboxId,
    other: Owner,
}

/// Everything that a store has, by hand: clones, hard links, sparse and compressible files, tiny ones, broken ones.
fn fill(bench: &Bench) -> Made {
    let image = image(&bench.store);
    let other: Owner = "somebody".parse().unwrap();
    let one = sandbox(bench, &image, "one", &Owner::admin(), 10);
    let two = sandbox(bench, &image, "two", &other, 20);
    // The disk of `one` was frozen: its layer has two names for as long as nobody wrote.
    let disk = bench.path("sandboxes").join(one.as_str()).join("rootfs.ext4");
    fs::hard_link(&disk, bench.path("layers/00112233445566aa.ext4")).unwrap();
    write(
        &bench.path("volumes/admin/data.ext4"),
        256 * MIB,
        &[(10 * MIB, text(6 * MIB)), (99 * MIB, random(30, 2 * MIB))],
    );
    write(&bench.path("snapshots/somebody/warm/mem.snap"), 512 * MIB, &[(0, random(40, 2 * MIB))]);
    clone_file(
        &bench.path("volumes/admin/data.ext4"),
        &bench.path("snapshots/somebody/warm/volume-data.ext4"),
    )
    .unwrap();
    write(&bench.path("bases/ab.ram"), 512 * MIB, &[(8 * MIB, text(9 * MIB))]);
    write(&bench.path("sandboxes/0123456789abcdef/manifest.json"), 5, &[(0, b"{...}".to_vec())]);
    write(&bench.path("bhatti.db"), 36 * KIB, &[(0, random(50, 36 * KIB))]);
    // Small enough to lie in the filesystem's own blocks where it can.
    fs::write(bench.path("admin.key"), "bht_secret").unwrap();
    bench.store.free_after_sync().unwrap();
    Made { image, one, two, other }
}

fn sandbox_figures(usage: &Usage, id: &SandboxId) -> Figures {
    usage.sandboxes.iter().find(|sandbox| sandbox.id == id.as_str()).unwrap().figures
}

fn near(what: &str, ours: u64, theirs: u64, slack: u64) {
    let off = ours.abs_diff(theirs);
    println!("{what}: {ours} and {theirs}, off by {off} ({:.3}%)", 100.0 * off as f64 / theirs.max(1) as f64);
    assert!(off <= theirs / 100 + slack, "{what}: {ours} and {theirs} are {off} apart");
}

#[test]
fn everything_is_told_by_name_and_adds_up() {
    let bench = open();
    let made = fill(&bench);
    let usage = bench.store.usage().unwrap();
    let can = bench.store.probe().unwrap();
    if let Some(note) = &usage.note {
        assert!(!rustix::process::geteuid().is_root(), "root is told all: {note}");
        return;
    }

    let names: Vec<_> = usage.sandboxes.iter().map(|s| s.name.as_ref().map(ToString::to_string)).collect();
    assert_eq!(names, [None, Some("one".to_owned()), Some("two".to_owned())]);
    assert_eq!(usage.sandboxes[0].id, "0123456789abcdef");
    let owners: Vec<_> = usage.owners.iter().map(|o| o.owner.as_ref().map(ToString::to_string)).collect();
    assert_eq!(owners, [None, Some("admin".to_owned()), Some("somebody".to_owned())]);
    let snapshot = &usage.snapshots[0];
    assert_eq!((snapshot.name.as_str(), snapshot.owner.as_ref()), ("warm", Some(&made.other)));
    let object = |kind| usage.objects.iter().find(|object| object.kind == kind).unwrap();
    let minimal = object(UsageKind::Image);
    assert_eq!(minimal.name, "minimal");
    assert_eq!(minimal.path, Path::new("images/objects").join(format!("{}.ext4", made.image.id)));
    assert_eq!(minimal.files.len(), 3, "the object, its link and its record: {:?}", minimal.files);
    assert_eq!(object(UsageKind::Layer).path, Path::new("layers/00112233445566aa.ext4"));
    assert_eq!(object(UsageKind::Volume).owner, Some(Owner::admin()));
    assert_eq!(object(UsageKind::Base).name, "ab");
    assert!(usage.sandboxes[1].lies_on.contains(&minimal.path));

    // A link is no second file: the image's 64 MiB are there once.
    assert!((64 * MIB..65 * MIB).contains(&minimal.figures.apparent.0), "{minimal:?}");
    assert!((20 * MIB..22 * MIB).contains(&minimal.figures.referenced.0), "{minimal:?}");
    let one = sandbox_figures(&usage, &made.one);
    assert!(one.apparent.0 > 577 * MIB && one.referenced.0 < 31 * MIB, "{one:?}");
    // Its disk is the layer's, too, so only its memory would be free without it.
    near("memory of one", one.exclusive.0, physical_of(&usage, &made.one, UsageKind::Memory), 64 * KIB);
    let two = sandbox_figures(&usage, &made.two);
    if can.reflink {
        assert!(two.exclusive.0 < 11 * MIB, "what it shares with the image is not freed: {two:?}");
        assert!(usage.total.dedup_ratio() > 1.5, "{:?}", usage.total);
    } else {
        assert!(two.exclusive.0 > 25 * MIB, "nothing is shared: {two:?}");
        assert!((usage.total.dedup_ratio() - 1.0).abs() < 0.01, "{:?}", usage.total);
    }
    let compressed = usage.total.compression_ratio();
    assert_eq!(compressed > 1.05, can.compression, "{compressed}");

    // The whole is the union: no less than any part, no more than all together.
    let parts: Vec<Figures> = (usage.sandboxes.iter().map(|s| s.figures))
        .chain(usage.snapshots.iter().map(|s| s.figures))
        .chain(usage.objects.iter().map(|o| o.figures))
        .collect();
    let sum = |of: fn(&Figures) -> Bytes| parts.iter().map(|part| of(part).0).sum::<u64>();
    assert!(
        usage.total.physical.0 <= sum(|f| f.physical)
            && parts.iter().all(|p| p.physical <= usage.total.physical)
    );
    assert!(sum(|f| f.exclusive) <= usage.total.exclusive.0 && usage.total.exclusive <= usage.total.physical);

    let one = usage.clone().of_sandbox(&made.one).unwrap();
    assert_eq!((one.sandboxes.len(), one.objects.len(), one.total), (1, 1, one.sandboxes[0].figures));
    let other = usage.clone().of_owner(&made.other);
    assert_eq!((other.sandboxes.len(), other.snapshots.len(), other.objects.len()), (1, 1, 1));
    assert!(usage.of_sandbox(&SandboxId::random()).is_none());
}

fn physical_of(usage: &Usage, id: &SandboxId, kind: UsageKind) -> u64 {
    let sandbox = usage.sandboxes.iter().find(|sandbox| sandbox.id == id.as_str()).unwrap();
    sandbox.files.iter().find(|file| file.kind == kind).unwrap().figures.physical.0
}

/// Disk usage and uncompressed bytes of `compsize -b`; `None` where it is not installed or the filesystem is none for it.
fn compsize(root: &Path) -> Option<(u64, u64)> {
    let output = Command::new("compsize").arg("-b").arg(root).output().ok()?;
    let text = String::from_utf8(output.stdout).unwrap();
    let total = text.lines().find(|line| line.starts_with("TOTAL"))?;
    println!("{text}");
    let mut columns = total.split_whitespace().skip(2).map(|column| column.parse::<u64>().unwrap());
    Some((columns.next().unwrap(), columns.next().unwrap()))
}

#[test]
fn totals_are_what_compsize_says() {
    let bench = open();
    fill(&bench);
    let usage = bench.store.usage().unwrap();
    match compsize(&bench.root) {
        Some((disk, uncompressed)) => {
            assert_eq!(usage.method, UsageMethod::BtrfsExtents);
            near("physical", usage.total.physical.0, disk, 0);
            near("unique", usage.total.unique.0, uncompressed, 0);
        }
        None => assert_ne!(usage.method, UsageMethod::BtrfsExtents, "compsize is there for btrfs"),
    }
}

#[test]
fn what_is_made_takes_what_is_told() {
    let bench = open();
    if bench.own_mount.is_none() {
        println!("not compared: others write to this filesystem");
        return;
    }
    let (free, total) = (bench.free(), bench.total());
    fill(&bench);
    let (free_now, total_now) = (bench.free(), bench.total());
    near("the whole store", total_now.physical.0 - total.physical.0, free - free_now, 256 * KIB);

    let trial = bench.store.usage_trial(TrialSize(Bytes(32 * MIB))).unwrap();
    let (free_then, total_then) = (bench.free(), bench.total());
    near("a trial", total_then.physical.0 - total_now.physical.0, free_now - free_then, 128 * KIB);
    drop(trial);
    assert_eq!(bench.total(), total_now);
}

#[test]
fn removing_a_thing_frees_what_was_exclusive_to_it() {
    let bench = open();
    if bench.own_mount.is_none() {
        println!("not compared: others write to this filesystem");
        return;
    }
    let made = fill(&bench);
    let usage = bench.store.usage().unwrap();
    let object = |kind: UsageKind| usage.objects.iter().find(|object| object.kind == kind).unwrap();
    let volume = object(UsageKind::Volume);
    let base = object(UsageKind::Base);
    let layer = object(UsageKind::Layer);
    let (one, two) = (sandbox_figures(&usage, &made.one), sandbox_figures(&usage, &made.two));
    let things = [
        (
            "a sandbox that shares its disk's bytes with the image",
            format!("sandboxes/{}", made.two),
            two.exclusive,
        ),
        ("a sandbox whose disk is a layer, too", format!("sandboxes/{}", made.one), one.exclusive),
        (
            "a volume that a snapshot has a clone of",
            volume.path.display().to_string(),
            volume.figures.exclusive,
        ),
        ("a base", base.path.display().to_string(), base.figures.exclusive),
    ];
    assert_eq!(layer.figures.exclusive, Bytes(0), "the sandbox has it still");
    for (what, path, exclusive) in things {
        let free = bench.free();
        let path = bench.path(&path);
        if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.unwrap();
        near(what, exclusive.0, bench.free() - free, 128 * KIB);
    }
    // With the sandbox gone the layer is alone, but for what it shares with the image.
    let layer =
        bench.store.usage().unwrap().objects.into_iter().find(|o| o.kind == UsageKind::Layer).unwrap();
    let free = bench.free();
    fs::remove_file(bench.path(&layer.path.display().to_string())).unwrap();
    near("a layer", layer.figures.exclusive.0, bench.free() - free, 128 * KIB);
}

#[test]
fn bytes_that_somebody_outside_has_are_not_freed() {
    let bench = open();
    let path = bench.path("volumes/admin/data.ext4");
    write(&path, 8 * MIB, &[(0, random(1, 8 * MIB))]);
    let volume = || {
        bench
            .store
            .usage()
            .unwrap()
            .objects
            .into_iter()
            .find(|o| o.kind == UsageKind::Volume)
            .unwrap()
            .figures
    };
    near("alone", volume().exclusive.0, 8 * MIB, 64 * KIB);
    let outside = bench.dir.path().join("outside");
    fs::hard_link(&path, &outside).unwrap();
    let linked = volume();
    // Its owner's directory goes with it.
    assert!(linked.exclusive.0 < 64 * KIB && linked.physical.0 >= 8 * MIB, "{linked:?}");
    fs::remove_file(&outside).unwrap();
    let shares = clone_file(&path, &outside).unwrap().bytes_copied == Bytes(0);
    File::open(&outside).unwrap().sync_all().unwrap();
    let cloned = volume();
    if shares {
        assert!(cloned.exclusive.0 < 64 * KIB, "{cloned:?}");
    } else {
        near("copied", cloned.exclusive.0, 8 * MIB, 64 * KIB);
    }
}

#[test]
fn a_hundred_thousand_extents_are_read_within_a_second() {
    const EXTENTS: u64 = 100_000;
    let bench = open();
    let path = bench.path("volumes/admin/deep.ext4");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = File::create(&path).unwrap();
    let page = random(7, 4 * KIB);
    for extent in 0..EXTENTS {
        file.write_all_at(&page, extent * 8 * KIB).unwrap();
    }
    file.sync_all().unwrap();
    drop(file);
    bench.store.free_after_sync().unwrap();
    let begun = Instant::now();
    let usage = bench.store.usage().unwrap();
    let took = begun.elapsed();
    println!("{took:?}, {:?}", usage.total);
    assert!(usage.total.physical.0 >= EXTENTS * 4 * KIB);
    assert!(took < Duration::from_secs(1), "{took:?}");
}

/// Runs this test program's own test again with a right less, and gives what it printed.
fn without_sys_admin(test: &str, root: &Path) -> Option<String> {
    let output = Command::new("setpriv")
        .args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("BHATTI_USAGE_OF", root)
        .output()
        .ok()?;
    assert!(output.status.success(), "{output:?}");
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn without_the_right_to_read_extents_the_figures_are_bounds_and_say_so() {
    if let Some(root) = std::env::var_os("BHATTI_USAGE_OF") {
        let usage = Store::open(Path::new(&root)).unwrap().usage().unwrap();
        let told = (usage.exact, usage.total.physical.0, usage.total.exclusive.0, usage.total.referenced.0);
        println!("told {told:?} {:?} {:?}", usage.method, usage.note);
        let note = usage.note.clone().unwrap_or_default();
        println!(
            "verdict {}",
            if usage.exact {
                "exact"
            } else if note.contains("root") {
                "bounds"
            } else {
                "?"
            }
        );
        println!("physical {}", usage.total.physical.0);
        return;
    }
    let bench = open();
    fill(&bench);
    let usage = bench.store.usage().unwrap();
    let name = "without_the_right_to_read_extents_the_figures_are_bounds_and_say_so";
    let Some(told) = without_sys_admin(name, &bench.root) else {
        println!("not tried: there is no setpriv");
        return;
    };
    println!("{told}");
    let line = |begin: &str| told.lines().find_map(|line| line.strip_prefix(begin)).unwrap().to_owned();
    let physical: u64 = line("physical ").parse().unwrap();
    if usage.method == UsageMethod::BtrfsExtents {
        assert_eq!(line("verdict "), "bounds");
        let exact = usage.total.physical.0;
        assert!((exact..exact + exact / 5).contains(&physical), "{physical} for {exact}");
    } else {
        assert_eq!((line("verdict ").as_str(), physical), ("exact", usage.total.physical.0));
    }
}

#[test]
fn files_may_change_while_they_are_read() {
    let bench = open();
    let made = fill(&bench);
    let over = AtomicBool::new(false);
    let dir = bench.path("sandboxes").join(made.one.as_str());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0;
            while !over.load(Ordering::Relaxed) {
                round += 1;
                write(&dir.join("mem.snap.new"), MIB, &[(0, random(round, MIB))]);
                fs::rename(dir.join("mem.snap.new"), dir.join("mem.snap")).unwrap();
                let disk = File::options().write(true).open(dir.join("rootfs.ext4")).unwrap();
                disk.write_all_at(&random(round, 64 * KIB), (round % 64) * MIB).unwrap();
                disk.set_len((64 + round % 3) * MIB).unwrap();
                fs::create_dir(bench.path("sandboxes/.new-x")).unwrap();
                fs::write(bench.path("sandboxes/.new-x/file"), text(9 * KIB)).unwrap();
                fs::rename(bench.path("sandboxes/.new-x"), bench.path("sandboxes/.gone-x")).unwrap();
                fs::remove_dir_all(bench.path("sandboxes/.gone-x")).unwrap();
            }
        });
        for _ in 0..30 {
            let usage = bench.store.usage().unwrap();
            assert!(usage.exact, "{:?}", usage.note);
            assert!(usage.total.exclusive <= usage.total.physical);
        }
        over.store(true, Ordering::Relaxed);
    });
}
