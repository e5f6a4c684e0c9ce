//! A file as its chunks: holes are skipped, zeros count as holes, the rest is hashed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::chunk::{ChunkId, Table};
use crate::{Error, Result};

/// Takes a chunk: its number, its hash, its content.
type Each<'a> = &'a mut dyn FnMut(u64, ChunkId, &[u8]) -> Result<()>;

/// Reads all of `file` and hands each chunk that is not zeros to `each`: its number, its hash, its content. `look` is
/// told the offset it has come to, after each chunk and each hole.
pub(crate) fn scan(
    file: &File,
    size: u64,
    chunk_bytes: u32,
    name: &str,
    look: &mut dyn FnMut(u64) -> Result<()>,
    each: Each<'_>,
) -> Result<Table> {
    let fail = |error: io::Error| Error::io("read", name, error);
    let chunk = u64::from(chunk_bytes);
    let mut buffer = vec![0u8; usize::try_from(chunk_bytes).unwrap_or(usize::MAX)];
    let mut table = Table::default();
    let mut at = 0;
    while let Some(data) = next_data(file, at, size).map_err(fail)? {
        // The chunk that the data begins in; `at` is at a chunk's beginning, so it is not one from before.
        at = data - data % chunk;
        let len = usize::try_from((size - at).min(chunk)).unwrap_or(usize::MAX);
        let part = &mut buffer[..len];
        file.read_exact_at(part, at).map_err(fail)?;
        if !is_zero(part) {
            let id = ChunkId::of(part);
            each(at / chunk, id, part)?;
            table.0.push((at / chunk, id));
        }
        at = at.saturating_add(chunk).min(size);
        look(at)?;
    }
    look(size)?;
    Ok(table)
}

/// Where the next data is; `None` at the end. A filesystem that cannot tell holes says it is all data.
fn next_data(file: &File, at: u64, size: u64) -> io::Result<Option<u64>> {
    if at >= size {
        return Ok(None);
    }
    match seek(file, SeekFrom::Data(at)) {
        Ok(start) => Ok((start < size).then_some(start)),
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY) => Ok(Some(at)),
        Err(error) => Err(error.into()),
    }
}

/// Whether there is nothing but zeros.
pub(crate) fn is_zero(data: &[u8]) -> bool {
    let (head, tail) = data.split_at(data.len().min(64));
    head.iter().all(|&byte| byte == 0)
        && tail.chunks(64).all(|line| line.iter().fold(0, |all, byte| all | byte) == 0)
}
