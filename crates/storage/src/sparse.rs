//! Files with holes: walking their data, hashing what they say, writing pages at their offsets.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use types::{Bytes, ContentId};

use crate::error::{Error, Result};

const CHUNK: usize = 1 << 20;

/// A stretch of data between holes: from, to.
pub(crate) type Segment = (u64, u64);

/// The next data at or after `at`, `None` at the end. A filesystem that cannot tell holes says it is all data.
pub(crate) fn next_data(file: &File, at: u64, len: u64) -> io::Result<Option<Segment>> {
    if at >= len {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY) => return Ok(Some((at, len))),
        Err(error) => return Err(error.into()),
    };
    let end = match seek(file, SeekFrom::Hole(start)) {
        Ok(end) => end.min(len),
        Err(Errno::NXIO) => len,
        Err(error) => return Err(error.into()),
    };
    Ok((start < len && start < end).then_some((start, end)))
}

/// BLAKE3 of the logical content, holes as zeros. Leaves the file at its beginning: looking for data moves its
/// position, and it may be handed to another process that reads from there.
pub(crate) fn content_id(file: &File, path: &Path) -> Result<ContentId> {
    content_id_watched(file, path, &mut |_| Ok(()))
}

/// The same; `watch` is told of each piece of data that was read, and may call it off.
pub(crate) fn content_id_watched(
    file: &File,
    path: &Path,
    watch: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<ContentId> {
    let fail = |error: io::Error| Error::io("read", path, error);
    let len = file.metadata().map_err(fail)?.len();
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0u8; CHUNK];
    let zeros = vec![0u8; CHUNK];
    let mut at = 0u64;
    while at < len {
        let (start, end) = next_data(file, at, len).map_err(fail)?.unwrap_or((len, len));
        let mut hole = start - at;
        while hole > 0 {
            let piece = piece(hole);
            hasher.update(&zeros[..piece]);
            hole -= bytes(piece);
            watch(0)?;
        }
        at = start;
        while at < end {
            let part = &mut buffer[..piece(end - at)];
            file.read_exact_at(part, at).map_err(fail)?;
            hasher.update(part);
            at += bytes(part.len());
            watch(bytes(part.len()))?;
        }
    }
    seek(file, SeekFrom::Start(0)).map_err(|error| fail(error.into()))?;
    Ok(ContentId::from_hash(hasher.finalize().as_bytes()))
}

/// At most a chunk of `left`.
pub(crate) fn piece(left: u64) -> usize {
    usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK))
}

/// A buffer's length as a file offset counts.
pub(crate) fn bytes(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// What a file occupies: `st_blocks` counts 512 bytes whatever the filesystem's block is (stat(2)).
pub(crate) fn allocated(file: &File, path: &Path) -> Result<Bytes> {
    let meta = file.metadata().map_err(|error| Error::io("stat", path, error))?;
    Ok(Bytes(meta.blocks().saturating_mul(512)))
}

/// The stretches of `data` that hold something, block by block, each with where it begins.
pub(crate) fn stretches(data: &[u8], block: usize) -> impl Iterator<Item = (usize, &[u8])> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let blocks = data[at..].chunks(block);
        at += blocks.take_while(|block| is_zero(block)).map(<[u8]>::len).sum::<usize>();
        let blocks = data[at..].chunks(block);
        let len = blocks.take_while(|block| !is_zero(block)).map(<[u8]>::len).sum::<usize>();
        let start = at;
        at += len;
        (len > 0).then(|| (start, &data[start..at]))
    })
}

/// Whether there is nothing but zeros, a word at a time.
pub(crate) fn is_zero(data: &[u8]) -> bool {
    // Most pages that are not zero show it early; the rest is compared at memory speed.
    let (head, tail) = data.split_at(data.len().min(64));
    head.iter().all(|&byte| byte == 0)
        && tail.chunks(64).all(|line| line.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_and_written_zeros_have_one_content() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            let path = dir.path().join(name);
            (File::options().read(true).write(true).create_new(true).open(&path).unwrap(), path)
        };
        let (sparse, sparse_path) = open("sparse");
        sparse.set_len(5 << 20).unwrap();
        sparse.write_all_at(b"middle", 2 << 20).unwrap();
        let (dense, dense_path) = open("dense");
        let mut all = vec![0u8; 5 << 20];
        all[2 << 20..][..6].copy_from_slice(b"middle");
        dense.write_all_at(&all, 0).unwrap();
        let id = content_id(&sparse, &sparse_path).unwrap();
        assert_eq!(id, content_id(&dense, &dense_path).unwrap());
        assert_eq!(id, ContentId::from_hash(blake3::hash(&all).as_bytes()));
    }

    #[test]
    fn stretches_are_what_is_between_zero_blocks() {
        let found =
            |data: &[u8]| stretches(data, 2).map(|(at, data)| (at, data.to_vec())).collect::<Vec<_>>();
        assert_eq!(found(&[0, 0, 1, 0, 0, 2, 0, 0, 3]), [(2, vec![1, 0, 0, 2]), (8, vec![3])]);
        assert_eq!(found(&[0, 0, 0]), []);
        assert_eq!(found(&[]), []);
    }

    #[test]
    fn one_byte_anywhere_is_not_zero() {
        let mut page = vec![0u8; 4096];
        assert!(is_zero(&page));
        for at in [0, 1, 63, 64, 65, 2000, 4095] {
            page[at] = 1;
            assert!(!is_zero(&page), "{at}");
            page[at] = 0;
        }
        assert!(is_zero(&[]));
    }
}
