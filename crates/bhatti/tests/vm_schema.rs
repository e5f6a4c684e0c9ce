//! The interface as its description says it is: requests made up by schemathesis, from everybody who can ask.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use testkit::TestHost;

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

#[test]
fn no_request_that_the_description_allows_makes_the_server_fail() {
    let tools = std::env::var("BHATTI_TEST_TOOLS")
        .expect("BHATTI_TEST_TOOLS names the tools that `make test` unpacks");
    // What goes on for ever is followed elsewhere.
    let leave_out = "^/events$";
    let host = TestHost::start_with(
        BHATTI,
        &["--max-memory", "1200", "--user-rate", "0", "--user-changes", "0", "--wake-wait", "1"],
    );
    let alice = host.ok(&["user", "create", "alice", "--max-sandboxes", "3", "--max-volumes", "20"]);
    let admin = host.key();
    host.ok(&["--token", alice.trim(), "create", "--name", "real"]);
    host.ok(&["--token", alice.trim(), "volume", "create", "data", "--size", "16"]);
    for (who, key, tries) in
        [("a user", alice.trim(), "25"), ("the admin", &admin, "10"), ("a stranger", "bht_x", "5")]
    {
        let output = Command::new(Path::new(&tools).join("schemathesis/bin/schemathesis"))
            .current_dir(host.data_dir())
            .env("SCHEMATHESIS_HOOKS", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guest/schema_hooks.py"))
            .args([
                "run",
                concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json"),
                "--url",
                &host.daemon().url,
            ])
            .args(["--header", &format!("Authorization: Bearer {key}")])
            .args(["--checks", "never_a_failure_of_ours", "--phases", "fuzzing", "--max-examples", tries])
            .args([
                "--exclude-path-regex",
                leave_out,
                "--request-timeout",
                "60",
                "--generation-deterministic",
                "--no-color",
            ])
            .args(["--suppress-health-check", "all", "--warnings", "off"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "as {who}:\n{said}{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.contains("Test cases"), "as {who}:\n{said}");
    }
    let log = std::fs::read_to_string(host.data_dir().join("serve.log")).unwrap();
    assert!(!log.contains("panicked"), "{log}");
    // Whatever the admin has done to whom: it is whole, and goes on.
    let checked = host.json(&["fsck", "--dry-run"]);
    assert_eq!(checked["errors"], 0, "{checked}");
}
