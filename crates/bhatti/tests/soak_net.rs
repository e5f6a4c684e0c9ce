//! Many sandboxes with a network, made and destroyed; on demand, for it takes its time.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use testkit::{Lab, TestHost};

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

#[test]
fn fifty_rounds_of_create_and_destroy_leave_no_process_and_no_descriptor() {
    let lab = Lab::new(BHATTI);
    let host = TestHost::start_with(lab.program(), &["--net", "bridge"]);
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", host.daemon().pid())).unwrap().count();
    let round = || {
        host.ok(&["create", "--name", "a"]);
        let lines = lab.line_pids();
        assert_eq!(lines.len(), 2);
        host.ok(&["destroy", "a", "-y"]);
        lab.wait_until_gone(&lines);
        // Not even as zombies: nobody has to ask for them to be buried.
        assert_eq!(lab.line_pids(), [0; 0]);
    };
    round();
    let before = descriptors();
    for _ in 0..50 {
        round();
    }
    assert!(descriptors() <= before + 2, "descriptors went from {before} to {}", descriptors());
}

/// A project's page and a wheel, as an index of Python packages has them (PEP 503, PEP 427).
const INDEX: &str = r#"
import os, sys, zipfile
os.makedirs(sys.argv[1] + "/simple/afar")
name = "afar-1.0-py3-none-any.whl"
with zipfile.ZipFile(f"{sys.argv[1]}/{name}", "w") as wheel:
    info = "afar-1.0.dist-info/"
    wheel.writestr("afar.py", "print('afar')\n")
    wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: afar\nVersion: 1.0\n")
    wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr(info + "RECORD", "")
with open(sys.argv[1] + "/simple/afar/index.html", "w") as page:
    page.write(f'<!DOCTYPE html><a href="/{name}">{name}</a>')
"#;

#[test]
fn pip_downloads_from_an_index_of_the_world() {
    let mut lab = Lab::new(BHATTI);
    let mirror = tempfile::tempdir().unwrap();
    let made = std::process::Command::new("python3").args(["-c", INDEX]).arg(mirror.path()).status().unwrap();
    assert!(made.success());
    lab.serve_files(83, mirror.path());
    let mut host = TestHost::prepared(lab.program());
    host.build_tier("dev");
    host.serve_with(&["--net", "auto"]);
    host.start_daemon();
    host.ok(&["create", "--name", "x", "--image", "dev", "--memory", "1024"]);
    let script = "cd /tmp && python3 -m venv v && v/bin/pip -q download --trusted-host web.example \
                  --index-url http://web.example:83/simple/ afar && ls afar-*.whl";
    let said = host.ok(&["exec", "x", "--timeout", "600", "--", "sh", "-c", script]);
    assert_eq!(said.lines().last(), Some("afar-1.0-py3-none-any.whl"), "{said}");
}
