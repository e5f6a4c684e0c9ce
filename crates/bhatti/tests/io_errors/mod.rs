//! Verbs, the calls that they make on files, and what is left when one of these fails.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use testkit::{Call, Faults, TestHost};

/// A verb, and what takes it back where it worked.
struct Verb {
    name: &'static str,
    asked: &'static [&'static str],
    back: &'static [&'static [&'static str]],
    /// Reads fail and not writes.
    reads: bool,
}

const fn verb(
    name: &'static str,
    asked: &'static [&'static str],
    back: &'static [&'static [&'static str]],
) -> Verb {
    Verb { name, asked, back, reads: false }
}

const VERBS: [Verb; 12] = [
    verb("stop", &["stop", "a"], &[&["start", "a"]]),
    verb("wake", &["start", "asleep"], &[&["stop", "asleep"]]),
    Verb { reads: true, ..verb("wake, reads", &["start", "asleep"], &[&["stop", "asleep"]]) },
    verb("create", &["create", "--name", "made"], &[&["destroy", "made"]]),
    verb("fork", &["fork", "a", "--name", "copy"], &[&["destroy", "copy"]]),
    verb("snapshot", &["snapshot", "create", "a", "--name", "s"], &[&["snapshot", "delete", "s", "-y"]]),
    verb("resume", &["snapshot", "resume", "kept", "--name", "r"], &[&["destroy", "r"]]),
    verb("destroy", &["destroy", "victim"], &[&["create", "--name", "victim"], &["stop", "victim"]]),
    verb("volume", &["volume", "create", "more", "--size", "8"], &[&["volume", "delete", "more", "-y"]]),
    verb("backup", &["volume", "backup", "data"], &[]),
    verb("restore", &["volume", "restore", "data", "--backup", "{backup}", "-y"], &[]),
    verb("edit", &["edit", "a", "--label", "x=y"], &[]),
];

/// What is below the data directory, but for what lives with a daemon, a VMM or the time.
fn names(dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut left = vec![dir.to_owned()];
    while let Some(at) = left.pop() {
        for entry in std::fs::read_dir(at).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(entry.path());
            }
            let passes =
                [".log", ".sock"].iter().any(|end| name.ends_with(end)) || name.starts_with("bhatti.db");
            // A freeze may have been committed before its verb failed; layers and their seals are then in use. Chunks
            // of a backup that failed are the next one's.
            let shared = ["layers", "backups", "snapshots/admin"]
                .iter()
                .any(|part| entry.path().strip_prefix(dir).is_ok_and(|path| path.starts_with(part)));
            if !passes && !shared {
                found.insert(entry.path());
            }
        }
    }
    found
}

struct Place {
    host: TestHost,
    backup: String,
}

impl Place {
    fn new(program: &str) -> Self {
        let host = TestHost::start(program);
        host.ok(&["volume", "create", "data", "--size", "16"]);
        for name in ["a", "asleep", "victim"] {
            host.ok(&["create", "--name", name]);
            host.sh(name, "echo kept > /dev/shm/nonce; echo kept > ~/file; sync");
        }
        host.ok(&["snapshot", "create", "a", "--name", "kept"]);
        host.ok(&["stop", "asleep", "victim"]);
        let backup = host.json(&["volume", "backup", "data"])["id"].as_str().expect("an id").to_owned();
        Self { host, backup }
    }

    fn args(&self, args: &[&str]) -> Vec<String> {
        args.iter().map(|arg| arg.replace("{backup}", &self.backup)).collect()
    }

    fn back(&self, verb: &Verb) {
        verb.back.iter().for_each(|args| drop(self.host.ok(&self.args(args))));
    }

    /// The calls that a verb makes on files whose names are the same each time.
    fn calls(&self, verb: &Verb) -> BTreeSet<Call> {
        let root = std::fs::canonicalize(self.host.data_dir()).expect("the data directory");
        let once = || {
            let watch = Faults::watch(self.host.daemon().pid(), verb.reads);
            self.host.ok(&self.args(verb.asked));
            let calls = watch.calls(&root);
            self.back(verb);
            calls
        };
        let (first, second) = (once(), once());
        first.intersection(&second).filter(|call| !call.path.ends_with("serve.log")).cloned().collect()
    }

    /// Runs the verb while the call fails; tells what is wrong then, and whether it was refused.
    fn fail(&self, verb: &Verb, call: &str, path: Option<&Path>) -> (bool, Vec<String>) {
        let host = &self.host;
        let (before, mut wrong) = (names(host.data_dir()), Vec::new());
        let faults = Faults::inject(host.daemon().pid(), call, path);
        let asked = host.run(&self.args(verb.asked));
        let failed = faults.failed();
        match asked.code {
            0 => {}
            1 => {
                let said = asked.stderr.trim_end();
                let cause = ["Input/output error", "I/O error", "os error 5"]
                    .iter()
                    .any(|words| said.contains(words));
                if !cause || said.lines().count() != 1 || !said.starts_with("error: ") {
                    wrong.push(format!("not told why in one line: {said:?}"));
                }
                if failed == 0 {
                    wrong.push(format!("refused without a cause: {said:?}"));
                }
            }
            code => wrong.push(format!("it gave {code}: {}", asked.stderr)),
        }
        if asked.code == 0 {
            let restored: Vec<_> = verb.back.iter().map(|args| host.run(&self.args(args))).collect();
            for undone in restored.iter().filter(|undone| undone.code != 0) {
                wrong.push(format!("it said that it worked, and cannot be taken back: {}", undone.stderr));
            }
        }
        // The disk is well again: everything is as it was.
        for name in ["a", "asleep"] {
            let seen = host.run(&["exec", name, "--", "sh", "-c", "cat /dev/shm/nonce ~/file"]);
            if seen.text() != "kept\nkept\n" {
                wrong.push(format!("{name} has {:?} {}", seen.text(), seen.stderr.trim_end()));
            }
        }
        // A destruction may have happened before it failed.
        let there = |name: &str| host.run(&["inspect", name]).code == 0;
        if !there("victim") {
            host.ok(&["create", "--name", "victim"]);
        }
        let asleep = host.run(&["stop", "asleep", "victim"]);
        if asleep.code != 0 {
            wrong.push(format!("they do not go to sleep again: {}", asleep.stderr.trim_end()));
        }
        for (kind, args) in [
            ("sandbox", ["list"].as_slice()),
            ("snapshot", &["snapshot", "list"]),
            ("volume", &["volume", "list"]),
        ] {
            let list = host.json(args);
            let names: BTreeSet<_> =
                list.as_array().expect("a list").iter().filter_map(|one| one["name"].as_str()).collect();
            for name in names.iter().filter(|name| !["a", "asleep", "victim", "kept", "data"].contains(name))
            {
                wrong.push(format!("{kind} {name} is there"));
                let destroyed = match kind {
                    "sandbox" => host.run(&["destroy", name]),
                    "snapshot" => host.run(&["snapshot", "delete", name, "-y"]),
                    _ => host.run(&["volume", "delete", name, "-y"]),
                };
                assert_eq!(destroyed.code, 0, "{}", destroyed.stderr);
            }
        }
        let after = names(host.data_dir());
        // What is named after a sandbox's id or address has another name when it was made anew.
        let list = host.json(&["list"]);
        let addresses: BTreeSet<_> =
            list.as_array().expect("a list").iter().filter_map(|one| one["ip"].as_str()).collect();
        let plain = |path: &&PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            !path.to_string_lossy().contains("/sandboxes/") && !addresses.contains(&*name)
        };
        for path in after.difference(&before).filter(plain) {
            wrong.push(format!("{} stays", path.display()));
        }
        let half = |path: &&PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(".new-") || name.starts_with(".gone-") || name.ends_with(".new")
        };
        for path in after.iter().filter(half).filter(|path| !before.contains(*path)) {
            wrong.push(format!("{} is half made and stays", path.display()));
        }
        (asked.code != 0, wrong)
    }
}

/// Lets calls of each verb fail, one at a time, at most so many of each verb. Panics when anything was lost.
pub fn suffer(program: &str, most: usize) {
    let began = Instant::now();
    let place = Place::new(program);
    let (mut errors, mut refused, mut losses) = (0, 0, Vec::new());
    for verb in &VERBS {
        let calls: Vec<Call> = place.calls(verb).into_iter().collect();
        // What has another name each time fails without a name: in all files at once.
        let anywhere = ["fsync", "mkdir", "renameat2"].iter().filter(|_| !verb.reads);
        let mut all: Vec<(String, Option<PathBuf>)> =
            calls.iter().map(|call| (call.name.clone(), Some(call.path.clone()))).collect();
        all.extend(anywhere.map(|call| ((*call).to_owned(), None)));
        let step = all.len().div_ceil(most.min(all.len()).max(1));
        let mut mine = 0;
        for (call, path) in all.iter().step_by(step) {
            let (was_refused, wrong) = place.fail(verb, call, path.as_deref());
            errors += 1;
            mine += usize::from(was_refused);
            for wrong in wrong {
                let loss = format!("{}, {call} of {path:?}: {wrong}", verb.name);
                eprintln!("{loss}");
                losses.push(loss);
            }
        }
        refused += mine;
        println!("{}: {} calls, {} failed, {mine} refusals", verb.name, all.len(), all.len().div_ceil(step));
    }
    println!(
        "{} verbs, {errors} I/O errors, {refused} refusals, {} losses, {:.0} s",
        VERBS.len(),
        losses.len(),
        began.elapsed().as_secs_f64()
    );
    assert!(losses.is_empty(), "lost: {losses:#?}");
}
