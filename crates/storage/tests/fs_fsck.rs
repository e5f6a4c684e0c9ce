//! Checking a data root: a healthy one is clean, every damage is found and named, and a repair loses nothing.

#![allow(clippy::unwrap_used, missing_docs)]

mod fixtures;
#[path = "fixtures/healthy.rs"]
mod healthy;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use bhatti_storage::{
    Company, Finding, FsckOptions, FsckReport, Outcome, RunState, Severity, Store, Subject,
};
use types::StorageLayout;

use fixtures::{Ram, stop, tree};
use healthy::{Healthy, IMAGE_DATA, alone, check, check_in, contents, healthy, named};

fn errors(report: &FsckReport) -> Vec<&Finding> {
    report.findings.iter().filter(|finding| finding.severity == Severity::Error).collect()
}

fn repair(store: &Store, report: &mut FsckReport) {
    store.repair(report, &alone(), &|_| false);
}

fn writable(path: &Path) -> File {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    File::options().read(true).write(true).open(path).unwrap()
}

#[derive(Debug, Clone, Copy)]
enum Harm {
    /// A bit at this place.
    Flip(u64),
    Truncate,
    Remove,
}

fn harm(path: &Path, harm: Harm) {
    match harm {
        Harm::Flip(at) => {
            let (file, mut byte) = (writable(path), [0]);
            file.read_exact_at(&mut byte, at).unwrap();
            byte[0] ^= 0x10;
            file.write_all_at(&byte, at).unwrap();
        }
        Harm::Truncate => {
            let len = fs::metadata(path).unwrap().len();
            writable(path).set_len(len / 2).unwrap();
        }
        Harm::Remove => fs::remove_file(path).unwrap(),
    }
    // What harms a file does not change its mode.
    if path.exists() && !path.to_str().unwrap().contains("sandboxes") {
        fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
    }
}

#[test]
fn fs_a_healthy_store_is_clean() {
    let healthy = healthy();
    let report = check(healthy.store());
    assert_eq!(report.findings, [], "{report:#?}");
    assert!(report.complete);
    let checked = report.checked;
    assert_eq!((checked.sandboxes, checked.snapshots, checked.images, checked.kernels), (3, 2, 1, 1));
    assert_eq!((checked.templates, checked.layers, checked.bases), (2, 2, 1));
    assert!(checked.bytes.0 > 2 << 20, "{}", checked.bytes);
    let company = Company { alone: false, ..alone() };
    assert_eq!(check_in(healthy.store(), &company).findings, []);
}

/// Every kind of file with what a change to it must be told of: the path, and whose it is.
#[test]
fn fs_every_damaged_truncated_or_missing_file_is_named_with_whom_it_harms() {
    use Harm::{Flip, Remove, Truncate};
    type At = fn(&Healthy) -> PathBuf;
    const ALL: [Harm; 3] = [Flip(60), Truncate, Remove];
    let both = ["owning", "kept"];
    let cases: [(&str, At, &[Harm], &[&str]); 26] = [
        ("manifest", |h| h.asleep.path().join("manifest.json"), &ALL, &[]),
        ("config", |h| h.asleep.path().join("config.ext4"), &[Flip(1080), Truncate, Remove], &["asleep"]),
        ("top's magic", |h| h.asleep.path().join("rootfs.qcow2"), &[Flip(1), Truncate, Remove], &["asleep"]),
        ("top's backing", |h| h.asleep.path().join("rootfs.qcow2"), &[Flip(125)], &["asleep"]),
        ("memory's header", |h| h.asleep.path().join("mem.snap"), &[Flip(40), Truncate, Remove], &["asleep"]),
        ("memory's frames", |h| h.asleep.path().join("mem.snap"), &[Flip(4100)], &["asleep"]),
        ("devices", |h| h.asleep.path().join("vm.snap"), &[Flip(3), Truncate, Remove], &["asleep"]),
        ("raw top's top", |h| h.raw.path().join("rootfs.qcow2"), &[Flip(1), Remove], &["raw"]),
        (
            "image",
            |h| h.file("images/objects", ".ext4"),
            &[Flip(IMAGE_DATA), Flip(0), Truncate, Remove],
            &["asleep", "raw", "kept", "disk"],
        ),
        ("image's record", |h| h.root().join("images/rootfs-minimal-amd64.json"), &[Flip(60), Truncate], &[]),
        (
            "kernel",
            |h| h.root().join("kernel").join(h.template.spec.kernel.as_str()).join("vmlinuz"),
            &[Flip(2), Truncate, Remove],
            &["asleep"],
        ),
        (
            "initramfs",
            |h| h.root().join("kernel").join(h.template.spec.kernel.as_str()).join("initramfs"),
            &[Flip(2), Truncate, Remove],
            &["asleep"],
        ),
        (
            "kernel's record",
            |h| h.root().join("kernel").join(h.template.spec.kernel.as_str()).join("manifest.json"),
            &ALL,
            &["asleep"],
        ),
        ("current kernel", |h| h.root().join("kernel/amd64.json"), &[Flip(60), Truncate], &[]),
        (
            "template's record",
            |h| h.store().templates().dir(&h.template.key).join("manifest.json"),
            &ALL,
            &["asleep"],
        ),
        (
            "template's RAM",
            |h| h.store().templates().dir(&h.template.key).join("ram.base"),
            &[Flip(4099), Truncate, Remove],
            &["asleep"],
        ),
        (
            "template's devices",
            |h| h.store().templates().dir(&h.template.key).join("vm.snap"),
            &[Flip(3), Truncate, Remove],
            &["asleep"],
        ),
        (
            "template's disk",
            |h| h.store().templates().dir(&h.template.key).join("rootfs.qcow2"),
            &[Flip(1), Truncate, Remove],
            &["asleep"],
        ),
        ("layer", |h| h.file("layers", ".qcow2"), &[Flip(330_000), Flip(1), Truncate, Remove], &both),
        ("raw layer", |h| h.file("layers", ".ext4"), &[Flip(IMAGE_DATA), Truncate, Remove], &["raw", "disk"]),
        ("base", |h| h.file("bases", ".ram"), &[Flip(819_300), Truncate, Remove], &both),
        ("snapshot's record", |h| h.root().join("snapshots/admin/kept/manifest.json"), &ALL, &[]),
        (
            "snapshot's disk",
            |h| h.root().join("snapshots/admin/kept/rootfs.qcow2"),
            &[Flip(1), Truncate, Remove],
            &["kept"],
        ),
        (
            "snapshot's config",
            |h| h.root().join("snapshots/admin/kept/config.ext4"),
            &[Flip(1080), Truncate, Remove],
            &["kept"],
        ),
        ("snapshot's memory", |h| h.root().join("snapshots/admin/kept/mem.snap"), &[Remove], &["kept"]),
        ("snapshot's devices", |h| h.root().join("snapshots/admin/kept/vm.snap"), &[Remove], &["kept"]),
    ];
    for (what, at, harms, whom) in cases {
        for &harm in harms {
            let healthy = healthy();
            let path = at(&healthy);
            self::harm(&path, harm);
            let report = check(healthy.store());
            let errors = errors(&report);
            let below = path.strip_prefix(healthy.root()).unwrap();
            let told = errors.iter().find(|finding| below.starts_with(&finding.path));
            let told = told
                .unwrap_or_else(|| panic!("{what}, {harm:?}: {} is not told: {report:#?}", below.display()));
            assert!(!told.what.is_empty());
            for whom in whom {
                let named = told.subject.name() == *whom
                    || told.needed_by.iter().any(|name| name.ends_with(&format!(" {whom}")));
                assert!(named, "{what}, {harm:?}: {whom} is not named: {told:#?}");
            }
            // Nothing that a repair does about it may take data away.
            let before = contents(healthy.root());
            let mut report = report;
            repair(healthy.store(), &mut report);
            same_data(&before, &contents(healthy.root()), &format!("{what}, {harm:?}"));
        }
    }
}

/// Every content that was there is there still, wherever; only files of bhatti's own making may be added.
fn same_data(before: &[(PathBuf, Vec<u8>)], after: &[(PathBuf, Vec<u8>)], what: &str) {
    let count = |files: &[(PathBuf, Vec<u8>)]| {
        files.iter().fold(BTreeMap::<Vec<u8>, usize>::new(), |mut all, (_, hash)| {
            *all.entry(hash.clone()).or_default() += 1;
            all
        })
    };
    let there = count(after);
    for (path, hash) in before {
        assert!(there.contains_key(hash), "{what}: the content of {} is gone", path.display());
    }
}

#[test]
fn fs_a_truncated_or_lost_index_of_names_is_made_again_from_what_is_there() {
    let healthy = healthy();
    let (link, record) = (
        healthy.root().join("images/rootfs-minimal-amd64.ext4"),
        healthy.root().join("images/rootfs-minimal-amd64.json"),
    );
    fs::remove_file(&link).unwrap();
    let mut report = check(healthy.store());
    assert_eq!(report.left(Severity::Error), 0);
    assert_eq!(report.left(Severity::Warning), 1, "{report:#?}");
    repair(healthy.store(), &mut report);
    assert_eq!(check(healthy.store()).findings, []);

    let before = healthy.store().images().list().unwrap();
    fs::write(&record, "{").unwrap();
    let mut report = check(healthy.store());
    assert_eq!(report.left(Severity::Error), 1, "{report:#?}");
    repair(healthy.store(), &mut report);
    assert_eq!(report.left(Severity::Error), 0, "{report:#?}");
    let after = healthy.store().images().list().unwrap();
    assert_eq!(
        (&after[0].name, &after[0].id, after[0].size),
        (&before[0].name, &before[0].id, before[0].size)
    );
    assert_eq!(check(healthy.store()).findings, []);
    assert_eq!(fs::read_dir(healthy.root().join("quarantine")).unwrap().count(), 1);

    fs::remove_file(&record).unwrap();
    let mut report = check(healthy.store());
    repair(healthy.store(), &mut report);
    assert_eq!(healthy.store().images().list().unwrap()[0].id, before[0].id);
    assert_eq!(check(healthy.store()).findings, []);
}

#[test]
fn fs_an_unreadable_sandbox_goes_to_the_quarantine_whole_and_can_come_back() {
    let healthy = healthy();
    let id = healthy.asleep.id().clone();
    let manifest = healthy.asleep.path().join("manifest.json");
    let good = fs::read(&manifest).unwrap();
    fs::write(&manifest, "{").unwrap();
    let files = contents(healthy.asleep.path());

    // A VMM that runs in it, or a daemon that knows it, keeps it where it is.
    let mut report = check(healthy.store());
    let lock = healthy.asleep.lock_machine().unwrap();
    repair(healthy.store(), &mut report);
    assert!(healthy.asleep.path().exists());
    assert!(matches!(report.findings[0].outcome, Some(Outcome::Failed(_))));
    assert_eq!(report.left(Severity::Error), 1);
    drop(lock);
    let mut report = check(healthy.store());
    healthy.store().repair(&mut report, &alone(), &|known| *known == id);
    assert!(healthy.asleep.path().exists());

    let mut report = check(healthy.store());
    assert_eq!(report.findings[0].subject, Subject::Sandbox(id.clone(), None));
    repair(healthy.store(), &mut report);
    assert_eq!(report.left(Severity::Error), 0, "{report:#?}");
    assert!(!healthy.asleep.path().exists());
    let quarantine = healthy.root().join("quarantine");
    let kept = quarantine.join(&tree(&quarantine)[0]);
    assert_eq!(tree(&kept).len(), 2);
    assert_eq!(contents(&kept.join(id.as_str())), files);
    let note = fs::read_to_string(kept.join("NOTE.txt")).unwrap();
    assert!(note.contains(&format!("It was sandboxes/{id}")), "{note}");

    // What it may need stays, and it is as it was once it is put back with its manifest.
    let plan = healthy.store().gc_plan(&alone()).unwrap();
    assert_eq!(plan.items, []);
    assert!(plan.unreadable[0].contains("quarantine"), "{:?}", plan.unreadable);
    fs::rename(kept.join(id.as_str()), healthy.asleep.path()).unwrap();
    fs::remove_dir_all(&kept).unwrap();
    fs::write(&manifest, good).unwrap();
    assert_eq!(check(healthy.store()).findings, []);
}

#[test]
fn fs_a_damaged_base_that_sandboxes_need_stays_and_one_that_nobody_needs_makes_way() {
    let healthy = healthy();
    let needed = healthy.store().templates().dir(&healthy.template.key);
    harm(&needed.join("ram.base"), Harm::Flip(4099));
    let other = healthy.store().templates().dir(&types::ContentId::from_hash(&[2; 32]));
    harm(&other.join("ram.base"), Harm::Flip(4099));
    let mut report = check(healthy.store());
    assert_eq!(report.left(Severity::Error), 2, "{report:#?}");
    repair(healthy.store(), &mut report);
    assert_eq!(report.left(Severity::Error), 1, "{report:#?}");
    assert!(needed.exists() && !other.exists());
    let left = check(healthy.store());
    assert_eq!(errors(&left).len(), 1);
    assert_eq!(errors(&left)[0].needed_by, ["sandbox asleep"]);
    assert!(errors(&left)[0].repair.is_none());
}

#[test]
fn fs_what_crashes_left_is_finished_removed_or_sealed() {
    for alone in [true, false] {
        let healthy = healthy();
        let store = healthy.store();
        let root = healthy.root();
        let company = Company { alone, ..healthy::alone() };
        // A freeze that was cut between its two renames.
        let (dir, _) = named(store, &healthy.template, "frozen");
        healthy::overlay(
            &dir.root_disk_path(StorageLayout::Overlay),
            &bhatti_storage::object_from_machine_dir(&healthy.template.spec.image.id),
            2,
        );
        let mut freeze = dir.begin_freeze(store).unwrap();
        healthy::overlay(freeze.top_path(), &freeze.backing().clone(), 0);
        freeze.prepare().unwrap();
        let layer = freeze.layer().clone();
        freeze.turned();
        drop(freeze);
        fs::rename(dir.path().join("manifest.json.new"), dir.path().join("manifest.json")).unwrap();
        // Memory that a running manifest does not name, sockets, and what was never committed.
        fs::write(dir.path().join("mem.snap"), "consumed").unwrap();
        drop(std::os::unix::net::UnixListener::bind(short(&dir.path().join("qmp.sock"))).unwrap());
        for left in
            ["sandboxes/.new-0123456789abcdef", "sandboxes/.gone-0123456789abcdef", "snapshots/admin/.new-x"]
        {
            fs::create_dir_all(root.join(left)).unwrap();
            age(&root.join(left));
        }
        for left in
            ["bases/.new-1", "images/objects/.new-1", "layers/.gone-1", "layers/0123456789abcdef.json.new"]
        {
            fs::write(root.join(left), "x").unwrap();
            age(&root.join(left));
        }
        let mut report = check_in(store, &company);
        assert_eq!(errors(&report), Vec::<&Finding>::new());
        store.repair(&mut report, &company, &|_| false);
        assert_eq!(report.left(Severity::Warning), 0, "{report:#?}");
        assert_eq!(tree(&root.join("layers")).iter().filter(|name| name.starts_with('.')).count(), 0);
        assert_eq!(tree(&root.join("snapshots/admin")), ["disk", "kept"]);
        if alone {
            assert_eq!(tree(dir.path()), ["config.ext4", "manifest.json", "rootfs.qcow2"]);
            assert_eq!(store.layers().verify(&layer).unwrap(), Some(true), "it was sealed");
            assert_eq!(check(store).findings, []);
        } else {
            // The sandbox's owner tidies it.
            assert!(dir.path().join("mem.snap").exists());
        }
    }
}

/// Makes it as old as what a crash leaves is.
fn age(path: &Path) {
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    File::open(path).unwrap().set_modified(old).unwrap();
}

/// A socket's path must be short: one relative to its directory.
fn short(path: &Path) -> PathBuf {
    let dir = File::open(path.parent().unwrap()).unwrap();
    use std::os::fd::IntoRawFd;
    // Left open on purpose: the path goes through it.
    PathBuf::from(format!("/proc/self/fd/{}", dir.into_raw_fd())).join(path.file_name().unwrap())
}

#[test]
fn fs_files_of_others_are_moved_away_and_those_in_sandboxes_are_told() {
    let healthy = healthy();
    let root = healthy.root();
    for name in ["layers/notes.txt", "bases/x", "images/objects/backup.ext4", "kernel/old", "templates/mine"]
    {
        fs::write(root.join(name), name).unwrap();
    }
    fs::create_dir_all(root.join("sandboxes/0123456789abcdef.bak/deep")).unwrap();
    fs::write(root.join("sandboxes/0123456789abcdef.bak/deep/file"), "kept").unwrap();
    // What lies behind a link is nobody's business here.
    let elsewhere = root.with_file_name("elsewhere");
    fs::create_dir_all(elsewhere.join("one")).unwrap();
    fs::create_dir_all(elsewhere.join(".new-two")).unwrap();
    fs::write(elsewhere.join("one/manifest.json"), "{").unwrap();
    let theirs = contents(&elsewhere);
    std::os::unix::fs::symlink(&elsewhere, root.join("snapshots/elsewhere")).unwrap();
    fs::write(healthy.raw.path().join("todo.txt"), "mine").unwrap();
    let before = contents(&root.join("sandboxes"));
    let mut report = check(healthy.store());
    assert_eq!((report.left(Severity::Error), report.left(Severity::Note)), (0, 1), "{report:#?}");
    assert_eq!(report.left(Severity::Warning), 7, "{report:#?}");
    assert_eq!(contents(&root.join("sandboxes")), before, "checking changes nothing");
    repair(healthy.store(), &mut report);
    assert_eq!(report.left(Severity::Warning), 0, "{report:#?}");
    assert_eq!(tree(&root.join("quarantine")).len(), 7);
    assert_eq!(
        (contents(&elsewhere), tree(&elsewhere)),
        (theirs, vec![".new-two".to_owned(), "one".to_owned()])
    );
    assert!(healthy.raw.path().join("todo.txt").exists());
    // Foreign files may need nothing: what nobody names can still be collected.
    assert_eq!(healthy.store().gc_plan(&alone()).unwrap().unreadable, Vec::<String>::new());
}

#[test]
fn fs_a_check_that_is_called_off_tells_what_it_found_so_far() {
    let healthy = healthy();
    harm(&healthy.file("images/objects", ".ext4"), Harm::Flip(IMAGE_DATA));
    let cancel = AtomicBool::new(false);
    let options = FsckOptions {
        progress: &|progress| {
            if progress.what.starts_with("kernel") {
                cancel.store(true, Ordering::Relaxed);
            }
        },
        cancel: &cancel,
        check_overlay: None,
        is_known: &|_| false,
    };
    let report = healthy.store().fsck(&alone(), &options).unwrap();
    assert!(!report.complete);
    assert_eq!(report.left(Severity::Error), 1);
    assert_eq!(report.checked.sandboxes, 0);
}

#[test]
fn fs_two_sandboxes_of_one_name_and_a_layer_on_another_base_are_told() {
    let healthy = healthy();
    named(healthy.store(), &healthy.template, "asleep");
    let layer = healthy.file("layers", ".qcow2");
    let mut bytes = fs::read(&layer).unwrap();
    bytes[112 + 20..112 + 30].copy_from_slice(b"0000000000");
    fs::set_permissions(&layer, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&layer, bytes).unwrap();
    let report = check(healthy.store());
    assert!(report.findings.iter().any(|finding| finding.what.contains("same owner")), "{report:#?}");
    let chain = report.findings.iter().find(|finding| finding.what.contains("lies on ../../images")).unwrap();
    assert!(matches!(&chain.subject, Subject::Sandbox(_, Some(name)) if name.as_str() == "owning"));
}

#[test]
fn fs_a_sandbox_that_stops_and_wakes_while_it_is_checked_is_never_a_finding() {
    let healthy = healthy();
    let store = healthy.store();
    let done = AtomicBool::new(false);
    let company = Company { alone: false, ..alone() };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let dir = &healthy.asleep;
            for round in 0..60u8 {
                let running = dir.manifest().unwrap().into_running();
                dir.commit(&running).unwrap();
                dir.drop_consumed_memory().unwrap();
                stop(dir, running, &Ram::with((0..200).map(|page| (page, round))));
                if round % 5 == 0 {
                    healthy::freeze(store, dir);
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let (dir, _) = named(store, &healthy.template, "brief");
                let manifest = healthy::freeze(store, &dir);
                dir.destroy().unwrap();
                store.release(&manifest).unwrap();
            }
        });
        let mut rounds = 0;
        while !done.load(Ordering::Relaxed) {
            let report = check_in(store, &company);
            let bad: Vec<_> =
                report.findings.iter().filter(|finding| finding.severity > Severity::Note).collect();
            assert!(bad.is_empty(), "{bad:#?}");
            rounds += 1;
        }
        assert!(rounds > 1);
    });
    assert_eq!(healthy.asleep.manifest().unwrap().state, RunState::Cold);
    assert!(check(store).findings.iter().all(|finding| finding.severity == Severity::Note));
}

#[test]
fn fs_a_damaged_template_is_replaced_only_when_no_memory_lies_over_it() {
    let healthy = healthy();
    let key = &healthy.template.key;
    let refused = healthy.store().templates().remove(key).unwrap_err();
    assert_eq!(refused.kind(), bhatti_storage::ErrorKind::Corrupt);
    assert!(refused.to_string().contains("sandbox asleep"), "{refused}");
    healthy.asleep.discard_memory(healthy.asleep.manifest().unwrap()).unwrap();
    healthy.store().templates().remove(key).unwrap();
}
