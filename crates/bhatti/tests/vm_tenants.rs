//! Users with real guests: what is one's is nobody else's, and quotas hold on every way to a machine.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader};

use testkit::TestHost;

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

#[test]
fn a_users_machines_are_theirs_and_no_more_than_they_may_have() {
    let mut host = TestHost::start(BHATTI);
    let key = |host: &TestHost, args: &[&str]| host.ok(args).trim().to_owned();
    let alice = key(
        &host,
        &["user", "create", "alice", "--max-sandboxes", "2", "--max-memory", "512", "--max-snapshots", "1"],
    );
    let bob = key(&host, &["user", "create", "bob"]);

    // One name, two sandboxes: each reaches their own, by whatever way.
    host.ok(&["--token", &alice, "create", "--name", "web"]);
    host.ok(&["--token", &bob, "create", "--name", "web"]);
    for (token, owner) in [(&alice, "alice"), (&bob, "bob")] {
        host.ok(&["--token", token, "exec", "web", "--", "sh", "-c", &format!("echo {owner} > /tmp/me")]);
    }
    assert_eq!(host.ok(&["--token", &alice, "exec", "web", "--", "cat", "/tmp/me"]), "alice\n");
    assert_eq!(host.ok(&["--owner", "bob", "exec", "web", "--", "cat", "/tmp/me"]), "bob\n");
    let of_bob = host.json(&["--token", &bob, "inspect", "web"])["id"].as_str().unwrap().to_owned();
    for which in [of_bob.as_str(), &of_bob[..8]] {
        host.refused(&["--token", &alice, "exec", which, "--", "true"], 1, &["there is no sandbox"]);
        host.refused(&["--token", &alice, "destroy", which, "-y"], 1, &["there is no sandbox"]);
    }
    host.refused(&["exec", "web", "--", "true"], 1, &["there is no sandbox"]);
    assert_eq!(host.json(&["list"]).as_array().unwrap().len(), 2, "the admin sees both");

    // Memory of one machine is all that alice may have: create, fork, resume and wake are refused, and nothing is left.
    let memory = ["alice has 512 of the 512 MiB", "max_memory_mb"];
    host.ok(&["--token", &alice, "snapshot", "create", "web", "--name", "kept"]);
    host.refused(&["--token", &alice, "snapshot", "create", "web", "--name", "more"], 1, &["max_snapshots"]);
    host.refused(&["--token", &alice, "create", "--name", "more"], 1, &memory);
    host.refused(&["--token", &alice, "fork", "web", "--name", "more"], 1, &memory);
    host.refused(&["--token", &alice, "snapshot", "resume", "kept", "--name", "more"], 1, &memory);
    assert_eq!(host.json(&["--token", &alice, "list"]).as_array().unwrap().len(), 1);
    host.ok(&["--token", &alice, "stop", "web"]);
    host.ok(&["--token", &alice, "snapshot", "resume", "kept", "--name", "second"]);
    host.refused(&["--token", &alice, "start", "web"], 1, &memory);
    host.refused(&["--token", &alice, "fork", "second", "--name", "third"], 1, &["max_sandboxes"]);
    // The next daemon counts what it takes over.
    host.kill_daemon();
    host.start_daemon();
    host.refused(&["--token", &alice, "exec", "web", "--", "true"], 1, &memory);
    assert_eq!(host.ok(&["--token", &alice, "exec", "second", "--", "cat", "/tmp/me"]), "alice\n");

    // A key that is rotated cuts what flows through it.
    let follow = ["--token", &alice, "exec", "second", "--", "sh", "-c", "echo begun; exec sleep 600"];
    let mut stream = host.command(&follow).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(stream.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "begun\n");
    let again = key(&host, &["user", "rotate-key", "alice"]);
    assert_eq!(stream.wait().unwrap().code(), Some(1));
    host.refused(&["--token", &alice, "list"], 1, &["revoked"]);
    host.refused(&["user", "delete", "alice", "-y"], 1, &["2 sandboxes (", "1 snapshot (kept)", "--purge"]);
    assert_eq!(host.json(&["--token", &again, "list"]).as_array().unwrap().len(), 2);
    host.ok(&["user", "delete", "alice", "--purge", "-y"]);
    host.refused(&["--token", &again, "list"], 1, &["revoked"]);
    assert_eq!(host.json(&["list"])[0]["owner"], "bob");
    assert_eq!(host.vmm_pids().len(), 1, "only bob's machine is left");
}

#[test]
fn every_verb_that_makes_something_stops_at_each_quota_that_it_counts_for() {
    let host = TestHost::start(BHATTI);
    let key = host.ok(&["user", "create", "carol"]).trim().to_owned();
    let as_carol = |args: &[&'static str]| -> Vec<String> {
        ["--token", &key].iter().chain(args).map(|arg| (*arg).to_owned()).collect()
    };
    for made in [
        &["create", "--name", "one", "--volume", "v:/mnt/v"][..],
        &["snapshot", "create", "one", "--name", "s"],
        &["volume", "backup", "v"],
        &["create", "--name", "asleep"],
        &["stop", "asleep"],
    ] {
        host.ok(&as_carol(made));
    }
    let backup = host.json(&as_carol(&["volume", "backups", "v"]))[0]["id"].as_str().unwrap().to_owned();
    let archive = host.data_dir().join("none.tar").display().to_string();
    std::fs::write(&archive, "no archive").unwrap();
    let all = || {
        let lists = [&["list"][..], &["snapshot", "list"], &["volume", "list"], &["image", "list"]];
        // What a list says of idleness and sizes changes by itself; which there are does not.
        let names = |list: serde_json::Value| {
            list.as_array()
                .unwrap()
                .iter()
                .map(|it| (it["name"].clone(), it["state"].clone()))
                .collect::<Vec<_>>()
        };
        lists.map(|list| names(host.json(&as_carol(list))))
    };
    // Which verb, and which quotas it must stop at: all of a user's that one more of it would exceed.
    let verbs: [(&[&str], &[&str]); 15] = [
        (&["create", "--name", "more"], &["sandboxes", "memory", "cpus", "disk"]),
        (&["create", "--name", "more", "--volume", "w:/mnt/w"], &["sandboxes", "volumes"]),
        (&["create", "--name", "more", "--from", "one"], &["sandboxes", "memory", "volumes"]),
        (&["create", "--name", "more", "--from", "s"], &["sandboxes", "memory", "volumes"]),
        (&["fork", "one", "--name", "more"], &["sandboxes", "memory", "cpus", "volumes", "disk"]),
        (&["snapshot", "resume", "s", "--name", "more"], &["sandboxes", "memory", "cpus", "volumes", "disk"]),
        (&["snapshot", "create", "one", "--name", "t"], &["snapshots", "disk"]),
        (&["start", "asleep"], &["memory", "cpus"]),
        (&["exec", "asleep", "--", "true"], &["memory", "cpus"]),
        (&["volume", "create", "w", "--size", "64"], &["volumes", "disk"]),
        (&["volume", "clone", "v", "--name", "w"], &["volumes", "disk"]),
        (&["volume", "resize", "v", "--size", "2048"], &["disk"]),
        (&["image", "save", "one", "--name", "mine"], &["images", "disk"]),
        (&["image", "import", "--tar", &archive, "--name", "mine"], &["images", "disk"]),
        (&["image", "pull", "127.0.0.1:1/none", "--name", "mine"], &["images", "disk"]),
    ];
    let before = all();
    for (quota, least) in [
        ("sandboxes", "2"),
        ("memory", "512"),
        ("cpus", "1"),
        ("volumes", "1"),
        ("snapshots", "1"),
        ("images", "0"),
        ("disk", "1"),
    ] {
        let flag = format!("--max-{quota}");
        host.ok(&["user", "edit", "carol", &flag, least]);
        for (verb, _) in verbs.iter().filter(|(_, stops)| stops.contains(&quota)) {
            let mut args = vec!["--token", key.as_str()];
            args.extend_from_slice(verb);
            host.refused(&args, 1, &["carol has", &format!("max_{quota}")]);
            assert_eq!(all(), before, "{verb:?} at {quota}");
        }
        host.ok(&["user", "edit", "carol", &flag, "none"]);
    }
    // A backup of a volume that is gone makes it anew.
    host.ok(&as_carol(&["destroy", "one", "asleep", "-y"]));
    host.ok(&as_carol(&["snapshot", "delete", "s", "-y"]));
    host.ok(&as_carol(&["volume", "delete", "v", "-y"]));
    let restore = ["--token", &key, "volume", "restore", "v", "--backup", &backup, "-y"];
    for (quota, least) in [("volumes", "0"), ("disk", "1")] {
        let flag = format!("--max-{quota}");
        host.ok(&["user", "edit", "carol", &flag, least]);
        host.refused(&restore, 1, &["carol has", &format!("max_{quota}")]);
        host.ok(&["user", "edit", "carol", &flag, "none"]);
    }
    host.ok(&restore);
}
