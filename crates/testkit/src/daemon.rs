//! A daemon of a test's own.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open, waitid};

/// A `bhatti serve` that has said that it is ready. Its log is `serve.log` in the data directory.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    /// The same for what is published, where that is served.
    pub published: Option<String>,
}

impl Daemon {
    pub(crate) fn start(program: &Path, data_dir: &Path, args: &[&str]) -> Self {
        let log = File::options().create(true).append(true).open(data_dir.join("serve.log")).expect("a log");
        let mut child = Command::new(program)
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(args)
            .env("BHATTI_DATA_DIR", data_dir)
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("bhatti serve runs");
        let stdout = child.stdout.take().expect("its standard output");
        let address =
            |line: &str| line.split_whitespace().find(|word| word.starts_with("http://")).map(str::to_owned);
        let (mut ready, mut published) = (None, None);
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if line.contains("ready on ") {
                ready = Some(line);
                break;
            }
            published = address(&line);
        }
        let Some(ready) = ready else {
            let status = child.wait().expect("serve ended");
            let log = std::fs::read_to_string(data_dir.join("serve.log")).unwrap_or_default();
            panic!("bhatti serve ended with {status}: {log}");
        };
        Self { child, url: address(&ready).expect("its address"), published }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGKILL and does not wait: [`Daemon::kill`] does.
    pub(crate) fn strike(&self) {
        kill_process(Pid::from_child(&self.child), Signal::KILL).expect("a signal");
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().expect("a kill");
        self.child.wait().expect("its end");
    }

    pub(crate) fn terminate(mut self) -> ExitStatus {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).expect("a signal");
        self.child.wait().expect("its end")
    }
}

/// Kills a process that may be no child of ours, and waits until it is gone.
pub(crate) fn kill(pid: i32) {
    let Some(pid) = Pid::from_raw(pid) else { return };
    // It may have ended by itself: then there is nothing left to do.
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    if kill_process(pid, Signal::KILL).is_err() {
        return;
    }
    let mut fds = [rustix::event::PollFd::new(&handle, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, None).expect("its end");
    // Where it is a child after all, it is reaped.
    let _reaped = waitid(WaitId::PidFd(std::os::fd::AsFd::as_fd(&handle)), WaitIdOptions::EXITED);
}
