//! Landlock (landlock(7)): what a program and all that it starts may do with files, TCP and other processes.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::libc;
use rustix::fs::{FileType, Mode, OFlags};

// `linux/landlock.h`, with the version from which on the kernel knows it.
const EXECUTE: u64 = 1 << 0;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const REMOVE_DIR: u64 = 1 << 4;
const MAKE_CHAR: u64 = 1 << 6;
const MAKE_DIR: u64 = 1 << 7;
const MAKE_SOCK: u64 = 1 << 9;
const MAKE_FIFO: u64 = 1 << 10;
const MAKE_BLOCK: u64 = 1 << 11;
const MAKE_SYM: u64 = 1 << 12;
/// All that version 1 knows.
const FIRST: u64 = (1 << 13) - 1;
const REFER_2: u64 = 1 << 13;
const TRUNCATE_3: u64 = 1 << 14;
const IOCTL_DEV_5: u64 = 1 << 15;
/// What no VMM does, wherever it is. Nor does one move a file from one directory to another, which is denied by itself.
const NEVER: u64 = REMOVE_DIR | MAKE_CHAR | MAKE_DIR | MAKE_FIFO | MAKE_BLOCK | MAKE_SYM;
/// What can be allowed of something that is not a directory.
const OF_FILES: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE_3 | IOCTL_DEV_5;
/// `LANDLOCK_ACCESS_NET_BIND_TCP | LANDLOCK_ACCESS_NET_CONNECT_TCP`, from version 4 on.
const TCP: u64 = 0b11;
/// `LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | LANDLOCK_SCOPE_SIGNAL`, from version 6 on.
const OTHERS: u64 = 0b11;
/// `LANDLOCK_CREATE_RULESET_VERSION`.
const VERSION: libc::c_long = 1;
/// `LANDLOCK_RULE_PATH_BENEATH`.
const PATH_BENEATH: libc::c_long = 1;

/// `struct landlock_ruleset_attr`.
#[repr(C)]
struct Attributes {
    fs: u64,
    net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct Beneath {
    allowed: u64,
    parent: i32,
}

/// Which Landlock the kernel has, if it is there and switched on.
pub(crate) fn version() -> Option<i32> {
    // SAFETY: asked for its version, the call reads and writes no memory.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<Attributes>(), 0_usize, VERSION)
    };
    i32::try_from(version).ok().filter(|version| *version > 0)
}

/// Rules that are being made. No TCP, no signals to others and no looks into their memory, in any case.
#[derive(Debug)]
pub(crate) struct Rules {
    fd: OwnedFd,
    handled: u64,
}

impl Rules {
    /// Files may be used, and nothing made but files and sockets.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn few(version: i32) -> io::Result<Self> {
        Self::new(version, NEVER)
    }

    /// Nothing at all may be done with files, but for what is allowed then.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn all(version: i32) -> io::Result<Self> {
        let known = match version {
            ..2 => FIRST,
            2 => FIRST | REFER_2,
            3..5 => FIRST | REFER_2 | TRUNCATE_3,
            _ => FIRST | REFER_2 | TRUNCATE_3 | IOCTL_DEV_5,
        };
        Self::new(version, known)
    }

    fn new(version: i32, handled: u64) -> io::Result<Self> {
        let attributes = Attributes { fs: handled, net: TCP, scoped: OTHERS };
        // Older kernels know a shorter structure, and refuse what they do not know.
        let size: usize = match version {
            ..4 => 8,
            4..6 => 16,
            _ => 24,
        };
        // SAFETY: the kernel reads `size` bytes of a structure that has as many, and writes nothing.
        let fd = unsafe {
            libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attributes, size, 0 as libc::c_long)
        };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the kernel just gave this descriptor to us, closed on exec, and nobody else has it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, handled })
    }

    pub(crate) fn execute_below(&mut self, path: &Path) -> io::Result<()> {
        self.allow(path, EXECUTE | READ_FILE | READ_DIR)
    }

    pub(crate) fn read_below(&mut self, path: &Path) -> io::Result<()> {
        self.allow(path, READ_FILE | READ_DIR)
    }

    /// Also what is needed to make a socket there.
    pub(crate) fn write_below(&mut self, path: &Path) -> io::Result<()> {
        self.allow(path, WRITE_FILE | TRUNCATE_3 | MAKE_SOCK)
    }

    pub(crate) fn use_device(&mut self, path: &Path) -> io::Result<()> {
        self.allow(path, READ_FILE | WRITE_FILE | IOCTL_DEV_5)
    }

    /// Allows it below a directory, or of a file. What is not there cannot be allowed.
    fn allow(&mut self, path: &Path, what: u64) -> io::Result<()> {
        let opened = match rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::ACCESS) => return Ok(()),
            opened => opened?,
        };
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&opened)?.st_mode);
        let possible = if kind == FileType::Directory { u64::MAX } else { OF_FILES };
        let rule = Beneath { allowed: what & self.handled & possible, parent: opened.as_raw_fd() };
        // SAFETY: the kernel reads the structure, and looks at the descriptor in it, which is open.
        let done = unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                self.fd.as_raw_fd(),
                PATH_BENEATH,
                &raw const rule,
                0 as libc::c_long,
            )
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    pub(crate) fn made(self) -> OwnedFd {
        self.fd
    }
}

/// Holds this thread, and all that it starts, to the rules. Needs `no_new_privs`; async-signal-safe.
pub(crate) fn restrict_self(rules: &OwnedFd) -> io::Result<()> {
    // SAFETY: the call takes a descriptor, which is open, and flags.
    let done =
        unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0 as libc::c_long) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
