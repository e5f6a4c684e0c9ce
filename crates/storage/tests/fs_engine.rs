//! Freezing, snapshots, bases of their own and who is counted, on whatever filesystem `BHATTI_TEST_ROOT` names.

#![allow(clippy::unwrap_used, missing_docs)]

mod fixtures;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use bhatti_storage::{
    ErrorKind, LeftoverKind, Manifest, MemoryHeader, PageSource as _, RamBase, SandboxDir, Store, Unchanged,
};
use types::{Bytes, Owner, SnapshotName, StorageLayout};

use fixtures::{LAYOUTS, MEMORY, Ram, open, sandbox, stop, template, tree};

/// An empty qcow2 overlay of 64 MiB, as `qemu-img create` lays it out: header, reference counts, first-level table.
fn make_top(path: &Path) {
    let mut file = vec![0u8; 196_624];
    file[..4].copy_from_slice(b"QFI\xfb");
    file[24..32].copy_from_slice(&(64u64 << 20).to_be_bytes());
    file[36..40].copy_from_slice(&2u32.to_be_bytes());
    file[40..48].copy_from_slice(&196_608u64.to_be_bytes());
    fs::write(path, file).unwrap();
}

fn freeze(store: &Store, dir: &SandboxDir) -> Manifest {
    let mut freeze = dir.begin_freeze(store).unwrap();
    make_top(freeze.top_path());
    freeze.prepare().unwrap();
    freeze.commit().unwrap()
}

/// A sandbox whose root disk is a real overlay header, so that it can be frozen.
fn overlaid(store: &Store, layout: StorageLayout) -> (SandboxDir, Manifest) {
    let (dir, manifest) = sandbox(store, &template(store, layout, 1));
    if layout == StorageLayout::Overlay {
        make_top(&dir.root_disk_path(layout));
    }
    (dir, manifest)
}

fn name(text: &str) -> SnapshotName {
    text.parse().unwrap()
}

#[test]
fn fs_a_frozen_disk_is_a_layer_and_an_empty_top_takes_its_place() {
    for layout in LAYOUTS {
        let bench = open();
        let (dir, before) = overlaid(&bench.store, layout);
        let old = fs::metadata(dir.root_disk_path(layout)).unwrap();
        let after = freeze(&bench.store, &dir);
        assert_eq!(after.layers.len(), 1);
        assert_eq!((after.generation, after.state), (before.generation, before.state));
        assert_eq!(after.layout, StorageLayout::Overlay);
        let layer = bench.store.layers().path(&after.layers[0]);
        let frozen = fs::metadata(&layer).unwrap();
        assert_eq!((frozen.ino(), frozen.mode() & 0o777, frozen.nlink()), (old.ino(), 0o444, 1));
        assert!(dir.top_is_empty(&after).unwrap());
        assert_eq!(dir.manifest().unwrap(), after);
        assert_eq!(tree(dir.path()), ["config.ext4", "manifest.json", "rootfs.qcow2"]);
        let below = bench.store.layers().below(&after).unwrap();
        assert_eq!(dir.path().join(&below[0].1).canonicalize().unwrap(), layer);
        assert!(bench.store.reconcile_plan().unwrap().is_empty());
    }
}

#[test]
fn fs_a_freeze_that_is_given_up_leaves_all_as_it_was() {
    let bench = open();
    let (dir, before) = overlaid(&bench.store, StorageLayout::Overlay);
    let files = tree(&bench.root);
    let mut freeze = dir.begin_freeze(&bench.store).unwrap();
    make_top(freeze.top_path());
    freeze.prepare().unwrap();
    drop(freeze);
    assert_eq!((tree(&bench.root), dir.manifest().unwrap()), (files, before));
}

#[test]
fn fs_a_freeze_cut_anywhere_is_finished_or_never_happened() {
    for layout in LAYOUTS {
        for cut in 0..4 {
            let bench = open();
            let (dir, before) = overlaid(&bench.store, layout);
            let mut freeze = dir.begin_freeze(&bench.store).unwrap();
            make_top(freeze.top_path());
            freeze.prepare().unwrap();
            let layer = freeze.layer().clone();
            let after = freeze.manifest().clone();
            // As the power's end leaves it: nothing is tidied by a destructor.
            freeze.turned();
            drop(freeze);
            if cut >= 1 {
                fs::rename(dir.path().join("manifest.json.new"), dir.path().join("manifest.json")).unwrap();
            }
            if cut >= 2 {
                let top = dir.path().join(format!("rootfs-{}.new", layer.id));
                fs::rename(top, dir.root_disk_path(StorageLayout::Overlay)).unwrap();
            }
            if cut >= 3 && layout == StorageLayout::Reflink {
                fs::remove_file(dir.root_disk_path(layout)).unwrap();
            }
            let store = Store::open(&bench.root).unwrap();
            let report = store.execute(&store.reconcile_plan().unwrap());
            assert!(report.failed.is_empty(), "{:?}", report.failed);
            let found = dir.manifest().unwrap();
            assert_eq!(found, if cut == 0 { before } else { after }, "cut {cut}");
            let top = fs::metadata(dir.root_disk_path(found.layout)).unwrap();
            let shared = fs::metadata(store.layers().path(&layer)).is_ok_and(|meta| meta.ino() == top.ino());
            assert_eq!(shared, cut == 0, "cut {cut}: the top lies on itself");
            assert!(
                dir.path()
                    .read_dir()
                    .unwrap()
                    .all(|entry| { !entry.unwrap().file_name().to_string_lossy().ends_with(".new") })
            );
        }
    }
}

#[test]
fn fs_a_snapshot_is_whole_or_not_there_and_outlives_its_source() {
    let bench = open();
    let store = &bench.store;
    let (dir, running) = overlaid(store, StorageLayout::Overlay);
    let cold = stop(&dir, running, &Ram::with([(3, 7), (4, 8)]));
    let owner = Owner::admin();
    let staged = store.snapshots().stage(&owner, &name("one")).unwrap();
    assert_eq!(store.snapshots().stage(&owner, &name("one")).unwrap_err().kind(), ErrorKind::Busy);
    drop(staged);
    let manifest = freeze(store, &dir);
    assert_eq!(manifest.memory, cold.memory);
    let staged = store.snapshots().stage(&owner, &name("one")).unwrap();
    staged.take_config(&dir).unwrap();
    staged.take_root(&dir.root_disk_path(StorageLayout::Overlay), StorageLayout::Overlay).unwrap();
    staged.take_memory(&dir).unwrap();
    let record = staged.commit(None, Duration::from_millis(12), manifest.clone()).unwrap();
    assert!(!record.disk_only());
    assert_eq!(store.snapshots().stage(&owner, &name("one")).unwrap_err().kind(), ErrorKind::Exists);

    // The source wakes, forgets its memory, and goes.
    dir.commit(&manifest.clone().into_running()).unwrap();
    dir.drop_consumed_memory().unwrap();
    let gone = dir.manifest().unwrap();
    dir.destroy().unwrap();
    store.release(&gone).unwrap();
    let snapshot = store.snapshots().open(&owner, &name("one")).unwrap();
    assert_eq!(snapshot.record(), &record);
    let mut ram = Ram::default();
    snapshot.open_memory().unwrap().unwrap().load(&mut ram).unwrap();
    assert_eq!(ram, Ram::with([(3, 7), (4, 8)]));
    assert!(snapshot.open_devices().unwrap().is_some());
    assert!(store.layers().path(&manifest.layers[0]).exists());

    let held = snapshot.hold().unwrap();
    assert_eq!(store.snapshots().remove(&owner, &name("one")).unwrap_err().kind(), ErrorKind::Busy);
    drop(held);
    store.snapshots().remove(&owner, &name("one")).unwrap();
    store.release(&record.sandbox).unwrap();
    assert!(!store.layers().path(&manifest.layers[0]).exists(), "nobody names it any more");
    assert_eq!(store.snapshots().open(&owner, &name("one")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn fs_a_damaged_snapshot_is_refused_and_can_be_removed() {
    let bench = open();
    let store = &bench.store;
    let (dir, running) = overlaid(store, StorageLayout::Overlay);
    stop(&dir, running, &Ram::with([(3, 7)]));
    let manifest = freeze(store, &dir);
    let owner = Owner::admin();
    for what in ["manifest.json", "mem.snap", "vm.snap"] {
        let staged = store.snapshots().stage(&owner, &name("one")).unwrap();
        staged.take_config(&dir).unwrap();
        staged.take_root(&dir.root_disk_path(StorageLayout::Overlay), StorageLayout::Overlay).unwrap();
        staged.take_memory(&dir).unwrap();
        staged.commit(None, Duration::ZERO, manifest.clone()).unwrap();
        let path = bench.root.join("snapshots/admin/one").join(what);
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let mut damaged = bytes.clone();
        let at = damaged.len().min(80) / 2;
        damaged[at] ^= 1;
        fs::write(&path, damaged).unwrap();
        let found = store.snapshots().open(&owner, &name("one")).and_then(|snapshot| {
            snapshot.open_memory()?;
            snapshot.open_devices()
        });
        let error = found.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}");
        assert!(format!("{error} {:?}", error.hint()).contains("snapshot"), "{what}: {error}");
        store.snapshots().remove(&owner, &name("one")).unwrap();
    }
}

#[test]
fn fs_a_layer_is_kept_while_anything_names_or_pins_it() {
    let bench = open();
    let store = &bench.store;
    let (dir, _) = overlaid(store, StorageLayout::Overlay);
    let manifest = freeze(store, &dir);
    let layer = store.layers().path(&manifest.layers[0]);
    store.layers().seal(&manifest.layers[0]).unwrap();
    assert_eq!(store.layers().verify(&manifest.layers[0]).unwrap(), Some(true));
    store.release(&manifest).unwrap();
    assert!(layer.exists(), "its sandbox names it");
    let pin = store.pin(&manifest);
    dir.destroy().unwrap();
    store.release(&manifest).unwrap();
    assert!(layer.exists(), "it is pinned");
    drop(pin);
    store.release(&manifest).unwrap();
    assert_eq!(fs::read_dir(bench.root.join("layers")).unwrap().count(), 0);
}

#[test]
fn fs_a_manifest_that_cannot_be_read_keeps_every_layer() {
    let bench = open();
    let store = &bench.store;
    let (dir, _) = overlaid(store, StorageLayout::Overlay);
    let (other, _) = sandbox(store, &template(store, StorageLayout::Overlay, 2));
    let manifest = freeze(store, &dir);
    fs::write(other.path().join("manifest.json"), "{").unwrap();
    dir.destroy().unwrap();
    assert!(store.release(&manifest).is_err());
    assert!(store.layers().path(&manifest.layers[0]).exists());
}

#[test]
fn fs_a_base_of_its_own_is_what_lay_below_with_the_changes_on_top() {
    let bench = open();
    let store = &bench.store;
    let template = template(store, StorageLayout::Overlay, 1);
    let under = template.ram_base();
    // Pages 0 to 99 of the template hold nines; page 5 is cleared, page 200 is new.
    let mut ram = Ram::with([(200, 4)]);
    ram.0.insert(5, vec![0; 4096]);
    // Zeros over its holes are nothing new, zeros over what it holds are.
    let cleared = [150, 151, 153, 399].map(|page| (page, vec![0; 4096]));
    let given_back = Ram(ram.0.clone().into_iter().chain(cleared).chain([(152, vec![7; 4096])]).collect());
    let trimmed = store.trimmed(&under, &given_back).unwrap();
    let pages: Vec<u64> = trimmed.private_runs().unwrap().iter().map(|run| run.start.0 / 4096).collect();
    assert_eq!((pages, trimmed.kept()), (vec![5, 152, 200], Bytes(3 * 4096)));
    let over_nothing = store.trimmed(&RamBase::Zero, &given_back).unwrap();
    assert_eq!(over_nothing.kept(), Bytes(2 * 4096));

    let (base, report, _) = store.write_own_base(&under, MEMORY, &ram).unwrap();
    assert_eq!(report.private, Bytes(100 * 4096));
    let RamBase::Own { ram: id } = &base else { panic!("{base:?}") };
    let path = bench.root.join(format!("bases/{id}.ram"));
    let file = File::open(&path).unwrap();
    let byte = |page: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, page * 4096 + 17).unwrap();
        byte[0]
    };
    assert_eq!([byte(0), byte(5), byte(99), byte(100), byte(200)], [9, 0, 9, 0, 4]);
    assert_eq!(file.metadata().unwrap().len(), MEMORY.bytes().0);
    assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o444);
    // The same memory has the same name, however it came about.
    let whole = Ram((0..100)
        .filter(|&page| page != 5)
        .map(|page| (page, vec![9; 4096]))
        .chain(ram.0.clone())
        .collect());
    let (again, ..) = store.write_own_base(&RamBase::Zero, MEMORY, &whole).unwrap();
    assert_eq!(again, base);
    let (on_top, ..) = store.write_own_base(&base, MEMORY, &Ram::with([(5, 9)])).unwrap();
    assert_ne!(on_top, base);

    let (dir, running) = sandbox(store, &template);
    let manifest = Manifest { ram_base: base.clone(), ..running };
    let header = MemoryHeader { generation: manifest.generation, base: base.id() };
    let memory = dir.stage_memory(&Unchanged(MEMORY.bytes()), header, 1).unwrap();
    assert_eq!(memory.stats().private, Bytes(0));
    fs::write(dir.stage_devices().unwrap(), "devices").unwrap();
    let cold = dir.commit_cold(memory, manifest, true).unwrap();
    assert!(store.ram_base(&cold.ram_base, MEMORY).unwrap().ends_with(format!("bases/{id}.ram")));
    store.release(&cold).unwrap();
    assert!(path.exists(), "a sleeping sandbox lies over it");
    dir.destroy().unwrap();
    store.release(&cold).unwrap();
    assert!(!path.exists());
}

#[test]
fn fs_what_crashes_leave_of_snapshots_and_bases_is_removed() {
    let bench = open();
    let store = &bench.store;
    let snapshots = bench.root.join("snapshots");
    fs::create_dir_all(snapshots.join("admin/.new-half")).unwrap();
    fs::create_dir_all(snapshots.join("admin/.gone-old")).unwrap();
    fs::create_dir_all(snapshots.join(".new-0123")).unwrap();
    fs::write(bench.root.join("bases/.new-0123"), "x").unwrap();
    let living = store.snapshots().stage(&Owner::admin(), &name("living")).unwrap();
    let plan = store.reconcile_plan().unwrap();
    let held: Vec<_> = plan.iter().filter(|leftover| leftover.held).collect();
    assert_eq!(held.len(), 1);
    assert_eq!(held[0].kind, LeftoverKind::StagedSnapshot);
    let report = store.execute(&plan);
    assert!(report.failed.is_empty());
    assert_eq!(report.removed.len(), 4);
    drop(living);
    assert_eq!(tree(&snapshots), ["admin"]);
}
