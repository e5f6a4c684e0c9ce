//! Writing a RAM base: a sparse file as large as the memory, with its non-zero pages at their offsets.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use types::{Bytes, ContentId, PAGE_SIZE, RamOffset, RamRun};

use super::PageSource;
use super::write::{PAGE, private_runs};
use crate::durable;
use crate::error::{Error, Result};
use crate::sparse;

/// Read at once: 1 MiB.
const PIECE: u64 = 256 * PAGE_SIZE;

/// A RAM base that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamBaseReport {
    /// Identity of its content: BLAKE3 of its size and of every non-zero page with its number. Hashing the holes too
    /// would cost as much as the largest machine is large.
    pub id: ContentId,
    /// Bytes that are not holes.
    pub private: Bytes,
}

/// Writes the RAM of a paused guest that lies over the zero base. Nothing is synced.
pub(crate) fn write_ram_base(file: &File, path: &Path, source: &dyn PageSource) -> Result<RamBaseReport> {
    let memory = source.len();
    file.set_len(memory.0).map_err(|error| Error::io("write", path, error))?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&memory.0.to_le_bytes());
    let mut private = 0;
    let mut buffer = Vec::new();
    for run in private_runs(source, path)? {
        let (mut at, end) = (run.start.0, run.start.0 + run.len.0);
        while at < end {
            let len = (end - at).min(PIECE);
            buffer.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
            source
                .read_runs(&[RamRun { start: RamOffset(at), len: Bytes(len) }], &mut buffer)
                .map_err(|error| Error::io("read guest memory for", path, error))?;
            for (from, pages) in sparse::stretches(&buffer, PAGE) {
                let start = at + sparse::bytes(from);
                for (index, page) in pages.chunks_exact(PAGE).enumerate() {
                    hasher.update(&(start / PAGE_SIZE + sparse::bytes(index)).to_le_bytes());
                    hasher.update(page);
                }
                durable::write_at(file, path, start, pages)?;
                private += sparse::bytes(pages.len());
            }
            at += len;
        }
    }
    Ok(RamBaseReport { id: ContentId::from_hash(hasher.finalize().as_bytes()), private: Bytes(private) })
}

/// The same identity of a base that is there already, from its data.
pub(crate) fn hash_base(file: &File, path: &Path) -> Result<RamBaseReport> {
    hash_base_watched(file, path, &mut |_| Ok(()))
}

/// The same; `watch` is told of each piece of data that was read, and may call it off.
pub(crate) fn hash_base_watched(
    file: &File,
    path: &Path,
    watch: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<RamBaseReport> {
    let fail = |error: std::io::Error| Error::io("read", path, error);
    let len = file.metadata().map_err(fail)?.len();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&len.to_le_bytes());
    let (mut private, mut at) = (0, 0);
    let mut buffer = Vec::new();
    while let Some((start, end)) = sparse::next_data(file, at, len).map_err(fail)? {
        // A filesystem may tell of data and holes in smaller pieces than pages.
        let mut from = start - start % PAGE_SIZE;
        let end = end.next_multiple_of(PAGE_SIZE).min(len);
        while from < end {
            let piece = (end - from).min(PIECE);
            buffer.resize(usize::try_from(piece).unwrap_or(usize::MAX), 0);
            file.read_exact_at(&mut buffer, from).map_err(fail)?;
            for (offset, pages) in sparse::stretches(&buffer, PAGE) {
                let start = from + sparse::bytes(offset);
                for (index, page) in pages.chunks_exact(PAGE).enumerate() {
                    hasher.update(&(start / PAGE_SIZE + sparse::bytes(index)).to_le_bytes());
                    hasher.update(page);
                }
                private += sparse::bytes(pages.len());
            }
            from += piece;
            watch(piece)?;
        }
        at = end;
    }
    Ok(RamBaseReport { id: ContentId::from_hash(hasher.finalize().as_bytes()), private: Bytes(private) })
}
