//! The store's promises on whatever filesystem `BHATTI_TEST_ROOT` names (default: one under `target/`). Nothing here
//! knows a filesystem by its name: what is expected follows from what `probe` found.

#![allow(clippy::unwrap_used, missing_docs)]

mod fixtures;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use bhatti_storage::{ErrorKind, LeftoverKind, Manifest, MemoryHeader, RunState, Store, layout};
use types::{Arch, Bytes, CloneMethod, Mebibytes, SandboxId, StorageLayout};

use fixtures::{LAYOUTS, MEMORY, Ram, image, mode, open, sandbox, stop, template, tree};

#[test]
fn a_clone_takes_the_way_that_the_probe_found_and_is_private() {
    let bench = open();
    let can = bench.store.probe().unwrap();
    println!("{can:?}");
    assert!(can.total > can.free && can.free.0 > 0);
    let record = image(&bench.store, 5);
    let object = bench.store.images().object_path(&record.id);
    let to = bench.root.join("clone");
    let report = bhatti_storage::clone_file(&object, &to).unwrap();
    match can.reflink {
        true => assert_eq!((report.method, report.bytes_copied), (CloneMethod::Reflink, Bytes(0))),
        false => assert_eq!((report.method, report.bytes_copied), (CloneMethod::SparseCopy, Bytes(1 << 20))),
    }
    let meta = fs::metadata(&to).unwrap();
    assert_eq!((meta.len(), meta.mode() & 0o777), (64 << 20, 0o600));
    if can.sparse {
        assert!(meta.blocks() * 512 <= 2 << 20, "{} blocks", meta.blocks());
    }
    fs::write(&to, "mine now").unwrap();
    assert_eq!(image(&bench.store, 5).id, record.id, "the base is as it was");
    assert!(!tree(&bench.root).iter().any(|name| name.contains(".new")), "the probe left nothing");
}

#[test]
fn an_image_is_named_by_its_content_and_a_name_can_move_on() {
    let bench = open();
    let first = image(&bench.store, 1);
    assert_eq!(image(&bench.store, 1).id, first.id);
    let second = image(&bench.store, 2);
    let name = first.name.clone();
    assert_eq!(bench.store.images().resolve(&name, Arch::Amd64).unwrap(), second);
    assert_eq!(bench.store.images().list().unwrap().iter().collect::<Vec<_>>(), [&second]);
    let link = bench.root.join("images/rootfs-minimal-amd64.ext4");
    assert_eq!(fs::read(&link).unwrap()[8 << 20], 2);
    for path in [bench.store.images().object_path(&first.id), link] {
        assert_eq!(mode(&path), 0o444, "{}", path.display());
    }
    assert_eq!(
        tree(&bench.root.join("images")),
        ["blobs", "objects", "rootfs-minimal-amd64.ext4", "rootfs-minimal-amd64.json"]
    );
    assert_eq!(tree(&bench.root.join("images/objects")).len(), 2);

    let unknown = bench.store.images().resolve(&"nope".parse().unwrap(), Arch::Amd64).unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    assert!(unknown.to_string().contains("bhatti image list"), "{unknown}");
    let empty = bench.store.images().stage().unwrap();
    assert_eq!(empty.commit(&name, Arch::Amd64, "").unwrap_err().kind(), ErrorKind::Invalid);
    fs::remove_file(bench.store.images().object_path(&second.id)).unwrap();
    assert_eq!(bench.store.images().resolve(&name, Arch::Amd64).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn a_kernel_is_current_for_its_architecture_and_older_ones_stay() {
    let bench = open();
    let make = |content: &str| {
        let staged = bench.store.kernel().stage().unwrap();
        fs::write(staged.vmlinuz_path(), content).unwrap();
        fs::write(staged.initramfs_path(), "initramfs").unwrap();
        fs::create_dir(staged.dir().join("work")).unwrap();
        fs::write(staged.dir().join("work/package.deb"), "x").unwrap();
        staged.commit(Arch::Amd64, "6.1.0", "0.1.0", "inputs").unwrap()
    };
    assert_eq!(bench.store.kernel().get(Arch::Amd64).unwrap_err().kind(), ErrorKind::NotFound);
    let first = make("one");
    assert_eq!(make("one").id, first.id);
    let second = make("two");
    assert_eq!(bench.store.kernel().get(Arch::Amd64).unwrap(), second);
    assert_eq!(bench.store.kernel().by_id(&first.id).unwrap().id, first.id);
    let dir = bench.root.join("kernel").join(second.id.as_str());
    assert_eq!(tree(&dir), ["initramfs", "manifest.json", "vmlinuz"]);
    let machine_dir = bench.root.join("sandboxes/x");
    fs::create_dir(&machine_dir).unwrap();
    assert_eq!(fs::read_to_string(machine_dir.join(second.vmlinuz_from_machine_dir())).unwrap(), "two");
    assert_eq!(
        fs::read_to_string(machine_dir.join(second.initramfs_from_machine_dir())).unwrap(),
        "initramfs"
    );
}

#[test]
fn a_template_serves_clones_of_both_layouts_and_the_loser_of_a_race_takes_the_winners() {
    let bench = open();
    for (layout, key) in LAYOUTS.into_iter().zip(1..) {
        let first = template(&bench.store, layout, key);
        assert_eq!(template(&bench.store, layout, key), first, "the second one of that key is the first");
        assert_eq!(bench.store.templates().get(&first.key).unwrap().unwrap(), first);
        let dir = bench.store.templates().dir(&first.key);
        for name in [layout::RAM_BASE, layout::VM_SNAP, layout::root_disk(layout)] {
            assert_eq!(mode(&dir.join(name)), 0o444, "{name}");
        }
        let base = fs::metadata(dir.join(layout::RAM_BASE)).unwrap();
        assert_eq!(base.len(), MEMORY.bytes().0);
        assert!(base.blocks() * 512 < 2 << 20);

        let (sandbox, manifest) = sandbox(&bench.store, &first);
        let below = bench.store.ram_base(&manifest.ram_base, MEMORY).unwrap();
        assert!(sandbox.path().join(below).is_file());
        assert_eq!(mode(&sandbox.path().join(layout::root_disk(layout))), 0o600);
        assert_eq!(mode(&sandbox.path().join(layout::CONFIG_DRIVE)), 0o600);
    }
    assert_eq!(bench.store.templates().list().unwrap().len(), 2);
    assert!(bench.store.reconcile_plan().unwrap().is_empty());
}

#[test]
fn a_damaged_template_is_refused_by_name() {
    let bench = open();
    let record = template(&bench.store, StorageLayout::Overlay, 1);
    let dir = bench.store.templates().dir(&record.key);
    fs::remove_file(dir.join(layout::VM_SNAP)).unwrap();
    fs::write(dir.join(layout::VM_SNAP), "template devicez").unwrap();
    let error = bench.store.templates().open_devices(&record).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    fs::remove_file(dir.join(layout::RAM_BASE)).unwrap();
    assert_eq!(bench.store.templates().get(&record.key).unwrap_err().kind(), ErrorKind::Corrupt);
    bench.store.templates().remove(&record.key).unwrap();
    assert!(bench.store.templates().get(&record.key).unwrap().is_none());
    let gone = bench.store.ram_base(&record.ram_base(), MEMORY).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
}

#[test]
fn a_zero_base_is_all_hole_and_stays_one_file() {
    let bench = open();
    let below = bench.store.zero_base(Mebibytes(4096)).unwrap();
    let path = bench.root.join("templates/zero").join(&below);
    let seen = fs::metadata(bench.root.join("templates/zero/4096.ram")).unwrap();
    assert_eq!(
        bench.root.join("sandboxes/x/../../templates/zero/4096.ram"),
        bench.root.join("sandboxes/x").join(below)
    );
    assert_eq!((seen.len(), seen.blocks(), seen.mode() & 0o777), (4 << 30, 0, 0o444), "{}", path.display());
    bench.store.zero_base(Mebibytes(4096)).unwrap();
    assert_eq!(fs::metadata(bench.root.join("templates/zero/4096.ram")).unwrap().ino(), seen.ino());
}

#[test]
fn memory_survives_five_rounds_and_is_valid_for_one_generation_only() {
    let bench = open();
    for (layout, key) in LAYOUTS.into_iter().zip(1..) {
        let template = template(&bench.store, layout, key);
        let (dir, mut manifest) = sandbox(&bench.store, &template);
        for round in 0..5u8 {
            let ram = Ram::with((0..700).step_by(3).map(|page| (page, round + (page % 2) as u8)));
            let cold = stop(&dir, manifest, &ram);
            assert_eq!(dir.manifest().unwrap(), cold);
            assert_eq!(cold.state, RunState::Cold);
            let mem = fs::metadata(dir.path().join(layout::MEM_SNAP)).unwrap();
            assert_eq!(mem.len(), MEMORY.bytes().0);
            assert!(mem.blocks() * 512 < 1 << 20);
            assert!(bench.store.reconcile_plan().unwrap().is_empty());

            let image = dir.open_memory(&cold).unwrap();
            let mut loaded = Ram::default();
            image.load(&mut loaded).unwrap();
            assert_eq!(loaded, ram);
            let devices = dir.open_devices(&cold).unwrap();
            assert_eq!(io::read_to_string(devices).unwrap(), "device state");
            assert_eq!(
                dir.drop_consumed_memory().unwrap_err().kind(),
                ErrorKind::Invalid,
                "it is still valid"
            );

            manifest = cold.clone().into_running();
            dir.commit(&manifest).unwrap();
            let again = Manifest { memory: cold.memory.clone(), state: RunState::Cold, ..manifest.clone() };
            assert_eq!(
                dir.open_memory(&again).unwrap_err().kind(),
                ErrorKind::Corrupt,
                "it is of an older generation"
            );
            assert_eq!(dir.commit(&again).unwrap_err().kind(), ErrorKind::Invalid, "RAM never comes back");
            assert_eq!(
                dir.commit(&cold).unwrap_err().kind(),
                ErrorKind::Invalid,
                "nor does an older generation"
            );
            dir.drop_consumed_memory().unwrap();
            assert_eq!(tree(dir.path()), ["config.ext4", "manifest.json", layout::root_disk(layout)]);
        }
    }
}

#[test]
fn a_failed_stop_leaves_the_sandbox_as_it_was() {
    let bench = open();
    let template = template(&bench.store, StorageLayout::Overlay, 1);
    let (dir, manifest) = sandbox(&bench.store, &template);
    let before = tree(dir.path());
    let header = |generation| MemoryHeader { generation, base: manifest.ram_base.id() };
    let stage = |generation| {
        fs::write(dir.stage_devices().unwrap(), "state").unwrap();
        dir.stage_memory(&Ram::with([(1, 1)]), header(generation), 1).unwrap()
    };
    // another generation
    assert_eq!(dir.commit_cold(stage(9), manifest.clone(), true).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(tree(dir.path()), before);
    // no device state
    let memory = stage(1);
    fs::write(dir.path().join(layout::VM_SNAP_NEW), "").unwrap();
    assert_eq!(dir.commit_cold(memory, manifest.clone(), true).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(tree(dir.path()), before);
    // the machine is of another size than its manifest says
    let bigger = Manifest { memory_mib: Mebibytes(32), ..manifest.clone() };
    assert_eq!(dir.commit_cold(stage(1), bigger, true).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(tree(dir.path()), before);
    // the name is taken by something that a file cannot replace
    fs::create_dir(dir.path().join(layout::VM_SNAP)).unwrap();
    assert!(dir.commit_cold(stage(1), manifest.clone(), true).is_err());
    fs::remove_dir(dir.path().join(layout::VM_SNAP)).unwrap();
    assert_eq!(tree(dir.path()), before);
    assert_eq!(dir.manifest().unwrap(), manifest);
    // it sleeps already
    let ram = Ram::with([(8, 8)]);
    let cold = stop(&dir, manifest.clone(), &ram);
    assert_eq!(dir.commit_cold(stage(1), manifest, true).unwrap_err().kind(), ErrorKind::Invalid);
    let mut loaded = Ram::default();
    dir.open_memory(&cold).unwrap().load(&mut loaded).unwrap();
    assert_eq!(loaded, ram, "what it sleeps on is untouched");
}

#[test]
fn damaged_memory_is_refused_with_the_way_out_and_can_be_given_up() {
    let bench = open();
    let template = template(&bench.store, StorageLayout::Overlay, 1);
    for file in [layout::MEM_SNAP, layout::VM_SNAP] {
        for damage in ["flip", "cut", "missing", "swap"] {
            let (dir, manifest) = sandbox(&bench.store, &template);
            let cold = stop(&dir, manifest, &Ram::with([(1, 1), (2, 2)]));
            let path = dir.path().join(file);
            match damage {
                "flip" => {
                    let file = File::options().write(true).open(&path).unwrap();
                    let at = if path.ends_with(layout::MEM_SNAP) {
                        cold.memory.as_ref().unwrap().mem_content_bytes.0 - 3
                    } else {
                        3
                    };
                    file.write_all_at(&[0x55], at).unwrap();
                }
                "cut" => File::options().write(true).open(&path).unwrap().set_len(5).unwrap(),
                "missing" => fs::remove_file(&path).unwrap(),
                _ => {
                    let (other, manifest) = sandbox(&bench.store, &template);
                    stop(&other, manifest, &Ram::with([(3, 3)]));
                    let content = if file == layout::MEM_SNAP {
                        fs::read(other.path().join(file)).unwrap()
                    } else {
                        b"other state!".to_vec()
                    };
                    fs::write(&path, content).unwrap();
                }
            }
            let error = match file {
                layout::MEM_SNAP => {
                    dir.open_memory(&cold).and_then(|image| image.load(&mut Ram::default())).unwrap_err()
                }
                _ => dir.open_devices(&cold).unwrap_err(),
            };
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{file} {damage}");
            let text = error.to_string();
            for part in [file, cold.name.as_str(), "--discard-memory"] {
                assert!(text.contains(part), "{damage}: {text}");
            }
            let off = dir.discard_memory(cold).unwrap();
            assert_eq!(dir.manifest().unwrap(), off);
            assert_eq!((off.state, off.generation), (RunState::Off, 2));
            assert_eq!(tree(dir.path()), ["config.ext4", "manifest.json", "rootfs.qcow2"]);
        }
    }
}

#[test]
fn one_holder_has_a_disk_and_a_destroyed_sandbox_is_gone() {
    let bench = open();
    let template = template(&bench.store, StorageLayout::Overlay, 1);
    let (dir, manifest) = sandbox(&bench.store, &template);
    assert_eq!(bench.store.stage_sandbox(&manifest.id).unwrap_err().kind(), ErrorKind::Exists);
    let lock = dir.lock_machine().unwrap();
    assert!(dir.is_locked().unwrap());
    assert_eq!(dir.lock_machine().unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(dir.clone().destroy().unwrap_err().kind(), ErrorKind::Busy);
    drop(lock);
    assert!(!dir.is_locked().unwrap());
    dir.clone().destroy().unwrap();
    assert!(tree(&bench.root.join("sandboxes")).is_empty());
    assert_eq!(dir.manifest().unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(dir.destroy().unwrap_err().kind(), ErrorKind::NotFound);
    assert!(bench.store.sandboxes().unwrap().is_empty());
}

#[test]
fn what_crashes_leave_is_planned_then_removed_and_nothing_that_somebody_may_need() {
    let bench = open();
    let template = template(&bench.store, StorageLayout::Overlay, 1);
    let (running, _) = sandbox(&bench.store, &template);
    let (held, _) = sandbox(&bench.store, &template);
    let (broken, _) = sandbox(&bench.store, &template);
    let (cold, manifest) = sandbox(&bench.store, &template);
    stop(&cold, manifest, &Ram::with([(1, 1)]));
    for dir in [&running, &held] {
        for name in [layout::MEM_SNAP, layout::VM_SNAP_NEW, "manifest.json.new", layout::QMP_SOCKET] {
            fs::write(dir.path().join(name), "left").unwrap();
        }
    }
    fs::write(broken.path().join(layout::MANIFEST), "{").unwrap();
    fs::write(broken.path().join(layout::MEM_SNAP), "precious").unwrap();
    for dir in [
        "sandboxes/.new-1",
        "sandboxes/.gone-2",
        "templates/.new-3",
        "templates/.gone-4",
        "kernel/.new-5",
        "sandboxes/mine",
    ] {
        fs::create_dir(bench.root.join(dir)).unwrap();
        fs::write(bench.root.join(dir).join("x"), "x").unwrap();
    }
    fs::write(bench.root.join("images/objects/.new-6"), "x").unwrap();
    let vmm_of_a_template = {
        let dir = bench.root.join("templates/.new-7");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("rootfs.qcow2"), "x").unwrap();
        File::open(dir.join("rootfs.qcow2")).unwrap()
    };
    rustix::fs::flock(&vmm_of_a_template, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let _vmm = held.lock_machine().unwrap();
    let being_made = bench.store.stage_sandbox(&SandboxId::random()).unwrap();
    let being_built = bench.store.images().stage().unwrap();

    let plan = bench.store.reconcile_plan().unwrap();
    assert!(plan.iter().any(|left| matches!(&left.kind, LeftoverKind::Broken(id, _) if id == broken.id())));
    assert!(plan.iter().any(|left| left.kind == LeftoverKind::Foreign && left.path.ends_with("mine")));
    assert!(plan.iter().any(|left| left.kind == LeftoverKind::StagedTemplate && left.held));
    let report = bench.store.execute(&plan);
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    assert_eq!(report.removed.len(), 10, "{:#?}", report.removed);

    assert_eq!(tree(running.path()), ["config.ext4", "manifest.json", "rootfs.qcow2"]);
    assert_eq!(tree(held.path()).len(), 7, "its machine lives");
    assert!(broken.path().join(layout::MEM_SNAP).exists() && bench.root.join("sandboxes/mine/x").exists());
    assert!(cold.open_memory(&cold.manifest().unwrap()).is_ok());
    assert!(being_made.dir().exists() && being_built.path().exists());
    assert!(bench.store.templates().get(&template.key).unwrap().is_some());
    let mut ids: Vec<_> =
        bench.store.sandboxes().unwrap().into_iter().map(|(id, read)| (id, read.is_ok())).collect();
    ids.retain(|(_, ok)| !ok);
    assert_eq!(ids, [(broken.id().clone(), false)]);
}

#[test]
fn a_data_directory_that_cannot_be_written_is_named() {
    let bench = open();
    let file = bench.root.join("file");
    fs::write(&file, "x").unwrap();
    let error = Store::open(&file).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unwritable);
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
    let proc = Store::open(Path::new("/proc/bhatti")).unwrap_err();
    assert!(proc.to_string().contains("/proc"), "{proc}");
    assert!(Store::open(&bench.root).is_ok(), "a second opening finds everything");
}

/// Needs a filesystem of at most 256 MiB at `BHATTI_TEST_SMALL_ROOT`: fills it up. Run with `-- --ignored`.
#[test]
#[ignore = "needs a small filesystem of its own"]
fn a_full_disk_fails_every_step_and_leaves_no_half() {
    let root =
        std::env::var_os("BHATTI_TEST_SMALL_ROOT").expect("BHATTI_TEST_SMALL_ROOT names a small filesystem");
    let store = Store::open(&Path::new(&root).join("data")).unwrap();
    assert!(store.probe().unwrap().total <= Bytes(300 << 20), "it would take too long to fill");
    let record = template(&store, StorageLayout::Overlay, 1);
    let (dir, manifest) = sandbox(&store, &record);
    let ballast = store.root().join("ballast");
    let file = File::create(&ballast).unwrap();
    let mut at = 0;
    for piece in [1usize << 20, 4096] {
        let mut noise = vec![0; piece];
        loop {
            blake3::Hasher::new().update(&u64::to_le_bytes(at)).finalize_xof().fill(&mut noise);
            match file.write_all_at(&noise, at) {
                Ok(()) => at += piece as u64,
                Err(_) => break,
            }
        }
    }
    let _ = file.sync_all();
    let before = tree(dir.path());
    let mut pages = BTreeMap::new();
    for page in 0..2000u64 {
        let mut noise = vec![0; 4096];
        blake3::Hasher::new().update(&page.to_le_bytes()).finalize_xof().fill(&mut noise);
        pages.insert(page, noise);
    }
    let header = MemoryHeader { generation: 1, base: manifest.ram_base.id() };
    // Delayed allocation may report the full disk as late as in the fsync of the commit.
    let stopped = dir.stage_memory(&Ram(pages), header, 1).and_then(|memory| {
        fs::write(dir.stage_devices()?, "state").unwrap();
        dir.commit_cold(memory, manifest.clone(), true)
    });
    let error = stopped.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
    assert_eq!(dir.manifest().unwrap(), manifest, "the sandbox is as it was");
    let mut after = tree(dir.path());
    after.retain(|name| name != layout::VM_SNAP_NEW);
    assert_eq!(after, before);
    fs::remove_file(&ballast).unwrap();
    drop(file);
    stop(&dir, manifest, &Ram::with([(1, 1)]));
    fs::remove_dir_all(store.root()).unwrap();
}
