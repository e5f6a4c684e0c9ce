//! What can go wrong on the way to the guest, or there.

use std::fmt;
use std::sync::Arc;

use wire::{ErrorCode, Failure};

/// Results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

pub(crate) type Source = Arc<dyn std::error::Error + Send + Sync>;

/// What sort of failure it is, for the caller to decide on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The channel ended before the answer did.
    Closed,
    /// The deadline passed.
    Timeout,
    /// The agent said what no agent of ours says; the channel is closed.
    Protocol,
    /// The agent speaks another version; only a boot gives this guest a new agent.
    Version,
    /// The agent could not do it.
    Refused {
        /// Why, for programs.
        code: ErrorCode,
    },
    /// Input for a command that has ended, or after its `eof`.
    Ended,
    /// A request or an answer longer than is allowed.
    TooLarge,
}

/// A failed verb: what was asked, and why it was not done. Cheap to clone: when a channel breaks, every verb that
/// was under way gets its own.
#[derive(Debug, Clone)]
pub struct Error {
    kind: ErrorKind,
    op: &'static str,
    /// The agent's own words, for `Refused`, made harmless for terminals.
    said: Option<String>,
    source: Option<Source>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, op: &'static str) -> Self {
        Self { kind, op, said: None, source: None }
    }

    pub(crate) fn because(
        kind: ErrorKind,
        op: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::caused(kind, op, Arc::from(source.into()))
    }

    pub(crate) fn caused(kind: ErrorKind, op: &'static str, source: Source) -> Self {
        Self { kind, op, said: None, source: Some(source) }
    }

    pub(crate) fn refused(op: &'static str, failure: &Failure) -> Self {
        let kind = ErrorKind::Refused { code: failure.code };
        Self { kind, op, said: Some(printable(&failure.message)), source: None }
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

    /// The agent's own words, where it refused. At most 1,024 characters, none of them a control character.
    #[must_use]
    pub fn said(&self) -> Option<&str> {
        self.said.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.op)?;
        match (self.kind, &self.said) {
            (ErrorKind::Refused { .. }, Some(said)) => f.write_str(said),
            (ErrorKind::Refused { .. }, None) => f.write_str("the agent refused"),
            (ErrorKind::Closed, _) => f.write_str("the channel to the guest's agent broke off"),
            (ErrorKind::Timeout, _) => f.write_str("the guest's agent did not answer in time"),
            (ErrorKind::Protocol, _) => f.write_str("the guest's agent broke the protocol, and was cut off"),
            (ErrorKind::Version, _) => f.write_str(
                "the agent in the guest's memory speaks another version; `bhatti start NAME --discard-memory` boots \
                 a new one",
            ),
            (ErrorKind::Ended, _) => f.write_str("the other side takes no more input"),
            (ErrorKind::TooLarge, _) => f.write_str("too large for one message"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Text from a guest, cut to 1,024 characters and without what terminals obey.
pub(crate) fn printable(text: &str) -> String {
    text.chars().take(1024).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
