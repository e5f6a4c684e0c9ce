//! A guest's RAM, seen from outside its VMM.

use std::io;

use types::{Bytes, RamOffset, RamRun};

/// The RAM of one running (better: paused) machine. Every call fails once the process is gone.
#[derive(Debug)]
pub struct GuestRam {
    len: Bytes,
}

impl GuestRam {
    /// How much RAM the guest has.
    #[must_use]
    pub const fn len(&self) -> Bytes {
        self.len
    }

    /// Whether there is none, which no machine has.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len.0 == 0
    }

    /// The runs of pages that differ from the base, in ascending order, neighbours merged.
    ///
    /// # Errors
    /// The process is gone, or this user may not look at it.
    pub fn private_runs(&self) -> io::Result<Vec<RamRun>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Reads `buf.len()` bytes at `at`.
    ///
    /// # Errors
    /// Out of range, the process is gone, or this user may not read it.
    pub fn read(&self, _at: RamOffset, _buf: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Writes `data` at `at`; the pages become private, the base stays as it is.
    ///
    /// # Errors
    /// Out of range, the process is gone, or this user may not write to it.
    pub fn write(&self, _at: RamOffset, _data: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
