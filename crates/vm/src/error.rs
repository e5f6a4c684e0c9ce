//! What can go wrong with a virtual machine's process: a kind to act on, and words for people.

use std::error::Error as StdError;
use std::fmt;

/// What sort of failure it was; what callers branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The program is not installed.
    Missing,
    /// The program is there and is older than the oldest one supported.
    TooOld,
    /// The program could not be started at all.
    Spawn,
    /// The process ended before it was told to; its last words are in the message.
    Died,
    /// No answer within the time limit.
    Timeout,
    /// The control connection broke off.
    Closed,
    /// The VMM answered with an error.
    Refused,
    /// The device state was saved by a newer VMM than this one.
    SnapshotTooNew,
    /// The device state does not load: damaged, or made by a machine of another shape.
    SnapshotRefused,
    /// This user may not read or write the VMM's memory.
    NotPermitted,
    /// The guest's RAM was not found in the VMM's address space.
    RamNotFound,
    /// Bytes from the VMM that make no sense.
    Protocol,
    /// The host's own failure: files, sockets, memory.
    Io,
}

/// A failure of this room.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    op: &'static str,
    detail: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// What this room's functions return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, op: &'static str, detail: impl Into<String>) -> Self {
        Self { kind, op, detail: detail.into(), source: None }
    }

    pub(crate) fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    pub(crate) fn io(
        op: &'static str,
        subject: impl Into<String>,
        source: impl Into<std::io::Error>,
    ) -> Self {
        Self::new(ErrorKind::Io, op, subject).with_source(source.into())
    }

    /// What sort of failure it was.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What was being done.
    #[must_use]
    pub const fn op(&self) -> &'static str {
        self.op
    }

    /// What the VMM said, or the file that it was about.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.op)?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, ": {}", self.detail) }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}
