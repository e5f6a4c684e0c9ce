//! Two releases of the VMM: what an older one put to sleep wakes under a newer one, and not the other way round.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use testkit::TestHost;

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

fn qemu(version: &str) -> String {
    let tools = std::env::var("BHATTI_TEST_TOOLS")
        .expect("BHATTI_TEST_TOOLS names the tools that `make test` unpacks");
    format!("{tools}/qemu-{version}")
}

#[test]
fn what_an_older_vmm_put_to_sleep_wakes_under_a_newer_one_and_not_the_reverse() {
    let (old, new) = (qemu("7.2"), qemu("10.0"));
    let mut host = TestHost::start_with(BHATTI, &["--qemu", &old]);
    host.ok(&["create", "--name", "trip"]);
    host.sh("trip", "echo from-7.2 > /dev/shm/nonce; echo disk > ~/kept; sync");
    host.ok(&["stop", "trip"]);
    host.end_daemon();

    host.serve_with(&["--qemu", &new]);
    host.start_daemon();
    assert_eq!(host.sh("trip", "cat /dev/shm/nonce ~/kept"), "from-7.2\ndisk");
    assert_eq!(host.json(&["inspect", "trip"])["boot"], "resume");
    host.ok(&["stop", "trip"]);
    host.end_daemon();

    host.serve_with(&["--qemu", &old]);
    host.start_daemon();
    host.refused(&["exec", "trip", "--", "true"], 1, &["10.0", "7.2", "--discard-memory"]);
    let view = host.json(&["inspect", "trip"]);
    assert_eq!(
        (view["status"].as_str(), view["thermal"].as_str()),
        (Some("stopped"), Some("cold")),
        "still good: {view}"
    );
    // The newer one wakes it: nothing was lost by the refusal.
    host.end_daemon();
    host.serve_with(&["--qemu", &new]);
    host.start_daemon();
    assert_eq!(host.sh("trip", "cat /dev/shm/nonce"), "from-7.2");
}
