//! A host whose disk is full: every verb that needs room is refused as such, nothing half-made stays, guests go on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use testkit::TestHost;

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

/// Everything below a directory but what lives with a running VMM and the index.
fn names(dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut left = vec![dir.to_owned()];
    while let Some(at) = left.pop() {
        for entry in std::fs::read_dir(at).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path());
            }
            if !name.starts_with("bhatti.db") && !name.ends_with(".log") && !name.ends_with(".sock") {
                found.insert(entry.path());
            }
        }
    }
    found
}

fn a_guest_that_writes_waits_for_room(host: &TestHost) {
    host.fill(0);
    let write = [
        "exec",
        "a",
        "--",
        "dd",
        "if=/dev/urandom",
        "of=/home/user/noise",
        "bs=1M",
        "count=16",
        "conv=fsync",
    ];
    let mut writer = host.command(&write).spawn().unwrap();
    // It waits for its blocks to be written; between two tries the guest does what needs no room.
    host.sh("a", "until ps -o stat= -C dd | grep -q D; do sleep 0.05; done");
    assert!(writer.try_wait().unwrap().is_none(), "16 MiB were written where there is no room");
    host.unfill();
    assert!(writer.wait().unwrap().success(), "the write was not done when there was room");
    assert_eq!(host.sh("a", "cat /dev/shm/nonce; stat -c %s noise; rm noise; sync"), "kept\n16777216");
}

#[test]
fn a_full_disk_refuses_what_needs_room_and_leaves_guests_running() {
    let host = TestHost::on_small_filesystem(BHATTI, 1536);
    let _made = host.json(&["create", "--name", "a"]);
    host.sh(
        "a",
        "echo kept > /dev/shm/nonce; dd if=/dev/urandom of=/dev/shm/noise bs=1M count=24 status=none",
    );
    let _asleep = host.json(&["create", "--name", "asleep"]);
    let _stopped = host.json(&["stop", "asleep"]);
    // Once with no room at all, once with room for the small files and not for the memory.
    for leave in [0, 6 << 20] {
        // A guest that has something to write while there is no room waits for it; this one has nothing.
        host.sh("a", "cat /dev/shm/nonce > /dev/null; sync");
        host.fill(leave);
        let before = names(host.data_dir());
        for args in [
            vec!["snapshot", "create", "a", "--name", "s"],
            vec!["stop", "a"],
            vec!["create", "--name", "b", "--memory", "640"],
        ] {
            let outcome = host.run(&args);
            assert_eq!(
                outcome.code,
                1,
                "{args:?} with {leave} bytes free: {}{}",
                outcome.text(),
                outcome.stderr
            );
            let said = outcome.stderr.to_lowercase();
            assert!(said.contains("space") || said.contains("full"), "{args:?}: {said}");
            assert_eq!(host.sh("a", "cat /dev/shm/nonce"), "kept", "{args:?}");
        }
        if leave == 0 {
            let forked = host.run(&["fork", "a", "--name", "f"]);
            assert_eq!(forked.code, 1, "{}", forked.stderr);
            host.refused(&["volume", "create", "more", "--size", "64"], 1, &["it is full", "bhatti gc"]);
        }
        // A freeze may have been committed before the room ran out: a layer that is in use, and is sealed (and the seal's
        // file made and removed) while nobody waits. The directory of an owner's snapshots stays, empty, for the next
        // one. Nothing else.
        let (layers, snapshots) = (host.data_dir().join("layers"), host.data_dir().join("snapshots/admin"));
        let left: Vec<_> = names(host.data_dir())
            .difference(&before)
            .filter(|path| **path != snapshots)
            .filter(|path| {
                !path.starts_with(&layers) || !path.with_extension("").with_extension("qcow2").exists()
            })
            .cloned()
            .collect();
        assert!(left.is_empty(), "with {leave} bytes free these stayed: {left:?}");
        host.unfill();
        assert_eq!(host.json(&["inspect", "a"])["thermal"], "hot");
    }
    a_guest_that_writes_waits_for_room(&host);
    let _snapshot = host.json(&["snapshot", "create", "a", "--name", "s"]);
    let _resumed = host.json(&["snapshot", "resume", "s", "--name", "b"]);
    assert_eq!(host.sh("b", "cat /dev/shm/nonce"), "kept");
    let _slept = host.json(&["stop", "a"]);
    assert_eq!(host.sh("a", "cat /dev/shm/nonce"), "kept");
    assert_eq!(host.sh("asleep", "echo awake"), "awake");
}
