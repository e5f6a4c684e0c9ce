//! Guest memory on disk: what a sandbox changed over its RAM base.
//!
//! `docs/formats/mem-snap.md` draws the file.

mod base;
mod format;
mod load;
mod own;
mod trim;
mod write;

#[cfg(test)]
mod tests;

use std::io;

use types::{Bytes, ContentId, RamOffset, RamRun};

use crate::durable::Staged;

pub use base::RamBaseReport;
pub(crate) use base::{hash_base_watched, write_ram_base};
#[cfg(fuzzing)]
pub(crate) use format::seal;
pub use load::MemoryImage;
pub use own::{OWN_BASE_ABOVE, Unchanged};
pub use trim::{TRIM_ABOVE, Trimmed};
pub(crate) use write::write;

/// The RAM of a paused guest, as the store sees it.
pub trait PageSource: Sync {
    /// Size of the RAM block.
    fn len(&self) -> Bytes;
    /// Whether there is no RAM at all.
    fn is_empty(&self) -> bool {
        self.len() == Bytes(0)
    }
    /// The runs that differ from the base, ascending, not touching each other, page-aligned.
    ///
    /// # Errors
    /// When the machine's memory map cannot be read.
    fn private_runs(&self) -> io::Result<Vec<RamRun>>;
    /// Fills `buf` from `at`.
    ///
    /// # Errors
    /// When not all of it could be read.
    fn read(&self, at: RamOffset, buf: &mut [u8]) -> io::Result<()>;
    /// Fills `buf` with the pieces one after the other; their lengths add up to `buf`'s. A source with a vectored
    /// read answers it in one system call.
    ///
    /// # Errors
    /// When not all of it could be read.
    fn read_runs(&self, runs: &[RamRun], buf: &mut [u8]) -> io::Result<()> {
        let mut rest = buf;
        for run in runs {
            let len = usize::try_from(run.len.0).map_err(io::Error::other)?;
            let (piece, tail) = rest.split_at_mut_checked(len).ok_or(io::ErrorKind::InvalidInput)?;
            self.read(run.start, piece)?;
            rest = tail;
        }
        Ok(())
    }
}

/// Where a memory image goes.
pub trait PageSink {
    /// Writes `data` at `at`; both are page-aligned.
    ///
    /// # Errors
    /// When not all of it could be written.
    fn write(&mut self, at: RamOffset, data: &[u8]) -> io::Result<()>;
}

/// What a memory image belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryHeader {
    /// The generation of the manifest that will name it.
    pub generation: u64,
    /// The RAM base it lies over.
    pub base: ContentId,
}

/// How much a memory image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryStats {
    /// Pages that the guest changed, zero pages included.
    pub private: Bytes,
    /// Of those, pages that were all zeros.
    pub zero: Bytes,
    /// Bytes of the file that hold something: header and frames.
    pub stored: Bytes,
}

/// A memory image under its staging name; removed when dropped.
#[derive(Debug)]
pub struct StagedMemory {
    pub(crate) staged: Staged,
    pub(crate) header: MemoryHeader,
    pub(crate) header_blake3: ContentId,
    pub(crate) content: Bytes,
    pub(crate) stats: MemoryStats,
}

impl StagedMemory {
    /// How much it is.
    #[must_use]
    pub fn stats(&self) -> MemoryStats {
        self.stats
    }
}

/// What loading a memory image did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadReport {
    /// Bytes given to the sink, zero pages included.
    pub written: Bytes,
    /// Bytes read from the file.
    pub read: Bytes,
}
