//! Secrets in real guests: given by name, with the value of the moment, and in no file of a sandbox that runs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use testkit::TestHost;

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

fn key(host: &TestHost, sandbox: &str) -> String {
    host.sh(sandbox, "printf %s \"$API_KEY\"")
}

fn set(host: &TestHost, value: &str) {
    let set = host.run_with_input(&["secret", "set", "API_KEY"], format!("{value}\n").as_bytes());
    assert_eq!(set.code, 0, "{}", set.stderr);
    assert!(!set.text().contains(value), "{}", set.text());
}

#[test]
fn a_guest_has_the_secrets_that_it_was_given_as_they_are_when_it_starts() {
    let mut host = TestHost::start(BHATTI);
    host.refused(
        &["create", "--name", "x", "--secret", "API_KEY"],
        1,
        &["no secret API_KEY", "bhatti secret set"],
    );
    host.refused(&["create", "--name", "x", "--secret", "api-key"], 2, &["api-key"]);
    assert_eq!(fs::read_dir(host.data_dir().join("sandboxes")).unwrap().count(), 0, "nothing is left");
    assert!(host.vmm_pids().is_empty());

    let (first, second) = ("marker-one-5b1f", "marker-two-77ae");
    set(&host, first);
    host.ok(&["create", "--name", "web", "--secret", "API_KEY", "--env", "PLAIN=seen"]);
    host.ok(&["create", "--name", "bare"]);
    host.refused(&["create", "--name", "bare", "--secret", "API_KEY"], 1, &["other secrets"]);
    assert_eq!((key(&host, "web").as_str(), key(&host, "bare").as_str()), (first, ""));
    assert_eq!(host.sh("web", "printf %s \"$PLAIN\""), "seen");
    assert_eq!(host.json(&["inspect", "web"])["secrets"], serde_json::json!(["API_KEY"]));
    let listed = host.json(&["secret", "list"]);
    assert_eq!(listed[0]["used_by"], serde_json::json!(["web"]), "{listed}");

    // While it runs no file of it, nor anything of the daemon's, has the value.
    let of_sandbox = host.sandbox_dir("web");
    for dir in [of_sandbox.as_path(), host.data_dir()] {
        for file in fs::read_dir(dir).unwrap().flatten().filter(|file| file.path().is_file()) {
            let bytes = fs::read(file.path()).unwrap();
            let found = bytes.windows(first.len()).any(|part| part == first.as_bytes());
            assert!(!found, "{}", file.path().display());
        }
    }

    // Another value is for the next start, the next daemon's as well; copies have it at once.
    set(&host, second);
    assert_eq!(key(&host, "web"), first);
    host.ok(&["fork", "web", "--name", "copy"]);
    assert_eq!(key(&host, "copy"), second);
    host.ok(&["stop", "web"]);
    host.end_daemon();
    host.start_daemon();
    assert_eq!(key(&host, "web"), second, "woken");
    host.ok(&["destroy", "copy", "-y"]);

    // Used, it is not deleted unless that is wanted; what named it goes on without it, also from its disk.
    host.refused(&["secret", "delete", "API_KEY"], 1, &["used by web", "--force"]);
    host.ok(&["secret", "delete", "API_KEY", "--force"]);
    host.kill_vmms();
    let start = host.run(&["start", "web"]);
    assert_eq!(start.code, 0, "{}", start.stderr);
    assert!(start.stderr.contains("no secret API_KEY any more"), "{}", start.stderr);
    assert_eq!(key(&host, "web"), "");
    set(&host, first);
    host.ok(&["stop", "web"]);
    assert_eq!(key(&host, "web"), first, "set again, it is there again");
}
