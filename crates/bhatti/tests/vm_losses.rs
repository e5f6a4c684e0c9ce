//! Whatever dies, and whenever, what was acknowledged is there afterwards: power cuts, 7 on each of three filesystems in a
//! full run, and a few kills. `soak_losses` has more.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod losses;

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::thread;

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

/// Cuts the power right behind what was acknowledged last.
fn cut_power(host: &mut TestHost) {
    host.keep_disk();
    host.cut_power();
    host.start_daemon();
}

/// What no manifest has: each verb is followed by a cut of its own, for a later one could make it last.
#[test]
fn what_the_index_alone_knows_is_there_after_a_power_cut() {
    let mut host = TestHost::on_cuttable_disk(BHATTI, None);
    host.ok(&["create", "--name", "web"]);
    host.ok(&["user", "create", "ann"]);
    cut_power(&mut host);
    assert!(host.ok(&["user", "list"]).contains("ann"));
    assert_eq!(host.run_with_input(&["secret", "set", "API_KEY"], b"a value\n").code, 0);
    cut_power(&mut host);
    assert!(host.ok(&["secret", "list"]).contains("API_KEY"));
    host.ok(&["publish", "web", "--port", "80", "--alias", "shown"]);
    cut_power(&mut host);
    assert!(host.ok(&["publish"]).contains("shown"));

    host.ok(&["unpublish", "shown"]);
    cut_power(&mut host);
    assert!(!host.ok(&["publish"]).contains("shown"));
    host.ok(&["secret", "delete", "API_KEY"]);
    cut_power(&mut host);
    assert!(!host.ok(&["secret", "list"]).contains("API_KEY"));
    host.ok(&["user", "delete", "ann"]);
    cut_power(&mut host);
    assert!(!host.ok(&["user", "list"]).contains("ann"));
}

#[test]
fn a_host_takes_over_its_own_backup_lock_after_a_power_cut() {
    let mut host = TestHost::on_cuttable_disk(BHATTI, None);
    host.ok(&["volume", "create", "data", "--size", "256"]);
    let mut noise = vec![0; 128 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    let volume = File::options().write(true).open(host.data_dir().join("volumes/admin/data.ext4"));
    volume.and_then(|volume| volume.write_all_at(&noise, 64 << 20)).expect("as a guest writes");
    let lock = host.data_dir().join("backups/admin/data/lock.json");
    let left = thread::scope(|scope| {
        // The host's first backup: it gives itself a name for it.
        let backup = scope.spawn(|| host.ok(&["volume", "backup", "data"]));
        loop {
            match fs::read(&lock) {
                Ok(left) if !left.is_empty() => break left,
                _ => assert!(!backup.is_finished(), "no lock was seen"),
            }
        }
    });
    cut_power(&mut host);
    // As a cut undoes the removal, or meets the backup under way.
    fs::write(&lock, left).expect("the lock is there again");
    host.ok(&["volume", "backup", "data"]);
    assert!(!lock.exists());
}
