//! I/O errors: strace attached to a living daemon lets chosen system calls on chosen files fail, in it and in the VMMs that
//! it starts meanwhile. The kernel does not see them; the program sees what a failing disk would give it.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// What makes and changes files.
const WRITES: &str = "write,pwrite64,writev,pwritev,fsync,fdatasync,ftruncate,fallocate,copy_file_range,rename,renameat,\
    renameat2,link,linkat,mkdir,mkdirat,unlink,unlinkat,rmdir,openat,fchmod,syncfs";
/// What reads them.
const READS: &str = "read,pread64,readv,preadv,openat";

/// How long strace may take to let go.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// A system call on a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Call {
    /// Its name.
    pub name: String,
    /// The file; the last one that the call names.
    pub path: PathBuf,
}

/// strace, attached to a process and all its threads and children; dropped, it lets go of them.
#[derive(Debug)]
pub struct Faults {
    strace: Child,
    log: tempfile::TempPath,
}

impl Faults {
    fn attach(pid: u32, args: &[&str]) -> Self {
        let log = tempfile::NamedTempFile::new().expect("a file").into_temp_path();
        let mut strace = Command::new("strace")
            .args(["-f", "-y", "-s", "0", "-o"])
            .arg(&log)
            .args(args)
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace runs");
        // It says so when it has them all.
        let told = BufReader::new(strace.stderr.take().expect("its standard error"));
        let mut lines = told.lines().map_while(Result::ok);
        assert!(lines.any(|line| line.contains(" attached")), "strace attaches to {pid}");
        // What it says later is read, so that it never waits for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Self { strace, log }
    }

    /// Only looks at what `pid` does with files.
    #[must_use]
    pub fn watch(pid: u32, reads: bool) -> Self {
        let calls = if reads { READS } else { WRITES };
        Self::attach(pid, &["-e", &format!("trace={calls}")])
    }

    /// From now on these calls fail with EIO; without a file in the call, those on any file.
    #[must_use]
    pub fn inject(pid: u32, call: &str, path: Option<&Path>) -> Self {
        let (trace, inject) = (format!("trace={call}"), format!("inject={call}:error=EIO"));
        let path = path.map(|path| path.to_str().expect("a path of text"));
        let mut args = vec!["-e", &trace, "-e", &inject];
        args.extend(path.iter().flat_map(|path| ["-P", *path]));
        Self::attach(pid, &args)
    }

    fn let_go(&mut self) {
        let pid = Pid::from_child(&self.strace);
        let handle = pidfd_open(pid, PidfdFlags::empty()).expect("a handle of strace");
        kill_process(pid, Signal::INT).expect("a signal");
        // strace waits for ever for a process whose first thread is dead and another is held by it. The kernel lets all
        // go when strace is gone; what it wrote is in the file by then, for it writes each line.
        let mut fds = [PollFd::new(&handle, PollFlags::IN)];
        let ended = poll(&mut fds, Some(&PATIENCE)).expect("its end");
        if ended == 0 {
            kill_process(pid, Signal::KILL).expect("a signal");
        }
        self.strace.wait().expect("strace ends");
    }

    /// Lets go. Tells the calls on files below `root` that were seen.
    #[must_use]
    pub fn calls(mut self, root: &Path) -> BTreeSet<Call> {
        self.let_go();
        let log = std::fs::read_to_string(&self.log).expect("what strace wrote");
        log.lines().filter_map(|line| call(line, root)).collect()
    }

    /// Lets go. Tells how many calls failed.
    #[must_use]
    pub fn failed(mut self) -> usize {
        self.let_go();
        let log = std::fs::read_to_string(&self.log).expect("what strace wrote");
        log.lines().filter(|line| line.contains("(INJECTED)")).count()
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        if matches!(self.strace.try_wait(), Ok(None)) {
            self.let_go();
        }
    }
}

/// `12345 name(3</path>, "/other", ...) = 0`.
fn call(line: &str, root: &Path) -> Option<Call> {
    let (_, rest) = line.split_once(' ')?;
    let rest = rest.trim_start();
    let (name, arguments) = rest.split_once('(')?;
    let opens = name == "openat";
    if opens && !arguments.contains("O_CREAT") && !arguments.contains("O_RDONLY") {
        return None;
    }
    let arguments = if opens { arguments.split(") ").next()? } else { arguments };
    let named = arguments.split(['"', '<', '>']).filter(|text| text.starts_with('/'));
    let path = named.map(Path::new).rfind(|path| path.starts_with(root))?;
    name.chars()
        .all(|c| c.is_ascii_alphanumeric())
        .then(|| Call { name: name.to_owned(), path: path.to_owned() })
}
