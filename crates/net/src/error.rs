//! How the network fails.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// What went wrong, with the way out where there is one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program is not installed.
    #[error("{program} is not installed; apt-get install {package}")]
    Missing {
        /// Its name.
        program: &'static str,
        /// Debian's package that has it.
        package: &'static str,
    },
    /// A program could not be started.
    #[error("{} could not be started", .program.display())]
    Spawn {
        /// Which one.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another sandbox of the same owner has that address.
    #[error("its address {address} is that of {by}")]
    Taken {
        /// The address.
        address: Ipv4Addr,
        /// Who has it.
        by: String,
    },
    /// The system refused something.
    #[error("{op}")]
    Io {
        /// What was being done.
        op: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// What this room's verbs return.
pub type Result<T> = std::result::Result<T, Error>;
