//! Starting processes as a guest's first process: commands of a user, workers forked off, and the signals of both.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::sched::CloneFlags;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::ForkResult;
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use rustix::{fs::Gid, fs::Uid};

/// Why a spawned command could not change to its directory: no call on the way gives this error otherwise, so it
/// tells that failure from one of the exec that follows.
pub const CHDIR_REFUSED: Errno = Errno::XFULL;

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

/// A command, ready to be started any number of times: whatever the child needs is there before there is a child.
#[derive(Debug)]
pub struct Program {
    /// Where it may be, in the order in which that is tried.
    places: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
    streams: [OwnedFd; 3],
}

impl Program {
    /// `argv` begins with the program, which is searched in `PATH` of `env` unless its name has a slash; `streams` become
    /// 0, 1 and 2, and none of them is one of these now.
    ///
    /// # Errors
    /// `InvalidInput`: a NUL, or no program.
    pub fn new(argv: &[String], env: &BTreeMap<String, String>, streams: [OwnedFd; 3]) -> io::Result<Self> {
        let name = argv.first().ok_or(io::ErrorKind::InvalidInput)?;
        let path = env.get("PATH").map_or("", String::as_str);
        let places: Vec<String> = match name.contains('/') {
            true => vec![name.clone()],
            false => path.split(':').map(|dir| place(dir, name)).collect(),
        };
        let strings = |strings: Vec<String>| -> io::Result<Vec<CString>> {
            strings.into_iter().map(|string| Ok(CString::new(string)?)).collect()
        };
        Ok(Self {
            places: strings(places)?,
            argv: strings(argv.to_vec())?,
            env: strings(env.iter().map(|(name, value)| format!("{name}={value}")).collect())?,
            streams,
        })
    }
}

/// A file of a directory of PATH, whose empty one is the working directory.
fn place(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

/// Starts a program as leader of a session of its own, with the rights of `persona`, and returns when it runs.
///
/// The child uses this process's memory until it has a program of its own (`CLONE_VM | CLONE_VFORK`, as `posix_spawn`
/// does it, which cannot change users): nothing is copied for a process that is about to throw it away.
///
/// # Errors
/// That of the exec itself, as `execvp` would tell it; [`CHDIR_REFUSED`] stands for a directory that could not be
/// entered.
pub fn spawn(program: &Program, persona: &Persona) -> io::Result<Pid> {
    let (argv, env) = (pointers(&program.argv), pointers(&program.env));
    // The shell, the place of the script, and the rest.
    let mut script = [&[SHELL.as_ptr()], &argv[..]].concat();
    let groups: Vec<Gid> = persona.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let refused = AtomicI32::new(0);
    let child = || -> isize {
        let error = match become_persona(&program.streams, persona, &groups) {
            Ok(()) => exec(&program.places, &argv, &mut script, &env),
            Err(error) => error,
        };
        refused.store(error.raw_os_error(), Ordering::Relaxed);
        isize::from(FAILED)
    };
    let mut stack = vec![0; CHILDS_STACK];
    // No handler of this process runs in the child: it has none any more when signals reach it.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    // SAFETY: this thread waits until the child has another memory or is gone, so what the child borrows is there, and
    // only the child writes to the stack that it is given. It makes system calls only: it allocates nothing and locks
    // nothing, whatever other threads do meanwhile.
    let started = unsafe {
        let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
        nix::sched::clone(Box::new(child), &mut stack, flags, Some(Signal::SIGCHLD as i32))
    };
    before.thread_set_mask()?;
    let pid = Pid::from_raw(started?.as_raw());
    let pid = pid.ok_or_else(|| io::Error::other("clone returned no process number"))?;
    match refused.load(Ordering::Relaxed) {
        0 => Ok(pid),
        error => {
            // It has ended, or is about to.
            let _status = rustix::process::waitpid(Some(pid), WaitOptions::empty())?;
            Err(io::Error::from_raw_os_error(error))
        }
    }
}

/// How a child ends that could not become a command; nobody looks at it.
const FAILED: u8 = 127;
/// For a few calls, none of which is deep. The kernel does not use it.
const CHILDS_STACK: usize = 32 << 10;

/// What runs a file that says not what does.
const SHELL: &CStr = c"/bin/sh";

/// As `execve` takes them: ended by a null. They live as long as what they point to.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Between clone and exec.
fn become_persona(streams: &[OwnedFd; 3], persona: &Persona, groups: &[Gid]) -> Result<(), Errno> {
    rustix::process::setsid()?;
    rustix::stdio::dup2_stdin(&streams[0])?;
    rustix::stdio::dup2_stdout(&streams[1])?;
    rustix::stdio::dup2_stderr(&streams[2])?;
    if persona.terminal {
        crate::guest_ioctl::set_controlling_terminal(rustix::stdio::stdin())?;
    }
    let (uid, gid) = (Uid::from_raw(persona.uid), Gid::from_raw(persona.gid));
    set_thread_groups(groups)?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    rustix::process::chdir(&*persona.cwd).map_err(|_| CHDIR_REFUSED)?;
    let nix = |errno: nix::errno::Errno| Errno::from_raw_os_error(errno as i32);
    // What is ignored stays so over an exec, and Rust ignores SIGPIPE; of the others it has handlers, which run in no
    // child.
    for signal in [Signal::SIGPIPE, Signal::SIGSEGV, Signal::SIGBUS] {
        // SAFETY: no handler is set.
        unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }.map_err(nix)?;
    }
    SigSet::empty().thread_set_mask().map_err(nix)
}

/// Tries one place after the other, as `execvp` does, and what is no program as a script, at `script[1]` of a shell's
/// arguments; returns only if all of it fails.
fn exec(
    places: &[CString],
    argv: &[*const c_char],
    script: &mut [*const c_char],
    env: &[*const c_char],
) -> Errno {
    let execve = |place: &CStr, argv: &[*const c_char]| {
        // SAFETY: all three are strings, and arrays of such ended by a null, that the caller of `spawn` keeps.
        unsafe { nix::libc::execve(place.as_ptr(), argv.as_ptr(), env.as_ptr()) };
        Errno::from_raw_os_error(nix::errno::Errno::last_raw())
    };
    let mut last = Errno::NOENT;
    for place in places {
        match execve(place, argv) {
            Errno::ACCESS => last = Errno::ACCESS,
            // A place that cannot be reached is none.
            Errno::NOENT | Errno::NOTDIR | Errno::STALE | Errno::NODEV | Errno::TIMEDOUT => {}
            Errno::NOEXEC => {
                script[1] = place.as_ptr();
                let _no_shell = execve(SHELL, script);
                return Errno::NOEXEC;
            }
            other => return other,
        }
    }
    last
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
    use rustix::fs::{Mode, OFlags};
    use std::fs::File;
    use std::io::Read as _;

    fn myself(cwd: &CStr) -> Persona {
        let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
        Persona { uid: uid.as_raw(), gid: gid.as_raw(), groups: vec![], cwd: cwd.into(), terminal: false }
    }

    fn null() -> OwnedFd {
        rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).expect("/dev/null")
    }

    /// Starts it with that PATH; what it says, and how it ends.
    fn run(argv: &[&str], path: &str, persona: &Persona) -> io::Result<(String, i32)> {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
        let env = BTreeMap::from([("PATH".to_owned(), path.to_owned())]);
        let program = Program::new(&argv, &env, [null(), writer, null()])?;
        let pid = spawn(&program, persona);
        drop(program);
        let mut said = String::new();
        File::from(reader).read_to_string(&mut said)?;
        let (_pid, status) = rustix::process::waitpid(Some(pid?), WaitOptions::empty())?.expect("it ends");
        Ok((said, status.as_raw()))
    }

    const PATH: &str = "/usr/bin:/bin";

    #[test]
    fn a_directory_that_cannot_be_entered_is_told_from_a_program_that_is_not_there() {
        if !rustix::process::getuid().is_root() {
            return; // setgroups needs root
        }
        let errno = |program: &str, path: &str, cwd: &CStr| {
            Errno::from_io_error(&run(&[program], path, &myself(cwd)).expect_err("must fail"))
        };
        assert_eq!(errno("true", PATH, c"/nowhere"), Some(CHDIR_REFUSED));
        assert_eq!(errno("/nowhere", PATH, c"/"), Some(Errno::NOENT));
        assert_eq!(errno("nowhere", PATH, c"/"), Some(Errno::NOENT));
        assert_eq!(errno("/", PATH, c"/"), Some(Errno::ACCESS));
        // A place that refuses does not end the search, and is told if no other is found.
        assert_eq!(errno("lib", "/usr:/bin", c"/"), Some(Errno::ACCESS));
        assert_eq!(errno("true", "/etc/passwd:/nowhere", c"/"), Some(Errno::NOENT));
        assert!(run(&["a\0b"], PATH, &myself(c"/")).is_err() && run(&[], PATH, &myself(c"/")).is_err());
    }

    #[test]
    fn a_program_is_found_where_path_says_and_in_the_working_directory_where_it_says_nothing() {
        if !rustix::process::getuid().is_root() {
            return; // setgroups needs root
        }
        for (path, cwd) in [("/nowhere:/bin", c"/"), ("", c"/bin"), ("/nowhere:", c"/bin")] {
            let (said, status) = run(&["echo", "a b", ""], path, &myself(cwd)).expect("starts");
            assert_eq!((said.as_str(), status), ("a b \n", 0), "{path:?}");
        }
    }

    #[test]
    fn a_file_without_a_head_is_the_shells() {
        if !rustix::process::getuid().is_root() {
            return; // setgroups needs root
        }
        let dir = tempfile::tempdir().expect("made");
        let script = dir.path().join("script");
        fs::write(&script, "echo $0 $1").expect("written");
        let script = script.to_str().expect("text");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(script, mode).expect("set");
        let (said, status) = run(&[script, "one"], PATH, &myself(c"/")).expect("starts");
        assert_eq!((said, status), (format!("{script} one\n"), 0));
    }

    #[test]
    fn a_command_blocks_no_signals_though_its_parent_does_and_ignores_none() {
        if !rustix::process::getuid().is_root() {
            return; // setgroups needs root
        }
        let queue = SignalQueue::new().expect("made");
        let mine = || fs::read_to_string("/proc/thread-self/status").expect("read");
        let before = mine();
        let masks = ["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"];
        let (said, _status) = run(&masks, PATH, &myself(c"/")).expect("starts");
        let masks: Vec<u64> =
            said.lines().filter_map(|line| u64::from_str_radix(line.split_once('\t')?.1, 16).ok()).collect();
        assert_eq!(
            (masks.len(), masks[0], masks[1] & 1 << (Signal::SIGPIPE as i32 - 1)),
            (2, 0, 0),
            "{said}"
        );
        let (said, status) =
            run(&["sh", "-c", "kill -TERM $$; echo still here"], PATH, &myself(c"/")).expect("starts");
        assert_eq!((said.as_str(), status), ("", Signal::SIGTERM as i32));
        let blocked = |status: &str| {
            status.lines().find(|line| line.starts_with("SigBlk")).map(str::to_owned).expect("there")
        };
        assert_eq!(blocked(&before), blocked(&mine()), "this thread blocks what it blocked");
        // To this thread alone: one for the whole process goes to whichever thread does not block it.
        nix::sys::signal::raise(Signal::SIGTERM).expect("raised");
        assert_eq!(queue.next().expect("reads"), Some(GuestSignal::Terminate));
    }

    #[test]
    fn a_command_leads_its_own_session_as_the_user_that_it_is_told() {
        if !rustix::process::getuid().is_root() {
            return; // setgroups needs root
        }
        let persona = Persona { uid: 4711, gid: 42, groups: vec![42, 43], ..myself(c"/tmp") };
        let script = "echo $(id -u) $(id -g) $(id -G) $PWD; cut -d' ' -f1,6 /proc/$$/stat";
        let (said, status) = run(&["sh", "-c", script], PATH, &persona).expect("starts");
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!((lines[0], status), ("4711 42 42 43 /tmp", 0), "{said}");
        let (pid, session) = lines[1].split_once(' ').expect("two");
        assert_eq!(pid, session);
        // And this process is who it was.
        assert!(rustix::process::getuid().is_root());
    }

    #[test]
    fn many_threads_may_start_programs_at_once() {
        if !rustix::process::getuid().is_root() {
            return; // setgroups needs root
        }
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    for turn in 0..25 {
                        let word = format!("{thread}.{turn}");
                        let (said, status) = run(&["echo", &word], PATH, &myself(c"/")).expect("starts");
                        assert_eq!((said.trim(), status), (word.as_str(), 0));
                        assert!(run(&["nowhere"], PATH, &myself(c"/")).is_err());
                    }
                });
            }
        });
    }
}
