//! Forks of real guests, and sandboxes created from others.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use serde_json::{Value, json};
use testkit::TestHost;

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

fn names(host: &TestHost) -> Vec<String> {
    let list: Vec<Value> = serde_json::from_value(host.json(&["list"])).unwrap();
    list.iter().map(|sandbox| sandbox["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn three_copies_of_a_running_sandbox_live_beside_it() {
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "parent", "--label", "tier=a", "--env", "FROM_CREATE=yes"]);
    host.sh("parent", "echo shared-past > /dev/shm/nonce; echo disk > ~/disk");
    host.ok(&["exec", "parent", "--detach", "--", "sleep", "7200"]);
    let (status, reply) =
        host.post("/sandboxes/parent/fork", &json!({ "name": "child", "count": 3, "labels": { "k": "v" } }));
    assert_eq!(status, 201, "{reply}");
    assert_eq!((&reply["name"], &reply["boot"]), (&json!("child-1"), &json!("fork")), "{reply}");
    assert!(reply["timings_ms"]["pause"].as_f64().unwrap() > 0.0, "{reply}");
    let made: Vec<&str> =
        reply["sandboxes"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(made, ["child-1", "child-2", "child-3"]);

    let mut seen = BTreeSet::new();
    for name in ["parent", "child-1", "child-2", "child-3"] {
        let facts = host.sh(
            name,
            "cat /etc/machine-id /proc/sys/kernel/random/uuid; hostname; cat /dev/shm/nonce ~/disk; \
             ps -eo args= | grep -c '^sleep 7200'; echo $FROM_CREATE",
        );
        let facts: Vec<&str> = facts.lines().collect();
        assert_eq!(facts[2..], [name, "shared-past", "disk", "1", "yes"], "{name}");
        assert!(seen.insert(facts[0].to_owned()) && seen.insert(facts[1].to_owned()), "{name} is a twin");
        host.sh(name, &format!("echo {name} > ~/disk; echo {name} > /dev/shm/nonce; sync"));
    }
    for name in ["parent", "child-1", "child-2", "child-3"] {
        assert_eq!(host.sh(name, "cat ~/disk /dev/shm/nonce"), format!("{name}\n{name}"));
    }
    assert_eq!(host.json(&["inspect", "child-2"])["labels"], json!({ "tier": "a", "k": "v" }));
    // A copy of a copy, after both it came from are gone.
    host.ok(&["fork", "child-3", "--name", "grandchild"]);
    host.ok(&["destroy", "parent", "child-3"]);
    host.ok(&["stop", "grandchild"]);
    assert_eq!(host.sh("grandchild", "cat ~/disk /dev/shm/nonce"), "child-3\nchild-3");
    assert_eq!(names(&host), ["child-1", "child-2", "grandchild"]);
}

#[test]
fn a_sleeping_sandbox_is_forked_without_being_woken() {
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "asleep"]);
    host.sh("asleep", "echo dreaming > /dev/shm/nonce");
    host.ok(&["stop", "asleep"]);
    host.ok(&["fork", "asleep", "--name", "awake", "--count", "2", "--strict"]);
    assert_eq!(host.json(&["inspect", "asleep"])["thermal"], "cold");
    for name in ["awake-1", "awake-2", "asleep"] {
        assert_eq!(host.sh(name, "cat /dev/shm/nonce; hostname"), format!("dreaming\n{name}"));
    }
}

#[test]
fn a_fork_makes_all_its_copies_or_none() {
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "parent"]);
    host.ok(&["create", "--name", "copy-3"]);
    host.refused(&["fork", "parent", "--name", "copy", "--count", "4"], 1, &["copy-3", "already"]);
    host.refused(&["fork", "parent", "--name", "parent"], 1, &["parent", "already"]);
    host.refused(&["fork", "nobody"], 1, &["no sandbox", "nobody"]);
    host.refused(&["fork", "parent", "--count", "65"], 2, &["65", "1..=64"]);
    host.refused(&["fork", "parent", "--name", "x", "--disk-size", "10"], 1, &["smaller", "only grow"]);
    for count in [json!(0), json!(-1), json!(65), json!(1_000_000_000), json!("3")] {
        let (status, reply) = host.post("/sandboxes/parent/fork", &json!({ "count": count }));
        assert_eq!(status, 400, "{reply}");
    }
    assert_eq!(names(&host), ["copy-3", "parent"]);
    assert_eq!(host.vmm_pids().len(), 2);
    assert_eq!(std::fs::read_dir(host.data_dir().join("sandboxes")).unwrap().count(), 2);
    // Without a name one is made up.
    let made = host.json(&["fork", "parent", "--count", "2"]);
    assert_eq!(made["sandboxes"].as_array().unwrap().len(), 2, "{made}");
    assert_eq!(host.sh(made["name"].as_str().unwrap(), "hostname"), made["name"].as_str().unwrap());
}

#[test]
fn a_sandbox_is_created_from_a_sandbox_or_a_snapshot() {
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "origin", "--memory", "256"]);
    host.sh("origin", "echo origin > /dev/shm/nonce");
    host.ok(&["snapshot", "create", "origin", "--name", "kept"]);
    // A snapshot may have a sandbox's name; the sandbox is meant then.
    host.ok(&["snapshot", "create", "origin", "--name", "origin"]);
    host.sh("origin", "echo later > /dev/shm/nonce");
    let id = host.json(&["inspect", "origin"])["id"].as_str().unwrap().to_owned();
    for (from, name, boot, nonce) in [
        ("origin", "by-name", "fork", "later"),
        (id.as_str(), "by-id", "fork", "later"),
        (&id[..8], "by-beginning", "fork", "later"),
        ("kept", "by-snapshot", "resume", "origin"),
    ] {
        let (status, reply) =
            host.post("/sandboxes", &json!({ "from": from, "name": name, "labels": { "from": boot } }));
        assert_eq!(status, 201, "{reply}");
        assert_eq!((&reply["boot"], &reply["memory_mb"]), (&json!(boot), &json!(256)), "{reply}");
        assert_eq!(reply["labels"]["from"], boot, "{reply}");
        assert_eq!(host.sh(name, "cat /dev/shm/nonce; hostname"), format!("{nonce}\n{name}"));
    }
    // A name that exists is returned unchanged, as long as it can be what was asked for.
    let again = host.json(&["create", "--from", "kept", "--name", "by-name"]);
    assert_eq!((&again["changed"], &again["boot"]), (&json!(false), &json!("fork")), "{again}");
    host.ok(&["create", "--name", "other"]);
    host.refused(&["create", "--from", "kept", "--name", "other"], 1, &["other", "another shape"]);
    host.refused(&["create", "--from", "nobody", "--name", "x"], 1, &["neither", "nobody", "snapshot list"]);
    host.refused(&["create", "--from", "origin", "--memory", "512"], 2, &["--from", "--memory"]);
    let grown = host.json(&["create", "--from", "kept", "--name", "grown", "--disk-size", "2048"]);
    assert_eq!(grown["disk_size_mb"], 2048, "{grown}");
    assert_eq!(host.sh("grown", "cat /dev/shm/nonce"), "origin");
}
