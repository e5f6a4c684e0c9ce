//! The program as users run it, where no guest is needed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

fn bhatti(data_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bhatti"));
    for name in ["BHATTI_URL", "BHATTI_TOKEN", "BHATTI_LOG", "NOTIFY_SOCKET"] {
        command.env_remove(name);
    }
    command.env("BHATTI_DATA_DIR", data_dir).stdin(Stdio::null());
    command
}

fn run(data_dir: &Path, words: &[&str]) -> Output {
    bhatti(data_dir).args(words).output().unwrap()
}

/// The one line on stderr of a run that must fail with `status`.
fn failure(output: &Output, status: i32) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("error: "), "{stderr}");
    stderr
}

struct Daemon {
    process: Child,
    ready: String,
}

impl Daemon {
    fn start(data_dir: &Path, listen: &str) -> Self {
        let mut process = bhatti(data_dir)
            .args(["serve", "--listen", listen])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        Self { process, ready }
    }

    /// The TCP address that it told.
    fn address(&self) -> &str {
        self.ready.split_whitespace().find_map(|word| word.strip_prefix("http://")).unwrap()
    }

    fn terminate(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.process.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}

#[test]
fn without_a_daemon_every_verb_says_how_to_start_one() {
    let dir = tempfile::tempdir().unwrap();
    // A port that nobody listens on, so that a daemon of this machine's user is not asked.
    let url = "http://127.0.0.1:1";
    for words in [
        &["list"][..],
        &["create"],
        &["exec", "a", "true"],
        &["shell", "a"],
        &["stop", "a"],
        &["file", "read", "a", "/x"],
        &["snapshot", "create", "a", "--name", "b"],
        &["snapshot", "list"],
        &["snapshot", "resume", "b"],
        &["snapshot", "delete", "b"],
        &["fork", "a"],
        &["events"],
    ] {
        let output = bhatti(dir.path()).args(words).args(["--url", url]).output();
        // What follows a command belongs to the command.
        let output = if words[0] == "exec" {
            bhatti(dir.path()).args(["--url", url]).args(words).output()
        } else {
            output
        };
        let line = failure(&output.unwrap(), 1);
        assert!(line.starts_with("error: no daemon answers at http://127.0.0.1:1: "), "{line}");
        assert!(line.ends_with("; start one with `bhatti serve`\n"), "{line}");
    }
}

#[test]
fn a_dead_socket_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("bhatti.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let line = failure(&run(dir.path(), &["list", "--url", &format!("unix:{}", socket.display())]), 1);
    assert!(line.contains(&socket.display().to_string()) && line.contains("refused"), "{line}");
}

#[test]
fn with_json_a_failure_is_a_document_too() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), &["list", "--json", "--url", "http://127.0.0.1:1"]);
    failure(&output, 1);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["error"]["code"], "no_daemon");
    let output = run(dir.path(), &["list", "--json", "--nosuch"]);
    failure(&output, 2);
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap()["error"]["code"], "usage");
}

#[test]
fn a_daemon_serves_on_both_doors_and_ends_on_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    // Deeper than a socket's name may be long.
    let data = dir.path().join("d".repeat(120));
    let daemon = Daemon::start(&data, "127.0.0.1:0");
    let socket = data.join("bhatti.sock");
    assert!(daemon.ready.starts_with("bhatti: ready on http://127.0.0.1:"), "{}", daemon.ready);
    assert!(daemon.ready.contains(&socket.display().to_string()), "{}", daemon.ready);
    for secret in [&socket, &data.join("admin.key")] {
        assert_eq!(std::fs::metadata(secret).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let key = std::fs::read_to_string(data.join("admin.key")).unwrap();
    assert!(key.starts_with("bht_") && key.trim().len() == 47, "{key}");

    let listed = run(&data, &["list", "--json"]);
    assert_eq!(String::from_utf8_lossy(&listed.stdout).trim(), "[]", "{listed:?}");
    let url = format!("http://{}", daemon.address());
    let listed = run(&data, &["list", "--json", "--url", &url]);
    assert_eq!(String::from_utf8_lossy(&listed.stdout).trim(), "[]", "{listed:?}");
    let line = failure(&run(&data, &["list", "--url", &url, "--token", "bht_wrong"]), 1);
    assert!(line.contains("the key is missing, wrong or revoked") && line.contains("--token"), "{line}");

    let line = failure(&run(&data, &["exec", "nope", "--", "true"]), 1);
    assert!(line.contains("nope"), "{line}");
    let line = failure(&run(&data, &["shell", "nope"]), 1);
    assert!(line.contains("nope"), "{line}");
    let line = failure(&run(&data, &["create", "--memory", "1"]), 1);
    assert!(line.contains("memory of 1 MiB") && line.contains("; use "), "{line}");
    let line = failure(&run(&data, &["create"]), 1);
    assert!(line.contains("bhatti setup"), "{line}");
    for words in [
        &["snapshot", "create", "nope", "--name", "n"][..],
        &["snapshot", "inspect", "nope"],
        &["snapshot", "resume", "nope"],
        &["snapshot", "delete", "nope"],
        &["fork", "nope", "--count", "3"],
        &["create", "--from", "nope"],
    ] {
        let line = failure(&run(&data, words), 1);
        assert!(line.contains("nope") && line.contains("; `bhatti "), "{words:?}: {line}");
    }
    let listed = run(&data, &["snapshot", "list", "--json"]);
    assert_eq!(String::from_utf8_lossy(&listed.stdout).trim(), "[]", "{listed:?}");
    let several = run(&data, &["snapshot", "delete", "nope", "neither", "--json"]);
    assert_eq!(several.status.code(), Some(1));
    let told: Value = serde_json::from_slice(&several.stdout).unwrap();
    assert_eq!(told.as_array().unwrap().len(), 2, "{told}");
    let several = run(&data, &["stop", "nope", "neither"]);
    assert_eq!(several.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&several.stderr).lines().count(), 2);

    let second = failure(&run(&data, &["serve", "--listen", "none"]), 1);
    assert!(second.contains("another daemon"), "{second}");

    assert_eq!(daemon.terminate(), Some(0));
    assert!(!socket.exists());
    // The key stays, so that whoever has it keeps it.
    let again = Daemon::start(&data, "none");
    assert_eq!(std::fs::read_to_string(data.join("admin.key")).unwrap(), key);
    assert_eq!(again.terminate(), Some(0));
}

#[test]
fn a_port_in_use_is_one_clear_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let output =
        bhatti(dir.path()).env("BHATTI_LOG", "off").args(["serve", "--listen", &address]).output().unwrap();
    let line = failure(&output, 1);
    assert!(line.contains(&address) && line.contains("in use") && line.contains("--listen"), "{line}");
}

#[test]
fn a_data_directory_that_cannot_be_used_is_one_clear_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    // Not even root can make a directory in a file.
    let data = file.join("data");
    let output = bhatti(&data).env("BHATTI_LOG", "off").args(["serve", "--listen", "none"]).output().unwrap();
    let line = failure(&output, 1);
    assert!(
        line.contains(&data.display().to_string()) || line.contains(&file.display().to_string()),
        "{line}"
    );
}

#[test]
fn help_version_and_completion_need_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let help = run(dir.path(), &["--help"]);
    assert_eq!(help.status.code(), Some(0));
    for verb in [
        "ports",
        "forward",
        "publish",
        "unpublish",
        "setup",
        "doctor",
        "serve",
        "create",
        "exec",
        "shell",
        "stop",
        "start",
        "file",
        "image",
        "snapshot",
        "fork",
    ] {
        assert!(String::from_utf8_lossy(&help.stdout).contains(&format!("\n  {verb}")), "{verb}");
    }
    let version = run(dir.path(), &["version", "--json", "--url", "http://127.0.0.1:1"]);
    assert_eq!(version.status.code(), Some(0));
    let version: Value = serde_json::from_slice(&version.stdout).unwrap();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    for shell in ["bash", "zsh", "fish"] {
        let script = run(dir.path(), &["completion", shell]);
        assert!(script.status.success() && script.stdout.len() > 1000, "{shell}");
    }
}

#[test]
fn whoever_stops_reading_ends_the_program_quietly() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = bhatti(dir.path())
        .args(["docs", "cli"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(process.stdout.take());
    let output = process.wait_with_output().unwrap();
    assert!(matches!(output.status.code(), Some(0 | 141)), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}
