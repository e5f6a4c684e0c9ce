//! Making holes: giving back blocks that hold nothing but zeros.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use types::PAGE_SIZE;

use crate::durable;
use crate::error::{Error, Result};
use crate::sparse;

/// Makes a stretch read as zeros: a hole where the filesystem makes them, else zeros that are written.
pub(crate) fn make_hole(file: &File, path: &Path, at: u64, len: u64) -> Result<()> {
    if len == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, len) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => write_zeros(file, path, at, len),
        Err(error) => Err(Error::io("make a hole in", path, error)),
    }
}

fn write_zeros(file: &File, path: &Path, mut at: u64, len: u64) -> Result<()> {
    let end = at + len;
    let zeros = vec![0; sparse::piece(len)];
    while at < end {
        let part = &zeros[..sparse::piece(end - at)];
        durable::write_at(file, path, at, part)?;
        at += sparse::bytes(part.len());
    }
    Ok(())
}

/// Turns blocks of zeros into holes. For small files that another program wrote.
pub(crate) fn dig(file: &File, path: &Path) -> Result<()> {
    let block = usize::try_from(PAGE_SIZE).unwrap_or(4096);
    let fail = |error| Error::io("read", path, error);
    let len = file.metadata().map_err(fail)?.len();
    let mut buffer = Vec::new();
    let mut at = 0;
    while let Some((start, end)) = sparse::next_data(file, at, len).map_err(fail)? {
        let mut from = start - start % PAGE_SIZE;
        while from < end {
            buffer.resize(sparse::piece(end - from), 0);
            file.read_exact_at(&mut buffer, from).map_err(fail)?;
            let mut kept = 0;
            for (offset, data) in sparse::stretches(&buffer, block) {
                make_hole(file, path, from + sparse::bytes(kept), sparse::bytes(offset - kept))?;
                kept = offset + data.len();
            }
            make_hole(file, path, from + sparse::bytes(kept), sparse::bytes(buffer.len() - kept))?;
            from += sparse::bytes(buffer.len());
        }
        at = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_dug_file_reads_the_same_and_holds_less() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mut content = vec![0u8; 3 << 20];
        content[5] = 1;
        content[(1 << 20) + 4096..][..5000].fill(7);
        *content.last_mut().unwrap() = 9;
        std::fs::write(&path, &content).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        file.sync_all().unwrap();
        let before = file.metadata().unwrap().blocks();
        dig(&file, &path).unwrap();
        file.sync_all().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), content);
        let after = file.metadata().unwrap().blocks();
        assert!(after * 512 <= 64 << 10 && after < before, "{before} blocks became {after}");
    }
}
