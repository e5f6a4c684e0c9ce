//! As `vm_losses`, for as long as it takes: 300 power cuts, 100 kills of the daemon, and of machines.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod losses;

use losses::{Loss, suffer};
use testkit::{TestHost, seed};

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

#[test]
fn nothing_is_lost_in_three_hundred_power_cuts() {
    let seed = seed("BHATTI_LOSS_SEED");
    let mut host = TestHost::on_cuttable_disk(BHATTI);
    println!("on {}", host.cut_kind());
    suffer(&mut host, &[Loss::Power; 300], seed);
}

#[test]
fn nothing_is_lost_in_a_hundred_kills_of_the_daemon() {
    let seed = seed("BHATTI_LOSS_SEED");
    let mut host = TestHost::start(BHATTI);
    suffer(&mut host, &[Loss::Daemon; 100], seed);
}

#[test]
fn nothing_is_lost_when_machines_die_with_the_daemon_and_without() {
    let seed = seed("BHATTI_LOSS_SEED");
    let mut host = TestHost::start(BHATTI);
    suffer(&mut host, &[Loss::Machines, Loss::Both].repeat(30), seed);
}
