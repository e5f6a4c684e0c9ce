//! What is refused, each with one clear line and nothing left behind.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};

use serde_json::json;
use testkit::TestHost;

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

fn nothing_left(host: &TestHost) {
    assert_eq!(fs::read_dir(host.data_dir().join("sandboxes")).unwrap().count(), 0, "nothing is left");
    assert!(host.vmm_pids().is_empty());
}

#[test]
fn a_create_that_cannot_be_is_refused_and_leaves_nothing() {
    let host = TestHost::start(BHATTI);
    host.refused(&["create", "--name", "x", "--image", "nosuch"], 1, &["no image", "nosuch", "image list"]);
    host.refused(&["create", "--name", "Bad Name"], 2, &["Bad Name", "a-z"]);
    host.refused(&["create", "--name", "../x"], 2, &["../x"]);
    host.refused(&["create", "--name", "x", "--memory", "16"], 1, &["16 MiB", "use 128"]);
    host.refused(&["create", "--name", "x", "--memory", "99999999"], 1, &["memory"]);
    host.refused(&["create", "--name", "x", "--cpus", "0"], 2, &["0", "--cpus"]);
    host.refused(&["create", "--name", "x", "--cpus", "4096"], 1, &["cpus 4096"]);
    host.refused(
        &["create", "--name", "x", "--disk-size", "10"],
        1,
        &["smaller than the image", "only grow"],
    );
    host.refused(&["create", "--name", "x", "--disk-size", "0"], 2, &["0", "--disk-size"]);
    // The same over the API, which no command line has looked at before.
    for (body, word) in [
        (json!({"name": "Bad Name"}), "Bad Name"),
        (json!({"name": "x", "cpus": 0}), "cpus 0"),
        (json!({"name": "x", "memory_mb": 16}), "16 MiB"),
        (json!({"name": "x", "disk_size_mb": 0}), "disk size"),
        (json!({"name": "x", "env": {"1A": "x"}}), "1A"),
        (json!({"name": "x", "files": [{"path": "/a/../b", "content_base64": ""}]}), "'..'"),
        (json!({"name": "x", "nosuchfield": 1}), "nosuchfield"),
    ] {
        let (status, reply) = host.post("/sandboxes", &body);
        assert_eq!(status, 400, "{reply}");
        assert!(reply["error"]["message"].as_str().unwrap().contains(word), "{reply}");
    }
    assert_eq!(host.run(&["create", "--name", "x", "--cpus", "many"]).code, 2);
    assert_eq!(host.run(&["create", "--no-such-flag"]).code, 2);
    assert_eq!(host.run(&["create", "--name", "x", "--env", "novalue"]).code, 2);
    assert_eq!(host.run(&["create", "--name", "x", "--file", "/nonexistent:/etc/x"]).code, 1);
    nothing_left(&host);
    host.refused(&["inspect", "nobody"], 1, &["no sandbox", "nobody", "bhatti list"]);
    host.refused(&["stop", "nobody"], 1, &["no sandbox"]);
}

#[test]
fn a_sandbox_that_does_not_start_is_tried_a_few_times_and_then_answered_at_once() {
    let host = TestHost::start_with(BHATTI, &["--storage-layout", "overlay"]);
    host.ok(&["create", "--name", "box"]);
    host.ok(&["stop", "box"]);
    // What is under its disk is not there: its VMM ends at once.
    let (objects, away) = (host.data_dir().join("images/objects"), host.data_dir().join("images/away"));
    fs::rename(&objects, &away).unwrap();
    for _ in 0..3 {
        let outcome = host.run(&["exec", "box", "--", "true"]);
        assert_eq!(outcome.code, 1, "{}", outcome.stderr);
        assert!(!outcome.stderr.contains("not tried again"), "{}", outcome.stderr);
    }
    fs::rename(&away, &objects).unwrap();
    // Nothing is tried, or it would work.
    let parts = ["box did not start 3 times in a row", "not tried again for", "start box --discard-memory"];
    host.refused(&["exec", "box", "--", "true"], 1, &parts);
    host.refused(&["start", "box"], 1, &parts);
    assert!(host.vmm_pids().is_empty(), "no VMM is left of what was tried");
    // Who was at the far end of a line that nobody took sees that, ends, and is waited for: else this never ends.
    let has_children = || {
        let threads = fs::read_dir(format!("/proc/{}/task", host.daemon().pid())).unwrap().flatten();
        // A thread may end while it is looked at.
        threads
            .map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default())
            .any(|children| !children.is_empty())
    };
    while has_children() {
        std::thread::yield_now();
    }
    host.ok(&["start", "box", "--discard-memory"]);
    assert_eq!(host.sh("box", "echo up"), "up");
    host.ok(&["stop", "box"]);
    assert_eq!(host.sh("box", "echo up again"), "up again");
}

#[test]
fn a_damaged_memory_image_is_refused_by_name_and_the_disk_still_boots() {
    let host = TestHost::start(BHATTI);
    for (name, file) in [("flip-mem", "mem.snap"), ("flip-vm", "vm.snap")] {
        host.ok(&["create", "--name", name]);
        host.sh(name, "echo kept > ~/kept; sync; head -c 3000000 /dev/urandom > /dev/shm/noise");
        host.ok(&["stop", name]);
        let path = host.sandbox_dir(name).join(file);
        flip(&path, if file == "mem.snap" { 900_000 } else { fs::metadata(&path).unwrap().len() / 2 });
        host.refused(&["exec", name, "--", "true"], 1, &[file, "--discard-memory"]);
        // Asked again it says the same, at no cost.
        host.refused(&["start", name], 1, &[file, "--discard-memory"]);
        assert_eq!(host.json(&["inspect", name])["status"], "error");
        assert!(host.vmm_pids().is_empty(), "no VMM is left");
        host.ok(&["start", name, "--discard-memory"]);
        assert_eq!(host.sh(name, "cat ~/kept"), "kept");
        assert_eq!(host.json(&["inspect", name])["boot"], "cold_boot");
        host.ok(&["destroy", name]);
    }
    nothing_left(&host);
}

fn flip(path: &std::path::Path, at: u64) {
    use std::io::Read as _;
    let mut file = fs::File::options().read(true).write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    let mut byte = [0];
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte[0] ^ 0x10]).unwrap();
}

#[test]
fn a_kernel_that_does_not_boot_is_told_with_its_console() {
    let mut host = TestHost::prepared(BHATTI);
    // An initramfs whose init is no program at all: the kernel panics when it comes to it.
    for kernel in fs::read_dir(host.data_dir().join("kernel")).unwrap() {
        let initramfs = kernel.unwrap().path().join("initramfs");
        let Ok(was) = fs::metadata(&initramfs) else { continue };
        fs::remove_file(&initramfs).unwrap();
        fs::write(&initramfs, vec![0u8; was.len().try_into().unwrap()]).unwrap();
    }
    fs::remove_dir_all(host.data_dir().join("templates")).unwrap();
    host.serve_with(&["--boot-timeout", "30"]);
    host.start_daemon();
    let refused = host.run(&["create", "--name", "x"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("console") && refused.stderr.contains("panic"), "{}", refused.stderr);
    nothing_left(&host);
}

#[test]
fn a_missing_vmm_is_named_with_the_way_to_get_it() {
    let mut host = TestHost::prepared(BHATTI);
    host.serve_with(&["--qemu", "/nonexistent/qemu-system-x86_64"]);
    host.start_daemon();
    host.refused(&["create", "--name", "x"], 1, &["/nonexistent/qemu-system-x86_64", "install"]);
    nothing_left(&host);
}

#[test]
fn without_a_set_up_the_way_to_it_is_named() {
    let mut host = TestHost::bare(BHATTI);
    host.start_daemon();
    host.refused(&["create", "--name", "x"], 1, &["bhatti setup"]);
    assert_eq!(host.json(&["list"]), json!([]));
}
