//! What docs/quickstart.md and README.md tell a stranger to type is typed here, word by word; and the demo runs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod pages;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pages::{Block, Shell, blocks, follow, matches};
use testkit::TestHost;

/// A stranger's home; it goes after the test.
struct Home(PathBuf);

impl Home {
    fn of(host: &TestHost) -> Self {
        let mut dir = host.data_dir().as_os_str().to_owned();
        dir.push(".home");
        let home = Self(dir.into());
        fs::create_dir_all(home.0.join("bin")).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_bhatti"), home.0.join("bin/bhatti")).unwrap();
        home
    }

    /// A shell in this repository that finds the program under test.
    fn shell(&self, host: &TestHost) -> Shell {
        let old_home = std::env::var("HOME").expect("HOME");
        let path = std::env::var("PATH").expect("PATH");
        let mut bash = Command::new("bash");
        bash.arg("-e")
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
            .env("HOME", &self.0)
            .env("CARGO_HOME", std::env::var("CARGO_HOME").unwrap_or(format!("{old_home}/.cargo")))
            .env("RUSTUP_HOME", std::env::var("RUSTUP_HOME").unwrap_or(format!("{old_home}/.rustup")))
            .env("PATH", format!("{}:{path}", self.0.join("bin").display()))
            .env("BHATTI_DATA_DIR", host.data_dir())
            // The program under test is what `make build` would build, and other tests use it meanwhile.
            .env("CARGO", "true");
        Shell::start(bash, self.0.clone())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_quickstart_does_what_it_says() {
    let host = TestHost::prepared(env!("CARGO_BIN_EXE_bhatti"));
    let page = blocks(include_str!("../../../docs/quickstart.md"));
    assert!(page.iter().all(|block| matches!(block.kind.as_str(), "sh" | "output")), "{page:?}");
    let home = Home::of(&host);
    let mut shell = home.shell(&host);
    let typed = follow(&mut shell, &page);
    assert_eq!(typed, page.iter().filter(|block| block.kind == "sh").count());
    let installed = home.0.join(".local/bin/bhatti");
    assert!(installed.exists(), "{}", installed.display());
    shell.end();
    assert!(host.vmm_pids().is_empty(), "machines are left");
}

#[test]
fn the_demo_comes_to_its_end() {
    let host = TestHost::prepared(env!("CARGO_BIN_EXE_bhatti"));
    let demo = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/demo.sh"))
        .env("BHATTI", env!("CARGO_BIN_EXE_bhatti"))
        .env("BHATTI_DATA_DIR", host.data_dir())
        .output()
        .unwrap();
    let [said, complaint] = [&demo.stdout, &demo.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert!(demo.status.success(), "{}: {said}{complaint}", demo.status);
    assert!(said.contains("same boot id, same process, both files, and it counts on"), "{said}");
    assert!(host.vmm_pids().is_empty(), "machines are left");
}

/// Commands behind `$ `, each with the lines below it.
fn session(console: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for line in console.lines() {
        match line.strip_prefix("$ ") {
            Some(command) => found.push((format!("{command}\n"), String::new())),
            None => {
                let (_, printed) = found.last_mut().expect("a command first");
                printed.push_str(line);
                printed.push('\n');
            }
        }
    }
    found
}

#[test]
fn what_the_readme_shows_is_what_one_sees() {
    let host = TestHost::start(env!("CARGO_BIN_EXE_bhatti"));
    let page = blocks(include_str!("../../../README.md"));
    let console = page.iter().find(|block| block.kind == "console").expect("the README shows a session");
    let home = Home::of(&host);
    let mut shell = home.shell(&host);
    for (command, printed) in session(&console.text) {
        // What only says that it was done is left out of the picture.
        let expected = Some(printed.as_str()).filter(|printed| !printed.is_empty());
        shell.type_in(&command, expected);
    }
    let copies = page.iter().find(|block| block.text.starts_with("bhatti snapshot create dev"));
    shell.type_in(&copies.expect("the README's block on copies").text, None);
    shell.type_in("bhatti destroy -y dev try-1 what-if-1 what-if-2 what-if-3 next\n", None);
    shell.end();
}

#[test]
fn patterns_and_blocks_are_read_as_they_are_meant() {
    assert!(matches("a\n", "a\n"));
    assert!(!matches("a\n", "a\nb\n"));
    assert!(matches("…\nb\n", "x\ny\nb\n"));
    assert!(!matches("…\nb\n", "x\nb\nc\n"));
    assert!(matches("…dev…stopped…\n", "id dev  stopped now\n"));
    assert!(!matches("…dev…stopped…\n", "id dev running\n"));
    let page = "words\n```sh\nls\n```\n```output\na\n```\n";
    let block = |kind: &str, text: &str| Block { kind: kind.into(), text: text.into() };
    assert_eq!(blocks(page), [block("sh", "ls\n"), block("output", "a\n")]);
}
