//! Volumes of real guests: what is in them outlives sandboxes, sleeps, boots and daemons, and is one's own.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use testkit::TestHost;

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

/// The most that a guest's writes may wait for a clone, in milliseconds.
const MOST_STALL_MS: f64 = 60.0;

fn file_of(host: &TestHost, volume: &str) -> PathBuf {
    host.data_dir().join(format!("volumes/admin/{volume}.ext4"))
}

/// Whether the filesystem in a file that nobody writes is whole, without a journal to be played back.
fn check_filesystem(path: &Path) {
    let ran = Command::new("e2fsck").arg("-fn").arg(path).output().expect("e2fsck");
    let said = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() && !said.contains("journal recovery"), "{}: {said}", path.display());
}

/// Nothing is damaged, missing or in the way. What `gc` would remove besides is no matter of volumes.
fn nothing_is_wrong(host: &TestHost) {
    let checked = host.json(&["fsck"]);
    let wrong = |finding: &&Value| finding["severity"] != "note";
    let wrong: Vec<&Value> = checked["findings"].as_array().expect("a list").iter().filter(wrong).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Whether a process has QEMU's lock on an image.
fn is_used(path: &Path) -> bool {
    use rustix::process::{Flock, FlockOffsetType, FlockType, fcntl_getlk};
    let file = std::fs::File::open(path).expect("the volume");
    let lock = Flock {
        start: 100,
        length: 200,
        pid: None,
        typ: FlockType::WriteLock,
        offset_type: FlockOffsetType::Set,
    };
    fcntl_getlk(&file, &lock).expect("a look").is_some()
}

fn attached(host: &TestHost, volume: &str) -> Vec<String> {
    let volume = host.json(&["volume", "inspect", volume]);
    let users = volume["attached_to"].as_array().expect("a list");
    users.iter().map(|user| user["sandbox"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn what_is_in_a_volume_outlives_sleep_boot_daemon_and_sandbox() {
    let mut host = TestHost::start(BHATTI);
    host.ok(&["volume", "create", "data", "--size", "64"]);
    let again = host.json(&["volume", "create", "data", "--size", "64"]);
    assert_eq!(again["changed"], false, "{again}");
    let init = "cat /data/first > ~/seen-by-init 2>&1; sleep 7200";
    let made = host.json(&[
        "create",
        "--name",
        "a",
        "--volume",
        "data:/data",
        "--volume",
        "new:/mnt/new",
        "--init",
        init,
    ]);
    assert!(made["warnings"].to_string().contains("volume new was not there"), "{made}");
    assert_eq!(
        made["volumes"],
        json!([{ "name": "data", "mount": "/data", "read_only": false }, { "name": "new", "mount": "/mnt/new", "read_only": false }])
    );
    host.sh("a", "echo one > /data/first && echo two > /mnt/new/second && mkdir /data/d");
    host.ok(&["stop", "a"]);
    // It sleeps and has its volumes still.
    host.refused(&["volume", "delete", "data"], 1, &["data", "in use by a", "detach"]);
    host.refused(&["create", "--name", "b", "--volume", "data:/x"], 1, &["data", "in use by a"]);
    assert_eq!(host.sh("a", "cat /data/first /mnt/new/second; echo three >> /data/first; sync"), "one\ntwo");

    // A machine that dies boots from its disk, and its init finds the volumes.
    host.kill_vmms();
    assert_eq!(host.sh("a", "cat /data/first /mnt/new/second"), "one\nthree\ntwo");
    assert_eq!(host.sh("a", "cat ~/seen-by-init"), "one\nthree");
    assert_eq!(host.json(&["inspect", "a"])["boot"], "cold_boot");

    // The daemon dies, the machine does not: nobody else gets the volume, before and after the next daemon came.
    host.kill_daemon();
    assert!(is_used(&file_of(&host, "data")), "the VMM holds it");
    host.start_daemon();
    host.refused(&["create", "--name", "b", "--volume", "data:/x"], 1, &["data", "in use by a"]);
    host.ok(&["volume", "detach", "new", "a"]);
    assert_eq!(host.sh("a", "cat /data/first; ls /mnt/new"), "one\nthree");

    // One whose VMM was killed is made whole before it is only read.
    host.ok(&["volume", "attach", "new", "a", "/mnt/new"]);
    host.sh("a", "echo four > /mnt/new/second; sync");
    host.kill_vmms();
    host.ok(&["destroy", "a"]);
    host.ok(&["create", "--name", "b"]);
    host.ok(&["volume", "attach", "new", "b", "/new:ro"]);
    assert_eq!(host.sh("b", "cat /new/second"), "four");
    host.ok(&["destroy", "b"]);
    assert_eq!(host.json(&["volume", "list"]).as_array().map(Vec::len), Some(2));
    host.refused(
        &["create", "--name", "b", "--volume", "data:/elsewhere:ro"],
        1,
        &["data", "not unmounted cleanly"],
    );
    assert_eq!(host.json(&["list"]), json!([]), "nothing is left");
    host.ok(&["create", "--name", "b", "--volume", "data:/elsewhere"]);
    assert_eq!(host.sh("b", "cat /elsewhere/first"), "one\nthree");
    host.ok(&["destroy", "b"]);
    host.ok(&["volume", "delete", "data", "new"]);
    assert!(!file_of(&host, "data").exists());
    nothing_is_wrong(&host);
}

#[test]
fn volumes_come_and_go_and_grow_while_the_guest_runs() {
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "a"]);
    host.ok(&["create", "--name", "b"]);
    for volume in ["one", "two"] {
        host.ok(&["volume", "create", volume, "--size", "32"]);
    }
    let reply = host.json(&["volume", "attach", "one", "a", "/srv/one"]);
    assert_eq!(
        (&reply["changed"], &reply["attached_to"][0]["mount"]),
        (&json!(true), &json!("/srv/one")),
        "{reply}"
    );
    let again = host.json(&["volume", "attach", "one", "a", "/srv/one"]);
    assert_eq!(again["changed"], false, "{again}");
    host.refused(&["volume", "attach", "one", "a", "/srv/other"], 1, &["one", "already", "/srv/one"]);
    host.refused(&["volume", "attach", "one", "b", "/x"], 1, &["one", "in use by a"]);
    host.refused(&["volume", "attach", "one", "b", "/x:ro"], 1, &["one", "in use by a"]);
    host.refused(&["volume", "attach", "two", "a", "/srv/one/sub"], 1, &["cover"]);
    // Paths that only the guest can judge leave nothing behind.
    host.sh("a", "ln -s /etc ~/link; echo x > ~/file");
    host.refused(&["volume", "attach", "two", "a", "/home/user/link/sub"], 1, &["link", "/etc"]);
    let file = host.sh("a", "cd; pwd") + "/file";
    host.refused(&["volume", "attach", "two", "a", &file], 1, &["volume two"]);
    assert_eq!(attached(&host, "two"), [""; 0]);

    // Busy: refused with the process, and mounted as before.
    host.sh("a", "echo kept > /srv/one/kept");
    host.ok(&["exec", "a", "--detach", "--cwd", "/srv/one", "--", "sleep", "7200"]);
    host.refused(&["volume", "detach", "one", "a"], 1, &["in use by", "sleep (pid "]);
    assert_eq!(host.sh("a", "cat /srv/one/kept; pkill sleep || kill $(pidof sleep)"), "kept");
    host.sh("a", "while pidof sleep; do :; done");

    // Live growth, never the other way.
    let blocks = |path: &str| {
        host.sh("a", &format!("df -m --output=size {path} | tail -1")).trim().parse::<u64>().unwrap()
    };
    let before = blocks("/srv/one");
    host.refused(&["volume", "resize", "one", "--size", "31"], 1, &["smaller", "only grow"]);
    host.ok(&["volume", "resize", "one", "--size", "96"]);
    assert!(blocks("/srv/one") >= before + 55, "{before} to {}", blocks("/srv/one"));
    let big =
        host.sh("a", "head -c 60000000 /dev/zero | tr '\\0' x > /srv/one/big && stat -c %s /srv/one/big");
    assert_eq!(big, "60000000");
    // Not attached, it grows with its next mount.
    host.ok(&["volume", "resize", "two", "--size", "64"]);
    host.ok(&["volume", "attach", "two", "a", "/srv/two"]);
    assert!(blocks("/srv/two") > 40, "{}", blocks("/srv/two"));

    // Many may read what nobody writes.
    host.ok(&["volume", "detach", "one", "a"]);
    let nothing = host.json(&["volume", "detach", "one", "a"]);
    assert_eq!(nothing["changed"], false, "{nothing}");
    check_filesystem(&file_of(&host, "one"));
    host.ok(&["volume", "attach", "one", "a", "/srv/one:ro"]);
    host.ok(&["volume", "attach", "one", "b", "/srv/one:ro"]);
    assert_eq!(attached(&host, "one"), ["a", "b"]);
    for name in ["a", "b"] {
        assert_eq!(
            host.sh(name, "cat /srv/one/kept; touch /srv/one/x 2>/dev/null || echo no"),
            "kept\nno",
            "{name}"
        );
    }
    host.refused(&["volume", "resize", "one", "--size", "128"], 1, &["read-only", "a"]);
    host.refused(&["volume", "delete", "one"], 1, &["in use by a, b"]);
    host.ok(&["volume", "detach", "one", "b"]);
    host.ok(&["volume", "detach", "one", "a"]);

    // A sandbox that sleeps is woken; ports are kept over all of it.
    host.ok(&["stop", "a"]);
    host.ok(&["volume", "attach", "one", "a", "/srv/one"]);
    host.ok(&["stop", "a"]);
    assert_eq!(host.sh("a", "cat /srv/one/kept; ls -d /srv/two/lost+found"), "kept\n/srv/two/lost+found");
}

#[test]
fn an_attached_volume_is_cloned_as_of_one_moment_while_its_guest_writes() {
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "a", "--volume", "data:/data"]);
    host.sh("a", "head -c 40000000 /dev/urandom > /data/big; sha256sum < /data/big > /data/sum; sync");
    // A file that is replaced by renaming is never empty, whenever one looks.
    let writer = "i=0; while :; do i=$((i+1)); echo $i > /data/new; mv /data/new /data/count; \
                  head -c 100000 /dev/urandom > /data/noise; done";
    host.ok(&["exec", "a", "--detach", "--", "sh", "-c", writer]);
    host.sh("a", "while ! [ -s /data/count ]; do :; done; sync");
    let (mut counts, mut stalls) = (Vec::new(), Vec::new());
    for clone in ["one", "two", "three"] {
        let reply = host.json(&["volume", "clone", "data", "--name", clone]);
        let stall = reply["stall_ms"].as_f64().expect("a stall");
        eprintln!("{clone}: {} stall {stall} ms of {}", reply["clone"], reply["timings_ms"]);
        assert!(stall > 0.0, "{reply}");
        stalls.push(stall);
        check_filesystem(&file_of(&host, clone));
        counts.push(host.sh("a", "cat /data/count").parse::<u64>().unwrap_or_default());
    }
    // A flush of the guest's own that is under way is waited for, and takes what the host's disk takes.
    let least = stalls.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(least <= MOST_STALL_MS, "{stalls:?}");
    host.refused(&["volume", "clone", "data", "--name", "one"], 1, &["one", "already"]);
    host.refused(&["volume", "clone", "nothing", "--name", "four"], 1, &["no volume nothing"]);
    host.ok(&["create", "--name", "b", "--volume", "one:/one", "--volume", "two:/two:ro"]);
    let seen = host.sh("b", "sha256sum < /one/big | diff - /one/sum && echo same; cat /one/count /two/count");
    let seen: Vec<&str> = seen.lines().collect();
    assert_eq!(seen[0], "same");
    let (one, two): (u64, u64) = (seen[1].parse().unwrap_or(0), seen[2].parse().unwrap_or(0));
    assert!(one <= counts[0] + 1 && one <= two && two <= counts[1] + 1, "{one}, {two} and {counts:?}");
    // What is not attached is cloned without anybody's stall.
    let rest = host.json(&["volume", "clone", "three", "--name", "four"]);
    assert!(rest["stall_ms"].is_null() && !rest["clone"].is_null(), "{rest}");
    host.sh("a", "echo still here > /data/after && cat /data/after");
    assert!(
        !host
            .data_dir()
            .join("volumes/admin")
            .read_dir()
            .expect("a directory")
            .flatten()
            .any(|entry| { entry.file_name().to_string_lossy().starts_with(".new-") })
    );
}

#[test]
fn a_snapshot_holds_clones_of_volumes_and_every_copy_has_its_own() {
    let host = TestHost::start(BHATTI);
    host.ok(&["volume", "create", "shared", "--size", "16"]);
    host.ok(&["create", "--name", "a", "--volume", "data:/data", "--volume", "shared:/shared:ro"]);
    host.sh(
        "a",
        "echo past > /data/file; head -c 20000000 /dev/urandom > /data/big; sha256sum /data/big > /data/sum",
    );
    // Not synced: what the guest has only in its memory is in the copies, too.
    host.sh("a", "exec 3>/data/open; echo unsynced >&3; echo ram > /dev/shm/here");
    let kept = host.json(&["snapshot", "create", "a", "--name", "kept"]);
    let pause = kept["pause_ms"].as_f64().expect("a pause");
    eprintln!("snapshot: pause {pause} ms of {}", kept["timings_ms"]);
    assert!(pause > 0.0, "{kept}");
    host.sh("a", "echo present > /data/file; rm /data/big");
    for copy in ["b", "c"] {
        let reply = host.json(&["snapshot", "resume", "kept", "--name", copy]);
        let names: Vec<&Value> =
            reply["volumes"].as_array().expect("a list").iter().map(|v| &v["name"]).collect();
        assert_eq!(names, [&json!(format!("data-{copy}")), &json!("shared")], "{reply}");
        assert_eq!(
            host.sh(copy, "cat /data/file /data/open /dev/shm/here; sha256sum -c /data/sum"),
            "past\nunsynced\nram\n/data/big: OK"
        );
        host.sh(copy, &format!("echo {copy} > /data/file; sync"));
    }
    let forked = host.json(&["fork", "a", "--name", "d"]);
    eprintln!("fork: {}", forked["timings_ms"]);
    assert!(forked["timings_ms"]["pause"].as_f64().expect("a pause") > 0.0, "{forked}");
    assert_eq!(attached(&host, "shared"), ["a", "b", "c", "d"]);
    for (name, content) in [("a", "present"), ("b", "b"), ("c", "c"), ("d", "present")] {
        assert_eq!(host.sh(name, "cat /data/file"), content, "{name}");
    }
    // A copy sleeps and boots with its own; one that was made for a copy goes with it, unless it was detached.
    host.ok(&["stop", "b"]);
    assert_eq!(host.sh("b", "cat /data/file"), "b");
    host.ok(&["volume", "detach", "data-c", "c"]);
    host.ok(&["destroy", "b", "c"]);
    let names = |host: &TestHost| -> Vec<String> {
        let volumes = host.json(&["volume", "list"]);
        volumes
            .as_array()
            .expect("a list")
            .iter()
            .map(|v| v["name"].as_str().expect("a name").to_owned())
            .collect()
    };
    assert_eq!(names(&host), ["data", "data-c", "data-d", "shared"]);
    // The source's volume goes, the snapshot's clone does not, and the other way round.
    host.ok(&["destroy", "a", "d"]);
    host.ok(&["volume", "delete", "data"]);
    host.ok(&["snapshot", "resume", "kept", "--name", "e"]);
    host.ok(&["snapshot", "delete", "kept"]);
    assert_eq!(host.sh("e", "cat /data/file; sha256sum -c /data/sum"), "past\n/data/big: OK");
    // One that sleeps is kept with its volumes, too.
    host.ok(&["stop", "e"]);
    host.ok(&["snapshot", "create", "e", "--name", "asleep"]);
    host.ok(&["create", "--from", "asleep", "--name", "f"]);
    assert_eq!(host.sh("f", "cat /data/file; echo f > /data/file"), "past");
    assert_eq!(host.sh("e", "cat /data/file"), "past");
    nothing_is_wrong(&host);
}

/// What a daemon does that dies while the journal of a clone is played back: its disk stays plugged into a free port.
fn plug_a_disk_in_behind_the_daemon(sandbox: &Path) {
    let mut qmp = UnixStream::connect(sandbox.join("qmp.sock")).unwrap();
    let mut answers = BufReader::new(qmp.try_clone().unwrap()).lines();
    let mut ask = |command: &str, arguments: Value| {
        let asked = json!({ "execute": command, "arguments": arguments, "id": 1 });
        writeln!(qmp, "{asked}").unwrap();
        let answer = answers.find(|line| line.as_ref().unwrap().contains("\"id\": 1")).unwrap().unwrap();
        assert!(answer.contains("\"return\""), "{command}: {answer}");
    };
    ask("qmp_capabilities", json!({}));
    ask("blockdev-add", json!({ "driver": "null-co", "node-name": "volume1-file", "size": 1 << 20 }));
    ask("blockdev-add", json!({ "driver": "raw", "node-name": "volume1", "file": "volume1-file" }));
    ask(
        "device_add",
        json!({ "driver": "virtio-blk-pci", "id": "volume1", "bus": "port1", "drive": "volume1", "serial": "volume1" }),
    );
}

#[test]
fn a_disk_that_a_dead_daemon_left_plugged_in_is_taken_out_before_its_guest_sleeps() {
    let mut host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "a", "--volume", "data:/data"]);
    host.sh("a", "echo kept > /dev/shm/nonce; echo kept | sudo tee /data/kept; sync");
    let dir = host.sandbox_dir("a");
    host.kill_daemon();
    plug_a_disk_in_behind_the_daemon(&dir);
    host.start_daemon();
    host.ok(&["stop", "a"]);
    // Its memory is loaded into a machine with the disks that the manifest names.
    assert_eq!(host.sh("a", "cat /dev/shm/nonce /data/kept"), "kept\nkept");
    assert_eq!(host.json(&["inspect", "a"])["boot"], "resume");
}
