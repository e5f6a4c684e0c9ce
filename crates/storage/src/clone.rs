//! Copies of files: shared extents where the filesystem can, else data without its holes.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use types::{Bytes, CloneMethod, PAGE_SIZE};

use crate::error::{Error, Result};
use crate::sparse;

/// How a clone was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloneReport {
    /// The way taken.
    pub method: CloneMethod,
    /// Bytes that were copied; 0 for shared extents.
    pub bytes_copied: Bytes,
    /// How long it took.
    pub elapsed: Duration,
}

/// Which ways may be tried; the first is what everybody wants, the others are what a filesystem may force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Reflink,
    CopyRange,
    ReadWrite,
}

/// Makes `to` (new, mode 0600) a copy of `from`: FICLONE, else its data segments by `copy_file_range`, else by reading
/// and writing. Holes stay holes. Nothing is synced.
///
/// # Errors
/// `Exists`, `NoSpace`, or what the system says; `to` is then not left behind.
pub fn clone_file(from: &Path, to: &Path) -> Result<CloneReport> {
    clone_from(Way::Reflink, from, to)
}

fn clone_from(way: Way, from: &Path, to: &Path) -> Result<CloneReport> {
    let source = File::open(from).map_err(|error| Error::io("open", from, error))?;
    let target = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(|error| Error::io("create", to, error))?;
    clone_open(way, &source, &target, to).inspect_err(|_| {
        // It is a copy that nobody was promised.
        let _ = std::fs::remove_file(to);
    })
}

fn clone_open(way: Way, source: &File, target: &File, to: &Path) -> Result<CloneReport> {
    let begun = Instant::now();
    if way == Way::Reflink {
        match rustix::fs::ioctl_ficlone(target, source) {
            Ok(()) => {
                return Ok(CloneReport {
                    method: CloneMethod::Reflink,
                    bytes_copied: Bytes(0),
                    elapsed: begun.elapsed(),
                });
            }
            Err(error) if !is_refusal(error) => return Err(Error::io("clone to", to, error)),
            Err(_) => {}
        }
    }
    let copied = copy_data(way, source, target).map_err(|error| Error::io("copy to", to, error))?;
    Ok(CloneReport { method: CloneMethod::SparseCopy, bytes_copied: Bytes(copied), elapsed: begun.elapsed() })
}

/// Whether the kernel says "not this way" (ioctl_ficlone(2), copy_file_range(2)): other filesystem, no such ioctl, a
/// swap file, a mix of checksummed and not, a seccomp filter. A full disk is none of these.
fn is_refusal(error: Errno) -> bool {
    matches!(
        error,
        Errno::OPNOTSUPP
            | Errno::XDEV
            | Errno::INVAL
            | Errno::NOTTY
            | Errno::TXTBSY
            | Errno::PERM
            | Errno::ACCESS
            | Errno::NOSYS
            | Errno::BADF
            | Errno::ISDIR
    )
}

fn copy_data(way: Way, source: &File, target: &File) -> std::io::Result<u64> {
    let len = source.metadata()?.len();
    target.set_len(len)?;
    let mut way = way.max(Way::CopyRange);
    let mut copied = 0;
    let mut at = 0;
    while let Some((start, end)) = sparse::next_data(source, at, len)? {
        let mut from = start;
        while way == Way::CopyRange && from < end {
            let mut to = from;
            let left = usize::try_from(end - from).unwrap_or(usize::MAX);
            let mut read = from;
            match rustix::fs::copy_file_range(source, Some(&mut read), target, Some(&mut to), left) {
                // Some filesystems answer 0 in the middle of a file; reading tells data from its end.
                Ok(0) => way = Way::ReadWrite,
                Ok(done) => from += sparse::bytes(done),
                Err(Errno::INTR) => {}
                Err(error) if is_refusal(error) => way = Way::ReadWrite,
                Err(error) => return Err(error.into()),
            }
        }
        copied += from - start;
        copied += read_write(source, target, from, end)?;
        at = end;
    }
    Ok(copied)
}

/// Copies by reading and writing; blocks of zeros are left as holes, for filesystems that cannot tell them.
fn read_write(source: &File, target: &File, from: u64, to: u64) -> std::io::Result<u64> {
    let block = usize::try_from(PAGE_SIZE).unwrap_or(4096);
    let mut buffer = vec![0u8; if from < to { sparse::piece(to - from) } else { 0 }];
    let mut copied = 0;
    let mut at = from;
    while at < to {
        let part = &mut buffer[..sparse::piece(to - at)];
        source.read_exact_at(part, at)?;
        for (start, data) in sparse::stretches(part, block) {
            target.write_all_at(data, at + sparse::bytes(start))?;
            copied += sparse::bytes(data.len());
        }
        at += sparse::bytes(part.len());
    }
    Ok(copied)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn every_way_gives_the_same_bytes_and_keeps_the_holes() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        let source = File::options().read(true).write(true).create_new(true).open(&from).unwrap();
        source.set_len((8 << 20) + 123).unwrap();
        source.write_all_at(&[7; 70_000], 1 << 20).unwrap();
        source.write_all_at(b"end", (8 << 20) + 120).unwrap();
        source.sync_all().unwrap();
        let content = std::fs::read(&from).unwrap();
        for way in [Way::Reflink, Way::CopyRange, Way::ReadWrite] {
            let to = dir.path().join(format!("{way:?}"));
            let report = clone_from(way, &from, &to).unwrap();
            assert_eq!(std::fs::read(&to).unwrap(), content, "{way:?}");
            let meta = std::fs::metadata(&to).unwrap();
            assert!(meta.blocks() * 512 < 1 << 20, "{way:?} lost its holes: {} blocks", meta.blocks());
            assert_eq!(meta.mode() & 0o777, 0o600);
            let shared = report.method == CloneMethod::Reflink;
            assert_eq!(report.bytes_copied == Bytes(0), shared, "{report:?}");
        }
    }

    #[test]
    fn a_clone_never_replaces_and_a_failed_one_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        assert_eq!(clone_file(&from, &to).unwrap_err().kind(), crate::ErrorKind::NotFound);
        assert!(!to.exists());
        std::fs::write(&from, "x").unwrap();
        std::fs::write(&to, "y").unwrap();
        assert_eq!(clone_file(&from, &to).unwrap_err().kind(), crate::ErrorKind::Exists);
        assert_eq!(std::fs::read(&to).unwrap(), b"y");
    }
}
