//! Backups in a directory: what is moved, what comes back, and what is refused.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use bhatti_remote::{BackupId, Cancel, ErrorKind, Keep, Shelf, Store, Watch};
use proptest::prelude::*;
use types::{Bytes, Nonce, Owner, Timestamp, VolumeName};

const MIB: u64 = 1 << 20;

struct Place {
    dir: tempfile::TempDir,
    shelf: Shelf,
}

fn volume() -> VolumeName {
    "data".parse().unwrap()
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::directory(&dir.path().join("store")).unwrap();
        let shelf = store.shelf(&Owner::admin(), &volume());
        Self { dir, shelf }
    }

    fn store(&self) -> Store {
        Store::directory(&self.dir.path().join("store")).unwrap()
    }

    fn file(&self, name: &str, size: u64, parts: &[(u64, &[u8])]) -> File {
        let file = self.open(name);
        file.set_len(size).unwrap();
        for (at, bytes) in parts {
            file.write_all_at(bytes, *at).unwrap();
        }
        file
    }

    fn open(&self, name: &str) -> File {
        let path = self.dir.path().join(name);
        File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
    }

    fn below(&self, dir: &str) -> PathBuf {
        self.dir.path().join("store/admin/data").join(dir)
    }

    fn chunks(&self) -> Vec<PathBuf> {
        files(&self.below("chunks"))
    }

    fn locked(&self) -> bool {
        self.below("lock.json").exists()
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut all = Vec::new();
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() { all.extend(files(&path)) } else { all.push(path) }
    }
    all.sort();
    all
}

/// Bytes that no compression makes shorter, the same for the same seed.
fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(work)
}

fn nobody() -> Watch {
    Watch::nobody()
}

const NOW: Timestamp = Timestamp(1_795_634_632_000);

fn later(seconds: i64) -> Timestamp {
    Timestamp(NOW.0 + seconds * 1000)
}

#[test]
fn a_volume_comes_back_with_its_holes_and_an_unchanged_one_moves_next_to_nothing() {
    run(async {
        let place = Place::new();
        let size = 64 * MIB + 5;
        let parts = noise(1, 3 * MIB);
        let volume = place.file("v", size, &[(0, b"head"), (20 * MIB + 7, &parts), (size - 1, b"!")]);
        let first = place.shelf.backup(volume.try_clone().unwrap(), NOW, nobody()).await.unwrap();
        assert_eq!((first.summary.size, first.chunks), (Bytes(size), first.new_chunks));
        assert!(first.summary.data < Bytes(5 * MIB), "{first:?}");

        let second = place.shelf.backup(volume.try_clone().unwrap(), later(1), nobody()).await.unwrap();
        assert_eq!((second.new_chunks, second.summary.sent), (0, Bytes(0)));
        assert!(second.moved < Bytes(64 << 10), "{second:?}");

        // One byte more: one chunk more.
        volume.write_all_at(b"changed", 40 * MIB).unwrap();
        let third = place.shelf.backup(volume, later(2), nobody()).await.unwrap();
        assert_eq!(third.new_chunks, 1);

        let back = place.file("back", 3, &[(0, b"old")]);
        let report =
            place.shelf.restore(&second.summary.id, back.try_clone().unwrap(), nobody()).await.unwrap();
        assert_eq!((report.summary, report.chunks), (second.summary, second.chunks));
        let wanted = place.file("wanted", size, &[(0, b"head"), (20 * MIB + 7, &parts), (size - 1, b"!")]);
        assert_same(&back, &wanted);
        assert!(back.metadata().unwrap().blocks() * 512 < 8 * MIB, "zeros are holes");
        assert!(!place.locked());
    });
}

fn assert_same(one: &File, other: &File) {
    let len = one.metadata().unwrap().len();
    assert_eq!(len, other.metadata().unwrap().len());
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for at in (0..len).step_by(1 << 20) {
        let part = usize::try_from((len - at).min(MIB)).unwrap();
        one.read_exact_at(&mut left[..part], at).unwrap();
        other.read_exact_at(&mut right[..part], at).unwrap();
        assert!(left[..part] == right[..part], "they differ in the MiB at {at}");
    }
}

#[test]
fn written_zeros_cost_nothing_and_equal_chunks_are_stored_once() {
    run(async {
        let place = Place::new();
        let same = noise(2, MIB);
        let zeros = vec![0; 1 << 20];
        let volume = place.file("v", 8 * MIB, &[(0, &zeros), (2 * MIB, &same), (6 * MIB, &same)]);
        let report = place.shelf.backup(volume, NOW, nobody()).await.unwrap();
        assert_eq!(report.summary.data, Bytes(2 * MIB));
        assert_eq!(report.new_chunks * 2, report.chunks);
        assert_eq!(place.chunks().len(), usize::try_from(report.new_chunks).unwrap());
        let nothing = place.file("empty", 4 * MIB, &[]);
        let report = place.shelf.backup(nothing, later(1), nobody()).await.unwrap();
        assert_eq!((report.chunks, report.summary.sent), (0, Bytes(0)));
    });
}

#[test]
fn a_list_is_in_order_and_a_damaged_backup_is_in_it_and_says_so() {
    run(async {
        let place = Place::new();
        assert!(place.shelf.list().await.unwrap().is_empty());
        let volume = place.file("v", MIB, &[(0, b"x")]);
        let mut ids = Vec::new();
        for second in 0..3 {
            let report =
                place.shelf.backup(volume.try_clone().unwrap(), later(second), nobody()).await.unwrap();
            ids.push(report.summary.id);
        }
        let middle = place.below(&format!("backups/{}.json", ids[1]));
        fs::write(&middle, &fs::read(&middle).unwrap()[..200]).unwrap();
        fs::write(place.below("backups/notes.txt"), "mine").unwrap();
        let listed = place.shelf.list().await.unwrap();
        assert_eq!(listed.iter().map(|one| one.id.clone()).collect::<Vec<_>>(), ids);
        assert_eq!(listed[1].manifest.as_ref().unwrap_err().kind(), ErrorKind::Damaged);
        assert!(listed[0].manifest.is_ok() && listed[2].manifest.is_ok());
    });
}

/// A backup of 2 MiB of noise, and the object that the test is about to spoil.
async fn spoiled(spoil: impl FnOnce(&Place, &BackupId)) -> (ErrorKind, String) {
    let place = Place::new();
    let volume = place.file("v", 4 * MIB, &[(MIB, &noise(3, 2 * MIB))]);
    let report = place.shelf.backup(volume, NOW, nobody()).await.unwrap();
    let id = report.summary.id;
    spoil(&place, &id);
    let error = place.shelf.restore(&id, place.open("back"), nobody()).await.unwrap_err();
    (error.kind(), error.to_string())
}

#[test]
fn damage_of_every_kind_is_refused_and_names_the_object() {
    run(async {
        let chunk_of = |place: &Place| place.chunks()[1].clone();
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let mut named = String::new();
        let (kind, text) = spoiled(|place, _| {
            let chunk = chunk_of(place);
            named = name(&chunk);
            fs::write(&chunk, &fs::read(&chunk).unwrap()[..1000]).unwrap();
        })
        .await;
        assert!(kind == ErrorKind::Damaged && text.contains(&named) && text.contains("cut"), "{text}");

        let (kind, text) = spoiled(|place, _| {
            let chunk = chunk_of(place);
            named = name(&chunk);
            let mut bytes = fs::read(&chunk).unwrap();
            bytes[5000] ^= 0x10;
            fs::write(&chunk, bytes).unwrap();
        })
        .await;
        assert!(kind == ErrorKind::Damaged && text.contains(&named), "{text}");

        // A good frame under another's name: only the hash can tell.
        let (kind, text) = spoiled(|place, _| {
            let chunks = place.chunks();
            named = name(&chunks[0]);
            fs::copy(&chunks[1], &chunks[0]).unwrap();
        })
        .await;
        assert!(kind == ErrorKind::Damaged && text.contains(&named) && text.contains("its name"), "{text}");

        let (kind, text) = spoiled(|place, _| {
            let chunk = chunk_of(place);
            named = name(&chunk);
            fs::remove_file(chunk).unwrap();
        })
        .await;
        assert!(kind == ErrorKind::Damaged && text.contains(&named) && text.contains("not there"), "{text}");

        let manifest = |place: &Place, id: &BackupId| place.below(&format!("backups/{id}.json"));
        let (kind, text) = spoiled(|place, id| {
            let path = manifest(place, id);
            fs::write(&path, &fs::read(&path).unwrap()[..300]).unwrap();
        })
        .await;
        assert!(kind == ErrorKind::Damaged && text.contains("backups/"), "{text}");

        let (kind, text) = spoiled(|place, id| {
            let newer = r#"{"format":"bhatti-backup","version":9,"blake3":"","body":{}}"#;
            fs::write(manifest(place, id), newer).unwrap();
        })
        .await;
        assert!(kind == ErrorKind::TooNew && text.contains("version 9"), "{text}");

        let (kind, text) = spoiled(|place, id| fs::remove_file(manifest(place, id)).unwrap()).await;
        assert!(kind == ErrorKind::NotFound && text.contains("no such backup"), "{text}");
    });
}

#[test]
fn a_backup_of_another_volume_is_refused_by_that_volumes_name() {
    run(async {
        let place = Place::new();
        let store = Store::directory(&place.dir.path().join("store")).unwrap();
        let other = store.shelf(&Owner::admin(), &"other".parse().unwrap());
        let report = other.backup(place.file("o", MIB, &[(0, b"other")]), NOW, nobody()).await.unwrap();
        let id = report.summary.id;
        let missing = place.shelf.restore(&id, place.open("back"), nobody()).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);

        fs::create_dir_all(place.below("backups")).unwrap();
        let from = place.dir.path().join(format!("store/admin/other/backups/{id}.json"));
        fs::copy(&from, place.below(&format!("backups/{id}.json"))).unwrap();
        let error = place.shelf.restore(&id, place.open("back"), nobody()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Foreign);
        assert!(error.to_string().contains("a backup of volume other of admin"), "{error}");

        // Under another id of its own volume it is not that backup either.
        let renamed: BackupId = "20200101t000000-00000000".parse().unwrap();
        fs::copy(&from, from.with_file_name(format!("{renamed}.json"))).unwrap();
        let error = other.restore(&renamed, place.open("back"), nobody()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
    });
}

#[test]
fn verify_finds_each_bad_chunk_without_restoring() {
    run(async {
        let place = Place::new();
        let volume = place.file("v", 4 * MIB, &[(0, &noise(4, 4 * MIB))]);
        let report = place.shelf.backup(volume, NOW, nobody()).await.unwrap();
        let id = &report.summary.id;
        assert!(place.shelf.verify(id, nobody()).await.unwrap().is_whole());
        let chunks = place.chunks();
        fs::remove_file(&chunks[0]).unwrap();
        fs::write(&chunks[2], b"").unwrap();
        let found = place.shelf.verify(id, nobody()).await.unwrap();
        assert_eq!((found.good, found.bad.len()), (report.chunks - 2, 2));
    });
}

#[test]
fn a_cancelled_backup_is_none_and_its_chunks_are_garbage() {
    run(async {
        let place = Place::new();
        let volume = place.file("v", 32 * MIB, &[(0, &noise(5, 32 * MIB))]);
        let cancel = Cancel::default();
        let (seen, wish) = (cancel.clone(), 8 * MIB);
        let watch = Watch::new(
            move |progress| {
                if progress.done >= Bytes(wish) {
                    seen.cancel();
                }
            },
            cancel,
        );
        let error = place.shelf.backup(volume.try_clone().unwrap(), NOW, watch).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert!(!place.locked());
        assert!(place.shelf.list().await.unwrap().is_empty());
        assert!(!place.chunks().is_empty());
        let report = place.shelf.prune(Keep { last: 1, ..Keep::default() }).await.unwrap();
        assert!(report.chunks > 0 && place.chunks().is_empty());
    });
}

#[test]
fn pruning_keeps_what_the_kept_backups_need_and_nothing_else() {
    run(async {
        let place = Place::new();
        let volume = place.file("v", 8 * MIB, &[(0, &noise(6, 2 * MIB))]);
        let mut ids = Vec::new();
        for round in 0..4u64 {
            volume.write_all_at(&noise(100 + round, MIB), 4 * MIB).unwrap();
            let at = later(i64::try_from(round).unwrap());
            let report = place.shelf.backup(volume.try_clone().unwrap(), at, nobody()).await.unwrap();
            ids.push(report.summary.id);
        }
        let keep = Keep { last: 2, ..Keep::default() };
        let plan = place.shelf.plan(keep).await.unwrap();
        assert_eq!((&plan.remove[..], &plan.keep[..]), (&ids[..2], &ids[2..]));
        let report = place.shelf.prune(keep).await.unwrap();
        assert_eq!(report.plan, plan);
        assert!(report.freed >= Bytes(2 * MIB), "{report:?}");
        for id in &ids[2..] {
            assert!(place.shelf.verify(id, nobody()).await.unwrap().is_whole());
            place.shelf.restore(id, place.open("back"), nobody()).await.unwrap();
        }
        assert_eq!(place.shelf.prune(keep).await.unwrap().chunks, 0);
        let gone = place.shelf.delete(&ids[0]).await.unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound);
        place.shelf.delete(&ids[3]).await.unwrap();
        place.shelf.delete(&ids[2]).await.unwrap();
        assert!(place.chunks().is_empty());
    });
}

#[test]
fn while_a_manifest_cannot_be_read_no_chunk_is_removed() {
    run(async {
        let place = Place::new();
        let volume = place.file("v", 4 * MIB, &[(0, &noise(7, MIB))]);
        let first = place.shelf.backup(volume.try_clone().unwrap(), NOW, nobody()).await.unwrap();
        volume.write_all_at(&noise(8, MIB), 0).unwrap();
        let second = place.shelf.backup(volume, later(1), nobody()).await.unwrap();
        let path = place.below(&format!("backups/{}.json", first.summary.id));
        let good = fs::read(&path).unwrap();
        fs::write(&path, b"?").unwrap();
        let before = place.chunks();
        let report = place.shelf.delete(&second.summary.id).await.unwrap();
        assert_eq!((report.unreadable.len(), report.chunks), (1, 0));
        assert_eq!(place.chunks(), before);
        fs::write(&path, good).unwrap();
        assert!(place.shelf.verify(&first.summary.id, nobody()).await.unwrap().is_whole());
        // A damaged backup can be deleted by its id.
        fs::write(&path, b"?").unwrap();
        place.shelf.delete(&first.summary.id).await.unwrap();
        assert!(place.chunks().is_empty());
    });
}

/// Work stands still at its first report, which the second tells of, until the third is told to go on.
fn standing_still() -> (Watch, tokio::sync::oneshot::Receiver<()>, mpsc::Sender<()>) {
    let (arrived, seen) = tokio::sync::oneshot::channel();
    let (go_on, wait) = mpsc::channel::<()>();
    let gate = std::sync::Mutex::new((Some(arrived), wait));
    let watch = Watch::new(
        move |_| {
            let mut gate = gate.lock().unwrap();
            if let Some(arrived) = gate.0.take() {
                arrived.send(()).unwrap();
                gate.1.recv().unwrap();
            }
        },
        Cancel::default(),
    );
    (watch, seen, go_on)
}

#[test]
fn nothing_is_pruned_and_no_second_backup_begins_while_one_is_under_way() {
    run(async {
        let place = Place::new();
        let volume = place.file("v", 8 * MIB, &[(0, &noise(9, 4 * MIB))]);
        let old = place.shelf.backup(volume.try_clone().unwrap(), NOW, nobody()).await.unwrap();
        // The running backup relies on chunks of the old one and stands still at its first report.
        let (watch, seen, go_on) = standing_still();
        let shelf = place.shelf.clone();
        let source = volume.try_clone().unwrap();
        let running = tokio::spawn(async move { shelf.backup(source, later(1), watch).await });
        seen.await.unwrap();
        let prune = place.shelf.prune(Keep { last: 1, ..Keep::default() }).await.unwrap_err();
        let delete = place.shelf.delete(&old.summary.id).await.unwrap_err();
        let second = place.shelf.backup(volume, later(2), nobody()).await.unwrap_err();
        for error in [prune, delete, second] {
            assert_eq!(error.kind(), ErrorKind::Busy);
            assert!(error.to_string().contains("a backup of this volume is under way"), "{error}");
        }
        go_on.send(()).unwrap();
        let report = running.await.unwrap().unwrap();
        assert!(place.shelf.verify(&report.summary.id, nobody()).await.unwrap().is_whole());
    });
}

#[test]
fn a_lock_of_yesterday_is_taken_over_and_its_backup_writes_no_manifest() {
    run(async {
        let place = Place::new();
        let volume = place.file("v", 2 * MIB, &[(0, &noise(10, MIB))]);
        let (watch, seen, go_on) = standing_still();
        let (shelf, source) = (place.shelf.clone(), volume.try_clone().unwrap());
        let slow = tokio::spawn(async move { shelf.backup(source, NOW, watch).await });
        seen.await.unwrap();
        let yesterday = std::time::SystemTime::now() - std::time::Duration::from_secs(24 * 3600);
        File::options().write(true).open(place.below("lock.json")).unwrap().set_modified(yesterday).unwrap();
        let quick = place.shelf.backup(volume, later(1), nobody()).await.unwrap();
        go_on.send(()).unwrap();
        let error = slow.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        let listed = place.shelf.list().await.unwrap();
        assert_eq!(listed.iter().map(|one| &one.id).collect::<Vec<_>>(), [&quick.summary.id]);
    });
}

#[test]
fn a_lock_that_a_dead_daemon_left_keeps_out_other_hosts_and_not_its_own() {
    run(async {
        let place = Place::new();
        let (ours, theirs) = (Nonce::random(), Nonce::random());
        let shelf = |host: &Nonce| place.store().of_host(host.clone()).shelf(&Owner::admin(), &volume());
        let file = place.file("v", 2 * MIB, &[(0, &noise(12, MIB))]);
        let (watch, seen, go_on) = standing_still();
        let (slow, source) = (shelf(&ours), file.try_clone().unwrap());
        let working = tokio::spawn(async move { slow.backup(source, NOW, watch).await });
        seen.await.unwrap();
        let left = fs::read(place.below("lock.json")).unwrap();
        for host in [&ours, &theirs] {
            let error = shelf(host).backup(file.try_clone().unwrap(), later(1), nobody()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Busy, "it works: {error}");
        }
        go_on.send(()).unwrap();
        working.await.unwrap().unwrap();
        // As a power cut undoes the removal, and a daemon's death prevents it.
        fs::write(place.below("lock.json"), left).unwrap();
        let source = file.try_clone().unwrap();
        let error = shelf(&theirs).backup(source, later(2), nobody()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        shelf(&ours).backup(file, later(3), nobody()).await.unwrap();
        assert!(!place.locked());
        assert_eq!(place.shelf.list().await.unwrap().len(), 2);
    });
}

#[test]
fn a_restore_that_is_called_off_says_so() {
    run(async {
        let place = Place::new();
        let volume = place.file("v", 8 * MIB, &[(0, &noise(11, 8 * MIB))]);
        let report = place.shelf.backup(volume, NOW, nobody()).await.unwrap();
        let cancel = Cancel::default();
        cancel.cancel();
        let watch = Watch::new(|_| {}, cancel);
        let error = place.shelf.restore(&report.summary.id, place.open("back"), watch).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whatever_is_backed_up_comes_back_byte_for_byte(
        size in 0u64..6 * MIB,
        parts in proptest::collection::vec((0u64..6 * MIB, 0u64..MIB, any::<u64>(), any::<bool>()), 0..6),
    ) {
        run(async {
            let place = Place::new();
            let volume = place.file("v", size, &[]);
            let mut id = None;
            for (number, (at, len, seed, zero)) in parts.into_iter().enumerate() {
                let at = at.min(size);
                let mut bytes = noise(seed, len.min(size - at));
                if zero {
                    bytes.fill(0);
                }
                volume.write_all_at(&bytes, at).unwrap();
                let at = later(i64::try_from(number).unwrap());
                id = Some(place.shelf.backup(volume.try_clone().unwrap(), at, nobody()).await.unwrap().summary.id);
            }
            let Some(id) = id else { return };
            let back = place.file("back", MIB, &[(0, &noise(1, MIB))]);
            place.shelf.restore(&id, back.try_clone().unwrap(), nobody()).await.unwrap();
            assert_same(&back, &volume);
        });
    }
}
