//! A VMM that its guest has taken over, played by a program that the daemon starts as a VMM: what it tries is refused,
//! and would not be if VMMs were not confined.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;

use testkit::TestHost;

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

/// What is tried, by name.
const TRIES: [(&str, &str); 7] = [
    ("tcp", "exec 3<>/dev/tcp/127.0.0.1/$PORT"),
    (
        "abstract",
        r#"perl -MSocket -e 'socket(S, PF_UNIX, SOCK_STREAM, 0); connect(S, pack_sockaddr_un("\0$ARGV[0]")) or exit 1' "$NAME""#,
    ),
    ("signal", "kill -0 $VICTIM"),
    ("trace", "head -c 1 /proc/$VICTIM/environ"),
    ("mount", "unshare --mount true"),
    ("link", "ln -s /etc $PWD/.link && rm $PWD/.link"),
    ("device", "mknod $PWD/.device c 1 3 && rm $PWD/.device"),
];

/// A program in the place of QEMU, which writes down what it could do before it becomes QEMU.
fn hostile(at: &Path, port: u16, name: &str, log: &Path) {
    let tries: String = TRIES
        .iter()
        .map(|(name, script)| {
            format!("( {script} ) < /dev/null > /dev/null 2>&1 && echo {name} >> '{}'\n", log.display())
        })
        .collect();
    let script = format!(
        "#!/bin/bash\nPORT={port} NAME={name} VICTIM={victim}\ncase \"$*\" in *mem-path*) {tries} echo end >> '{log}' ;; esac\n\
         exec qemu-system-$(uname -m) \"$@\"\n",
        victim = std::process::id(),
        log = log.display(),
    );
    std::fs::write(at, script).unwrap();
    std::fs::set_permissions(at, PermissionsExt::from_mode(0o755)).unwrap();
}

/// What a VMM of a daemon that was started so could do; its guest lives its ordinary life meanwhile.
fn done_under(confine: &str) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let (program, log) = (dir.path().join("vmm"), dir.path().join("log"));
    let name = format!("bhatti-test-{}", dir.path().file_name().unwrap().to_string_lossy());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    hostile(&program, listener.local_addr().unwrap().port(), &name, &log);
    let host = TestHost::start_with(
        BHATTI,
        &["--confine", confine, "--qemu", program.to_str().unwrap(), "--spare-vmms", "0"],
    );
    host.ok(&["create", "--name", "x"]);
    host.sh("x", "echo here > /dev/shm/nonce");
    host.ok(&["stop", "x"]);
    assert_eq!(host.sh("x", "cat /dev/shm/nonce"), "here");
    host.ok(&["fork", "x", "--name", "y"]);
    host.ok(&["snapshot", "create", "y", "--name", "kept"]);
    host.ok(&["volume", "create", "v", "--size", "64"]);
    host.ok(&["volume", "attach", "v", "y", "/mnt/v"]);
    host.ok(&["exec", "y", "--user", "root", "--", "sh", "-c", "echo kept > /mnt/v/file"]);
    host.ok(&["volume", "detach", "v", "y"]);
    assert_eq!(host.sh("y", "cat /dev/shm/nonce"), "here");
    host.ok(&["destroy", "x", "y", "-y"]);
    let log = std::fs::read_to_string(log).unwrap();
    let mut done: Vec<String> = log.lines().map(str::to_owned).collect();
    assert!(done.iter().any(|line| line == "end"), "{log}");
    done.retain(|line| line != "end");
    done.sort();
    done.dedup();
    done
}

/// What `doctor` says that VMMs keep on a host such as this: an older kernel, or a daemon that is not root.
fn kept() -> Vec<&'static str> {
    let host = TestHost::bare(BHATTI);
    let said = host.run(&["doctor", "--json"]).text();
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let told = checks.iter().find(|check| check["name"] == "confinement").unwrap().to_string();
    let (without, keeps) = told.split_once("they keep").unwrap_or((&told, ""));
    let mut kept = Vec::new();
    if keeps.contains("network") {
        kept.push("abstract");
        kept.extend((!without.contains("TCP")).then_some("tcp"));
    }
    kept.extend(keeps.contains("signals").then_some("signal"));
    kept.extend(["link", "trace"].into_iter().filter(|_| keeps.contains("looks")));
    kept
}

#[test]
fn a_vmm_that_is_taken_over_finds_no_network_no_privileges_and_nobody_to_disturb() {
    let (done, kept) = (done_under("auto"), kept());
    let more: Vec<_> = done.iter().filter(|done| !kept.contains(&done.as_str())).collect();
    assert!(more.is_empty(), "{more:?}");
}

#[test]
fn without_confinement_it_would() {
    // What a user's VMM cannot do is not the daemon's doing.
    let is_root = rustix::process::geteuid().is_root();
    let could = |name: &str| is_root || !matches!(name, "mount" | "device");
    let mut all: Vec<&str> = TRIES.iter().map(|(name, _)| *name).filter(|name| could(name)).collect();
    all.sort_unstable();
    assert_eq!(done_under("off"), all);
}
