//! Starting processes as a guest's first process: commands of a user, workers forked off, and the signals of both.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::ForkResult;
use rustix::process::Pid;
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use rustix::{fs::Gid, fs::Uid};

/// Why a spawned command could not change to its directory: no call on the way gives this error otherwise, so it
/// tells that failure from one of the exec that follows.
pub const CHDIR_REFUSED: rustix::io::Errno = rustix::io::Errno::XFULL;

/// What a command becomes before it runs.
#[derive(Debug, Clone)]
pub struct Persona {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All supplementary groups.
    pub groups: Vec<u32>,
    /// Working directory, entered with the user's rights.
    pub cwd: CString,
    /// Whether stdin is a terminal that becomes the controlling one.
    pub terminal: bool,
}

/// Starts `command` as leader of a session of its own, with the rights of `persona`.
///
/// An error of the exec itself is returned as such (the program is searched in the command's PATH with the user's
/// rights); [`CHDIR_REFUSED`] stands for a directory that could not be entered.
pub fn spawn(command: &mut Command, persona: Persona) -> io::Result<Child> {
    let groups: Vec<Gid> = persona.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let (uid, gid) = (Uid::from_raw(persona.uid), Gid::from_raw(persona.gid));
    let become_persona = move || -> io::Result<()> {
        rustix::process::setsid()?;
        if persona.terminal {
            crate::guest_ioctl::set_controlling_terminal(rustix::stdio::stdin())?;
        }
        set_thread_groups(&groups)?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        rustix::process::chdir(&*persona.cwd).map_err(|_| CHDIR_REFUSED)?;
        // Command passes the mask on, and the parent blocks what it queues.
        SigSet::empty().thread_set_mask()?;
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec and makes system calls only; it allocates and locks nothing, and
    // the vectors it reads were built before the fork.
    unsafe { command.pre_exec(become_persona) };
    command.spawn()
}

/// The proof that the process had a single thread, which makes a fork that runs ordinary code sound.
#[derive(Debug)]
pub struct SoleThread(());

impl SoleThread {
    /// Counts the threads. The caller starts none afterwards.
    pub fn prove() -> io::Result<SoleThread> {
        match fs::read_dir("/proc/self/task")?.count() {
            1 => Ok(SoleThread(())),
            count => Err(io::Error::other(format!("{count} threads where one is needed"))),
        }
    }
}

/// The standard streams of a worker.
#[derive(Debug)]
pub struct WorkerStreams {
    /// Becomes 0.
    pub stdin: OwnedFd,
    /// Becomes 1.
    pub stdout: OwnedFd,
    /// Becomes 2.
    pub stderr: OwnedFd,
}

/// Forks off a worker that runs `work` and ends with its value as exit status. It leads a process group of its own,
/// blocks no signals, and holds no descriptors but its three streams.
pub fn fork_worker(
    _proof: &SoleThread,
    streams: WorkerStreams,
    work: impl FnOnce() -> u8,
) -> io::Result<Pid> {
    // SAFETY: the process has one thread (the proof), so no lock can be held by a thread that does not exist in the
    // child, and the child may run any code.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => {
            Pid::from_raw(child.as_raw()).ok_or_else(|| io::Error::other("fork returned no process number"))
        }
        ForkResult::Child => {
            let status = if become_worker(&streams).is_ok() { work() } else { u8::MAX };
            // SAFETY: _exit ends the process without running the handlers that belong to the parent.
            unsafe { nix::libc::_exit(i32::from(status)) }
        }
    }
}

fn become_worker(streams: &WorkerStreams) -> io::Result<()> {
    rustix::process::setpgid(None, None)?;
    rustix::stdio::dup2_stdin(&streams.stdin)?;
    rustix::stdio::dup2_stdout(&streams.stdout)?;
    rustix::stdio::dup2_stderr(&streams.stderr)?;
    // Not to hold open the pipes of others: their readers would wait for this process.
    // SAFETY: descriptors from 3 on are all used by the parent's code only, none of which runs in this process any
    // more: the worker leaves by _exit, so no owner of one of them is dropped here.
    let closed = unsafe { nix::libc::syscall(nix::libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
    if closed != 0 {
        return Err(io::Error::last_os_error());
    }
    SigSet::empty().thread_set_mask()?;
    Ok(())
}

/// Signals that arrive as something to read instead of interrupting.
#[derive(Debug)]
pub struct SignalQueue(SignalFd);

/// What [`SignalQueue`] tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestSignal {
    /// Some child has ended.
    Child,
    /// The guest is asked to end (SIGTERM, or SIGINT by Ctrl-Alt-Del).
    Terminate,
}

impl SignalQueue {
    /// Blocks the signals and queues them from now on. Commands started by [`spawn`] and workers get an empty mask.
    pub fn new() -> io::Result<SignalQueue> {
        let mask = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT]);
        mask.thread_block()?;
        Ok(SignalQueue(SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }

    /// The next signal, if one is there.
    pub fn next(&self) -> io::Result<Option<GuestSignal>> {
        let Some(info) = self.0.read_signal()? else { return Ok(None) };
        let child = i32::try_from(info.ssi_signo).is_ok_and(|number| number == Signal::SIGCHLD as i32);
        Ok(Some(if child { GuestSignal::Child } else { GuestSignal::Terminate }))
    }
}

impl AsFd for SignalQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;
    use std::process::Stdio;

    fn myself(cwd: &CStr) -> Persona {
        let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
        Persona { uid: uid.as_raw(), gid: gid.as_raw(), groups: vec![], cwd: cwd.into(), terminal: false }
    }

    #[test]
    fn a_directory_that_cannot_be_entered_is_told_from_a_program_that_is_not_there() {
        if !rustix::process::getuid().is_root() {
            return; // setgroups needs root
        }
        let errno = |program: &str, cwd: &CStr| {
            let error = spawn(&mut Command::new(program), myself(cwd)).map(|_| ()).expect_err("must fail");
            rustix::io::Errno::from_io_error(&error)
        };
        assert_eq!(errno("true", c"/nowhere"), Some(CHDIR_REFUSED));
        assert_eq!(errno("/nowhere", c"/"), Some(rustix::io::Errno::NOENT));
        assert_eq!(errno("/", c"/"), Some(rustix::io::Errno::ACCESS));
    }

    #[test]
    fn a_command_blocks_no_signals_though_its_parent_does() {
        if !rustix::process::getuid().is_root() {
            return; // setgroups needs root
        }
        let queue = SignalQueue::new().expect("made");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "kill -TERM $$; echo still here"]).stdout(Stdio::piped());
        let output = spawn(&mut command, myself(c"/")).expect("starts").wait_with_output().expect("ends");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&output.status), Some(15));
        // To this thread alone: one for the whole process goes to whichever thread does not block it.
        nix::sys::signal::raise(Signal::SIGTERM).expect("raised");
        assert_eq!(queue.next().expect("reads"), Some(GuestSignal::Terminate));
    }

    #[test]
    fn a_command_leads_its_own_session() {
        if !rustix::process::getuid().is_root() {
            return; // setgroups needs root
        }
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "cut -d' ' -f6 /proc/$$/stat"]).stdout(Stdio::piped());
        let child = spawn(&mut command, myself(c"/")).expect("starts");
        let pid = child.id();
        let output = child.wait_with_output().expect("ends");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), pid.to_string());
    }
}
