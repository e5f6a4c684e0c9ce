//! What can go wrong with backups: one kind to decide by, one sentence to read.

use std::fmt;
use std::io;

/// What a caller may decide by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// There is no such backup.
    NotFound,
    /// Somebody else is writing or removing backups of this volume.
    Busy,
    /// What is stored is not what was written: cut, changed, missing.
    Damaged,
    /// It is a backup of another volume.
    Foreign,
    /// Stored by a newer bhatti.
    TooNew,
    /// The store refused the credentials.
    Denied,
    /// The store, or the disk that is restored to, is full.
    NoSpace,
    /// What was asked for makes no sense.
    Invalid,
    /// The caller did not want it any more.
    Cancelled,
    /// The store cannot be reached, or fails.
    Store,
    /// A local file cannot be read or written.
    Io,
}

/// A failed operation on a store.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    op: &'static str,
    object: String,
    reason: Option<String>,
    hint: Option<&'static str>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, op: &'static str, object: impl Into<String>) -> Self {
        Self { kind, op, object: object.into(), reason: None, hint: None, source: None }
    }

    /// A local file's error.
    pub(crate) fn io(op: &'static str, object: impl Into<String>, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        };
        Self::new(kind, op, object).caused_by(source)
    }

    /// The store's error, by what can be done about it.
    pub(crate) fn store(op: &'static str, object: impl Into<String>, source: object_store::Error) -> Self {
        use object_store::Error as Theirs;
        let (kind, hint) = match &source {
            Theirs::NotFound { .. } => (ErrorKind::NotFound, None),
            Theirs::PermissionDenied { .. } | Theirs::Unauthenticated { .. } => {
                (ErrorKind::Denied, Some("check the store's access key, secret key and bucket policy"))
            }
            _ if is_full(&source) => (ErrorKind::NoSpace, Some("make room there, or prune older backups")),
            _ => (ErrorKind::Store, Some("check that the store can be reached from here and try again")),
        };
        let mut error = Self::new(kind, op, object).caused_by(source);
        error.hint = hint;
        error
    }

    pub(crate) fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    pub(crate) const fn hint_to(mut self, hint: &'static str) -> Self {
        self.hint = Some(hint);
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

    /// The object or file that it is about.
    #[must_use]
    pub fn object(&self) -> &str {
        &self.object
    }

    /// The way out, where there is one.
    #[must_use]
    pub const fn hint(&self) -> Option<&'static str> {
        self.hint
    }

    /// What happened, without the way out and without the source.
    #[must_use]
    pub fn message(&self) -> String {
        match &self.reason {
            Some(reason) => format!("{} {}: {reason}", self.op, self.object),
            None => format!("{} {}", self.op, self.object),
        }
    }
}

/// Whether somewhere below there is a full disk.
fn is_full(error: &object_store::Error) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && matches!(io.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        {
            return true;
        }
        next = error.source();
    }
    false
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())?;
        match self.hint {
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
