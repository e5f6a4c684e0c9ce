//! Pages with commands, and the shell that they are typed into word by word.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};

/// Printed by the shell after each block.
const END_OF_BLOCK: &str = "--- end of a block ---";

/// How long a daemon may take to end after a test that failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// A fenced block of a page: what stands behind its fence, and its lines.
#[derive(Debug, PartialEq)]
pub struct Block {
    pub kind: String,
    pub text: String,
}

pub fn blocks(page: &str) -> Vec<Block> {
    let (mut found, mut open): (Vec<Block>, bool) = (Vec::new(), false);
    for line in page.lines() {
        match line.strip_prefix("```") {
            Some(_) if open => open = false,
            Some(kind) => {
                found.push(Block { kind: kind.to_owned(), text: String::new() });
                open = true;
            }
            None if open => {
                let block = found.last_mut().expect("a block is open");
                block.text.push_str(line);
                block.text.push('\n');
            }
            None => {}
        }
    }
    assert!(!open, "the page ends within a block");
    found
}

/// Whether `text` is `pattern`, in which each `…` stands for anything.
pub fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('…');
    let Some(rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let mut rest = rest;
    let mut last = None;
    for part in parts {
        last = Some(part);
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    last.map_or(rest.is_empty(), |last| text.ends_with(last))
}

/// One `bash -e` that blocks are typed into; it and all that it has started end with it.
pub struct Shell {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    dir: PathBuf,
    typed: usize,
}

impl Shell {
    /// `bash -e`, which reads the blocks from files in `dir`.
    pub fn start(mut bash: Command, dir: PathBuf) -> Self {
        let mut child = bash
            .env_remove("BHATTI_URL")
            .env_remove("BHATTI_TOKEN")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("a shell");
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().expect("its output")));
        Self { child, input, output, dir, typed: 0 }
    }

    /// Types a block and gives what it printed, once it has ended and printed what is expected.
    pub fn type_in(&mut self, script: &str, expected: Option<&str>) -> String {
        self.typed += 1;
        let name = format!("block-{}.sh", self.typed);
        fs::write(self.dir.join(&name), script).unwrap();
        let input = self.input.as_mut().expect("a shell that is open");
        writeln!(input, "source {} < /dev/null", self.dir.join(&name).display()).unwrap();
        writeln!(input, "echo '{END_OF_BLOCK}'").unwrap();
        let (mut printed, mut ended) = (String::new(), false);
        // What is started in the background says what it has to say when it is ready.
        while !ended || expected.is_some_and(|pattern| !matches(pattern, &printed)) {
            let mut line = String::new();
            let read = self.output.read_line(&mut line).expect("the shell's output");
            assert!(read > 0, "a command of this block failed:\n{script}\nit printed:\n{printed}");
            if line.trim_end() == END_OF_BLOCK {
                ended = true;
                let waits =
                    script.trim_end().lines().any(|line| line.contains(" & ") || line.ends_with(" &"));
                assert!(
                    waits || expected.is_none_or(|pattern| matches(pattern, &printed)),
                    "this block\n{script}\nprinted\n{printed}\nand not\n{}",
                    expected.unwrap_or_default()
                );
            } else {
                printed.push_str(&line);
            }
        }
        printed
    }

    /// Ends it; every block's commands have succeeded.
    pub fn end(mut self) {
        drop(self.input.take());
        let status = self.child.wait().expect("bash ends");
        assert!(status.success(), "the shell ended with {status}");
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // Taken by `end`, which has waited. Told before it reads an end: what it started would outlive it.
        if self.input.is_some() {
            let group = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a pid");
            let _told = kill_process_group(group, Signal::TERM);
            let _reaped = self.child.wait();
            // What ran in the background is nobody's child any more: it can be looked for only.
            let began = Instant::now();
            while test_kill_process_group(group).is_ok() {
                if began.elapsed() > PATIENCE {
                    let _gone = kill_process_group(group, Signal::KILL);
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// Types every `sh` block in turn, and compares it with the `output` block behind it.
pub fn follow(shell: &mut Shell, blocks: &[Block]) -> usize {
    let mut typed = 0;
    for (at, block) in blocks.iter().enumerate().filter(|(_, block)| block.kind == "sh") {
        let next = blocks.get(at + 1).filter(|next| next.kind == "output");
        shell.type_in(&block.text, next.map(|next| next.text.as_str()));
        typed += 1;
    }
    typed
}
