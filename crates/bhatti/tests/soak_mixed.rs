//! Five hundred operations of every kind on eight sandboxes by four clients; on demand, for it takes its time. Afterwards
//! nothing is left of them: no process, descriptor, mount, file, lock or row; and the daemon is as large as it was.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use testkit::{Choices, TestHost};

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");
const CLIENTS: usize = 4;
const EACH: usize = 2;
const OPERATIONS: usize = 500;
/// How much larger the daemon may be at the end than in the middle: a leak of more than 8 KiB an operation is found.
const GROWTH_KIB: u64 = 2 << 10;

/// What there is of a host, beside what it is for.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    processes: usize,
    mounts: Vec<String>,
    locks: usize,
    files: BTreeSet<PathBuf>,
    rows: Vec<usize>,
}

fn below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| {
            let path = entry.path();
            let mut all = if entry.file_type().unwrap().is_dir() { below(&path) } else { Vec::new() };
            all.push(path);
            all
        })
        .collect()
}

/// Held locks of files below the directory, as the kernel lists them.
fn locks(dir: &Path) -> usize {
    let inodes: BTreeSet<u64> =
        below(dir).iter().map(|path| fs::symlink_metadata(path).unwrap().ino()).collect();
    let listed = fs::read_to_string("/proc/locks").unwrap();
    let inode =
        |line: &str| line.split_whitespace().find_map(|word| word.splitn(3, ':').nth(2)?.parse().ok());
    listed
        .lines()
        .filter(|line| line.contains("FLOCK") && !line.contains("->"))
        .filter_map(inode)
        .filter(|inode| inodes.contains(inode))
        .count()
}

fn left(host: &TestHost) -> Left {
    let dir = fs::canonicalize(host.data_dir()).unwrap();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let rows = [
        vec!["list"],
        vec!["snapshot", "list"],
        vec!["volume", "list"],
        vec!["publish"],
        vec!["secret", "list"],
    ];
    let counts = |path: &PathBuf| {
        let name = path.to_string_lossy();
        // What a daemon keeps beside its sandboxes, and a template's machine that stands by.
        !["bhatti.db", "serve.log", ".sock"].iter().any(|part| name.contains(part))
    };
    Left {
        processes: host.vmm_pids().len(),
        mounts: mounts
            .lines()
            .filter(|line| line.contains(dir.to_str().unwrap()))
            .map(str::to_owned)
            .collect(),
        locks: locks(&dir),
        files: below(&dir).into_iter().filter(counts).collect(),
        rows: rows.iter().map(|args| host.json(args).as_array().unwrap().len()).collect(),
    }
}

fn status_kib(host: &TestHost, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", host.daemon().pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn descriptors(host: &TestHost) -> usize {
    fs::read_dir(format!("/proc/{}/fd", host.daemon().pid())).unwrap().count()
}

/// One operation on one sandbox of one client; what it holds must be there before and after. Tells what it was.
fn operate(
    host: &TestHost,
    choices: &mut Choices,
    name: &str,
    content: &mut u64,
    number: u64,
) -> &'static str {
    let held = format!("{content}\n{content}");
    let look = "cat /dev/shm/mark ~/mark";
    match choices.below(10) {
        0 | 1 => {
            *content = number;
            host.sh(name, &format!("echo {number} > /dev/shm/mark; echo {number} > ~/mark; sync"));
            "write"
        }
        2 => {
            assert_eq!(host.sh(name, look), held, "{name}");
            "read"
        }
        3 | 4 => {
            host.ok(&["stop", name]);
            "stop"
        }
        5 => {
            host.ok(&["start", name]);
            "start"
        }
        6 => {
            let copy = format!("{name}-copy");
            host.ok(&["fork", name, "--name", &copy]);
            assert_eq!(host.sh(&copy, look), held, "{copy}");
            host.ok(&["destroy", &copy]);
            "fork"
        }
        7 => {
            let (kept, again) = (format!("{name}-kept"), format!("{name}-again"));
            host.ok(&["snapshot", "create", name, "--name", &kept]);
            host.ok(&["snapshot", "resume", &kept, "--name", &again]);
            assert_eq!(host.sh(&again, look), held, "{again}");
            host.ok(&["destroy", &again]);
            host.ok(&["snapshot", "delete", &kept, "-y"]);
            "snapshot"
        }
        8 => {
            let volume = format!("{name}-data");
            host.ok(&["volume", "create", &volume, "--size", "16"]);
            host.ok(&["volume", "attach", &volume, name, "/data"]);
            host.sh(name, "echo x | sudo tee /data/x > /dev/null; sync");
            host.ok(&["volume", "detach", &volume, name]);
            host.ok(&["volume", "backup", &volume]);
            host.ok(&["volume", "delete", &volume, "-y"]);
            "volume"
        }
        _ => {
            host.ok(&["destroy", name]);
            host.ok(&["create", "--name", name]);
            *content = 0;
            host.sh(name, "echo 0 > /dev/shm/mark; echo 0 > ~/mark; sync");
            "create"
        }
    }
}

#[test]
fn five_hundred_operations_of_four_clients_leave_nothing() {
    let began = Instant::now();
    let host = TestHost::start(BHATTI);
    // The directories of an owner's things stay, empty, for the next ones.
    let (mut mark, mut first) = (0, Choices::new(0, 0));
    host.ok(&["create", "--name", "first"]);
    host.sh("first", "echo 0 > /dev/shm/mark; echo 0 > ~/mark; sync");
    for _ in 0..20 {
        operate(&host, &mut first, "first", &mut mark, 0);
    }
    host.ok(&["destroy", "first"]);
    host.ok(&["gc"]);
    let (mut before, descriptors_before) = (left(&host), descriptors(&host));
    let (done, kinds) = (AtomicUsize::new(0), Mutex::new(BTreeMap::<&str, usize>::new()));
    let sizes = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (host, done, kinds, sizes) = (&host, &done, &kinds, &sizes);
            scope.spawn(move || {
                let mut choices = Choices::new(0, client as u64 + 1);
                let mut mine: Vec<(String, u64)> =
                    (0..EACH).map(|n| (format!("soak-{client}-{n}"), 0)).collect();
                for (name, _) in &mine {
                    host.ok(&["create", "--name", name]);
                    host.sh(name, "echo 0 > /dev/shm/mark; echo 0 > ~/mark; sync");
                }
                for number in 1.. {
                    let at = done.fetch_add(1, Ordering::Relaxed) + 1;
                    if at > OPERATIONS {
                        break;
                    }
                    let (name, content) = &mut mine[usize::from(choices.below(2) == 1)];
                    let kind = operate(host, &mut choices, name, content, number);
                    *kinds.lock().unwrap().entry(kind).or_default() += 1;
                    if at.is_multiple_of(50) {
                        sizes.lock().unwrap().push((at, status_kib(host, "RssAnon"), descriptors(host)));
                    }
                }
                for (name, content) in &mine {
                    assert_eq!(
                        host.sh(name, "cat /dev/shm/mark ~/mark"),
                        format!("{content}\n{content}"),
                        "{name}"
                    );
                    host.ok(&["destroy", name]);
                }
            });
        }
    });
    // Backups outlive their volumes, on purpose, and are not looked at.
    let sizes = sizes.into_inner().unwrap();
    for (at, rss, descriptors) in &sizes {
        println!("after {at} operations: daemon {rss} KiB of its own, {descriptors} descriptors");
    }
    println!(
        "{OPERATIONS} operations on {} sandboxes by {CLIENTS} clients: {:?}, daemon {} KiB of its own (at most {} with what it maps), {:.0} s",
        CLIENTS * EACH,
        kinds.into_inner().unwrap(),
        status_kib(&host, "RssAnon"),
        status_kib(&host, "VmHWM"),
        began.elapsed().as_secs_f64()
    );
    host.ok(&["gc"]);
    host.ok(&["fsck"]);
    let mut after = left(&host);
    before.files.retain(|path| !path.to_string_lossy().contains("/backups"));
    after.files.retain(|path| !path.to_string_lossy().contains("/backups"));
    let gone: Vec<_> = before.files.difference(&after.files).collect();
    let stay: Vec<_> = after.files.difference(&before.files).collect();
    assert!(gone.is_empty() && stay.is_empty(), "gone: {gone:#?}, left: {stay:#?}");
    assert_eq!(after, before);
    assert!(
        descriptors(&host) <= descriptors_before + 2,
        "descriptors: {descriptors_before} then {}",
        descriptors(&host)
    );
    // Around the half: what several threads' allocations keep is there by then, and what one snapshot needs for a moment
    // is in no more than some of the samples.
    let half = sizes.iter().filter(|(at, ..)| (OPERATIONS * 2 / 5..=OPERATIONS * 3 / 5).contains(at));
    let early = half.map(|(_, own, _)| *own).min().unwrap();
    let late = status_kib(&host, "RssAnon");
    assert!(late <= early + GROWTH_KIB, "the daemon grew from {early} to {late} KiB");
}
