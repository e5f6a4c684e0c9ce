//! What can go wrong while building, by what can be done about it.

use std::error::Error as StdError;
use std::fmt;
use std::path::{Path, PathBuf};

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// The kind of failure, for code that decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// A program of the host is not installed; the text names its package.
    Missing,
    /// A program ran and failed; the text has the last lines of its stderr.
    Tool,
    /// A file of the host could not be read or written.
    Io,
    /// What was given cannot be used: not a kernel, a module that is not there, files that do not fit.
    Input,
    /// The caller asked to stop.
    Cancelled,
}

/// A failure: what was tried, on what, and why not.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    op: &'static str,
    path: Option<PathBuf>,
    detail: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// The kind, for code that decides.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The operation that failed, as in "build the image".
    #[must_use]
    pub const fn op(&self) -> &'static str {
        self.op
    }

    /// The file or directory it is about, if it is about one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    pub(crate) fn missing(op: &'static str, program: &str, package: &str) -> Self {
        let detail =
            format!("{program} is not installed; install the package {package} (apt-get install {package})");
        Self { kind: ErrorKind::Missing, op, path: None, detail, source: None }
    }

    pub(crate) fn tool(op: &'static str, detail: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Tool, op, path: None, detail: detail.into(), source: None }
    }

    pub(crate) fn input(op: &'static str, path: &Path, detail: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Input, op, path: Some(path.to_owned()), detail: detail.into(), source: None }
    }

    pub(crate) fn io(op: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self {
            kind: ErrorKind::Io,
            op,
            path: Some(path.to_owned()),
            detail: String::new(),
            source: Some(Box::new(source)),
        }
    }

    pub(crate) fn cancelled(op: &'static str) -> Self {
        Self { kind: ErrorKind::Cancelled, op, path: None, detail: "stopped on request".into(), source: None }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}", self.op)?;
        if let Some(path) = &self.path {
            write!(f, " {}", path.display())?;
        }
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}
