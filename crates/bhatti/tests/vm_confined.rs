//! A VMM that its guest has taken over, played by a program that the daemon starts as a VMM: what it tries is refused,
//! and would not be if VMMs were not confined.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;

use testkit::TestHost;

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

/// What is tried, by name.
const TRIES: [(&str, &str); 17] = [
    ("tcp", "exec 3<>/dev/tcp/127.0.0.1/$PORT"),
    (
        "abstract",
        r#"perl -MSocket -e 'socket(S, PF_UNIX, SOCK_STREAM, 0); connect(S, pack_sockaddr_un("\0$ARGV[0]")) or exit 1' "$NAME""#,
    ),
    (
        "daemon",
        r#"perl -MSocket -e 'socket(S, PF_UNIX, SOCK_STREAM, 0); connect(S, pack_sockaddr_un($ARGV[0])) or exit 1' "$DATA/bhatti.sock""#,
    ),
    (
        "monitor",
        r#"perl -MSocket -MErrno -e 'socket(S, PF_UNIX, SOCK_STREAM | 2048, 0); connect(S, pack_sockaddr_un($ARGV[0])) or $!{EAGAIN} or exit 1' "$OTHER/qmp.sock""#,
    ),
    ("signal", "kill -0 $VICTIM"),
    ("trace", "head -c 1 /proc/$VICTIM/environ"),
    ("mount", "unshare --mount true"),
    ("namespace", "unshare --user true"),
    ("link", "ln -s /etc $PWD/.link && rm $PWD/.link"),
    ("device", "mknod $PWD/.device c 1 3 && rm $PWD/.device"),
    ("make", ": > $PWD/.made && rm $PWD/.made"),
    ("read other", "head -c 1 $OTHER/manifest.json"),
    ("write other", ": >> $OTHER/rootfs.*"),
    ("read index", "head -c 1 $DATA/bhatti.db"),
    ("read host", "head -c 1 /etc/shadow || head -c 1 /etc/passwd"),
    ("write host", ": >> /proc/sys/kernel/core_pattern"),
    ("write image", "for file in $IMAGES; do : >> $file && exit; done; false"),
];
/// What a VMM must be able to do.
const NEEDS: [(&str, &str); 2] = [
    ("read image", "for file in $IMAGES; do head -c 1 $file || exit; done"),
    ("write disk", ": >> $(ls rootfs.* 2> /dev/null || echo rootfs.qcow2) || : >> rootfs.ext4"),
];

/// A program in the place of QEMU, which tells in its log what it could do before it becomes QEMU.
fn hostile(at: &Path, port: u16, name: &str, data: &Path) {
    let tries: String = TRIES
        .iter()
        .chain(&NEEDS)
        .map(|(name, script)| {
            format!("( {script} ) < /dev/null > /dev/null 2> /dev/null && echo 'could: {name}' >&2\n")
        })
        .collect();
    let script = format!(
        "#!/bin/bash\nPORT={port} NAME={name} VICTIM={victim} DATA='{data}' OTHER=$(cat \"$(dirname \"$0\")/other\")\n\
         IMAGES=$(printf '%s\\n' \"$@\" | grep -o '[^\"]*images/objects[^\"]*')\n\
         case \"$*\" in *mem-path*) {tries} echo 'could: end' >&2 ;; esac\n\
         exec qemu-system-$(uname -m) \"$@\"\n",
        victim = std::process::id(),
        data = data.display(),
    );
    std::fs::write(at, script).unwrap();
    for path in [at, at.parent().unwrap()] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }
}

/// What a VMM of a daemon that was started so could do; its guest lives its ordinary life meanwhile.
fn done_under(confine: &str) -> BTreeSet<String> {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("vmm");
    let name = format!("bhatti-test-{}", dir.path().file_name().unwrap().to_string_lossy());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    std::fs::write(dir.path().join("other"), "/none").unwrap();
    // Not yet what it is to be: the data directory is known when the host is.
    std::fs::write(&program, "#!/bin/sh\nexec qemu-system-$(uname -m) \"$@\"\n").unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let host = TestHost::start_with(
        BHATTI,
        &["--confine", confine, "--qemu", program.to_str().unwrap(), "--spare-vmms", "0"],
    );
    host.ok(&["create", "--name", "other"]);
    std::fs::write(dir.path().join("other"), host.sandbox_dir("other").display().to_string()).unwrap();
    hostile(&program, listener.local_addr().unwrap().port(), &name, host.data_dir());
    let mut done = BTreeSet::new();
    let mut look = |sandbox: &str| {
        let log = std::fs::read_to_string(host.sandbox_dir(sandbox).join("vmm.log")).unwrap();
        let told: Vec<&str> = log.lines().filter_map(|line| line.strip_prefix("could: ")).collect();
        for (need, _) in NEEDS.iter().chain(&[("end", "")]) {
            assert!(told.contains(need), "{sandbox}: {need}: {log}");
        }
        let more = told.into_iter().filter(|told| TRIES.iter().any(|(name, _)| name == told));
        done.extend(more.map(str::to_owned));
    };
    host.ok(&["create", "--name", "x"]);
    host.sh("x", "echo here > /dev/shm/nonce");
    look("x");
    host.ok(&["stop", "x"]);
    assert_eq!(host.sh("x", "cat /dev/shm/nonce"), "here");
    look("x");
    host.ok(&["fork", "x", "--name", "y"]);
    look("y");
    host.ok(&["snapshot", "create", "y", "--name", "kept"]);
    host.ok(&["volume", "create", "v", "--size", "64"]);
    host.ok(&["volume", "attach", "v", "y", "/mnt/v"]);
    host.ok(&["exec", "y", "--user", "root", "--", "sh", "-c", "echo kept > /mnt/v/file"]);
    host.ok(&["volume", "detach", "v", "y"]);
    assert_eq!(host.sh("y", "cat /dev/shm/nonce"), "here");
    host.ok(&["destroy", "x", "y", "other", "-y"]);
    done
}

/// What `doctor` says that VMMs keep on a host such as this: an older kernel, or a daemon that is not root.
fn kept() -> Vec<&'static str> {
    let host = TestHost::bare(BHATTI);
    let said = host.run(&["doctor", "--json"]).text();
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let told = checks.iter().find(|check| check["name"] == "confinement").unwrap().to_string();
    let (_without, keeps) = told.split_once("they keep").unwrap_or((&told, ""));
    let mut kept = Vec::new();
    kept.extend(keeps.contains("signals").then_some("signal"));
    kept.extend(["link", "trace"].into_iter().filter(|_| keeps.contains("looks")));
    if keeps.contains("files of its user") {
        kept.extend([
            "make",
            "read other",
            "write other",
            "read index",
            "read host",
            "write host",
            "write image",
        ]);
    }
    kept
}

#[test]
fn a_vmm_that_is_taken_over_finds_nobody_and_no_file_but_its_own() {
    let (done, kept) = (done_under("auto"), kept());
    let more: Vec<_> = done.iter().filter(|done| !kept.contains(&done.as_str())).collect();
    assert!(more.is_empty(), "{more:?}");
}

#[test]
fn without_confinement_it_would() {
    // What a user's VMM cannot do is not the daemon's doing.
    let is_root = rustix::process::geteuid().is_root();
    let could = |name: &str| is_root || !matches!(name, "mount" | "device" | "write host" | "write image");
    let all: BTreeSet<String> =
        TRIES.iter().map(|(name, _)| (*name).to_owned()).filter(|name| could(name)).collect();
    assert_eq!(done_under("off"), all);
}

#[test]
fn each_vmm_of_root_has_a_user_that_no_other_has_and_only_its_files() {
    if !rustix::process::geteuid().is_root() {
        // A user's daemon cannot give its VMMs another.
        return;
    }
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "a"]);
    host.ok(&["fork", "a", "--name", "b"]);
    let user = |pid: &i32| std::fs::metadata(format!("/proc/{pid}")).unwrap().uid();
    let pids = host.vmm_pids();
    let users: BTreeSet<u32> = pids.iter().map(user).collect();
    assert!(users.len() == pids.len() && pids.len() >= 2 && !users.contains(&0), "{users:?}");
    for name in ["a", "b"] {
        let dir = host.sandbox_dir(name);
        let disk = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap());
        let disk =
            disk.into_iter().find(|it| it.file_name().to_string_lossy().starts_with("rootfs")).unwrap();
        assert!(users.contains(&disk.metadata().unwrap().uid()));
        assert_eq!(std::fs::metadata(dir.join("manifest.json")).unwrap().uid(), 0);
        // Nothing is kept by the names under which it opened its files.
        assert_eq!(disk.metadata().unwrap().nlink(), 1);
    }
    host.ok(&["stop", "a"]);
    assert!(!host.sandbox_dir("a").join("vmm").exists());
}
