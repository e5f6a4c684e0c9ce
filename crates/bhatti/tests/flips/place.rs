//! Something of each kind, and one round of damage.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use testkit::{Choices, TestHost};

use super::Outcome;
use super::damage::Damage;
use super::kinds::{Kind, Part, Use, find};

/// What a guest has in memory and, read from its disk, on it.
const LOOK: &str = "sync; sudo sh -c 'echo 3 > /proc/sys/vm/drop_caches'; cat /dev/shm/nonce; \
    md5sum < /dev/shm/noise; md5sum < /home/known; md5sum < /home/early; id -u; env | grep KEPT; \
    echo damage $(sudo dmesg | grep -c 'EXT4-fs error\\|EXT4-fs warning\\|I/O error\\|segfault\\|BUG:')";
/// The same where memory does not come back.
const LOOK_AT_DISK: &str = "md5sum < /home/known; md5sum < /home/early; id -u; env | grep KEPT; \
    echo damage $(sudo dmesg | grep -c 'EXT4-fs error\\|EXT4-fs warning\\|I/O error\\|segfault\\|BUG:')";

/// The parts of a data directory; the first are small, and are put back after each round.
const SMALL: [&str; 7] = ["sandboxes", "snapshots", "layers", "volumes", "backups", "bases", "bhatti.db"];
const LARGE: [&str; 3] = ["images", "templates", "kernel"];

pub struct Place {
    host: TestHost,
    kept: PathBuf,
    a: String,
    awake: String,
    booted: String,
    resumed: String,
    volume: blake3::Hash,
    index: Vec<Value>,
    known: Vec<Value>,
}

/// What a check finds but for notes; `None` where the store cannot be checked at all, and that is said.
fn findings(host: &TestHost) -> Option<Vec<Value>> {
    let checked = host.run(&["--json", "fsck"]);
    let Ok(report) = serde_json::from_slice::<Value>(&checked.stdout) else {
        assert!(checked.code == 1 && checked.stderr.starts_with("error: "), "{checked:?}");
        return None;
    };
    let all = report["findings"].as_array().expect("findings");
    Some(all.iter().filter(|finding| finding["severity"] != "note").cloned().collect())
}

fn copy(from: &Path, to: &Path) {
    let copied =
        Command::new("cp").args(["-a", "--sparse=always", "--reflink=auto"]).args([from, to]).status();
    assert!(copied.expect("cp").success());
}

fn remove(path: &Path) {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path).expect("a directory goes"),
        Ok(_) => std::fs::remove_file(path).expect("a file goes"),
        Err(_) => {}
    }
}

/// What the index alone knows, or knows beside the manifests.
fn index_of(host: &TestHost) -> Vec<Value> {
    let told = [vec!["list"], vec!["user", "list"], vec!["secret", "list"], vec!["publish"]];
    let mut told: Vec<Value> = told.iter().map(|args| host.json(args)).collect();
    // What grows with time.
    for sandbox in told[0].as_array_mut().expect("a list") {
        let sandbox = sandbox.as_object_mut().expect("a sandbox");
        sandbox.retain(|key, _| ["id", "name", "owner", "thermal", "image"].contains(&key.as_str()));
    }
    told
}

impl Place {
    pub fn new(program: &str) -> Self {
        let mut host = TestHost::on_small_filesystem(program, 6 << 10);
        let secret = host.run_with_input(&["secret", "set", "KEPT"], b"a secret\n");
        assert_eq!(secret.code, 0, "{}", secret.stderr);
        host.ok(&["user", "create", "somebody"]);
        host.ok(&["volume", "create", "kept", "--size", "32"]);
        host.ok(&["create", "--name", "a", "--secret", "KEPT"]);
        let write = |file: &str, mib: u32| {
            host.sh(
                "a",
                &format!("sudo sh -c 'dd if=/dev/urandom of={file} bs=1M count={mib} status=none'; sync"),
            )
        };
        write("/home/early", 2);
        write("/dev/shm/noise", 6);
        host.sh("a", "echo before | sudo tee /dev/shm/nonce > /dev/null");
        host.ok(&["snapshot", "create", "a", "--name", "s"]);
        let resumed = host.sh("a", &LOOK.replace("md5sum < /home/known;", ""));
        write("/home/known", 2);
        host.sh("a", "echo after | sudo tee /dev/shm/nonce > /dev/null");
        let (awake, booted) = (host.sh("a", LOOK), host.sh("a", LOOK_AT_DISK));
        host.ok(&["volume", "attach", "kept", "a", "/kept"]);
        host.sh("a", "sudo sh -c 'dd if=/dev/urandom of=/kept/file bs=1M count=4 status=none'; sync");
        host.ok(&["volume", "detach", "kept", "a"]);
        host.ok(&["volume", "backup", "kept"]);
        host.ok(&["stop", "a"]);
        host.ok(&["publish", "a", "--port", "80", "--alias", "shown"]);
        let a = host.json(&["inspect", "a"])["id"].as_str().expect("an id").to_owned();
        let volume =
            blake3::hash(&std::fs::read(host.data_dir().join("volumes/admin/kept.ext4")).expect("it"));
        let index = index_of(&host);
        // Layers are sealed while nobody waits; this waits.
        host.ok(&["fsck"]);
        host.end_daemon();
        let kept = host.data_dir().with_extension("kept");
        std::fs::create_dir(&kept).expect("a directory");
        for part in SMALL.iter().chain(&LARGE) {
            copy(&host.data_dir().join(part), &kept.join(part));
        }
        let known = findings(&host).expect("a store that can be checked");
        // Sockets of VMMs that ended are told of; nothing is damaged.
        assert!(known.iter().all(|finding| finding["severity"] == "warning"), "{known:#?}");
        Self { host, kept, a, awake, booted, resumed, volume, index, known }
    }

    /// Everything as it was kept.
    fn put_back(&mut self, kind: &Kind) {
        if self.host.has_daemon() {
            self.host.kill_daemon();
        }
        self.host.kill_vmms();
        let root = self.host.data_dir();
        let large = LARGE.iter().filter(|part| kind.path.starts_with(**part));
        for part in SMALL.iter().chain(large) {
            remove(&root.join(part));
            copy(&self.kept.join(part), &root.join(part));
        }
        for left in ["bhatti.db-wal", "bhatti.db-shm", "bhatti.db.damaged", "serve.log"] {
            remove(&root.join(left));
        }
    }

    /// Damages a file of the kind, looks what comes of it, and puts everything back. Tells what was done, too.
    pub fn round(&mut self, kind: &Kind, choices: &mut Choices) -> (String, Outcome) {
        let path = find(self.host.data_dir(), kind.path, &self.a);
        let pieces = kind.pieces(&path);
        let bits_only = matches!(kind.part, Part::Blocks);
        let damage = loop {
            if let Some(damage) = Damage::choose(choices, &path, &pieces, bits_only) {
                break damage;
            }
        };
        damage.inflict(&path);
        let what = format!("{} ({damage} of {})", kind.name, path.display());
        let checked = self.told_by_fsck();
        let outcome = self.use_it(kind);
        let outcome = match (outcome, checked, kind.unpromised) {
            (Used::Refused(said), ..) => match self.names_it(kind, &said) {
                true => Outcome::AtUse,
                false => Outcome::Loss(format!("refused, and it is not said what: {said}")),
            },
            (Used::Loss(why), ..) => Outcome::Loss(why),
            (Used::Same | Used::Other(_), true, _) => Outcome::ByFsck,
            (Used::Same, false, _) => Outcome::Harmless,
            (Used::Other(_), false, Some(_)) => Outcome::Unpromised,
            (Used::Other(how), false, None) => {
                Outcome::Loss(format!("a guest ran on it, and fsck is silent: {how}"))
            }
        };
        self.put_back(kind);
        (what, outcome)
    }

    /// Whether a check of the whole store finds something wrong that was not wrong before; each finding names its file
    /// and whose it is.
    fn told_by_fsck(&self) -> bool {
        findings(&self.host).is_none_or(|found| found.iter().any(|finding| !self.known.contains(finding)))
    }

    fn names_it(&self, kind: &Kind, said: &str) -> bool {
        kind.says.iter().all(|part| said.contains(&part.replace("{a}", &self.a)))
    }

    fn use_it(&mut self, kind: &Kind) -> Used {
        let host = &mut self.host;
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| host.start_daemon())) {
            let said = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            return Used::Refused(said);
        }
        let args: &[&str] = match kind.used {
            Use::Wake => &["start", "a"],
            Use::Boot => &["start", "a", "--discard-memory"],
            Use::Resume => &["snapshot", "resume", "s", "--name", "r"],
            Use::Create => &["create", "--name", "c", "--secret", "KEPT"],
            Use::Attach => &["volume", "attach", "kept", "a", "/kept"],
            Use::Restore => {
                let list = self.host.run(&["--json", "volume", "backups", "kept"]);
                if list.code != 0 {
                    return Used::Refused(list.stderr);
                }
                let list: Value = serde_json::from_slice(&list.stdout).expect("JSON");
                let Some(id) = list[0]["id"].as_str().map(str::to_owned) else {
                    return Used::Loss("its backup is not listed".to_owned());
                };
                return self.restore(&id);
            }
            Use::Serve => return self.compare_index(),
        };
        let asked = self.host.run(args);
        if asked.code != 0 {
            let running = self.host.vmm_pids();
            let daemon = i32::try_from(self.host.daemon().pid()).expect("a pid");
            let guests: BTreeSet<_> = running.into_iter().filter(|pid| *pid != daemon).collect();
            return match guests.is_empty() {
                true => Used::Refused(asked.stderr),
                false => Used::Loss(format!("refused, and {guests:?} run: {}", asked.stderr)),
            };
        }
        let (name, look, wanted) = match kind.used {
            Use::Wake => ("a", LOOK.to_owned(), &self.awake),
            Use::Boot | Use::Attach => ("a", LOOK_AT_DISK.to_owned(), &self.booted),
            Use::Resume => ("r", LOOK.replace("md5sum < /home/known;", ""), &self.resumed),
            Use::Create | Use::Restore | Use::Serve => {
                ("c", "id -u; env | grep KEPT".to_owned(), &self.booted)
            }
        };
        let looked = self.host.run(&["exec", name, "--", "sh", "-c", &look]);
        let seen = looked.text();
        let wanted = match kind.used {
            Use::Create => "1000\nKEPT=a secret",
            _ => wanted,
        };
        match looked.code == 0 && seen.trim_end() == wanted {
            true => Used::Same,
            false => Used::Other(format!("{} {}{} in place of {wanted}", looked.code, seen, looked.stderr)),
        }
    }

    fn restore(&mut self, id: &str) -> Used {
        let restored = self.host.run(&["volume", "restore", "kept", "--backup", id, "-y"]);
        let volume = std::fs::read(self.host.data_dir().join("volumes/admin/kept.ext4")).expect("the volume");
        let same = blake3::hash(&volume) == self.volume;
        match (restored.code, same) {
            (0, true) => Used::Same,
            (0, false) => Used::Other("another volume".to_owned()),
            (_, true) => Used::Refused(restored.stderr),
            (_, false) => Used::Loss(format!("refused, and the volume is another: {}", restored.stderr)),
        }
    }

    fn compare_index(&mut self) -> Used {
        let log = std::fs::read_to_string(self.host.data_dir().join("serve.log")).expect("the log");
        if let Some(line) = log.lines().find(|line| line.contains("damaged")) {
            return Used::Refused(line.to_owned());
        }
        let now = index_of(&self.host);
        match now == self.index {
            true => Used::Same,
            false => Used::Other(format!("{now:?} in place of {:?}", self.index)),
        }
    }
}

/// What a verb did.
enum Used {
    /// It was refused, with these words, and no guest ran.
    Refused(String),
    /// It worked, and everything is as before.
    Same,
    /// It worked, and something is another.
    Other(String),
    Loss(String),
}
