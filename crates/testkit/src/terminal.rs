//! A command on a terminal, as a person has it.

use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use crate::host::TestHost;

impl TestHost {
    /// Starts the command line on a terminal of its own (by script(1)).
    #[must_use]
    pub fn on_terminal(&self, args: &[&str]) -> Terminal {
        let words: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
        let plain = self.command(&words);
        let line: Vec<String> = std::iter::once(plain.get_program())
            .chain(plain.get_args())
            .map(|word| format!("'{}'", word.to_string_lossy().replace('\'', "'\\''")))
            .collect();
        let mut command = self.command_of("script");
        command.args(["--quiet", "--flush", "--return", "--command", &line.join(" "), "/dev/null"]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script(1), of the package bsdutils");
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        Terminal { child, stdin, stdout: stdout.expect("its output"), seen: String::new() }
    }
}

/// A command on a terminal.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    /// Everything it has shown so far.
    pub seen: String,
}

impl Terminal {
    /// Types.
    pub fn send(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("its keyboard");
        stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).expect("it takes input");
    }

    /// Reads on until the text is shown; the test's own time limit is the only one.
    pub fn wait_for(&mut self, text: &str) {
        let mut buffer = [0u8; 4096];
        while !self.seen.contains(text) {
            let got = self.stdout.read(&mut buffer).expect("its output");
            assert!(got > 0, "it ended without showing {text:?}: {}", self.seen);
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..got]));
        }
    }

    /// Waits for its end; gives the exit status and everything it has shown.
    #[must_use]
    pub fn end(mut self) -> (i32, String) {
        let mut rest = Vec::new();
        self.stdout.read_to_end(&mut rest).expect("its output");
        self.seen.push_str(&String::from_utf8_lossy(&rest));
        drop(self.stdin.take());
        let status = self.child.wait().expect("its end");
        (status.code().expect("an exit status"), std::mem::take(&mut self.seen))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended already.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}
