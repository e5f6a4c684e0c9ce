//! Clones and the images they are made of, on whatever filesystem `BHATTI_TEST_ROOT` names (default: one under
//! `target/`): what a filesystem refuses is asked of it, not foreseen by its name. What needs root says so and passes.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use bhatti_storage::{CloneOptions, CloneProgress, ErrorKind, Store, clone_file, clone_file_with};
use rustix::fs::{FallocateFlags, IFlags, fallocate, ioctl_getflags, ioctl_setflags, statvfs};
use types::{Arch, Bytes, CloneMethod};

const MIB: u64 = 1 << 20;

fn test_root() -> PathBuf {
    let root = std::env::var_os("BHATTI_TEST_ROOT")
        .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned(), PathBuf::from);
    fs::create_dir_all(&root).unwrap();
    root
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(test_root()).unwrap()
}

fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// 40 MiB long: noise, a hole, noise, a hole.
fn holey(path: &Path) -> File {
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    fill(&file);
    file
}

fn fill(file: &File) {
    file.set_len(40 * MIB).unwrap();
    file.write_all_at(&noise(1, 9 * MIB), MIB).unwrap();
    file.write_all_at(&noise(2, 3 * MIB), 32 * MIB).unwrap();
    file.sync_all().unwrap();
}

#[track_caller]
fn same(one: &Path, other: &Path) {
    assert!(
        fs::read(one).unwrap() == fs::read(other).unwrap(),
        "{} and {} differ",
        one.display(),
        other.display()
    );
}

#[track_caller]
fn holes_are_kept(path: &Path) {
    let meta = fs::metadata(path).unwrap();
    assert_eq!(meta.len(), 40 * MIB);
    assert!(meta.blocks() * 512 <= 13 * MIB, "{} blocks of {}", meta.blocks(), path.display());
}

/// A directory on another filesystem than `root`.
fn elsewhere(root: &Path) -> Option<tempfile::TempDir> {
    let device = fs::metadata(root).unwrap().dev();
    [Path::new("/dev/shm"), Path::new(env!("CARGO_TARGET_TMPDIR"))]
        .into_iter()
        .filter(|dir| fs::create_dir_all(dir).is_ok())
        .filter(|dir| fs::metadata(dir).is_ok_and(|meta| meta.dev() != device))
        .find_map(|dir| tempfile::tempdir_in(dir).ok())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn works(program: &str, args: &[&str]) -> bool {
    let status = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn reflinks(root: &Path) -> bool {
    Store::open(&root.join("probed")).unwrap().probe().unwrap().reflink
}

#[test]
fn a_clone_across_filesystems_falls_back_in_both_directions_and_can_be_cancelled() {
    let here = scratch();
    let there = elsewhere(here.path()).expect("two filesystems");
    for (from, to) in [(&here, &there), (&there, &here)] {
        let (from, to) = (from.path().join("from"), to.path().join("to"));
        drop(holey(&from));
        let report = clone_file_with(&from, &to, &CloneOptions { sync: true, ..Default::default() }).unwrap();
        assert_eq!((report.method, report.bytes_copied), (CloneMethod::SparseCopy, Bytes(12 * MIB)));
        same(&from, &to);
        holes_are_kept(&to);
        fs::remove_file(&to).unwrap();

        let cancel = AtomicBool::new(false);
        let progress = |now: CloneProgress| {
            assert_eq!(now.total, Bytes(12 * MIB));
            cancel.store(true, Ordering::Relaxed);
        };
        let options = CloneOptions { progress: Some(&progress), cancel: Some(&cancel), sync: false };
        assert_eq!(clone_file_with(&from, &to, &options).unwrap_err().kind(), ErrorKind::Cancelled);
        assert!(!to.exists(), "half a clone was left");
        fs::remove_file(&from).unwrap();
    }
}

#[test]
fn a_clone_within_the_filesystem_takes_the_best_way_and_keeps_the_holes() {
    let dir = scratch();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    drop(holey(&from));
    let report = clone_file(&from, &to).unwrap();
    let (method, copied) = match reflinks(dir.path()) {
        true => (CloneMethod::Reflink, Bytes(0)),
        false => (CloneMethod::SparseCopy, Bytes(12 * MIB)),
    };
    assert_eq!((report.method, report.bytes_copied), (method, copied));
    same(&from, &to);
    holes_are_kept(&to);
}

/// btrfs shares no extents between a file with checksums and one without.
#[test]
fn a_source_that_is_written_in_place_is_copied_where_its_extents_cannot_be_shared() {
    let dir = scratch();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let file = File::options().read(true).write(true).create_new(true).open(&from).unwrap();
    let mixed = ioctl_getflags(&file).and_then(|flags| ioctl_setflags(&file, flags | IFlags::NOCOW)).is_ok();
    println!("NOCOW: {mixed}");
    fill(&file);
    let report = clone_file(&from, &to).unwrap();
    let shared = reflinks(dir.path()) && !mixed;
    assert_eq!(report.method == CloneMethod::Reflink, shared, "{report:?}");
    same(&from, &to);
    holes_are_kept(&to);
}

#[test]
fn a_swap_file_in_use_is_copied() {
    if !is_root() {
        println!("not tried: only root may use a swap file");
        return;
    }
    let dir = scratch();
    let (from, to) = (dir.path().join("swap"), dir.path().join("to"));
    let file = File::options().read(true).write(true).create_new(true).open(&from).unwrap();
    // btrfs swaps to files without checksums only; the others refuse the flag and need it not.
    let _ = ioctl_getflags(&file).and_then(|flags| ioctl_setflags(&file, flags | IFlags::NOCOW));
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    file.write_all_at(&noise(3, 2 * MIB), 0).unwrap();
    file.sync_all().unwrap();
    let path = from.to_str().unwrap();
    // The least priority: nothing is to be swapped out to it in its short life.
    if !works("mkswap", &[path]) || !works("swapon", &["--priority", "0", path]) {
        println!("not tried: no swap file can be used here");
        return;
    }
    let report = clone_file(&from, &to);
    let content = fs::read(&from).unwrap();
    assert!(works("swapoff", &[path]));
    let report = report.unwrap();
    assert_eq!(report.method, CloneMethod::SparseCopy, "{report:?}");
    assert!(fs::read(&to).unwrap() == content);
}

/// A small filesystem of its own, for as long as it lives.
struct Small {
    at: PathBuf,
}

impl Small {
    fn make(dir: &Path, make: &[&str], size: u64) -> Option<Self> {
        let (file, at) = (dir.join("small.img"), dir.join("small"));
        File::create(&file).unwrap().set_len(size).unwrap();
        fs::create_dir(&at).unwrap();
        let (program, args) = make.split_first().unwrap();
        let file = file.to_str().unwrap();
        let mounted = works(program, &[args, &[file]].concat())
            && works("mount", &["-o", "loop", file, at.to_str().unwrap()]);
        mounted.then_some(Self { at })
    }

    /// Leaves room for less than that many bytes.
    fn fill_up_to(&self, free: u64) {
        let ballast = File::create(self.at.join("ballast")).unwrap();
        let mut at = 0;
        for piece in [4 * MIB, MIB] {
            loop {
                let space = statvfs(&self.at).unwrap();
                if space.f_bavail * space.f_frsize < free + piece
                    || fallocate(&ballast, FallocateFlags::empty(), at, piece).is_err()
                {
                    break;
                }
                ballast.sync_all().unwrap();
                at += piece;
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        works("umount", &[self.at.to_str().unwrap()]);
    }
}

#[test]
fn a_clone_that_does_not_fit_says_so_and_leaves_nothing() {
    if !is_root() {
        println!("not tried: only root may mount a small filesystem");
        return;
    }
    let makers: [(&[&str], u64); 3] = [
        (&["mkfs.ext4", "-q", "-F"], 64 * MIB),
        (&["mkfs.btrfs", "-q"], 128 * MIB),
        (&["mkfs.xfs", "-q"], 320 * MIB),
    ];
    let mut tried = 0;
    for (make, size) in makers {
        let dir = scratch();
        let from = dir.path().join("from");
        fs::write(&from, noise(4, 40 * MIB)).unwrap();
        let Some(small) = Small::make(dir.path(), make, size) else {
            println!("not tried: {}", make[0]);
            continue;
        };
        small.fill_up_to(12 * MIB);
        let to = small.at.join("to");
        // Delayed allocation may find out as late as in the sync.
        let error =
            clone_file_with(&from, &to, &CloneOptions { sync: true, ..Default::default() }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{}: {error:?}", make[0]);
        assert_eq!(fs::read_dir(&small.at).unwrap().filter(is_clone).count(), 0);
        tried += 1;
    }
    assert!(tried > 0, "no filesystem could be made");
}

fn is_clone(entry: &std::io::Result<fs::DirEntry>) -> bool {
    entry.as_ref().unwrap().file_name() == "to"
}

/// Extents, and whether any of them is compressed; `None` where the filesystem does not tell.
fn extents(path: &Path) -> Option<(usize, bool)> {
    let mut found = (0, false);
    let told = sys::host_fiemap::Mapper::new().extents(File::open(path).unwrap(), |extent| {
        found.0 += 1;
        found.1 |= extent.is_encoded();
    });
    told.ok().map(|()| found)
}

/// Words rather than noise, so that a filesystem that compresses would do so; in pieces, out of order, synced between.
fn scatter(file: &File) {
    let text: Vec<u8> =
        b"an image says much the same over and over again; ".iter().copied().cycle().take(64 << 10).collect();
    file.set_len(96 * MIB).unwrap();
    let pieces = 512;
    for piece in 0..pieces {
        // 197 and 512 have no common divisor: every piece comes once.
        let at = 8 * MIB + piece * 197 % pieces * (64 << 10);
        let mut text = text.clone();
        text[..8].copy_from_slice(&at.to_le_bytes());
        file.write_all_at(&text, at).unwrap();
        if piece % 16 == 15 {
            file.sync_data().unwrap();
        }
    }
}

#[test]
fn a_base_image_lies_in_few_plain_extents_however_it_was_written() {
    let dir = scratch();
    let store = Store::open(&dir.path().join("data")).unwrap();
    let staged = store.images().stage().unwrap();
    scatter(&File::options().write(true).open(staged.path()).unwrap());
    let scattered = extents(staged.path());
    let record = staged.commit(&"minimal".parse().unwrap(), Arch::Amd64, "test").unwrap();
    let object = store.images().object_path(&record.id);
    println!("{scattered:?} became {:?}", extents(&object));
    if let Some((count, compressed)) = extents(&object) {
        assert!(count <= 10 && !compressed, "{count} extents, compressed: {compressed}");
    }
    assert_eq!(fs::metadata(&object).unwrap().mode() & 0o777, 0o444);
    assert_eq!(fs::read_dir(object.parent().unwrap()).unwrap().count(), 1, "staging files were left");

    // As after a copy of the whole data directory by a tool that knows nothing of this.
    let copy = object.with_file_name("copy");
    scatter(&File::create_new(&copy).unwrap());
    fs::rename(&copy, &object).unwrap();
    let was = extents(&object);
    let settled = store.images().settle(&record).unwrap();
    println!("{was:?} became {:?}: {settled}", extents(&object));
    if let (Some((before, _)), Some((after, compressed))) = (was, extents(&object)) {
        assert_eq!(settled, before > 10, "{before}");
        assert!(after <= 10 && !compressed, "{after} extents, compressed: {compressed}");
    }
    assert!(!store.images().settle(&record).unwrap(), "once is enough");
    assert_eq!(store.images().resolve(&record.name, Arch::Amd64).unwrap(), record);
    let link = dir.path().join("data/images/rootfs-minimal-amd64.ext4");
    if settled {
        assert_eq!(fs::metadata(&link).unwrap().ino(), fs::metadata(&object).unwrap().ino());
    }

    // Never in place of what it should be.
    let file = File::create_new(&copy).unwrap();
    scatter(&file);
    file.write_all_at(b"damage", 20 * MIB).unwrap();
    file.set_len(96 * MIB).unwrap();
    // Long zeros are a reason to settle on any filesystem.
    file.write_all_at(&vec![0; 50 << 20], 44 * MIB).unwrap();
    fs::rename(&copy, &object).unwrap();
    file.sync_all().unwrap();
    if fs::metadata(&object).unwrap().blocks() * 512 > 60 * MIB {
        assert_eq!(store.images().settle(&record).unwrap_err().kind(), ErrorKind::Corrupt);
    }
    assert_eq!(fs::read_dir(object.parent().unwrap()).unwrap().count(), 1, "staging files were left");
}

/// The pages of one file are in memory once, those of two clones twice: that is so on every filesystem there is today.
#[test]
fn layouts_are_measured_by_making_them() {
    let dir = scratch();
    let store = Store::open(&dir.path().join("data")).unwrap();
    let staged = store.images().stage().unwrap();
    fill(&File::options().write(true).open(staged.path()).unwrap());
    let image = staged.commit(&"minimal".parse().unwrap(), Arch::Amd64, "test").unwrap();
    let measured = store.measure_layouts(&image).unwrap();
    let choice = measured.choose();
    println!("{measured}: {choice:?}");
    assert!(measured.overlay.made && measured.reflink.made);
    match store.probe().unwrap().reflink {
        true => assert_eq!((measured.overlay.own_bytes, measured.reflink.own_bytes), (Bytes(0), Bytes(0))),
        false => {
            assert!((400 << 10..1 << 20).contains(&measured.overlay.own_bytes.0));
            assert!((12 * MIB..14 * MIB).contains(&measured.reflink.own_bytes.0));
        }
    }
    let caches = (measured.overlay.cached_percent, measured.reflink.cached_percent);
    assert!(matches!(caches, (Some(95..=100), Some(0..=5)) | (None, _)), "{caches:?}");
    assert_eq!(choice.layout, types::StorageLayout::Overlay);
    assert_eq!(store.filesystem_id().unwrap(), Store::open(store.root()).unwrap().filesystem_id().unwrap());
    let images: Vec<_> =
        fs::read_dir(dir.path().join("data/images")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(images.len(), 4, "what was measured was left: {images:?}");
}
