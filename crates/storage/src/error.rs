//! What can go wrong in the store: one kind to decide by, one sentence to read.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// What a caller may decide by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// There is no such thing.
    NotFound,
    /// There is one already.
    Exists,
    /// Somebody else holds its lock.
    Busy,
    /// The filesystem or the owner's quota is full.
    NoSpace,
    /// The data directory does not let itself be written.
    Unwritable,
    /// Stored bytes are not those that were written.
    Corrupt,
    /// Stored by a newer bhatti.
    TooNew,
    /// The caller's values contradict each other or what is stored.
    Invalid,
    /// Its caller did not want it any more.
    Cancelled,
    /// The commit point was passed and could be neither confirmed nor taken back: the guest must stay paused.
    Undecided,
    /// The system refused for another reason.
    Io,
}

/// A failed operation on the store.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    op: &'static str,
    path: PathBuf,
    reason: Option<String>,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The store's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, op: &'static str, path: impl Into<PathBuf>) -> Self {
        Self { kind, op, path: path.into(), reason: None, hint: None, source: None }
    }

    /// An error of the system, with the kind that its number means.
    pub(crate) fn io(op: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let kind = match (source.raw_os_error().map(Errno::from_raw_os_error), source.kind()) {
            (Some(Errno::NOSPC | Errno::DQUOT), _) => ErrorKind::NoSpace,
            (Some(Errno::NOENT), _) => ErrorKind::NotFound,
            (None, io::ErrorKind::AlreadyExists) | (Some(Errno::EXIST | Errno::NOTEMPTY), _) => {
                ErrorKind::Exists
            }
            (Some(Errno::WOULDBLOCK | Errno::TXTBSY), _) => ErrorKind::Busy,
            (Some(Errno::ACCESS | Errno::ROFS | Errno::PERM), _) => ErrorKind::Unwritable,
            _ => ErrorKind::Io,
        };
        let hint = match kind {
            ErrorKind::NoSpace => Some("free some space, or remove what is not needed".to_owned()),
            _ => None,
        };
        Self { kind, op, path: path.into(), reason: None, hint, source: Some(Box::new(source)) }
    }

    pub(crate) fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    pub(crate) fn hint_to(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn of_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    pub(crate) fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What to decide by.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The file or directory it is about.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The way out, where there is one.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Why, without the operation and the path.
    pub(crate) fn why(&self) -> String {
        match (&self.reason, &self.source) {
            (Some(reason), _) => reason.clone(),
            (None, Some(source)) => format!("{} failed: {source}", self.op),
            (None, None) => format!("{} failed", self.op),
        }
    }

    /// What happened, without the way out and without the source.
    #[must_use]
    pub fn message(&self) -> String {
        match &self.reason {
            Some(reason) => format!("{} {}: {reason}", self.op, self.path.display()),
            None => format!("{} {}", self.op, self.path.display()),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
