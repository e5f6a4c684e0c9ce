//! What a VMM may take of the host: the control groups of real machines.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use testkit::TestHost;

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

/// The groups of a process among those that bhatti makes, by controller; both versions.
fn groups(pid: i32) -> Vec<(String, PathBuf)> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let of = |line: &str| {
        let (controller, path) = line.split_once(':')?.1.split_once(':')?;
        let at = path.find("/bhatti/")?;
        let mount = mounts.lines().find_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let fits = if controller.is_empty() {
                after.starts_with("cgroup2 ")
            } else {
                after.starts_with("cgroup ") && after.split([',', ' ']).any(|option| option == controller)
            };
            fits.then(|| before.split(' ').nth(4).map(str::to_owned))?
        })?;
        let here = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = here
            .lines()
            .find(|own| own.split(':').nth(1) == Some(controller))?
            .splitn(3, ':')
            .nth(2)?
            .to_owned();
        let own = if controller.is_empty() { "" } else { own.trim_end_matches('/') };
        assert!(path[..at] == *own, "{path} is not below {own:?}");
        Some((controller.to_owned(), Path::new(&mount).join(path.trim_start_matches('/'))))
    };
    text.lines().filter_map(of).collect()
}

/// Waits for what comes by itself, and soon.
fn until(what: &str, mut come: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !come() {
        assert!(Instant::now() < end, "it never came: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The one VMM of this host.
fn vmm(host: &TestHost) -> i32 {
    let daemon = i32::try_from(host.daemon().pid()).unwrap();
    let pids: Vec<i32> = host.vmm_pids().into_iter().filter(|&pid| pid != daemon).collect();
    let [pid] = pids[..] else { panic!("one VMM: {pids:?}") };
    pid
}

#[test]
fn each_vmm_is_held_to_its_shape_and_its_groups_go_with_it() {
    let mut host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "a"]);
    let pid = vmm(&host);
    until("its groups", || !groups(pid).is_empty() && groups(pid).iter().all(|(_, dir)| dir.exists()));
    until("all of them", || matches!(groups(pid).len(), 1 | 3));
    let read = |file: &str| {
        let found = groups(pid).into_iter().find_map(|(_, dir)| fs::read_to_string(dir.join(file)).ok());
        found.map(|text| text.trim().to_owned())
    };
    let memory = read("memory.max").or_else(|| read("memory.limit_in_bytes")).unwrap();
    let memory: u64 = memory.parse().unwrap();
    assert!((512 << 20..2048 << 20).contains(&memory), "{memory}");
    let cpu = read("cpu.max").or_else(|| read("cpu.cfs_quota_us").map(|quota| format!("{quota} 100000")));
    assert_eq!(cpu.unwrap(), "200000 100000", "its processor, and one for what the VMM does beside");
    assert_eq!(read("pids.max").unwrap(), "256");

    // Whatever it was and however it ended: nothing is left, also of a daemon that could not see to it.
    let dirs = groups(pid);
    host.ok(&["stop", "a"]);
    until("the end of its groups", || dirs.iter().all(|(_, dir)| !dir.exists()));
    host.ok(&["exec", "a", "--", "true"]);
    let woken = vmm(&host);
    until("its groups, woken", || matches!(groups(woken).len(), 1 | 3));
    let dirs = groups(woken);
    host.kill_daemon();
    host.kill_vmms();
    assert!(dirs.iter().all(|(_, dir)| dir.exists()), "nobody was there to remove them");
    host.start_daemon();
    host.ok(&["exec", "a", "--", "true"]);
    until("the sweep of the next daemon", || dirs.iter().all(|(_, dir)| !dir.exists()));
    host.ok(&["destroy", "a", "-y"]);

    host.end_daemon();
    host.serve_with(&["--cgroups", "off"]);
    host.start_daemon();
    host.ok(&["create", "--name", "free"]);
    let free = vmm(&host);
    assert!(groups(free).is_empty());
}
