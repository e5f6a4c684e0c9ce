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
