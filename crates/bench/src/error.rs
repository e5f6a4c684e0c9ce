//! Why there are no figures.

/// Result of a measurement.
pub type Result<T> = std::result::Result<T, Error>;

/// A measurement that could not be taken: what was tried, and why it failed.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub struct Error {
    what: String,
    why: String,
    interrupted: bool,
}

impl Error {
    pub(crate) fn new(what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self { what: what.into(), why: why.to_string(), interrupted: false }
    }

    pub(crate) fn interrupted() -> Self {
        Self { interrupted: true, ..Self::new("interrupted", "what was made for the bench is removed") }
    }

    /// Whether somebody asked for the end.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        self.interrupted
    }
}

impl From<image::Error> for Error {
    fn from(error: image::Error) -> Self {
        Self::new("preparing a filesystem", error)
    }
}

/// Says what was tried when it fails.
pub(crate) trait During<T> {
    fn during(self, what: &str) -> Result<T>;
}

impl<T, E: std::fmt::Display> During<T> for std::result::Result<T, E> {
    fn during(self, what: &str) -> Result<T> {
        self.map_err(|error| Error::new(what, error))
    }
}
