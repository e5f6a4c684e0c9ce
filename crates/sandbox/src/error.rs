//! Why a verb was refused or failed: a kind for programs, a line for people, and the way out.

use std::error::Error as StdError;
use std::fmt;

/// Result of a verb.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure it is. The server turns each into one HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request makes no sense: bad name, bad number, bad path.
    BadRequest,
    /// No such sandbox, image or session, or somebody else's.
    NotFound,
    /// No such file in the guest.
    GuestNotFound,
    /// The guest refused: a directory where a file is wanted, permission, no such user.
    GuestRefused,
    /// The program is not in the guest (127).
    CommandNotFound,
    /// The program is no program (126).
    NotExecutable,
    /// The name is taken by another shape, or the state forbids it.
    Conflict,
    /// `strict` was asked for and only the slow path is left.
    SlowPath,
    /// Something is in use by somebody else.
    Busy,
    /// A volume is in use; the line says by whom.
    VolumeBusy,
    /// More than fits.
    TooLarge,
    /// The host's disk is full.
    NoSpace,
    /// The machines' memory is all promised.
    NoMemory,
    /// The guest's disk is full.
    GuestNoSpace,
    /// The host is not ready: no VMM, no kernel, no image; `bhatti setup` or `doctor` helps.
    NotReady,
    /// A file of the sandbox is damaged.
    Corrupt,
    /// The guest did not boot or did not answer in time.
    GuestTimeout,
    /// The stream to the guest broke off: it was stopped, destroyed, or died.
    StreamBroken,
    /// The VMM failed.
    Vmm,
    /// Nobody in the guest listens on that port.
    NotListening,
    /// More than the user may have; the line says of what, and how much there is.
    QuotaExceeded,
    /// The asker sees it, and it is not theirs to change.
    Forbidden,
    /// More requests than are allowed in this time.
    TooManyRequests,
    /// The deadline passed.
    Timeout,
    /// Others were made from it, or use it.
    InUse,
    /// Somebody did not want it any more.
    Cancelled,
    /// A registry does not let us in.
    RegistryDenied,
    /// A registry cannot be reached, or does not do its part.
    Registry,
    /// The daemon is shutting down.
    ShuttingDown,
    /// Anything that should not happen.
    Internal,
}

impl ErrorKind {
    /// The stable word for it in JSON.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::NotFound => "not_found",
            Self::GuestNotFound => "file_not_found",
            Self::GuestRefused => "guest_refused",
            Self::CommandNotFound => "command_not_found",
            Self::NotExecutable => "not_executable",
            Self::Conflict => "conflict",
            Self::SlowPath => "slow_path",
            Self::Busy => "busy",
            Self::VolumeBusy => "volume_busy",
            Self::TooLarge => "too_large",
            Self::NoSpace => "no_space",
            Self::NoMemory => "no_memory",
            Self::GuestNoSpace => "guest_no_space",
            Self::NotReady => "not_ready",
            Self::Corrupt => "corrupt",
            Self::GuestTimeout => "guest_timeout",
            Self::StreamBroken => "stream_broken",
            Self::Vmm => "vmm_failed",
            Self::NotListening => "not_listening",
            Self::QuotaExceeded => "quota_exceeded",
            Self::Forbidden => "forbidden",
            Self::TooManyRequests => "too_many_requests",
            Self::Timeout => "timeout",
            Self::InUse => "in_use",
            Self::Cancelled => "cancelled",
            Self::RegistryDenied => "registry_denied",
            Self::Registry => "registry_failed",
            Self::ShuttingDown => "shutting_down",
            Self::Internal => "internal",
        }
    }
}

/// A refusal or failure. `Display` is one line without the source and without the hint.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: String,
    undecided: bool,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// A failure with its line for people, e.g. `image "x": there is no such image`.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: String::new(), undecided: false, source: None }
    }

    /// Adds the way out.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Adds what caused it.
    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Marks a commit that could be neither confirmed nor taken back.
    #[must_use]
    pub(crate) const fn of_undecided_commit(mut self, undecided: bool) -> Self {
        self.undecided = undecided;
        self
    }

    /// Whether a commit could be neither confirmed nor taken back: the guest must then not run on.
    pub(crate) const fn undecided(&self) -> bool {
        self.undecided
    }

    /// What sort of failure it is.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What to do; may be empty.
    #[must_use]
    pub fn way_out(&self) -> &str {
        &self.hint
    }

    /// The line with all its causes, for replies and logs.
    #[must_use]
    pub fn with_causes(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = StdError::source(self);
        while let Some(error) = cause {
            let line = error.to_string();
            if !text.contains(&line) {
                text.push_str(": ");
                text.push_str(&line);
            }
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
