//! Many sandboxes with a network, made and destroyed; on demand, for it takes its time.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use testkit::{Lab, TestHost};

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

#[test]
fn fifty_rounds_of_create_and_destroy_leave_no_process_and_no_descriptor() {
    let lab = Lab::new(BHATTI);
    let host = TestHost::start_with(lab.program(), &["--net", "user"]);
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", host.daemon().pid())).unwrap().count();
    let round = || {
        host.ok(&["create", "--name", "a"]);
        let lines = lab.line_pids();
        assert_eq!(lines.len(), 2);
        host.ok(&["destroy", "a", "-y"]);
        lab.wait_until_gone(&lines);
        // Not even as zombies: nobody has to ask for them to be buried.
        assert_eq!(lab.line_pids(), [0; 0]);
    };
    round();
    let before = descriptors();
    for _ in 0..50 {
        round();
    }
    assert!(descriptors() <= before + 2, "descriptors went from {before} to {}", descriptors());
}
