//! The locks by which QEMU keeps two of its processes from one disk image, taken and looked at from outside.
//!
//! `block/file-posix.c` of QEMU: bytes from 100 on tell what their holder does with the image, bytes from 200 on what it
//! does not bear in others; both are numbered by permission (`include/block/block-common.h`). They are locks of the
//! open file description (`F_OFD_SETLK`, fcntl(2)): they end with the last process that has it open.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// `RAW_LOCK_PERM_BASE`.
const DOES: i64 = 100;
/// `RAW_LOCK_SHARED_BASE`.
const BEARS_NOT: i64 = 200;
/// `BLK_PERM_CONSISTENT_READ` is bit 0.
const READ: i64 = 0;
/// `BLK_PERM_WRITE` is bit 1.
const WRITE: i64 = 1;

fn range(kind: libc::c_int, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

/// `false`: somebody else's lock is in the way.
fn set(file: &File, kind: libc::c_int, start: i64, len: i64) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&range(kind, start, len))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether another open file description has a lock there that a lock of this kind would meet.
fn is_met(file: &File, kind: libc::c_int, start: i64, len: i64) -> io::Result<bool> {
    let mut asked = range(kind, start, len);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut asked))?;
    Ok(i32::from(asked.l_type) != libc::F_UNLCK)
}

/// Takes the image for this open file alone; it must be open for writing. `false` when any process uses it.
///
/// # Errors
/// What the system says.
pub fn take_alone(file: &File) -> io::Result<bool> {
    set(file, libc::F_WRLCK, DOES, BEARS_NOT - DOES + 100)
}

/// Takes the image for reading, beside others who only read. `false` when a process writes to it.
///
/// # Errors
/// What the system says.
pub fn take_shared(file: &File) -> io::Result<bool> {
    // In QEMU's order: tell first, then look whether anybody minds or is minded.
    let told = set(file, libc::F_RDLCK, DOES + READ, 1)? && set(file, libc::F_RDLCK, BEARS_NOT + WRITE, 1)?;
    let minded = told
        && (is_met(file, libc::F_WRLCK, DOES + WRITE, 1)?
            || is_met(file, libc::F_WRLCK, BEARS_NOT + READ, 1)?);
    if told && !minded {
        return Ok(true);
    }
    set(file, libc::F_UNLCK, DOES, BEARS_NOT - DOES + 100)?;
    Ok(false)
}

/// Whether any process uses the image. Looking takes nothing.
///
/// # Errors
/// What the system says.
pub fn is_used(file: &File) -> io::Result<bool> {
    is_met(file, libc::F_WRLCK, DOES, BEARS_NOT - DOES + 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_who_writes_and_those_who_read_exclude_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, "x").unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let (one, two, three) = (open(), open(), open());
        assert!(take_alone(&one).unwrap() && is_used(&two).unwrap());
        assert!(!take_alone(&two).unwrap() && !take_shared(&two).unwrap());
        drop(one);
        assert!(!is_used(&two).unwrap(), "a refused lock leaves nothing");
        assert!(take_shared(&two).unwrap() && take_shared(&three).unwrap());
        assert!(!take_alone(&open()).unwrap());
        drop((two, three));
        assert!(take_alone(&open()).unwrap());
    }

    #[test]
    fn a_writing_qemu_is_met_by_those_who_would_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, "x").unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let qemu = open();
        for byte in [DOES + READ, DOES + WRITE, BEARS_NOT + WRITE] {
            assert!(set(&qemu, libc::F_RDLCK, byte, 1).unwrap());
        }
        let reader = open();
        assert!(!take_shared(&reader).unwrap());
        assert!(set(&qemu, libc::F_UNLCK, DOES + WRITE, 1).unwrap());
        assert!(take_shared(&reader).unwrap());
    }
}
