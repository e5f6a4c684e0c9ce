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
    /// The host's disk is full.
    NoSpace,
    /// What was given is more than is allowed.
    TooLarge,
    /// There is no such thing where it was looked for.
    NotFound,
    /// A registry does not let the caller in.
    Denied,
    /// A registry cannot be reached, or does not do its part.
    Registry,
}

/// A failure: what was tried, on what, and why not.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    op: &'static str,
    path: Option<PathBuf>,
    detail: String,
    hint: &'static str,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    fn new(kind: ErrorKind, op: &'static str, path: Option<&Path>, detail: impl Into<String>) -> Self {
        Self { kind, op, path: path.map(Path::to_owned), detail: detail.into(), hint: "", source: None }
    }

    /// What to do; may be empty.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        self.hint
    }

    pub(crate) const fn way_out(mut self, hint: &'static str) -> Self {
        self.hint = hint;
        self
    }

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
        Self::new(ErrorKind::Missing, op, None, detail)
    }

    pub(crate) fn needs_root(op: &'static str) -> Self {
        let detail = "only root can give files their owners and make devices";
        Self::new(ErrorKind::Missing, op, None, detail).way_out("run the daemon as root")
    }

    pub(crate) fn tool(op: &'static str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        // strerror(3) of ENOSPC, in the one language that tools are run in.
        let kind = match detail.contains("No space left on device") {
            true => ErrorKind::NoSpace,
            false => ErrorKind::Tool,
        };
        Self::new(kind, op, None, detail)
    }

    pub(crate) fn input(op: &'static str, path: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Input, op, Some(path), detail)
    }

    pub(crate) fn too_large(op: &'static str, path: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::TooLarge, op, Some(path), detail)
    }

    pub(crate) fn io(op: &'static str, path: &Path, source: std::io::Error) -> Self {
        let kind = match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        };
        Self { source: Some(Box::new(source)), ..Self::new(kind, op, Some(path), "") }
    }

    /// A failure that a registry told, which names the image itself.
    pub(crate) fn registry(kind: ErrorKind, detail: String) -> Self {
        Self::new(kind, "pull", None, detail)
    }

    pub(crate) fn cancelled(op: &'static str) -> Self {
        Self::new(ErrorKind::Cancelled, op, None, "stopped on request")
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
