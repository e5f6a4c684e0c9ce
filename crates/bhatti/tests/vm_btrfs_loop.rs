//! Real guests on a data directory that moves into a btrfs in a file and out again.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use testkit::TestHost;

/// What a failed test leaves beside the data directory; dropped after the host, whose machines must end first.
#[derive(Default)]
struct Leftovers {
    data: PathBuf,
}

impl Leftovers {
    fn beside(&self, ending: &str) -> PathBuf {
        let mut name = self.data.clone().into_os_string();
        name.push(ending);
        name.into()
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        if is_mounted(&self.data) {
            let _gone = Command::new("umount").arg("-l").arg(&self.data).status();
        }
        for ending in [".btrfs", ".btrfs.moving", ".btrfs.mount"] {
            let _gone = fs::remove_file(self.beside(ending));
        }
        for dir in [self.beside(".moving"), self.data.clone()] {
            let _gone = fs::remove_dir_all(dir);
        }
    }
}

fn is_mounted(data: &std::path::Path) -> bool {
    let info = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    info.lines().any(|line| line.split(' ').nth(4).is_some_and(|at| data == at))
}

#[test]
fn a_sandbox_goes_on_across_the_move_of_its_host_into_a_btrfs_and_back() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("only root may mount: not tested");
        return;
    }
    let mut left = Leftovers::default();
    let mut host = TestHost::prepared(env!("CARGO_BIN_EXE_bhatti"));
    left.data = fs::canonicalize(host.data_dir()).unwrap();

    // A sandbox from before, asleep with something in its memory.
    host.start_daemon();
    host.ok(&["create", "--name", "before"]);
    host.sh("before", "echo from before > /dev/shm/note; echo on disk > ~/note; sync");
    host.ok(&["stop", "before"]);
    host.end_daemon();

    let said = host.ok(&["setup", "--storage", "btrfs-loop", "--size", "4G"]);
    assert!(said.contains("ready: Linux "), "the rest of setup follows: {said}");
    // On a filesystem that shares and compresses there is nothing to move, and all else holds too.
    let moved = !said.contains("shares and compresses already");
    assert_eq!(is_mounted(&left.data), moved, "{said}");

    host.start_daemon();
    assert_eq!(host.sh("before", "cat /dev/shm/note ~/note"), "from before\non disk");
    host.ok(&["create", "--name", "inside"]);
    host.sh("inside", "echo from inside > /dev/shm/note; head -c 20M /dev/urandom > ~/noise; sync");
    let sum = host.sh("inside", "sha256sum ~/noise");
    if moved {
        host.refused(&["setup", "--storage", "btrfs-loop", "--undo"], 1, &["is in use by ", "qemu"]);
    }
    host.ok(&["stop", "inside", "before"]);
    host.ok(&["start", "inside"]);
    assert_eq!(host.sh("inside", "cat /dev/shm/note"), "from inside");
    host.ok(&["stop", "inside"]);
    host.end_daemon();

    host.ok(&["setup", "--storage", "btrfs-loop", "--undo"]);
    assert!(!is_mounted(&left.data));
    for ending in [".btrfs", ".btrfs.moving", ".btrfs.mount", ".moving"] {
        assert!(!left.beside(ending).exists(), "{ending} is left");
    }
    host.start_daemon();
    host.ok(&["start", "inside", "before"]);
    assert_eq!(host.sh("inside", "cat /dev/shm/note; sha256sum ~/noise"), format!("from inside\n{sum}"));
    assert_eq!(host.sh("before", "cat /dev/shm/note ~/note"), "from before\non disk");
    host.ok(&["destroy", "inside", "before"]);
    host.end_daemon();
}
