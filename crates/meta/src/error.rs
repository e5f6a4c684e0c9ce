//! What can go wrong with the index.

use std::fmt;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;
use rusqlite::ffi;

/// The index's results.
pub type Result<T> = std::result::Result<T, Error>;

/// What sort of failure it is, for the caller to decide on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Another row has this owner and name.
    Conflict,
    /// The file is no index or is damaged; [`crate::Index::set_aside`] and a rebuild are the way out.
    Corrupt,
    /// The file was written by a newer bhatti.
    NewerSchema,
    /// Another process holds the file.
    Busy,
    /// The disk is full.
    NoSpace,
    /// The file cannot be read or written.
    Io,
    /// SQLite refused a statement that should have been right: a defect in this crate.
    Internal,
}

/// A failed verb: what was tried, on which file, and why.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    op: &'static str,
    path: PathBuf,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(
        kind: ErrorKind,
        op: &'static str,
        path: &Path,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, op, path: path.to_owned(), source: Some(source.into()) }
    }

    pub(crate) fn sqlite(op: &'static str, path: &Path, source: rusqlite::Error) -> Self {
        Self::new(kind_of(&source), op, path, source)
    }

    /// What sort of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The verb that failed.
    #[must_use]
    pub fn op(&self) -> &'static str {
        self.op
    }

    /// The index's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn kind_of(error: &rusqlite::Error) -> ErrorKind {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => match failure.code {
            ErrorCode::ConstraintViolation => match failure.extended_code {
                ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY => ErrorKind::Conflict,
                _ => ErrorKind::Internal,
            },
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => ErrorKind::Corrupt,
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => ErrorKind::Busy,
            ErrorCode::DiskFull => ErrorKind::NoSpace,
            ErrorCode::CannotOpen
            | ErrorCode::ReadOnly
            | ErrorCode::PermissionDenied
            | ErrorCode::SystemIoFailure => ErrorKind::Io,
            _ => ErrorKind::Internal,
        },
        // A stored value that its type does not accept: the file was changed by something else.
        rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::Utf8Error(..)
        | rusqlite::Error::InvalidColumnType(..) => ErrorKind::Corrupt,
        _ => ErrorKind::Internal,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "index {}: cannot {}", self.path.display(), self.op)?;
        match self.kind {
            ErrorKind::Conflict => f.write_str(": the owner has a sandbox of this name already"),
            ErrorKind::Corrupt => f.write_str(
                ": the file is damaged; move it away and the next start rebuilds it from the manifests",
            ),
            ErrorKind::NewerSchema => f.write_str(
                ": it was written by a newer bhatti; use that one, or move the file away to have it rebuilt",
            ),
            ErrorKind::Busy => f.write_str(": another process holds it"),
            ErrorKind::NoSpace => f.write_str(": no space left on its filesystem"),
            ErrorKind::Io => f.write_str(": check the file's permissions and its filesystem"),
            ErrorKind::Internal => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
