//! Processes that are held on to, not only known by number: pidfds, peers of sockets, spawning a VMM.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PTracer, Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal, set_ptracer};

/// One process; the number may be given to another one, this is not. Readable (`poll`) once the process is gone.
#[derive(Debug)]
pub struct Pidfd {
    fd: OwnedFd,
    pid: u32,
}

impl Pidfd {
    /// Takes hold of the process that has the number `pid` now.
    ///
    /// # Errors
    /// There is none.
    pub fn open(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        // Pidfds are closed on exec by themselves (pidfd_open(2)).
        Ok(Self { fd: pidfd_open(raw, PidfdFlags::NONBLOCK)?, pid })
    }

    /// Its number.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has not ended yet.
    ///
    /// # Errors
    /// Only the host's own.
    pub fn is_alive(&self) -> io::Result<bool> {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        Ok(poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&now))? == 0)
    }

    /// Sends it SIGKILL; nothing happens when it is gone.
    ///
    /// # Errors
    /// It belongs to somebody else.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.fd, Signal::KILL) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            other => Ok(other?),
        }
    }

    /// A second handle of the same process.
    ///
    /// # Errors
    /// No file descriptor is free.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, pid: self.pid })
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Pidfd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// The process at the other end of a connected unix socket; for a client, the one that made the server listen.
///
/// # Errors
/// It is not a unix socket.
pub fn peer_pid(socket: impl AsFd) -> io::Result<u32> {
    let pid = rustix::net::sockopt::socket_peercred(socket)?.pid.as_raw_nonzero().get();
    u32::try_from(pid).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Lets later processes of the same user read the child's memory, not only the one that starts it. Where the Yama
/// security module restricts tracing to ancestors (`kernel.yama.ptrace_scope` = 1, Ubuntu's default), a restarted
/// daemon could otherwise not save the machines that it adopts, unless it is root.
pub fn allow_trace_by_same_user(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec, where only async-signal-safe calls are allowed: it makes one
    // system call (prctl), allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(|| {
            // Without Yama the call fails (EINVAL), and nothing is restricted.
            let _ = set_ptracer(PTracer::Any);
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_alive_until_it_was_killed() {
        let mut command = Command::new("sleep");
        allow_trace_by_same_user(command.arg("600"));
        let mut child = command.spawn().unwrap();
        let held = Pidfd::open(child.id()).unwrap();
        assert!(held.is_alive().unwrap());
        held.kill().unwrap();
        child.wait().unwrap();
        assert!(!held.is_alive().unwrap());
        held.kill().unwrap();
    }

    #[test]
    fn the_peer_of_a_socket_pair_is_this_process() {
        let (one, _two) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(peer_pid(&one).unwrap(), std::process::id());
    }
}
