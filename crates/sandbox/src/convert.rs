//! The failures of the rooms below, as failures of a verb.

use crate::error::{Error, ErrorKind};

impl From<storage::Error> for Error {
    fn from(error: storage::Error) -> Self {
        use storage::ErrorKind as K;
        let kind = match error.kind() {
            K::NotFound => ErrorKind::NotFound,
            K::Exists => ErrorKind::Conflict,
            K::Busy => ErrorKind::Busy,
            K::NoSpace => ErrorKind::NoSpace,
            K::Unwritable => ErrorKind::NotReady,
            K::Corrupt | K::TooNew => ErrorKind::Corrupt,
            K::Cancelled => ErrorKind::ShuttingDown,
            K::Invalid | K::Undecided | K::Io => ErrorKind::Internal,
        };
        let hint = error.hint().unwrap_or_default().to_owned();
        let undecided = error.kind() == K::Undecided;
        let converted = Self::new(kind, error.message()).hint(hint).of_undecided_commit(undecided);
        match std::error::Error::source(&error) {
            Some(source) => converted.source(source.to_string()),
            None => converted,
        }
    }
}

impl From<vm::Error> for Error {
    fn from(error: vm::Error) -> Self {
        use vm::ErrorKind as K;
        let (kind, hint) = match error.kind() {
            // The VMM hands on what the system said (strerror(3)); there is no number for it in QMP.
            K::Refused | K::Io if error.to_string().contains("No space left on device") => {
                (ErrorKind::NoSpace, "")
            }
            K::Missing | K::TooOld => {
                (ErrorKind::NotReady, "install it, or name another with --qemu; `bhatti doctor` tells more")
            }
            K::Spawn | K::Died | K::Closed | K::Refused | K::Protocol | K::RamNotFound | K::Io => {
                (ErrorKind::Vmm, "")
            }
            K::Timeout => (ErrorKind::GuestTimeout, ""),
            K::SnapshotTooNew => {
                (ErrorKind::Conflict, "or boot from the disk with `bhatti start NAME --discard-memory`")
            }
            K::SnapshotRefused => {
                (ErrorKind::Corrupt, "boot from the disk with `bhatti start NAME --discard-memory`")
            }
            K::NotPermitted => (
                ErrorKind::Vmm,
                "the daemon needs the right to read its VMMs' memory (ptrace); run it as root",
            ),
        };
        Self::new(kind, error.to_string()).hint(hint).with_source_of(&error)
    }
}

impl From<guest::Error> for Error {
    fn from(error: guest::Error) -> Self {
        use guest::ErrorKind as K;
        let kind = match error.kind() {
            K::Closed | K::Protocol | K::Ended => ErrorKind::StreamBroken,
            K::Timeout => ErrorKind::GuestTimeout,
            K::Version => ErrorKind::Conflict,
            K::TooLarge => ErrorKind::TooLarge,
            K::Refused { code } => refused(code),
        };
        Self::new(kind, error.to_string()).with_source_of(&error)
    }
}

/// What a refusal of the guest's agent means to the one who asked.
const fn refused(code: wire::ErrorCode) -> ErrorKind {
    use wire::ErrorCode as C;
    match code {
        C::NotFound => ErrorKind::GuestNotFound,
        C::IsDirectory | C::NotDirectory | C::Permission | C::Exists | C::NoSuchUser | C::Unclean | C::Io => {
            ErrorKind::GuestRefused
        }
        C::NoSpace => ErrorKind::GuestNoSpace,
        C::NotExecutable => ErrorKind::NotExecutable,
        C::CommandNotFound => ErrorKind::CommandNotFound,
        C::BadRequest => ErrorKind::BadRequest,
        C::NotListening => ErrorKind::NotListening,
        C::TimedOut => ErrorKind::Timeout,
        C::TooMany | C::Busy => ErrorKind::Busy,
    }
}

impl From<meta::Error> for Error {
    fn from(error: meta::Error) -> Self {
        use meta::ErrorKind as K;
        let kind = match error.kind() {
            K::Conflict => ErrorKind::Conflict,
            K::NoSpace => ErrorKind::NoSpace,
            K::Busy => ErrorKind::Busy,
            K::NewerSchema | K::Corrupt => ErrorKind::Corrupt,
            K::Io | K::Internal => ErrorKind::Internal,
        };
        Self::new(kind, error.to_string()).with_source_of(&error)
    }
}

impl From<image::Error> for Error {
    fn from(error: image::Error) -> Self {
        use image::ErrorKind as K;
        let kind = match error.kind() {
            K::Missing => ErrorKind::NotReady,
            K::Tool | K::Io => ErrorKind::Internal,
            K::Input => ErrorKind::BadRequest,
            K::Cancelled => ErrorKind::Cancelled,
            K::NoSpace => ErrorKind::NoSpace,
            K::TooLarge => ErrorKind::TooLarge,
            K::NotFound => ErrorKind::NotFound,
            K::Denied => ErrorKind::RegistryDenied,
            K::Registry => ErrorKind::Registry,
        };
        Self::new(kind, error.to_string()).hint(error.hint()).with_source_of(&error)
    }
}

impl From<remote::Error> for Error {
    fn from(error: remote::Error) -> Self {
        use remote::ErrorKind as K;
        let kind = match error.kind() {
            K::NotFound => ErrorKind::NotFound,
            K::Busy => ErrorKind::Busy,
            K::Damaged | K::TooNew => ErrorKind::Corrupt,
            K::Foreign => ErrorKind::Conflict,
            K::Denied | K::Store => ErrorKind::NotReady,
            K::NoSpace => ErrorKind::NoSpace,
            K::Invalid => ErrorKind::BadRequest,
            K::Cancelled => ErrorKind::ShuttingDown,
            K::Io => ErrorKind::Internal,
        };
        let hint = error.hint().unwrap_or_default();
        Self::new(kind, error.message()).hint(hint).with_source_of(&error)
    }
}

impl From<types::InvalidSpec> for Error {
    fn from(error: types::InvalidSpec) -> Self {
        Self::new(ErrorKind::BadRequest, error.message).hint(error.hint)
    }
}

impl Error {
    fn with_source_of(self, error: &dyn std::error::Error) -> Self {
        match error.source() {
            Some(source) => self.source(source.to_string()),
            None => self,
        }
    }
}
