//! Programs of the host as children that end with the call.
//!
//! Each child leads a process group of its own, so that whatever it starts ends with it: when it is done, when it
//! fails, when the build is cancelled, and when the caller unwinds.

use std::ffi::OsStr;
use std::io::{ErrorKind as IoKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::programs::find;
use crate::{Cancel, Error, Result};

/// How soon a wish to stop is seen.
const CANCEL_CHECK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// What a child gets between SIGTERM and SIGKILL: mmdebstrap unmounts and removes its tree in it.
const GRACE: Duration = Duration::from_secs(10);
/// How many lines of stderr an error repeats.
const TAIL_LINES: usize = 8;
/// No tool here says more than this on purpose; what is beyond is dropped.
const OUTPUT_MAX: usize = 16 << 20;

/// One program to be run, with what to say when it cannot be.
pub(crate) struct Tool<'a> {
    op: &'static str,
    program: &'static str,
    package: &'static str,
    command: Command,
    cancel: Option<&'a Cancel>,
    on_line: Option<&'a dyn Fn(&str)>,
}

impl<'a> Tool<'a> {
    /// `program`, which Debian's `package` has, for the sake of `op`.
    pub(crate) fn new(op: &'static str, program: &'static str, package: &'static str) -> Self {
        let mut command = Command::new(program);
        // Messages are searched and shown: one language. mke2fs lives in sbin, which users' PATHs lack.
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("LC_ALL", "C")
            .env("LANG", "C")
            .env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"));
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { op, program, package, command, cancel: None, on_line: None }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    pub(crate) fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    pub(crate) fn stdin(mut self, file: OwnedFd) -> Self {
        self.command.stdin(file);
        self
    }

    pub(crate) fn cancel(mut self, cancel: &'a Cancel) -> Self {
        self.cancel = Some(cancel);
        self
    }

    /// Called with each line of stderr.
    pub(crate) fn on_line(mut self, on_line: &'a dyn Fn(&str)) -> Self {
        self.on_line = Some(on_line);
        self
    }

    /// Runs it to its end and gives its stdout.
    pub(crate) fn output(self) -> Result<Vec<u8>> {
        self.answer(&[0]).map(|(_, stdout)| stdout)
    }

    /// Runs it to its end and gives its status, which must be one of these, and its stdout.
    pub(crate) fn answer(mut self, statuses: &[i32]) -> Result<(i32, Vec<u8>)> {
        if self.cancel.is_some_and(Cancel::is_cancelled) {
            return Err(Error::cancelled(self.op));
        }
        let child = self.command.spawn().map_err(|error| match error.kind() {
            // A directory in PATH that may not be looked into says so, and hides that the program is nowhere.
            IoKind::NotFound | IoKind::PermissionDenied if find(self.program).is_none() => {
                Error::missing(self.op, self.program, self.package)
            }
            _ => Error::io(self.op, Path::new(self.program), error),
        })?;
        let mut running = Running { child, ended: false };
        let mut stdout = Vec::new();
        let mut stderr = Lines { partial: Vec::new(), tail: Vec::new(), on_line: self.on_line };
        let status = self.wait(&mut running, &mut stdout, &mut stderr)?;
        if let Some(code) = status.code().filter(|code| statuses.contains(code)) {
            return Ok((code, stdout));
        }
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("{} ended with status {code}", self.program),
            (None, Some(signal)) => format!("{} was killed by signal {signal}", self.program),
            (None, None) => format!("{} failed", self.program),
        };
        let tail = stderr.tail.join("\n  ");
        Err(Error::tool(self.op, if tail.is_empty() { how } else { format!("{how}:\n  {tail}") }))
    }

    /// Runs it to its end.
    pub(crate) fn run(self) -> Result<()> {
        self.output().map(drop)
    }

    fn wait(
        &self,
        running: &mut Running,
        stdout: &mut Vec<u8>,
        stderr: &mut Lines<'_>,
    ) -> Result<ExitStatus> {
        let io = |error: std::io::Error| Error::io(self.op, Path::new(self.program), error);
        let pidfd = pidfd_open(running.pid(), PidfdFlags::empty()).map_err(|error| io(error.into()))?;
        let mut out = running.child.stdout.take();
        let mut err = running.child.stderr.take();
        for pipe in [out.as_ref().map(AsFd::as_fd), err.as_ref().map(AsFd::as_fd)].into_iter().flatten() {
            rustix::io::ioctl_fionbio(pipe, true).map_err(|error| io(error.into()))?;
        }
        loop {
            let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
            fds.extend(out.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
            fds.extend(err.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
            match poll(&mut fds, Some(&CANCEL_CHECK)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io(error.into())),
            }
            let ended = fds[0].revents().contains(PollFlags::IN);
            drop(fds);
            drain(&mut out, &mut |bytes| {
                let room = OUTPUT_MAX.saturating_sub(stdout.len()).min(bytes.len());
                stdout.extend_from_slice(&bytes[..room]);
            })
            .map_err(io)?;
            drain(&mut err, &mut |bytes| stderr.push(bytes)).map_err(io)?;
            if ended {
                stderr.finish();
                return running.reap().map_err(io);
            }
            if self.cancel.is_some_and(Cancel::is_cancelled) {
                return Err(Error::cancelled(self.op));
            }
        }
    }
}

/// Reads what is there at once; a pipe at its end is closed.
fn drain<R: Read>(pipe: &mut Option<R>, sink: &mut dyn FnMut(&[u8])) -> std::io::Result<()> {
    let mut buffer = [0u8; 16 << 10];
    while let Some(open) = pipe {
        match open.read(&mut buffer) {
            Ok(0) => *pipe = None,
            Ok(n) => sink(&buffer[..n]),
            Err(error) if error.kind() == IoKind::Interrupted => {}
            Err(error) if error.kind() == IoKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

struct Lines<'a> {
    partial: Vec<u8>,
    tail: Vec<String>,
    on_line: Option<&'a dyn Fn(&str)>,
}

impl Lines<'_> {
    fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match byte {
                b'\n' | b'\r' => self.finish(),
                // A line without end must not grow without end.
                _ if self.partial.len() < 4096 => self.partial.push(byte),
                _ => {}
            }
        }
    }

    fn finish(&mut self) {
        let line = String::from_utf8_lossy(&self.partial).trim_end().to_owned();
        self.partial.clear();
        if line.is_empty() {
            return;
        }
        if let Some(on_line) = self.on_line {
            on_line(&line);
        }
        if self.tail.len() == TAIL_LINES {
            self.tail.remove(0);
        }
        self.tail.push(line);
    }
}

struct Running {
    child: Child,
    ended: bool,
}

impl Running {
    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The leader has ended but is not reaped, so its group's number cannot belong to anybody else yet: whatever
    /// it left behind is killed now.
    fn reap(&mut self) -> std::io::Result<ExitStatus> {
        let _ = kill_process_group(self.pid(), Signal::KILL);
        self.ended = true;
        self.child.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let _ = kill_process_group(self.pid(), Signal::TERM);
        if let Ok(pidfd) = pidfd_open(self.pid(), PidfdFlags::empty()) {
            let deadline = Instant::now() + GRACE;
            while let Some(left) = deadline.checked_duration_since(Instant::now()) {
                let Ok(left) = Timespec::try_from(left) else { break };
                match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
                    Err(rustix::io::Errno::INTR) => {}
                    _ => break,
                }
            }
        }
        let _ = self.reap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn sh(script: &str) -> Tool<'_> {
        Tool::new("try", "sh", "dash").args(["-c", script])
    }

    #[test]
    fn a_failure_repeats_the_last_lines_of_stderr() {
        let error = sh("seq 1 20 >&2; printf 'no newline' >&2; exit 3").output().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Tool);
        let text = error.to_string();
        assert!(text.contains("status 3") && text.contains("\n  20\n  no newline"), "{text}");
        assert!(!text.contains("\n  11\n"), "{text}");
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error = Tool::new("try", "no-such-program-here", "its-package").run().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Missing);
        assert!(error.to_string().contains("apt-get install its-package"), "{error}");
    }

    #[test]
    fn cancelling_kills_the_whole_group() {
        let cancel = Cancel::new();
        let pids = std::sync::Mutex::new(Vec::new());
        let seen = |line: &str| {
            pids.lock().unwrap().push(line.parse::<i32>().unwrap());
            cancel.cancel();
        };
        let started = Instant::now();
        let error = sh("sleep 60 & echo $! >&2; wait").cancel(&cancel).on_line(&seen).output().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert!(started.elapsed() < Duration::from_secs(5));
        assert_gone(pids.lock().unwrap()[0]);
    }

    /// Waits a moment: SIGKILL takes effect when the process next runs, and its new parent reaps it.
    fn assert_gone(pid: i32) {
        for _ in 0..100 {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if stat.is_empty() || stat.contains(") Z ") {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("process {pid} is still there");
    }

    #[test]
    fn a_child_left_behind_by_a_program_that_ended_is_killed_and_not_waited_for() {
        let started = Instant::now();
        let out = sh("sleep 60 & echo $!").output().unwrap();
        assert!(started.elapsed() < Duration::from_secs(5));
        assert_gone(String::from_utf8(out).unwrap().trim().parse().unwrap());
    }

    #[test]
    fn much_output_on_both_pipes_does_not_block() {
        let out = sh("seq 1 200000; seq 1 200000 >&2").output().unwrap();
        assert!(out.ends_with(b"200000\n"));
    }
}
