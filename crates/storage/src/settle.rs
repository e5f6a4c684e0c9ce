//! Files that are cloned again and again are kept in few large extents: a clone costs what its extents cost, and more
//! with every clone that is there already (docs/decisions/0006-images-uncompressed-in-large-extents.md).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, IFlags, fallocate, ioctl_getflags, ioctl_setflags};
use sys::host_fiemap::Mapper;

use crate::durable::{self, Staged};
use crate::error::{Error, Result};
use crate::sparse::{self, Segment};

/// `FS_NOCOMP_FL` of `linux/fs.h`.
const NO_COMPRESSION: IFlags = IFlags::from_bits_retain(0x400);
/// The largest extent that btrfs and ext4 make.
const LARGEST_EXTENT: u64 = 128 << 20;
/// Zeros count as a hole from this length on: shorter ones would cost an extent to save a few KiB.
const LEAST_HOLE: usize = 64 << 10;

/// Asks that what is written to the empty file from now on be stored as it is: a filesystem that compresses stores an
/// extent for every 128 KiB. Where that means nothing, nothing changes.
pub(crate) fn store_plainly(file: &File) {
    // What cannot be asked for is made up for by `settled`, if it matters at all.
    if let Ok(flags) = ioctl_getflags(file) {
        let _ = ioctl_setflags(file, flags | NO_COMPRESSION);
    }
}

/// How a file lies on the disk, and how it could.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lie {
    /// Extents as the filesystem tells them; `None` where it does not.
    extents: Option<u64>,
    /// Bytes that it occupies.
    allocated: u64,
    /// What of it is not zeros.
    data: Vec<Segment>,
}

impl Lie {
    fn of(file: &File) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let mut extents = 0;
        let told = Mapper::new().extents(file, |_| extents += 1);
        let meta = file.metadata()?;
        Ok(Self {
            extents: told.ok().map(|()| extents),
            allocated: meta.blocks().saturating_mul(512),
            data: data(file, meta.len())?,
        })
    }

    /// The fewest extents that can hold the data.
    fn least(&self) -> u64 {
        self.data.iter().map(|(start, end)| (end - start).div_ceil(LARGEST_EXTENT)).sum()
    }

    /// Whether writing it anew, once, makes every later clone cheaper, or gives back what zeros occupy.
    fn is_worth_settling(&self) -> bool {
        let bytes: u64 = self.data.iter().map(|(start, end)| end - start).sum();
        let scattered = self.extents.is_some_and(|extents| extents > 2 * self.least() + 8);
        scattered || self.allocated > bytes + bytes / 8 + (1 << 20)
    }
}

/// The stretches of a file that are not zeros, as long as they can be.
fn data(file: &File, len: u64) -> io::Result<Vec<Segment>> {
    let mut found: Vec<Segment> = Vec::new();
    let mut buffer = Vec::new();
    let mut at = 0;
    while let Some((start, end)) = sparse::next_data(file, at, len)? {
        at = start;
        while at < end {
            buffer.resize(sparse::piece(end - at), 0);
            file.read_exact_at(&mut buffer, at)?;
            for (offset, part) in sparse::stretches(&buffer, LEAST_HOLE) {
                let from = at + sparse::bytes(offset);
                let to = from + sparse::bytes(part.len());
                match found.last_mut() {
                    Some(last) if last.1 == from => last.1 = to,
                    _ => found.push((from, to)),
                }
            }
            at += sparse::bytes(buffer.len());
        }
    }
    Ok(found)
}

/// The same content, synced, in a file of its own at `path`, if the one that is there lies badly.
pub(crate) fn settled(file: &File, from: &Path, path: &Path) -> Result<Option<Staged>> {
    let fail = |error: io::Error| Error::io("read", from, error);
    let lie = Lie::of(file).map_err(fail)?;
    if !lie.is_worth_settling() {
        return Ok(None);
    }
    let staged = Staged::create(path.to_owned(), 0o600)?;
    let fail = |error: io::Error| Error::io("write", path, error);
    store_plainly(staged.file());
    staged.file().set_len(file.metadata().map_err(fail)?.len()).map_err(fail)?;
    for &(start, end) in &lie.data {
        copy(file, staged.file(), start, end).map_err(fail)?;
    }
    durable::sync(staged.file(), path)?;
    Ok(Some(staged))
}

/// Copies a stretch into room that was set aside for all of it. What is written there is not compressed either, even
/// where `compress-force` overrules the flag.
fn copy(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    // Only a wish: not every filesystem sets room aside, and a full disk is told by the writes.
    let _ = fallocate(to, FallocateFlags::empty(), start, end - start);
    let mut buffer = Vec::new();
    let mut at = start;
    while at < end {
        buffer.resize(sparse::piece(end - at), 0);
        from.read_exact_at(&mut buffer, at)?;
        to.write_all_at(&buffer, at)?;
        at += sparse::bytes(buffer.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn lie(extents: Option<u64>, allocated: u64, data: &[Segment]) -> Lie {
        Lie { extents, allocated, data: data.to_vec() }
    }

    #[test]
    fn what_lies_well_is_left_and_what_is_scattered_or_full_of_zeros_is_settled() {
        let whole = [(0, 100 * MIB)];
        assert!(!lie(Some(1), 100 * MIB, &whole).is_worth_settling());
        assert!(!lie(Some(10), 100 * MIB, &whole).is_worth_settling());
        assert!(lie(Some(800), 100 * MIB, &whole).is_worth_settling(), "compressed");
        assert!(lie(Some(11), 100 * MIB, &whole).is_worth_settling(), "scattered");
        assert!(lie(Some(1), 1000 * MIB, &whole).is_worth_settling(), "zeros that were written");
        let holes: Vec<_> = (0..300).map(|at| (at * 2 * MIB, (at * 2 + 1) * MIB)).collect();
        assert!(!lie(Some(310), 300 * MIB, &holes).is_worth_settling(), "holes part it");
        assert!(!lie(Some(40), 4096 * MIB, &[(0, 4096 * MIB)]).is_worth_settling(), "extents have an end");
        assert!(!lie(None, 100 * MIB, &whole).is_worth_settling(), "nobody knows");
        assert!(!lie(Some(0), 0, &[]).is_worth_settling());
    }

    #[test]
    fn a_settled_file_reads_the_same_and_its_zeros_are_holes() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let mut content = vec![0u8; 24 << 20];
        content[..100].fill(1);
        content[(9 << 20) - 5..][..1 << 20].fill(2);
        *content.last_mut().unwrap() = 3;
        std::fs::write(&from, &content).unwrap();
        let file = File::open(&from).unwrap();
        file.sync_all().unwrap();
        assert_eq!(data(&file, 24 << 20).unwrap().len(), 3);
        let staged = settled(&file, &from, &to).unwrap().expect("most of it is zeros");
        assert!(std::fs::read(&to).unwrap() == content);
        let blocks = staged.file().metadata().unwrap().blocks();
        assert!(blocks * 512 < 2 << 20, "{blocks} blocks");
        assert_eq!(settled(staged.file(), &to, &from).unwrap().map(drop), None, "it lies well now");
        drop(staged);
        assert!(!to.exists());
    }
}
