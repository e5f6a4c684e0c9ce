//! Files of real guests, from outside.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::process::Stdio;

use testkit::TestHost;

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

#[test]
fn files_go_in_and_come_out_as_they_are() {
    let host = TestHost::start(BHATTI);
    let dir = tempfile::tempdir().unwrap();
    let local = dir.path().join("local");
    std::fs::write(&local, b"from create\n").unwrap();
    let _ =
        host.ok(&["create", "--name", "files", "--file", &format!("{}:/home/user/placed", local.display())]);
    assert_eq!(host.ok(&["file", "read", "files", "/home/user/placed"]), "from create\n");

    let bytes: Vec<u8> = (0..=255u8).cycle().take(1_000_003).collect();
    let written =
        host.run_with_input(&["file", "write", "files", "/home/user/blob", "--mode", "0640"], &bytes);
    assert_eq!(written.code, 0, "{}", written.stderr);
    assert!(host.run(&["file", "read", "files", "/home/user/blob"]).stdout == bytes);
    let stat = host.json(&["file", "stat", "files", "/home/user/blob"]);
    assert_eq!(
        (stat["size_bytes"].as_u64(), stat["mode"].as_str()),
        (Some(1_000_003), Some("0640")),
        "{stat}"
    );
    assert_eq!(
        host.sh("files", "stat -c %U /home/user/blob"),
        "user",
        "a new file is its directory's owner's"
    );

    let lines: String = (1..=100).map(|n| format!("line {n}\n")).collect();
    let _ = host.run_with_input(&["file", "write", "files", "/tmp/lines"], lines.as_bytes());
    assert_eq!(host.ok(&["file", "read", "files", "/tmp/lines", "--offset", "7", "--limit", "6"]), "line 2");
    assert_eq!(host.ok(&["file", "read", "files", "/tmp/lines", "--lines", "10:2"]), "line 10\nline 11\n");
    let names = host.json(&["file", "ls", "files", "/home/user"]);
    let names: Vec<&str> =
        names.as_array().unwrap().iter().filter_map(|entry| entry["name"].as_str()).collect();
    assert!(names.contains(&"blob") && names.contains(&"placed"), "{names:?}");

    host.refused(&["file", "read", "files", "/home/user"], 1, &["/home/user", "directory"]);
    host.refused(&["file", "read", "files", "/no/such"], 1, &["/no/such"]);
    host.refused(&["file", "stat", "files", "relative"], 1, &["relative", "absolute"]);
    let dots = host.run(&["file", "write", "files", "/home/../etc/x"]);
    assert!(matches!(dots.code, 1 | 2) && dots.stderr.contains(".."), "{}", dots.stderr);
    let lost = host.run_with_input(&["file", "write", "files", "/no/dir/x"], b"x");
    assert_eq!(lost.code, 1, "{}", lost.stderr);
}

#[test]
fn a_write_that_is_cut_off_or_does_not_fit_leaves_the_old_file_and_nothing_else() {
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "cut"]);
    let _ = host.run_with_input(&["file", "write", "cut", "/home/user/old"], b"old content");
    // The client is killed in the middle.
    let mut child =
        host.command(&["file", "write", "cut", "/home/user/old"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&vec![1u8; 1 << 20]).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    drop(stdin);
    // What is being written has no name before it is whole, so there is nothing to wait for.
    let after = host.sh("cut", "ls -A ~; cat ~/old");
    assert!(after.ends_with("old content"), "{after}");
    let names: Vec<&str> = after.lines().filter(|name| !name.starts_with('.')).collect();
    assert_eq!(names, ["old", "old content"], "no temporary file: {after}");

    // A full guest disk: /dev/shm is small and is a filesystem like any other.
    host.sh("cut", "sudo mount -o remount,size=4m /dev/shm; echo old > /dev/shm/old");
    let full = host.run_with_input(&["file", "write", "cut", "/dev/shm/old"], &vec![7u8; 8 << 20]);
    assert_eq!(full.code, 1, "{}", full.stderr);
    assert!(full.stderr.to_lowercase().contains("space") || full.stderr.contains("full"), "{}", full.stderr);
    assert_eq!(host.sh("cut", "cat /dev/shm/old; ls -A /dev/shm | wc -l"), "old\n1");
}

#[test]
fn a_gibibyte_streams_through_flat_memory() {
    const GIB: u64 = 1 << 30;
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "big", "--disk-size", "3072", "--memory", "256"]);
    let before = rss_kib(host.daemon().pid());
    let mut child =
        host.command(&["file", "write", "big", "/home/user/big"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let chunk: Vec<u8> = (0..=250u8).cycle().take(1 << 20).collect();
    for _ in 0..GIB >> 20 {
        stdin.write_all(&chunk).unwrap();
    }
    drop(stdin);
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert!(child.wait().unwrap().success(), "{stderr}");
    let stat = host.json(&["file", "stat", "big", "/home/user/big"]);
    assert_eq!(stat["size_bytes"].as_u64(), Some(GIB));
    let mut child = host.command(&["file", "read", "big", "/home/user/big"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut buffer = vec![0u8; 1 << 20];
    for n in 0..GIB >> 20 {
        stdout.read_exact(&mut buffer).unwrap();
        assert!(buffer == chunk, "chunk {n} differs");
    }
    assert!(child.wait().unwrap().success());
    let grown = rss_kib(host.daemon().pid()).saturating_sub(before);
    assert!(grown < 48 << 10, "the daemon grew by {grown} KiB");
}

/// `VmHWM`: the most that the process ever had in memory.
fn rss_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_disk_that_was_asked_larger_is_larger_inside_too() {
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "wide", "--disk-size", "3000"]);
    let mib = |script: &str| host.sh("wide", script).parse::<u64>().unwrap();
    let size = "df -BM --output=size / | tail -1 | tr -dc 0-9";
    assert!(mib(size) > 2700, "{}", mib(size));
    host.ok(&["stop", "wide"]);
    assert!(mib(size) > 2700);
    host.kill_vmms();
    host.ok(&["start", "wide"]);
    assert!(mib(size) > 2700, "after a boot from the disk");
}
