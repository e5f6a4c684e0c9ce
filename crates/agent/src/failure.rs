//! Failures as the host is told them: what kind, and a message that names the thing.

use std::fmt::Display;
use std::io;

use rustix::io::Errno;
use wire::{ErrorCode, Failure};

/// A failure of the named thing.
pub fn failure(code: ErrorCode, subject: impl Display, why: impl Display) -> Failure {
    Failure { code, message: format!("{subject}: {why}") }
}

/// A failure of the named thing that the kernel reported.
pub fn failure_io(subject: impl Display, error: &io::Error) -> Failure {
    let (code, why) = match Errno::from_io_error(error) {
        Some(Errno::NOENT) => (ErrorCode::NotFound, "no such file or directory"),
        Some(Errno::ISDIR) => (ErrorCode::IsDirectory, "is a directory"),
        Some(Errno::NOTDIR) => (ErrorCode::NotDirectory, "not a directory"),
        Some(Errno::ACCESS | Errno::PERM) => (ErrorCode::Permission, "permission denied"),
        Some(Errno::ROFS) => (ErrorCode::Permission, "read-only file system"),
        Some(Errno::NOSPC | Errno::DQUOT) => (ErrorCode::NoSpace, "no space left on the guest's disk"),
        Some(Errno::EXIST) => (ErrorCode::Exists, "exists already"),
        _ => return failure(ErrorCode::Io, subject, error),
    };
    failure(code, subject, why)
}
