//! Keys and answers between hosts: TLS, and no listening without it by mistake. No guest is needed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

fn bhatti(data_dir: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bhatti"));
    for name in ["BHATTI_URL", "BHATTI_TOKEN", "BHATTI_CACERT", "BHATTI_LOG", "NOTIFY_SOCKET"] {
        command.env_remove(name);
    }
    command.env("BHATTI_DATA_DIR", data_dir).stdin(Stdio::null()).args(words);
    command
}

/// What a run says that must fail with `status`.
fn failure(output: &Output, status: i32) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    stderr
}

struct Daemon(Child, Vec<String>);

impl Daemon {
    fn start(data_dir: &Path, words: &[&str]) -> Self {
        let mut child = bhatti(data_dir, &["serve", "--listen", "127.0.0.1:0"])
            .args(words)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut said = Vec::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            said.push(line.unwrap());
            if said.last().unwrap().contains("ready on") {
                break;
            }
        }
        Self(child, said)
    }

    fn url(&self) -> &str {
        let ready = self.1.last().unwrap();
        ready.split_whitespace().find(|word| word.starts_with("http")).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
fn plain_text_is_refused_where_others_listen_in() {
    let dir = tempfile::tempdir().unwrap();
    for words in [["--listen", "0.0.0.0:0"], ["--listen", "[::]:0"], ["--publish-listen", "192.0.2.1:80"]] {
        let output = bhatti(dir.path(), &["serve"]).args(words).output().unwrap();
        let told = failure(&output, 2);
        assert!(told.contains(words[0]) && told.contains("--tls-self-signed"), "{told}");
    }
    for words in [
        &["--tls-cert", "a"][..],
        &["--tls-key", "a"],
        &["--tls-self-signed", "--insecure"],
        &["--tls-name", "a"],
    ] {
        failure(&bhatti(dir.path(), &["serve"]).args(words).output().unwrap(), 2);
    }
    assert!(!dir.path().join("tls").exists());
    let words = ["serve", "--listen", "127.0.0.1:0", "--tls-cert", "/nowhere/c", "--tls-key", "/nowhere/k"];
    let told = failure(&bhatti(dir.path(), &words).output().unwrap(), 1);
    assert!(told.contains("/nowhere/c"), "{told}");
}

#[test]
fn a_certificate_of_the_hosts_own_is_believed_by_whom_it_was_given_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let daemon = Daemon::start(&data, &["--tls-self-signed", "--tls-name", "sandboxes.example"]);
    assert!(daemon.url().starts_with("https://127.0.0.1:"), "{:?}", daemon.1);
    let cert = data.join("tls/cert.pem");
    assert!(daemon.1.iter().any(|line| line.ends_with(&format!("--cacert {}", cert.display()))));
    let port = daemon.url().rsplit(':').next().unwrap();
    let ask = |url: &str, words: &[&str]| {
        bhatti(&data, &["--url", url, "secret", "list"]).args(words).output().unwrap()
    };
    let trusting = ["--cacert", cert.to_str().unwrap()];
    for host in ["127.0.0.1", "localhost"] {
        let output = ask(&format!("https://{host}:{port}"), &trusting);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(failure(&ask(daemon.url(), &[]), 1).contains("--cacert"));
    failure(&ask(&format!("http://127.0.0.1:{port}"), &[]), 1);

    // Another host's certificate is not this one's; a file without any is said to be that.
    let other = dir.path().join("other");
    drop(Daemon::start(&other, &["--tls-self-signed"]));
    let other = other.join("tls/cert.pem");
    assert!(failure(&ask(daemon.url(), &["--cacert", other.to_str().unwrap()]), 1).contains("certificate"));
    std::fs::write(dir.path().join("empty"), "").unwrap();
    let empty = dir.path().join("empty");
    let told = failure(&ask(daemon.url(), &["--cacert", empty.to_str().unwrap()]), 1);
    assert!(told.contains("no certificate"), "{told}");

    // The same certificate after a restart, so that clients need not be told again; it serves as a file, too.
    let first = std::fs::read(&cert).unwrap();
    drop(daemon);
    let key = data.join("tls/key.pem");
    let words = ["--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    let daemon = Daemon::start(&data, &words);
    assert!(ask(daemon.url(), &trusting).status.success());
    drop(daemon);
    drop(Daemon::start(&data, &["--tls-self-signed", "--tls-name", "sandboxes.example"]));
    assert_eq!(std::fs::read(&cert).unwrap(), first);
    // For other names another one, with its key.
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let daemon = Daemon::start(&data, &["--tls-self-signed"]);
    assert_ne!(std::fs::read(&cert).unwrap(), first);
    assert!(ask(daemon.url(), &trusting).status.success());
}
