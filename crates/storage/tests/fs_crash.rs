//! Every verb that writes, ended at each of its steps: afterwards the store is in the old or in the new state, nothing half
//! made counts, and what is left over is collected.

#![allow(clippy::unwrap_used, missing_docs)]

mod fixtures;
#[path = "fixtures/healthy.rs"]
#[allow(dead_code)]
mod healthy;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use bhatti_storage::{
    Manifest, MemoryHeader, RamBase, RunState, SandboxDir, Severity, Store, Unchanged, VolumeRecord,
};
use types::{Arch, Bytes, ContentId, Mebibytes, Owner, SandboxId, StorageLayout};

use fixtures::{MEMORY, Ram, stop};
use healthy::{alone, check, healthy, named};

const MIB: u64 = 1 << 20;

fn admin() -> Owner {
    Owner::admin()
}

/// The sandbox of that name.
fn sandbox(store: &Store, name: &str) -> SandboxDir {
    let found = store
        .sandboxes()
        .unwrap()
        .into_iter()
        .find(|(_, manifest)| manifest.as_ref().is_ok_and(|manifest| manifest.name.as_str() == name));
    store.sandbox(&found.unwrap().0)
}

fn volume(store: &Store, name: &str, byte: u8) {
    let staged = store.volumes().stage(&admin()).unwrap();
    staged.set_size(Bytes(8 * MIB)).unwrap();
    staged.file().write_all_at(&[byte; 4096], MIB).unwrap();
    staged.commit(&VolumeRecord::new(admin(), name.parse().unwrap())).unwrap();
}

fn template_of(store: &Store) -> bhatti_storage::TemplateRecord {
    store.templates().get(&ContentId::from_hash(&[1; 32])).unwrap().unwrap()
}

type Verb = fn(&Store);

/// All that write, on a data root of [`prepared`].
const VERBS: [(&str, Verb); 26] = [
    ("create", |store| drop(named(store, &template_of(store), "made"))),
    ("stop", |store| {
        let dir = sandbox(store, "awake");
        stop(&dir, dir.manifest().unwrap(), &Ram::with((0..50).map(|page| (page, 5))));
    }),
    ("stop with a base of its own", |store| {
        let dir = sandbox(store, "awake");
        let running = dir.manifest().unwrap();
        let (base, _, pin) =
            store.write_own_base(&running.ram_base, MEMORY, &Ram::with([(20, 4), (21, 6)])).unwrap();
        let manifest = Manifest { ram_base: base, ..running };
        let header = MemoryHeader { generation: manifest.generation, base: manifest.ram_base.id() };
        let memory = dir.stage_memory(&Unchanged(MEMORY.bytes()), header, 1).unwrap();
        fs::write(dir.stage_devices().unwrap(), "devices").unwrap();
        dir.commit_cold(memory, manifest, true).unwrap();
        drop(pin);
    }),
    ("wake", |store| {
        let dir = sandbox(store, "asleep");
        dir.commit(&dir.manifest().unwrap().into_running()).unwrap();
        dir.drop_consumed_memory().unwrap();
    }),
    ("discard memory", |store| {
        let dir = sandbox(store, "asleep");
        dir.discard_memory(dir.manifest().unwrap()).unwrap();
    }),
    ("power off", |store| {
        let dir = sandbox(store, "awake");
        dir.commit(&dir.manifest().unwrap().into_off()).unwrap();
    }),
    ("destroy", |store| {
        let dir = sandbox(store, "owning");
        let manifest = dir.manifest().unwrap();
        dir.destroy().unwrap();
        store.release(&manifest).unwrap();
    }),
    ("freeze", |store| drop(healthy::freeze(store, &sandbox(store, "awake")))),
    ("freeze of a raw disk", |store| drop(healthy::freeze(store, &sandbox(store, "plain")))),
    ("snapshot", |store| {
        let dir = sandbox(store, "owning");
        healthy::freeze(store, &dir);
        healthy::snapshot(store, &dir, "second", true);
    }),
    ("snapshot of a disk", |store| healthy::snapshot(store, &sandbox(store, "raw"), "second", false)),
    ("delete snapshot", |store| {
        let kept = store.snapshots().open(&admin(), &"kept".parse().unwrap()).unwrap();
        let manifest = kept.record().sandbox.clone();
        drop(kept);
        store.snapshots().remove(&admin(), &"kept".parse().unwrap()).unwrap();
        store.release(&manifest).unwrap();
    }),
    ("image", |store| drop(healthy::image(store, 7))),
    ("image of the same content", |store| drop(healthy::image(store, 1))),
    ("delete image", |store| {
        store.images().remove_name(None, &"minimal".parse().unwrap(), Arch::Amd64).unwrap();
    }),
    ("kernel", |store| drop(healthy::kernel(store, "another kernel"))),
    ("template", |store| {
        let kernel = store.kernel().get(Arch::Amd64).unwrap();
        healthy::template(store, 1, &kernel, StorageLayout::Overlay, 9);
    }),
    ("delete template", |store| store.templates().remove(&ContentId::from_hash(&[2; 32])).unwrap()),
    ("zero base", |store| drop(store.zero_base(Mebibytes(32)).unwrap())),
    ("volume", |store| volume(store, "more", 3)),
    ("first volume of an owner", |store| {
        let owner: Owner = "somebody".parse().unwrap();
        let staged = store.volumes().stage(&owner).unwrap();
        staged.set_size(Bytes(MIB)).unwrap();
        staged.commit(&VolumeRecord::new(owner, "first".parse().unwrap())).unwrap();
    }),
    ("delete volume", |store| store.volumes().remove(&admin(), &"data".parse().unwrap()).unwrap()),
    ("resize volume", |store| {
        let lock = store.volumes().lock(&admin(), &"data".parse().unwrap()).unwrap();
        store.volumes().grow(&lock, Bytes(16 * MIB)).unwrap();
    }),
    ("restore volume", |store| {
        let lock = store.volumes().lock(&admin(), &"data".parse().unwrap()).unwrap();
        let staged = store.volumes().stage(&admin()).unwrap();
        staged.set_size(Bytes(8 * MIB)).unwrap();
        staged.file().write_all_at(&[9; 4096], MIB).unwrap();
        staged.sync().unwrap();
        staged.replace(lock).unwrap();
    }),
    ("gc", |store| {
        let dir = sandbox(store, "awake");
        dir.destroy().unwrap();
        store.images().remove_name(None, &"minimal".parse().unwrap(), Arch::Amd64).unwrap();
        store.gc(&store.gc_plan(&alone()).unwrap(), &alone()).unwrap();
    }),
    ("fsck --repair", |store| {
        let broken = store.sandbox(&SandboxId::random());
        fs::create_dir(broken.path()).unwrap();
        fs::write(broken.path().join("manifest.json"), "{").unwrap();
        let mut report = check(store);
        store.repair(&mut report, &alone(), &|_| false);
    }),
];

/// A data root with something of each kind, and where nothing is being done.
fn prepared() -> healthy::Healthy {
    let healthy = healthy();
    let store = healthy.store();
    named(store, &healthy.template, "awake");
    let raw = store.templates().get(&ContentId::from_hash(&[2; 32])).unwrap().unwrap();
    let (plain, running) = named(store, &raw, "plain");
    plain.commit(&Manifest { ram_base: RamBase::Zero, ..running }.into_off()).unwrap();
    volume(store, "data", 2);
    healthy
}

/// What a user would see: names, states, contents; no ids that are drawn anew. Everything that counts must be readable.
fn state(store: &Store) -> BTreeSet<String> {
    let mut state = BTreeSet::new();
    for (id, manifest) in store.sandboxes().unwrap() {
        let Ok(manifest) = manifest else {
            state.insert(format!("unreadable sandbox {id}"));
            continue;
        };
        let dir = store.sandbox(&id);
        if manifest.state == RunState::Cold {
            let mut ram = Ram::default();
            dir.open_memory(&manifest).unwrap().load(&mut ram).unwrap();
            dir.open_devices(&manifest).unwrap();
        }
        let layers = store.layers().below(&manifest).unwrap().len();
        assert!(dir.root_disk_path(manifest.layout).exists(), "{} has a root disk", manifest.name);
        let own = matches!(manifest.ram_base, RamBase::Own { .. });
        let Manifest { name, state: run, generation, .. } = &manifest;
        state.insert(format!("sandbox {name} {run:?} {generation} {layers} {own}"));
    }
    for (owner, name, record) in store.snapshots().all().unwrap() {
        let layers = record.unwrap().sandbox.layers.len();
        state.insert(format!("snapshot {owner} {name} {layers}"));
    }
    for image in store.images().list().unwrap() {
        state.insert(format!("image {} {}", image.name, image.id));
    }
    state.insert(format!("kernel {}", store.kernel().get(Arch::Amd64).unwrap().id));
    for (key, record) in store.templates().list().unwrap() {
        state.insert(format!("template {key} {}", record.unwrap().ram_base_id));
    }
    for (owner, name, volume) in store.volumes().all().unwrap() {
        let volume = volume.unwrap();
        let hash = blake3::hash(&fs::read(volume.path()).unwrap());
        state.insert(format!("volume {owner} {name} {} {hash}", volume.size.0));
    }
    state
}

/// What a state is of: kind, owner where it has one, and name.
fn things(state: &BTreeSet<String>) -> BTreeSet<String> {
    let thing = |line: &String| {
        let words = if line.starts_with("snapshot") || line.starts_with("volume") { 3 } else { 2 };
        line.split(' ').take(words).collect::<Vec<_>>().join(" ")
    };
    state.iter().map(thing).collect()
}

/// Names that only what is being made or removed has, anywhere below.
fn half_made(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with(".new-") || name.starts_with(".gone-") || name.ends_with(".new") {
            found.push(entry.path().display().to_string());
        } else if entry.file_type().unwrap().is_dir() {
            found.extend(half_made(&entry.path()));
        }
    }
    found
}

/// A copy of a data root, in the place of what is at `to`.
fn copy(from: &Path, to: &Path) {
    if to.exists() {
        fs::remove_dir_all(to).unwrap();
    }
    let status = Command::new("cp").args(["-a", "--sparse=always"]).args([from, to]).status().unwrap();
    assert!(status.success());
}

/// Runs a verb in a process of its own; tells whether it ran through.
fn run(verb: &str, root: &Path, crash_at: Option<u64>) -> bool {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "fs_the_verb_of_a_child", "--nocapture"]);
    child.env("BHATTI_TEST_VERB", verb).env("BHATTI_TEST_STORE", root).env_remove("BHATTI_CRASH_AT");
    if let Some(step) = crash_at {
        child.env("BHATTI_CRASH_AT", step.to_string());
    }
    let ran = child.stdout(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
    use std::os::unix::process::ExitStatusExt;
    match (ran.status.code(), ran.status.signal()) {
        (Some(0), _) => true,
        (None, Some(6)) if crash_at.is_some() => false,
        _ => panic!("{verb} at {crash_at:?}: {} {}", ran.status, String::from_utf8_lossy(&ran.stderr)),
    }
}

/// What the process of a verb does; nothing when it is run as a test.
#[test]
fn fs_the_verb_of_a_child() {
    let (Ok(verb), Ok(root)) = (std::env::var("BHATTI_TEST_VERB"), std::env::var("BHATTI_TEST_STORE")) else {
        return;
    };
    let (_, act) = VERBS.iter().find(|(name, _)| *name == verb).unwrap();
    act(&Store::open(Path::new(&root)).unwrap());
}

/// As a daemon does at its start. Gives what is wrong then.
fn reopened(root: &Path, quarantined: bool) -> (Store, Vec<String>) {
    let store = Store::open(root).unwrap();
    let mut wrong = Vec::new();
    let done = store.execute(&store.reconcile_plan().unwrap());
    wrong.extend(done.failed.iter().map(|error| format!("left over and not removed: {error}")));
    let left = store.reconcile_plan().unwrap();
    let broken = |left: &&bhatti_storage::Leftover| {
        !(quarantined && matches!(left.kind, bhatti_storage::LeftoverKind::Broken(..)))
    };
    wrong.extend(left.iter().filter(broken).map(|left| format!("still left over: {left:?}")));
    (store, wrong)
}

#[test]
fn fs_a_verb_that_is_ended_at_any_step_leaves_the_old_state_or_the_new_one() {
    let healthy = prepared();
    let at = healthy.root().with_file_name("copy");
    let old = state(healthy.store());
    let (mut crashes, mut losses) = (0, Vec::new());
    for (verb, _) in VERBS {
        copy(healthy.root(), &at);
        assert!(run(verb, &at, None));
        let repairs = verb == "fsck --repair";
        let (store, wrong) = reopened(&at, repairs);
        assert_eq!(wrong, Vec::<String>::new(), "{verb}");
        let new = state(&store);
        let mut step = 0;
        loop {
            step += 1;
            copy(healthy.root(), &at);
            let through = run(verb, &at, Some(step));
            let (store, mut wrong) = reopened(&at, repairs);
            // A verb of several commits stops between them: each thing is then as before or as after.
            let now: BTreeSet<_> = state(&store)
                .into_iter()
                .filter(|line| !(repairs && line.starts_with("unreadable")))
                .collect();
            let known = |line: &&String| old.contains(*line) || new.contains(*line);
            wrong.extend(
                now.iter().filter(|line| !known(line)).map(|line| format!("neither old nor new: {line}")),
            );
            let there = things(&now);
            wrong.extend(
                things(&old)
                    .intersection(&things(&new))
                    .filter(|thing| !there.contains(*thing))
                    .map(|thing| format!("gone: {thing}")),
            );
            if through {
                let expected: BTreeSet<_> =
                    new.iter().filter(|line| !(repairs && line.starts_with("unreadable"))).cloned().collect();
                let differs = now.symmetric_difference(&expected);
                wrong.extend(differs.map(|line| format!("ran through, and is not as it should be: {line}")));
            }
            let report = check(&store);
            let errors = report.findings.iter().filter(|finding| finding.severity == Severity::Error);
            wrong.extend(errors.filter(|_| !repairs).map(|finding| format!("fsck: {finding:?}")));
            wrong.extend(half_made(store.root()).into_iter().map(|path| format!("half made: {path}")));
            losses.extend(wrong.into_iter().map(|wrong| format!("{verb} at step {step}: {wrong}")));
            if through {
                break;
            }
            crashes += 1;
        }
        println!("{verb}: {} steps", step - 1);
    }
    println!("{} verbs, {crashes} crashes, {} losses", VERBS.len(), losses.len());
    assert!(crashes > 200, "{crashes} crashes");
    assert_eq!(losses, Vec::<String>::new());
}
