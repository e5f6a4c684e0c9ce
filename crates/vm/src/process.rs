//! The VMM's process: started with nothing of the daemon's but what it needs, waited for without polling.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::inotify;
use sys::host_confine::Left;
use sys::host_process::{Pidfd, allow_trace_by_same_user};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::Qemu;
use crate::error::{Error, ErrorKind, Result};
use crate::machine::{AGENT_SOCKET, QMP_SOCKET, VMM_LOG};
use crate::room::Room;

/// How much of the VMM's standard error goes into a message.
const LOG_TAIL: u64 = 4096;

/// A program that has been started and is not known to listen yet. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Starting {
    child: Option<Child>,
    held: AsyncFd<Pidfd>,
    sockets: AsyncFd<OwnedFd>,
    room: Option<Room>,
}

/// Starts the program in `dir`, or in its room there: its own process group, so that a Ctrl+C for the daemon is not one for guests;
/// standard input is `lock`, standard output `line`, standard error the log; every other descriptor of the daemon is closed on exec.
pub(crate) fn start(
    qemu: &Qemu,
    argv: Vec<OsString>,
    dir: &Path,
    lock: File,
    line: Option<OwnedFd>,
    room: Option<(Room, bool)>,
) -> Result<Starting> {
    const OP: &str = "starting the VMM";
    let here = || dir.display().to_string();
    let log = File::create(dir.join(VMM_LOG)).map_err(|error| Error::io(OP, here(), error))?;
    let works = room.as_ref().map_or_else(|| dir.to_owned(), |(room, _)| room.works());
    // Watching begins before the program does, so the socket's appearance cannot be missed.
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let sockets = inotify::init(flags)
        .and_then(|fd| inotify::add_watch(&fd, &works, inotify::WatchFlags::CREATE).map(|_| fd))
        .map_err(|error| Error::io(OP, here(), error))?;
    let mut command = Command::new(&qemu.path);
    command
        .args(argv)
        .current_dir(&works)
        .stdin(Stdio::from(lock))
        .stdout(line.map_or_else(Stdio::null, Stdio::from))
        .stderr(Stdio::from(log));
    command.process_group(0);
    allow_trace_by_same_user(&mut command);
    if let Some(confinement) = &qemu.confinement {
        let (own, writable) = room
            .as_ref()
            .map(|(room, bases_too)| room.directories(*bases_too))
            .map_or((None, Vec::new()), |(own, writable)| (Some(own), writable));
        let writable: Vec<&Path> = writable.iter().map(PathBuf::as_path).collect();
        let user = room.as_ref().and_then(|(room, _)| room.user());
        let left = Left { user, room: own.as_deref(), writable: &writable };
        confinement.apply(&mut command, &qemu.path, left).map_err(|error| Error::io(OP, here(), error))?;
    }
    let child = command.spawn().map_err(|error| {
        Error::new(ErrorKind::Spawn, OP, qemu.path.display().to_string()).with_source(error)
    })?;
    let held = Pidfd::open(child.id()).and_then(wait_on);
    let sockets = wait_on(sockets);
    match (held, sockets) {
        (Ok(held), Ok(sockets)) => {
            Ok(Starting { child: Some(child), held, sockets, room: room.map(|(room, _)| room) })
        }
        (Err(error), _) | (_, Err(error)) => {
            let mut child = child;
            let _ = child.kill();
            let _ = child.wait();
            Err(Error::io(OP, here(), error))
        }
    }
}

/// Ends each process whose standard input is that directory.
pub(crate) fn end_who_reads(dir: &Path) -> std::io::Result<usize> {
    let wanted = std::fs::metadata(dir)?;
    let mut ended = 0;
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Held first, so that what is looked at is what is ended. Any process may end meanwhile.
        let Ok(process) = Pidfd::open(pid) else { continue };
        let Ok(input) = std::fs::metadata(format!("/proc/{pid}/fd/0")) else { continue };
        if (input.dev(), input.ino()) == (wanted.dev(), wanted.ino()) {
            process.kill()?;
            ended += 1;
        }
    }
    Ok(ended)
}

impl Starting {
    /// Waits until the control socket listens or the program has ended. A socket's name appears when it is bound,
    /// a moment before it listens; the VMM makes the agent's socket after QMP's, so when that one has a name the other
    /// one listens.
    pub(crate) async fn listening(&mut self, dir: &Path) -> Result<()> {
        loop {
            tokio::select! {
                ready = self.sockets.readable() => {
                    let mut ready = ready.map_err(|error| Error::io("waiting for the VMM", "", error))?;
                    let mut space = [MaybeUninit::uninit(); 4096];
                    let mut events = inotify::Reader::new(ready.get_inner(), &mut space);
                    let mut appeared = false;
                    loop {
                        match events.next() {
                            Ok(event) => {
                                let name = event.file_name().map(std::ffi::CStr::to_bytes);
                                appeared |= name == Some(AGENT_SOCKET.as_bytes());
                            }
                            Err(rustix::io::Errno::AGAIN) => break,
                            Err(rustix::io::Errno::INTR) => {}
                            Err(error) => return Err(Error::io("waiting for the VMM", "", error)),
                        }
                    }
                    if appeared {
                        let close = |room: &Room| room.close([QMP_SOCKET, AGENT_SOCKET]);
                        let closed = self.room.as_ref().map_or(Ok(()), close);
                        return closed.map_err(|error| Error::io("waiting for the VMM", "", error));
                    }
                    ready.clear_ready();
                }
                _ = self.held.readable() => return Err(died("starting the VMM", dir)),
            }
        }
    }

    /// The process stays; `pid` is who listens (not the child itself where the program is a script that forks). The
    /// channel turns true when it is gone and, as far as this process must, reaped.
    pub(crate) fn settle(mut self, pid: u32) -> std::io::Result<(Pidfd, watch::Receiver<bool>)> {
        let process = Pidfd::open(pid)?;
        let gone = watch_exit(process.try_clone()?, self.child.take())?;
        Ok((process, gone))
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let group = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
            if let Some(group) = group {
                // Its own group: a wrapper script goes together with what it started. Not reaped yet, so the number
                // is still its own.
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Tokio's newer constructor is unsafe, because a type might hand out another descriptor each time it is asked; these
/// own the one that they have.
#[allow(deprecated, reason = "its replacement is unsafe, and unsafe code lives in sys, which has no tokio")]
fn wait_on<T: AsRawFd>(fd: T) -> std::io::Result<AsyncFd<T>> {
    AsyncFd::new(fd)
}

/// A task that waits for the end of `process`, and reaps `child`.
pub(crate) fn watch_exit(process: Pidfd, child: Option<Child>) -> std::io::Result<watch::Receiver<bool>> {
    let process = wait_on(process)?;
    let child = match child {
        Some(child) => Some((wait_on(Pidfd::open(child.id())?)?, child)),
        None => None,
    };
    let (tell, gone) = watch::channel(false);
    tokio::spawn(async move {
        let _ = process.readable().await;
        if let Some((ended, mut child)) = child {
            let _ = ended.readable().await;
            let _ = child.wait();
        }
        tell.send_replace(true);
    });
    Ok(gone)
}

/// User and system time in a line of `/proc/PID/stat` (proc(5)): fields 14 and 15. The second field is the program's
/// name in parentheses and may contain anything, so counting begins after the last one.
pub(crate) fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut number = || fields.next()?.parse::<u64>().ok();
    number()?.checked_add(number()?)
}

/// The error for a VMM that ended by itself, with its last words.
pub(crate) fn died(op: &'static str, dir: &Path) -> Error {
    let said = log_tail(dir);
    let said = if said.is_empty() { "the VMM ended and said nothing".to_owned() } else { said };
    Error::new(ErrorKind::Died, op, said)
}

/// The last lines of the VMM's standard error, joined.
pub(crate) fn log_tail(dir: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut log = File::open(dir.join(VMM_LOG))?;
        let end = log.seek(SeekFrom::End(0))?;
        log.seek(SeekFrom::Start(end.saturating_sub(LOG_TAIL)))?;
        let mut bytes = Vec::new();
        log.take(LOG_TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text
        .lines()
        .map(|line| line.strip_prefix("qemu-system-x86_64: ").unwrap_or(line).trim())
        .filter(|line| !line.is_empty() && !line.starts_with("warning: "))
        .collect();
    lines[lines.len().saturating_sub(4)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_a_directory_is_ended_and_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let sleep = |input: Stdio| Command::new("sleep").arg("600").stdin(input).spawn().unwrap();
        let mut starting = sleep(File::open(dir.path()).unwrap().into());
        let mut other = sleep(Stdio::null());
        assert_eq!(end_who_reads(dir.path()).unwrap(), 1);
        assert!(!starting.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none());
        assert_eq!(end_who_reads(dir.path()).unwrap(), 0);
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let stat = "42 (qemu) S) R 1 42 42 0 -1 4194560 900 0 3 0 77 23 5 6 20 0 4 0 100 1000 200 18446744073709551615";
        assert_eq!(cpu_ticks(stat), Some(100));
        for short in ["", "42 (x) S 1 2", "42 x S 1", "42 (x) S 1 42 42 0 -1 1 9 0 3 0 a b"] {
            assert_eq!(cpu_ticks(short), None, "{short}");
        }
    }
}
