//! The orderly end of a guest: everybody is asked, then told, then the disks are made clean.

use std::fs;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, wait};

use crate::console::{power_off, say};

/// How long processes may take to end by themselves.
const GRACE: Duration = Duration::from_secs(5);
/// How long the kernel may take to end those that were killed.
const AFTERMATH: Duration = Duration::from_secs(2);

/// Ends everything and powers off.
pub fn shut_down() -> ! {
    signal_all(Signal::TERM);
    // A stopped process acts on SIGTERM only once it goes on.
    signal_all(Signal::CONT);
    if !all_gone_within(GRACE) {
        signal_all(Signal::KILL);
        all_gone_within(AFTERMATH);
    }
    rustix::fs::sync();
    unmount_disks();
    power_off()
}

/// Every process but this one: the negative of 1 is "all" to kill(2), not a group.
fn signal_all(signal: Signal) {
    let _ = kill_process_group(Pid::INIT, signal);
}

/// Reaps until no child is left. Orphans become children, so this counts every process.
fn all_gone_within(limit: Duration) -> bool {
    let until = Instant::now() + limit;
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) if Instant::now() >= until => return false,
            Ok(None) => std::thread::sleep(Duration::from_millis(5)),
            Err(_) => return true,
        }
    }
}

/// Unmounts what is on disks, last mounted first; the root becomes read-only, which writes its journal out.
fn unmount_disks() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines().rev() {
        let mut words = line.split(' ');
        let (Some(device), Some(target)) = (words.next(), words.next()) else { continue };
        if device.starts_with("/dev/") && target != "/" {
            let _ = unmount(target, UnmountFlags::empty());
        }
    }
    if let Err(error) = mount_remount("/", MountFlags::RDONLY, "") {
        say(format_args!("making the root file system read-only: {error}"));
    }
}
