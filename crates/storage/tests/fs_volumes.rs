//! Volumes in the store: made whole or not at all, locked, replaced, told by `fsck`, and tidied after a crash.

#![allow(clippy::unwrap_used, missing_docs)]

mod fixtures;
#[path = "fixtures/healthy.rs"]
#[allow(dead_code)]
mod healthy;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::Duration;

use bhatti_storage::{
    ErrorKind, LeftoverKind, RunState, Severity, Store, VolumeRecord, VolumeRef, snapshot_volume,
    volume_from_machine_dir,
};
use types::{Bytes, CloneMethod, Owner, VolumeName};

use fixtures::{Bench, open};
use healthy::{alone, check, healthy};

const MIB: u64 = 1 << 20;

fn name(text: &str) -> VolumeName {
    text.parse().unwrap()
}

fn path(store: &Store, file: &str) -> PathBuf {
    store.root().join("volumes/admin").join(file)
}

fn make(store: &Store, volume: &str, data: &[u8]) {
    let staged = store.volumes().stage(&Owner::admin()).unwrap();
    staged.set_size(Bytes(8 * MIB)).unwrap();
    staged.file().write_all_at(data, MIB).unwrap();
    staged.commit(&VolumeRecord::new(Owner::admin(), name(volume))).unwrap();
}

fn names(store: &Store) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(store.root().join("volumes/admin"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn fs_a_volume_is_made_whole_or_not_at_all() {
    let Bench { store, .. } = &open();
    let volumes = store.volumes();
    assert_eq!(volumes.of(&Owner::admin()).unwrap().len(), 0);
    assert_eq!(volumes.open(&Owner::admin(), &name("data")).unwrap_err().kind(), ErrorKind::NotFound);
    drop(volumes.stage(&Owner::admin()).unwrap());
    assert!(names(store).is_empty(), "what is dropped leaves nothing");
    make(store, "data", b"content");
    assert_eq!(names(store), ["data.ext4", "data.json"]);
    let volume = volumes.open(&Owner::admin(), &name("data")).unwrap();
    assert_eq!((volume.size, volume.record.made_for.is_none()), (Bytes(8 * MIB), true));
    assert!(volume.allocated.0 < MIB, "it is sparse: {}", volume.allocated);
    assert_eq!(volume.path().metadata().unwrap().mode() & 0o777, 0o600);
    let again = volumes.stage(&Owner::admin()).unwrap();
    let taken = again.commit(&VolumeRecord::new(Owner::admin(), name("data"))).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Exists);
    assert_eq!(names(store), ["data.ext4", "data.json"]);
    let seen = store.root().join("sandboxes/x").join(volume_from_machine_dir(&Owner::admin(), &name("data")));
    fs::create_dir(store.root().join("sandboxes/x")).unwrap();
    assert!(seen.exists(), "a VMM finds it from its directory");
    volumes.remove(&Owner::admin(), &name("data")).unwrap();
    assert!(names(store).is_empty());
    assert_eq!(volumes.remove(&Owner::admin(), &name("data")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn fs_one_writes_or_many_read_and_nothing_is_removed_meanwhile() {
    let Bench { store, .. } = &open();
    make(store, "data", b"old");
    let (volumes, owner, data) = (store.volumes(), Owner::admin(), name("data"));
    let held = volumes.lock(&owner, &data).unwrap();
    for error in [
        volumes.lock(&owner, &data).unwrap_err(),
        volumes.share(&owner, &data).unwrap_err(),
        volumes.remove(&owner, &data).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.to_string().contains("volume data"), "{error}");
    }
    assert_eq!(volumes.grow(&held, Bytes(MIB)).unwrap_err().kind(), ErrorKind::Invalid);
    volumes.grow(&held, Bytes(16 * MIB)).unwrap();
    drop(held);
    let readers = [volumes.share(&owner, &data).unwrap(), volumes.share(&owner, &data).unwrap()];
    assert_eq!(volumes.lock(&owner, &data).unwrap_err().kind(), ErrorKind::Busy);
    drop(readers);
    // Replaced: another file under the same name, and nobody could open it before it had that.
    let lock = volumes.lock(&owner, &data).unwrap();
    let staged = volumes.stage(&owner).unwrap();
    staged.set_size(Bytes(8 * MIB)).unwrap();
    staged.file().write_all_at(b"new", MIB).unwrap();
    staged.replace(lock).unwrap();
    let volume = volumes.open(&owner, &data).unwrap();
    let mut content = [0; 3];
    File::open(volume.path()).unwrap().read_exact_at(&mut content, MIB).unwrap();
    assert_eq!((&content, volume.size), (b"new", Bytes(8 * MIB)));
    assert!(volumes.lock(&owner, &data).is_ok());
    assert_eq!(names(store), ["data.ext4", "data.json"]);
}

#[test]
fn fs_a_clone_has_the_same_content_by_the_way_that_the_filesystem_has() {
    let Bench { store, .. } = &open();
    make(store, "data", &[7; 300_000]);
    let volumes = store.volumes();
    let from = volumes.open(&Owner::admin(), &name("data")).unwrap();
    let staged = volumes.stage(&Owner::admin()).unwrap();
    let report = staged.copy_of(from.path()).unwrap();
    let reflink = store.volumes_reflink().unwrap();
    assert_eq!(report.method == CloneMethod::Reflink, reflink);
    assert_eq!(volumes.stage(&Owner::admin()).unwrap().share_extents_of(from.path()).unwrap(), reflink);
    let clone = staged.commit(&VolumeRecord::new(Owner::admin(), name("clone"))).unwrap();
    assert_eq!(fs::read(clone.path()).unwrap(), fs::read(from.path()).unwrap());
    assert!(clone.allocated.0 < MIB, "holes stay holes: {}", clone.allocated);
    assert_eq!(names(store), ["clone.ext4", "clone.json", "data.ext4", "data.json"]);
}

#[test]
fn fs_what_a_crash_leaves_of_volumes_is_tidied_and_what_is_used_is_not() {
    let healthy = healthy();
    let store = healthy.store();
    for volume in ["data", "orphan", "own", "held"] {
        make(store, volume, b"x");
    }
    let made_for = |volume: &str, id: &str| {
        let record = VolumeRecord {
            made_for: Some(id.parse().unwrap()),
            ..VolumeRecord::new(Owner::admin(), name(volume))
        };
        let staged = store.volumes().stage(&Owner::admin()).unwrap();
        store.volumes().remove(&Owner::admin(), &name(volume)).unwrap();
        staged.set_size(Bytes(MIB)).unwrap();
        staged.commit(&record).unwrap();
    };
    made_for("orphan", "00000000000000aa");
    made_for("held", "00000000000000bb");
    made_for("own", healthy.owning.id().as_str());
    for leftover in [".new-0123.ext4", ".gone-old.ext4", "gone.json", "data.json.new"] {
        fs::write(path(store, leftover), "x").unwrap();
    }
    let locked = store.volumes().share(&Owner::admin(), &name("held")).unwrap();
    let plan = store.reconcile_plan().unwrap();
    let held: Vec<_> = plan.iter().filter(|leftover| leftover.held).collect();
    assert!(matches!(held[..], [one] if one.kind == LeftoverKind::OrphanedVolume), "{held:?}");
    let report = store.execute(&plan);
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    assert_eq!(names(store), ["data.ext4", "data.json", "held.ext4", "held.json", "own.ext4", "own.json"]);
    drop(locked);
    // A sandbox that a repair put aside may come back, and wants its volumes then.
    fs::create_dir_all(store.root().join("quarantine/20250101-sandbox-00000000000000bb")).unwrap();
    assert_eq!(store.reconcile_plan().unwrap(), []);
    fs::remove_dir_all(store.root().join("quarantine")).unwrap();
    let failed = store.execute(&store.reconcile_plan().unwrap()).failed;
    assert!(failed.is_empty() && !path(store, "held.ext4").exists());
    store.volumes().set_free(&Owner::admin(), &name("own")).unwrap();
    assert_eq!(store.volumes().open(&Owner::admin(), &name("own")).unwrap().record.made_for, None);
}

#[test]
fn fs_a_lost_record_and_a_lost_volume_are_found_and_the_record_is_made_anew() {
    let healthy = healthy();
    let store = healthy.store();
    make(store, "data", b"x");
    assert!(check(store).findings.is_empty(), "{:?}", check(store).findings);
    fs::write(path(store, "data.json"), "{}").unwrap();
    fs::write(path(store, "what.ever"), "x").unwrap();
    let mut report = check(store);
    assert_eq!(store.volumes().open(&Owner::admin(), &name("data")).unwrap_err().kind(), ErrorKind::Corrupt);
    let found: Vec<_> =
        report.findings.iter().map(|finding| (finding.severity, finding.subject.kind())).collect();
    assert_eq!(found, [(Severity::Error, "volume"), (Severity::Warning, "stray")]);
    store.repair(&mut report, &alone(), &|_| false);
    assert_eq!(report.left(Severity::Error), 0, "{:?}", report.findings);
    assert!(store.volumes().open(&Owner::admin(), &name("data")).is_ok());
    assert!(!path(store, "what.ever").exists());

    let mut manifest = healthy.owning.manifest().unwrap();
    manifest.volumes =
        vec![VolumeRef { name: name("lost"), mount: "/lost".parse().unwrap(), read_only: false, port: 0 }];
    manifest.generation += 1;
    manifest.memory = None;
    manifest.state = RunState::Off;
    healthy.owning.commit(&manifest).unwrap();
    let report = check(store);
    let missing = report.findings.iter().find(|finding| finding.severity == Severity::Error).unwrap();
    assert!(
        missing.what.contains("volume lost is missing") && missing.way_out.contains("detach lost"),
        "{missing:?}"
    );
}

#[test]
fn fs_a_snapshot_needs_the_clones_of_all_volumes_that_were_written() {
    let healthy = healthy();
    let store = healthy.store();
    make(store, "data", b"in the snapshot");
    let mut manifest = healthy.raw.manifest().unwrap();
    (manifest.state, manifest.memory) = (RunState::Off, None);
    let volume = |text: &str, port, read_only| VolumeRef {
        name: name(text),
        mount: format!("/{text}").parse().unwrap(),
        read_only,
        port,
    };
    manifest.volumes = vec![volume("data", 0, false), volume("shared", 2, true)];
    let stage = |snapshot: &str| {
        let staged = store.snapshots().stage(&Owner::admin(), &snapshot.parse().unwrap()).unwrap();
        staged.take_config(&healthy.raw).unwrap();
        staged.take_root(&healthy.raw.root_disk_path(manifest.layout), manifest.layout).unwrap();
        staged
    };
    let error = stage("without").commit(None, Duration::ZERO, manifest.clone()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let staged = stage("with");
    staged.take_volume(store, &Owner::admin(), &name("data")).unwrap();
    staged.commit(None, Duration::ZERO, manifest).unwrap();
    let kept = store.root().join("snapshots/admin/with").join(snapshot_volume(&name("data")));
    assert_eq!(kept.metadata().unwrap().mode() & 0o777, 0o400);
    store.volumes().remove(&Owner::admin(), &name("data")).unwrap();
    let mut content = [0; 15];
    File::open(kept).unwrap().read_exact_at(&mut content, MIB).unwrap();
    assert_eq!(&content, b"in the snapshot");
}
