//! Collecting what nobody names: exactly that, and nothing that anybody wants, holds, has open, or may name unreadably.

#![allow(clippy::unwrap_used, missing_docs)]

mod fixtures;
#[path = "fixtures/healthy.rs"]
mod healthy;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use bhatti_storage::{Company, GcKind, GcPlan, Manifest, Severity, Store};
use types::{Arch, ContentId, Owner, StorageLayout};

use fixtures::{MEMORY, Ram, tree};
use healthy::{alone, check, contents, freeze, healthy, image, kernel, named, snapshot, template};

fn kinds(plan: &GcPlan) -> Vec<GcKind> {
    plan.items.iter().map(|item| item.kind).collect()
}

fn collect(store: &Store) -> Vec<GcKind> {
    let plan = store.gc_plan(&alone()).unwrap();
    let report = store.gc(&plan, &alone()).unwrap();
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    let removed: Vec<_> = report.removed.iter().map(|item| item.kind).collect();
    assert_eq!(removed, kinds(&plan), "the plan is what is done");
    for item in &report.removed {
        assert!(!item.path.exists(), "{}", item.path.display());
    }
    removed
}

#[test]
fn fs_of_a_healthy_store_nothing_is_collected() {
    let healthy = healthy();
    assert_eq!(healthy.store().gc_plan(&alone()).unwrap(), GcPlan::default());
    let before = contents(healthy.root());
    assert_eq!(collect(healthy.store()), []);
    assert!(contents(healthy.root()) == before);
}

#[test]
fn fs_layers_and_bases_go_when_the_last_who_names_them_has_gone() {
    let healthy = healthy();
    let store = healthy.store();
    healthy.owning.clone().destroy().unwrap();
    healthy.raw.clone().destroy().unwrap();
    assert_eq!(collect(store), [], "snapshots name them");
    for name in ["kept", "disk"] {
        store.snapshots().remove(&Owner::admin(), &name.parse().unwrap()).unwrap();
    }
    let plan = store.gc_plan(&alone()).unwrap();
    assert_eq!(kinds(&plan), [GcKind::Layer, GcKind::Layer, GcKind::RamBase]);
    assert!(plan.frees().0 > 300_000 && plan.items.iter().all(|item| item.frees == item.allocated));
    assert_eq!(tree(&healthy.root().join("layers")).len(), 4, "a plan changes nothing");
    collect(store);
    assert_eq!(
        (tree(&healthy.root().join("layers")).len(), tree(&healthy.root().join("bases")).len()),
        (0, 0)
    );
    assert_eq!(check(store).findings, []);
    // The template of raw disks stays: the next create may want it.
    assert_eq!(store.templates().list().unwrap().len(), 2);
}

#[test]
fn fs_images_kernels_and_templates_go_when_they_are_of_yesterday_and_nobody_needs_them() {
    let healthy = healthy();
    let store = healthy.store();
    let (old_image, old_kernel) =
        (healthy.template.spec.image.id.clone(), healthy.template.spec.kernel.clone());
    let new_image = image(store, 5);
    let new_kernel = kernel(store, "another kernel");
    // Sleepers and snapshots still need all of yesterday's but the template of raw disks.
    assert_eq!(collect(store), [GcKind::Template]);
    assert!(store.templates().get(&ContentId::from_hash(&[2; 32])).unwrap().is_none());
    healthy.asleep.clone().destroy().unwrap();
    assert_eq!(collect(store), [GcKind::Template], "nothing sleeps over it any more");
    for dir in [&healthy.owning, &healthy.raw] {
        dir.clone().destroy().unwrap();
    }
    for name in ["kept", "disk"] {
        store.snapshots().remove(&Owner::admin(), &name.parse().unwrap()).unwrap();
    }
    use GcKind::{Image, Kernel, Layer, RamBase};
    assert_eq!(collect(store), [Layer, Layer, RamBase, Image, Kernel]);
    assert!(!store.images().object_path(&old_image).exists());
    assert!(store.kernel().by_id(&old_kernel).is_err());
    assert_eq!(store.images().list().unwrap(), [new_image]);
    assert_eq!(store.kernel().get(Arch::Amd64).unwrap(), new_kernel);
    assert_eq!(check(store).findings, []);
}

#[test]
fn fs_a_template_that_a_create_could_ask_for_stays() {
    let healthy = healthy();
    let store = healthy.store();
    let today = store.kernel().get(Arch::Amd64).unwrap();
    let key = template(store, 1, &today, StorageLayout::Overlay, 9).key;
    assert_eq!(collect(store), []);
    assert!(store.templates().get(&key).unwrap().is_some());
}

#[test]
fn fs_while_a_record_cannot_be_read_nothing_goes_that_it_may_name() {
    for (record, names_all) in [
        ("sandboxes", true),
        ("snapshots/admin/kept/manifest.json", true),
        ("images/rootfs-minimal-amd64.json", false),
        ("kernel/amd64.json", false),
        ("template", false),
    ] {
        let healthy = healthy();
        let store = healthy.store();
        // A layer and a base that nobody names, and yesterday's image, kernel and template.
        let (gone, running) = named(store, &healthy.template, "gone");
        let (base, _, pin) = store.write_own_base(&running.ram_base, MEMORY, &Ram::with([(1, 4)])).unwrap();
        drop(pin);
        freeze(store, &gone);
        gone.destroy().unwrap();
        let yesterday = kernel(store, "yesterday");
        template(store, 7, &yesterday, StorageLayout::Overlay, 9);
        image(store, 1);
        kernel(store, "kernel");
        let garbage = store.gc_plan(&alone()).unwrap();
        use GcKind::{Image, Kernel, Layer, RamBase, Template};
        assert_eq!(kinds(&garbage), [Layer, RamBase, Template, Image, Kernel], "{base:?}");

        let path = match record {
            "sandboxes" => healthy.raw.path().join("manifest.json"),
            "template" => store.templates().dir(&healthy.template.key).join("manifest.json"),
            _ => healthy.root().join(record),
        };
        let good = fs::read(&path).unwrap();
        fs::write(&path, "{").unwrap_or_else(|_| {
            fs::remove_file(&path).unwrap();
            fs::write(&path, "{").unwrap();
        });
        let plan = store.gc_plan(&alone()).unwrap();
        assert_eq!(plan.unreadable.len(), 1, "{record}");
        assert!(plan.kept.iter().any(|item| item.kind == Template), "{record}: {plan:#?}");
        if names_all {
            assert_eq!(kinds(&plan), [], "{record}");
        } else {
            assert_eq!(kinds(&plan), [Layer, RamBase], "{record}: {plan:#?}");
        }
        // A plan made before does not help.
        let before = contents(&healthy.root().join("images"));
        let report = store.gc(&garbage, &alone()).unwrap();
        assert_eq!(report.removed.len(), 5 - report.kept.len(), "{record}: {report:#?}");
        assert!(contents(&healthy.root().join("images")) == before);
        fs::remove_file(&path).unwrap();
        fs::write(&path, good).unwrap();
        collect(store);
        let left = check(store);
        assert_eq!(left.left(Severity::Error), 0, "{record}: {left:#?}");
    }
}

#[test]
fn fs_what_is_pinned_or_open_or_locked_stays() {
    let healthy = healthy();
    let store = healthy.store();
    let (gone, _) = named(store, &healthy.template, "gone");
    let manifest = freeze(store, &gone);
    let layer = store.layers().path(&manifest.layers[0]);
    let plan_before = {
        let pin = store.pin(&manifest);
        gone.destroy().unwrap();
        let plan = store.gc_plan(&alone()).unwrap();
        assert_eq!(plan, GcPlan::default(), "it is pinned");
        drop(pin);
        store.gc_plan(&alone()).unwrap()
    };
    assert_eq!(kinds(&plan_before), [GcKind::Layer]);

    // Pinned after the plan was made.
    let pin = store.pin(&manifest);
    let report = store.gc(&plan_before, &alone()).unwrap();
    assert_eq!((report.removed.len(), report.kept.len()), (0, 1));
    assert!(layer.exists());
    drop(pin);

    // A VMM that nobody knows has it open.
    let mut vmm =
        Command::new("sleep").arg("600").stdin(Stdio::from(File::open(&layer).unwrap())).spawn().unwrap();
    let company = Company { alone: true, open: open_files() };
    vmm.kill().unwrap();
    vmm.wait().unwrap();
    let plan = store.gc_plan(&company).unwrap();
    assert_eq!((plan.items.len(), plan.kept.len()), (0, 1));
    assert!(plan.kept[0].why.contains("open"), "{plan:?}");
    assert_eq!(store.gc(&plan_before, &company).unwrap().removed.len(), 0);
    assert_eq!(collect(store), [GcKind::Layer]);
}

fn open_files() -> sys::host_open_files::OpenFiles {
    sys::host_open_files::OpenFiles::of_other_processes().unwrap()
}

#[test]
fn fs_while_somebody_sets_up_images_kernels_and_templates_stay() {
    let healthy = healthy();
    let store = healthy.store();
    let old = kernel(store, "old");
    kernel(store, "kernel");
    let setup = store.lock_setup().unwrap();
    let plan = store.gc_plan(&alone()).unwrap();
    assert_eq!((plan.items.len(), plan.kept.len()), (0, 1), "{plan:?}");
    assert!(plan.kept[0].why.contains("setup"));
    drop(setup);
    let plan = store.gc_plan(&alone()).unwrap();
    let setup = store.lock_setup().unwrap();
    assert_eq!(store.gc(&plan, &alone()).unwrap().removed.len(), 0);
    drop(setup);
    assert_eq!(collect(store), [GcKind::Kernel]);
    assert!(store.kernel().by_id(&old.id).is_err());
}

#[test]
fn fs_leftovers_go_too_and_in_company_only_old_ones() {
    let healthy = healthy();
    let root = healthy.root();
    let leave = |name: &str| {
        fs::create_dir_all(root.join(name).join("deep")).unwrap();
        fs::write(root.join(name).join("deep/file"), "x").unwrap();
    };
    leave("sandboxes/.gone-0123456789abcdef");
    fs::write(healthy.raw.path().join("mem.snap"), "consumed").unwrap();
    let company = Company { alone: false, ..alone() };
    assert_eq!(kinds(&healthy.store().gc_plan(&company).unwrap()), []);
    assert_eq!(collect(healthy.store()), [GcKind::Leftover, GcKind::Leftover]);
    assert_eq!(check(healthy.store()).findings, []);
    leave("templates/.gone-x");
    age(&root.join("templates/.gone-x"));
    let plan = healthy.store().gc_plan(&company).unwrap();
    assert_eq!(kinds(&plan), [GcKind::Leftover]);
    assert_eq!(healthy.store().gc(&plan, &company).unwrap().removed.len(), 1);
}

fn age(path: &Path) {
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    File::open(path).unwrap().set_modified(old).unwrap();
}

#[test]
fn fs_a_removal_that_was_cut_short_is_finished() {
    let healthy = healthy();
    let store = healthy.store();
    healthy.raw.clone().destroy().unwrap();
    let layer = healthy.file("layers", ".ext4");
    store.snapshots().remove(&Owner::admin(), &"disk".parse().unwrap()).unwrap();
    // As a crash leaves it between its two halves.
    fs::rename(
        &layer,
        layer.with_file_name(format!(".gone-{}", layer.file_name().unwrap().to_str().unwrap())),
    )
    .unwrap();
    assert_eq!(collect(store), [GcKind::Layer, GcKind::Leftover], "the seal and what is on its way out");
    assert_eq!(check(store).findings, []);
}

#[test]
fn fs_collecting_beside_copies_snapshots_and_stops_takes_nothing_that_they_use() {
    let healthy = healthy();
    let store = healthy.store();
    let done = AtomicBool::new(false);
    let company = Company { alone: false, ..alone() };
    std::thread::scope(|scope| {
        // Freezes, copies over what was frozen, goes; over and over.
        for worker in 0..2 {
            let (healthy, done) = (&healthy, &done);
            scope.spawn(move || {
                for round in 0..20u8 {
                    let (source, running) = named(store, &healthy.template, &format!("s{worker}-{round}"));
                    let ram = Ram::with([(u64::from(round) + 120, worker + 1)]);
                    let (base, _, pin) = store.write_own_base(&running.ram_base, MEMORY, &ram).unwrap();
                    source.commit(&Manifest { ram_base: base, ..running }).unwrap();
                    drop(pin);
                    let manifest = freeze(store, &source);
                    let held = store.pin(&manifest);
                    source.destroy().unwrap();
                    store.release(&manifest).unwrap();
                    // Only the pin keeps them now; then another manifest does.
                    let id = types::SandboxId::random();
                    let copy = Manifest {
                        id: id.clone(),
                        name: format!("c{worker}-{round}").parse().unwrap(),
                        ..manifest
                    };
                    let staged = store.stage_sandbox(&id).unwrap();
                    fs::copy(healthy.asleep.path().join("rootfs.qcow2"), staged.root_disk_path(copy.layout))
                        .unwrap();
                    fs::copy(healthy.asleep.path().join("config.ext4"), staged.config_path()).unwrap();
                    let dir = staged.commit(&copy).unwrap();
                    drop(held);
                    assert!(store.layers().path(&copy.layers[0]).exists(), "round {round}");
                    assert!(store.layers().below(&copy).is_ok());
                    store.ram_base(&copy.ram_base, MEMORY).unwrap();
                    if round % 2 == 0 {
                        dir.destroy().unwrap();
                    }
                }
                done.store(true, Ordering::Relaxed);
            });
        }
        let (healthy, done) = (&healthy, &done);
        scope.spawn(move || {
            let mut round = 0;
            while !done.load(Ordering::Relaxed) {
                round += 1;
                image(store, 10 + round % 3);
                let today = image(store, 1);
                store.images().resolve(&today.name, Arch::Amd64).unwrap();
                let (dir, _) = named(store, &healthy.template, "snapped");
                freeze(store, &dir);
                let name = format!("n{round}");
                snapshot(store, &dir, &name, false);
                let record = store.snapshots().open(&Owner::admin(), &name.parse().unwrap()).unwrap();
                assert!(store.layers().below(&record.record().sandbox).is_ok());
                dir.destroy().unwrap();
            }
        });
        let (mut collected, mut rounds) = (0, 0);
        while !done.load(Ordering::Relaxed) {
            let plan = store.gc_plan(&company).unwrap();
            let report = store.gc(&plan, &company).unwrap();
            assert!(report.failed.is_empty(), "{:?}", report.failed);
            collected += report.removed.len();
            rounds += 1;
        }
        assert!(collected > 0 && rounds > 1, "{collected} in {rounds} rounds");
    });
    image(store, 1);
    collect(store);
    let report = check(store);
    let bad: Vec<_> = report.findings.iter().filter(|finding| finding.severity > Severity::Note).collect();
    // The copies' disks are those of another sandbox: only that is wrong with them.
    assert!(bad.iter().all(|finding| finding.what.contains("lies on")), "{bad:#?}");
}
