//! Backups of volumes through the daemon, without a guest: what goes to a directory, what comes back, what is refused.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use testkit::TestHost;

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");
const MIB: u64 = 1 << 20;

struct Place {
    host: TestHost,
}

impl Place {
    /// A daemon, and the volume `data` of 64 MiB with something in it.
    fn new() -> Self {
        let mut host = TestHost::bare(BHATTI);
        host.start_daemon();
        host.ok(&["volume", "create", "data", "--size", "64"]);
        let place = Self { host };
        place.write(20 * MIB, &noise(1, 4 * MIB));
        place
    }

    fn volume(&self) -> PathBuf {
        self.host.data_dir().join("volumes/admin/data.ext4")
    }

    /// As a guest would.
    fn write(&self, at: u64, bytes: &[u8]) {
        let file = File::options().write(true).open(self.volume()).unwrap();
        file.write_all_at(bytes, at).unwrap();
    }

    fn content(&self) -> blake3::Hash {
        blake3::hash(&fs::read(self.volume()).unwrap())
    }

    fn backup(&self) -> serde_json::Value {
        self.host.json(&["volume", "backup", "data"])
    }

    fn store(&self) -> PathBuf {
        self.host.data_dir().join("backups/admin/data")
    }

    /// Nothing is half made: the volume and its record, and no more.
    fn nothing_beside_the_volume(&self) {
        let dir = self.host.data_dir().join("volumes/admin");
        let mut names: Vec<_> = names(&dir);
        names.sort();
        assert_eq!(names, ["data.ext4", "data.json"]);
        assert!(!self.store().join("lock.json").exists());
    }
}

fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn id(backup: &serde_json::Value) -> &str {
    backup["id"].as_str().unwrap()
}

/// The largest chunk, which is one of noise.
fn chunk(store: &Path) -> PathBuf {
    let dirs = fs::read_dir(store.join("chunks")).unwrap().map(|entry| entry.unwrap().path());
    let all = dirs.flat_map(|dir| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()));
    all.max_by_key(|path| (fs::metadata(path).unwrap().len(), path.clone())).unwrap()
}

#[test]
fn a_volume_is_backed_up_and_comes_back_and_an_unchanged_one_moves_next_to_nothing() {
    let place = Place::new();
    let (host, before) = (&place.host, place.content());
    let first = place.backup();
    assert!(first["sent_bytes"].as_u64().unwrap() >= 4 * MIB, "{first}");
    assert!(first.get("stall_ms").is_none(), "{first}");
    let second = place.backup();
    assert_eq!((&second["new_chunks"], &second["sent_bytes"]), (&0.into(), &0.into()), "{second}");
    assert!(second["moved_bytes"].as_u64().unwrap() < 64 << 10, "{second}");
    place.write(40 * MIB, &noise(2, MIB));
    let third = place.backup();
    assert!((1..=5).contains(&third["new_chunks"].as_u64().unwrap()), "{third}");
    assert_ne!(place.content(), before);

    let listed = host.json(&["volume", "backups", "data"]);
    let ids: Vec<_> = listed.as_array().unwrap().iter().map(id).collect();
    assert_eq!(ids, [id(&first), id(&second), id(&third)]);

    let restored = host.json(&["volume", "restore", "data", "--backup", id(&second)]);
    assert_eq!((&restored["name"], &restored["created"]), (&"data".into(), &false.into()));
    assert_eq!(place.content(), before);
    place.nothing_beside_the_volume();

    // Backups outlive the volume, and make it again.
    host.ok(&["volume", "delete", "data"]);
    assert_eq!(host.json(&["volume", "backups", "data"]).as_array().unwrap().len(), 3);
    let again = host.json(&["volume", "restore", "data", "--backup", id(&first)]);
    assert_eq!(again["created"], true);
    assert_eq!(place.content(), before);
    host.ok(&["fsck"]);
}

#[test]
fn a_backup_that_is_cut_or_damaged_or_foreign_leaves_the_volume_as_it_is() {
    let place = Place::new();
    let host = &place.host;
    let good = place.backup();
    place.write(0, b"newer");
    let now = place.content();
    let restore = ["volume", "restore", "data", "--backup", id(&good)];

    let (chunk, manifest) =
        (chunk(&place.store()), place.store().join(format!("backups/{}.json", id(&good))));
    let (chunk_bytes, manifest_bytes) = (fs::read(&chunk).unwrap(), fs::read(&manifest).unwrap());
    let name = chunk.file_name().unwrap().to_str().unwrap();

    fs::write(&chunk, &chunk_bytes[..500]).unwrap();
    host.refused(&restore, 1, &[name, "cut or damaged"]);
    let mut flipped = chunk_bytes.clone();
    flipped[70_000] ^= 1;
    fs::write(&chunk, flipped).unwrap();
    host.refused(&restore, 1, &[name]);
    fs::remove_file(&chunk).unwrap();
    host.refused(&restore, 1, &[name, "not there"]);
    fs::write(&chunk, &chunk_bytes).unwrap();

    fs::write(&manifest, &manifest_bytes[..manifest_bytes.len() / 2]).unwrap();
    host.refused(&restore, 1, &[id(&good), "cut or damaged"]);
    let listed = host.json(&["volume", "backups", "data"]);
    assert!(listed[0]["error"].as_str().unwrap().contains("damaged"), "{listed}");
    fs::write(&manifest, r#"{"format":"bhatti-backup","version":2}"#).unwrap();
    host.refused(&restore, 1, &["version 2", "newer bhatti"]);

    host.ok(&["volume", "create", "other", "--size", "16"]);
    let other = host.json(&["volume", "backup", "other"]);
    let from = host.data_dir().join(format!("backups/admin/other/backups/{}.json", id(&other)));
    fs::copy(from, place.store().join(format!("backups/{}.json", id(&other)))).unwrap();
    host.refused(&["volume", "restore", "data", "--backup", id(&other)], 1, &["a backup of volume other"]);
    host.ok(&["volume", "delete", "other"]);

    assert_eq!(place.content(), now);
    place.nothing_beside_the_volume();
    fs::write(&manifest, &manifest_bytes).unwrap();
    host.ok(&restore);
    assert_ne!(place.content(), now);
}

#[test]
fn what_is_not_there_is_said_and_a_bad_store_too() {
    let place = Place::new();
    let host = &place.host;
    host.refused(&["volume", "backup", "none"], 1, &["no volume none", "volume list"]);
    host.refused(&["volume", "backups", "none"], 1, &["no volume none"]);
    let unknown = "20200101t000000-00000000";
    host.refused(
        &["volume", "restore", "data", "--backup", unknown],
        1,
        &["no such backup", "list the backups"],
    );
    host.refused(&["volume", "backup-delete", "data", "--backup", unknown], 1, &["no such backup"]);
    host.refused(&["volume", "restore", "data", "--backup", "latest"], 1, &["no id of a backup"]);
    for bad in ["/srv", "s3://", "http://x"] {
        host.refused(&["volume", "backup", "data", "--to", bad], 1, &["open the backup store"]);
    }
    host.refused(&["volume", "backup", "data", "--to", "file:///no/such/parent"], 1, &["/no/such/parent"]);
    host.refused(&["volume", "backup-prune", "data"], 2, &["--keep"]);
    host.refused(&["volume", "backup-prune", "data", "--keep", "0"], 1, &["nothing would be kept"]);
    place.nothing_beside_the_volume();
}

#[test]
fn backups_go_where_the_daemon_or_the_call_says() {
    let elsewhere = tempfile::tempdir().unwrap();
    let url = |name: &str| format!("file://{}", elsewhere.path().join(name).display());
    let mut place = Place::new();
    let first = place.host.json(&["volume", "backup", "data", "--to", &url("one")]);
    assert_eq!(first["store"], url("one"));
    assert!(!place.host.data_dir().join("backups").exists());
    let from = ["volume", "backups", "data", "--from", &url("one")];
    assert_eq!(id(&place.host.json(&from)[0]), id(&first));
    place.host.end_daemon();
    place.host.serve_with(&["--backup-to", &url("two")]);
    place.host.start_daemon();
    assert_eq!(place.backup()["store"], url("two"));
    assert!(!place.host.data_dir().join("backups").exists());
    place.host.ok(&["volume", "restore", "data", "--backup", id(&first), "--from", &url("one")]);
}

#[test]
fn old_backups_go_and_what_the_others_need_stays() {
    let place = Place::new();
    let host = &place.host;
    let mut ids = Vec::new();
    for round in 0..4 {
        place.write(40 * MIB, &noise(round + 10, MIB));
        ids.push(id(&place.backup()).to_owned());
    }
    let dry = host.json(&["volume", "backup-prune", "data", "--keep", "2", "--dry-run"]);
    assert_eq!((dry["removed"].as_array().unwrap().len(), &dry["dry_run"]), (2, &true.into()));
    assert_eq!(host.json(&["volume", "backups", "data"]).as_array().unwrap().len(), 4);
    let done = host.json(&["volume", "backup-prune", "data", "--keep", "2"]);
    assert_eq!(done["removed"], dry["removed"]);
    assert!(done["freed_bytes"].as_u64().unwrap() >= 2 * MIB, "{done}");
    host.ok(&["volume", "restore", "data", "--backup", &ids[2]]);
    host.ok(&["volume", "backup-delete", "data", "--backup", &ids[2], "--backup", &ids[3]]);
    assert_eq!(host.json(&["volume", "backups", "data"]), serde_json::json!([]));
    let left = fs::read_dir(place.store().join("chunks")).unwrap();
    assert_eq!(left.map(|dir| names(&dir.unwrap().path()).len()).sum::<usize>(), 0);
}

#[test]
fn a_schedule_is_kept_with_the_volume_and_one_that_never_comes_is_refused() {
    let mut place = Place::new();
    let set = ["volume", "schedule", "data", "--cron", "30 3 * * 1-5", "--keep", "4"];
    let told = place.host.json(&set);
    assert_eq!((&told["schedule"]["cron"], &told["schedule"]["keep"]), (&"30 3 * * 1-5".into(), &4.into()));
    let next = told["schedule"]["next_at"].as_str().unwrap().to_owned();
    assert!(next.ends_with("T03:30:00.000Z"), "{next}");
    place.host.end_daemon();
    place.host.start_daemon();
    assert_eq!(place.host.json(&["volume", "inspect", "data"])["schedule"]["next_at"], next);
    let host = &place.host;
    host.refused(
        &["volume", "schedule", "data", "--cron", "0 0 31 2 *"],
        1,
        &["no time that ever comes", "@daily"],
    );
    host.refused(&["volume", "schedule", "data", "--cron", "@daily", "--keep", "0"], 1, &["--keep"]);
    host.refused(&["volume", "schedule", "none", "--cron", "@daily"], 1, &["no volume none"]);
    host.refused(&["volume", "schedule", "data"], 2, &["--cron"]);
    host.ok(&["volume", "schedule", "data", "--off"]);
    assert!(host.json(&["volume", "inspect", "data"]).get("schedule").is_none());
}
