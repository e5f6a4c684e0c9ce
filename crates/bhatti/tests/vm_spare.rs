//! VMMs that are started ahead become the machines of sandboxes that wake, are made or are copied.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;

use serde_json::json;
use testkit::{Events, TestHost};

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

fn pid_of(host: &TestHost, name: &str) -> i32 {
    let dir = fs::canonicalize(host.sandbox_dir(name)).unwrap();
    let of_it = |pid: &i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&dir));
    host.vmm_pids().into_iter().find(of_it).unwrap()
}

/// Waits until there is a VMM that is no sandbox's.
fn spare(host: &TestHost, events: &mut Events, sandboxes: &[&str]) -> i32 {
    // One that was told of may be somebody's by now.
    loop {
        events.wait_for("vmm.spare");
        if host.ok(&["metrics"]).contains("bhatti_spare_vmms 1") {
            break;
        }
    }
    let theirs: BTreeSet<i32> = sandboxes.iter().map(|name| pid_of(host, name)).collect();
    let all = host.vmm_pids().into_iter().collect::<BTreeSet<_>>();
    let rest: Vec<_> = all.difference(&theirs).copied().collect();
    assert_eq!(rest.len(), 1, "{all:?} without {theirs:?}");
    rest[0]
}

#[test]
fn a_spare_vmm_becomes_whoever_starts_next_and_holds_nothing_before() {
    let mut host = TestHost::start_with(BHATTI, &["--spare-vmms", "1"]);
    let mut events = host.follow_events();
    host.ok(&["create", "--name", "one", "--env", "WHO=one"]);
    host.sh("one", "echo here > /dev/shm/nonce; echo kept > ~/kept; sync");
    let waits = spare(&host, &mut events, &["one"]);
    for open in fs::read_dir(format!("/proc/{waits}/fd")).unwrap().flatten() {
        let file = fs::read_link(open.path()).unwrap_or_default();
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        assert!(!name.starts_with("rootfs") && !name.starts_with("config"), "{}", file.display());
    }
    host.ok(&["stop", "one"]);

    // A wake: its memory, its disk, and the same in its next sleep.
    assert_eq!(host.sh("one", "cat /dev/shm/nonce ~/kept; echo $WHO"), "here\nkept\none");
    assert_eq!(pid_of(&host, "one"), waits);
    let dir = host.sandbox_dir("one");
    let names = |dir: &std::path::Path| -> BTreeSet<String> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    host.sh("one", "echo more >> ~/kept; sync");
    host.ok(&["stop", "one"]);
    assert!(
        names(&dir)
            .is_superset(&["manifest.json", "config.ext4", "mem.snap", "vm.snap"].map(String::from).into())
    );
    assert_eq!(host.sh("one", "cat /dev/shm/nonce ~/kept"), "here\nkept\nmore");

    // A create, which is another one and not somebody's twin.
    let waits = spare(&host, &mut events, &["one"]);
    let made = host.json(&["create", "--name", "two", "--disk-size", "2048"]);
    assert_eq!((&made["boot"], pid_of(&host, "two")), (&json!("template"), waits), "{made}");
    assert_eq!(host.sh("two", "hostname; cat ~/kept 2>/dev/null || echo none"), "two\nnone");
    assert_ne!(host.sh("one", "cat /etc/machine-id"), host.sh("two", "cat /etc/machine-id"));

    // A fork of a running sandbox.
    let waits = spare(&host, &mut events, &["one", "two"]);
    host.ok(&["fork", "one", "--name", "copy"]);
    assert_eq!(pid_of(&host, "copy"), waits);
    assert_eq!(host.sh("copy", "hostname; cat /dev/shm/nonce ~/kept"), "copy\nhere\nkept\nmore");

    // A daemon that dies leaves it; the next one ends it and takes over what became somebody's.
    let waits = spare(&host, &mut events, &["one", "two", "copy"]);
    host.kill_daemon();
    assert!(host.vmm_pids().contains(&waits));
    host.start_daemon();
    assert!(!host.vmm_pids().contains(&waits));
    assert_eq!(host.sh("one", "cat /dev/shm/nonce"), "here");
    let left: Vec<_> =
        names(&host.data_dir().join("sandboxes")).into_iter().filter(|name| name.starts_with('.')).collect();
    assert!(left.is_empty(), "{left:?}");
    host.ok(&["fsck"]);
}

#[test]
fn a_spare_vmm_goes_before_any_sandbox_and_with_an_orderly_end() {
    // Room for a sandbox and a spare VMM, and not for two sandboxes and one.
    let mut host = TestHost::start_with(BHATTI, &["--spare-vmms", "1", "--max-memory", "1024"]);
    let mut events = host.follow_events();
    host.ok(&["create", "--name", "one", "--keep-hot"]);
    spare(&host, &mut events, &["one"]);
    host.ok(&["create", "--name", "two", "--keep-hot"]);
    assert_eq!(host.vmm_pids().len(), 2, "its room was needed");
    host.ok(&["destroy", "-y", "two"]);
    host.ok(&["stop", "one"]);
    host.ok(&["start", "one"]);
    let waits = spare(&host, &mut events, &["one"]);
    // What it maps keeps nothing that nobody needs.
    host.ok(&["gc"]);
    assert!(!host.vmm_pids().contains(&waits));
    host.ok(&["stop", "one"]);
    host.ok(&["start", "one"]);
    spare(&host, &mut events, &["one"]);
    host.end_daemon();
    assert_eq!(host.vmm_pids().len(), 1, "a sandbox goes on, and nothing else");
}
