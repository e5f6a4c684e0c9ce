//! Whatever dies, and whenever, what was acknowledged is there afterwards: power cuts, 7 on each of three filesystems in a
//! full run, and a few kills. `soak_losses` has more.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod losses;

use losses::{Loss, suffer};
use testkit::{TestHost, seed};

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

#[test]
fn nothing_is_lost_when_the_power_is_cut() {
    let seed = seed("BHATTI_LOSS_SEED");
    let mut host = TestHost::on_cuttable_disk(BHATTI, None);
    println!("on {}", host.cut_kind());
    suffer(&mut host, &[Loss::Power; 7], seed);
}

#[test]
fn nothing_is_lost_when_daemon_and_machines_are_killed() {
    let seed = seed("BHATTI_LOSS_SEED");
    let mut host = TestHost::start(BHATTI);
    let losses = [Loss::Daemon, Loss::Machines, Loss::Daemon, Loss::Both];
    suffer(&mut host, &losses.repeat(2), seed);
}
