//! Many rounds of sleep and wake by several clients at once; on demand, for it takes its time.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::thread;

use testkit::TestHost;

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");
const SANDBOXES: usize = 4;
const ROUNDS: usize = 50;

#[test]
fn two_hundred_rounds_lose_nothing_and_leave_nothing() {
    let host = TestHost::start(BHATTI);
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", host.daemon().pid())).unwrap().count();
    host.ok(&["create", "--name", "first"]);
    host.ok(&["destroy", "first"]);
    let before = descriptors();
    thread::scope(|scope| {
        for n in 0..SANDBOXES {
            let host = &host;
            scope.spawn(move || {
                let name = format!("soak-{n}");
                host.ok(&["create", "--name", &name]);
                for round in 0..ROUNDS {
                    let mark = format!("{n}-{round}");
                    host.sh(&name, &format!("echo {mark} > /dev/shm/mark; echo {mark} > ~/mark"));
                    host.ok(&["stop", &name]);
                    assert_eq!(host.sh(&name, "cat /dev/shm/mark ~/mark"), format!("{mark}\n{mark}"));
                }
                host.ok(&["destroy", &name]);
            });
        }
    });
    assert!(host.vmm_pids().len() <= 1, "only the daemon may be left: {:?}", host.vmm_pids());
    assert_eq!(std::fs::read_dir(host.data_dir().join("sandboxes")).unwrap().count(), 0);
    assert!(descriptors() <= before + 2, "descriptors went from {before} to {}", descriptors());
}
