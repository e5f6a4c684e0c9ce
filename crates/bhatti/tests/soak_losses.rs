//! As `vm_losses`, for as long as it takes: 300 power cuts, 100 kills of the daemon, and of machines.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod losses;

use losses::{Loss, suffer};
use testkit::{TestHost, seed};

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

fn cut_the_power_a_hundred_times(kind: &str) {
    let seed = seed("BHATTI_LOSS_SEED");
    let mut host = TestHost::on_cuttable_disk(BHATTI, Some(kind));
    println!("on {}", host.cut_kind());
    suffer(&mut host, &[Loss::Power; 100], seed);
}

#[test]
fn nothing_is_lost_in_a_hundred_power_cuts_on_ext4() {
    cut_the_power_a_hundred_times("ext4");
}

#[test]
fn nothing_is_lost_in_a_hundred_power_cuts_on_btrfs() {
    cut_the_power_a_hundred_times("btrfs");
}

#[test]
fn nothing_is_lost_in_a_hundred_power_cuts_on_xfs() {
    cut_the_power_a_hundred_times("xfs");
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
