//! Copies of files: shared extents where the filesystem can, else data without its holes.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use types::{Bytes, CloneMethod, PAGE_SIZE};

use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::sparse;

/// Copied at once: so often is progress told and cancellation looked for.
const STEP: u64 = 8 << 20;

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

/// How far a copy is. Holes do not count: they cost nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloneProgress {
    /// Bytes of data that are at their place.
    pub done: Bytes,
    /// Bytes of data of the source.
    pub total: Bytes,
}

/// What a clone is to do beside copying; by default nothing.
#[derive(Clone, Copy, Default)]
pub struct CloneOptions<'a> {
    /// Sync the copy before it is reported.
    pub sync: bool,
    /// Called after every few MiB that were copied, the last time with `done` equal to `total`; never for shared
    /// extents, which take no time.
    pub progress: Option<&'a dyn Fn(CloneProgress)>,
    /// Once it is true the clone ends with `Cancelled`, within a few MiB.
    pub cancel: Option<&'a AtomicBool>,
}

impl fmt::Debug for CloneOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloneOptions")
            .field("sync", &self.sync)
            .field("progress", &self.progress.is_some())
            .field("cancel", &self.cancel)
            .finish()
    }
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
    clone_file_with(from, to, &CloneOptions::default())
}

/// As [`clone_file`], synced, watched or cancelled as the options say. The name of a synced copy lasts only once its
/// directory is synced too.
///
/// # Errors
/// `Exists`, `NoSpace`, `Cancelled`, or what the system says; `to` is then not left behind.
pub fn clone_file_with(from: &Path, to: &Path, options: &CloneOptions<'_>) -> Result<CloneReport> {
    clone_from(Way::Reflink, from, to, options)
}

/// Copies the data of `source` into the empty file `target`, named `to`, which need not be on the same filesystem.
/// Holes stay holes; a failure leaves what was copied.
pub(crate) fn copy_into(
    source: &File,
    target: &File,
    to: &Path,
    options: &CloneOptions<'_>,
) -> Result<Bytes> {
    clone_open(Way::CopyRange, source, target, to, options).map(|report| report.bytes_copied)
}

/// Makes the empty open file `target`, named `to`, a copy of `source` in the same ways as [`clone_file`].
pub(crate) fn clone_into(source: &File, target: &File, to: &Path) -> Result<CloneReport> {
    clone_open(Way::Reflink, source, target, to, &CloneOptions::default())
}

fn clone_from(way: Way, from: &Path, to: &Path, options: &CloneOptions<'_>) -> Result<CloneReport> {
    let source = File::open(from).map_err(|error| Error::io("open", from, error))?;
    let target = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(|error| Error::io("create", to, error))?;
    clone_open(way, &source, &target, to, options).inspect_err(|_| {
        // It is a copy that nobody was promised.
        let _ = std::fs::remove_file(to);
    })
}

fn clone_open(
    way: Way,
    source: &File,
    target: &File,
    to: &Path,
    options: &CloneOptions<'_>,
) -> Result<CloneReport> {
    let begun = Instant::now();
    let (method, copied) = if way == Way::Reflink && reflink(source, target, to)? {
        (CloneMethod::Reflink, 0)
    } else {
        let mut copy =
            Copy { way: way.max(Way::CopyRange), source, target, options, done: 0, total: 0, written: 0 };
        copy.run().map_err(|halt| match halt {
            Halt::Io(error) => Error::io("copy to", to, error),
            Halt::Cancelled => {
                Error::new(ErrorKind::Cancelled, "copy to", to).because("it was cancelled half-way")
            }
        })?;
        (CloneMethod::SparseCopy, copy.written)
    };
    if options.sync {
        durable::sync(target, to)?;
    }
    Ok(CloneReport { method, bytes_copied: Bytes(copied), elapsed: begun.elapsed() })
}

/// Shares the extents; false when the filesystem refuses that for these two files.
pub(crate) fn reflink(source: &File, target: &File, to: &Path) -> Result<bool> {
    match rustix::fs::ioctl_ficlone(target, source) {
        Ok(()) => Ok(true),
        Err(error) if is_refusal(error) => Ok(false),
        Err(error) => Err(Error::io("clone to", to, error)),
    }
}

/// Whether the kernel says "not this way" (ioctl_ficlone(2), copy_file_range(2)): other filesystem, no such ioctl, a
/// swap file, a mix of checksummed and not, a seccomp filter. A full disk is none of these.
pub(crate) fn is_refusal(error: Errno) -> bool {
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

/// Why a copy did not come to its end.
enum Halt {
    Io(io::Error),
    Cancelled,
}

impl From<io::Error> for Halt {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A copy under way.
struct Copy<'a> {
    way: Way,
    source: &'a File,
    target: &'a File,
    options: &'a CloneOptions<'a>,
    done: u64,
    total: u64,
    written: u64,
}

impl Copy<'_> {
    fn run(&mut self) -> std::result::Result<(), Halt> {
        let len = self.source.metadata()?.len();
        self.target.set_len(len)?;
        if self.options.progress.is_some() {
            self.total = data_bytes(self.source, len)?;
        }
        let mut at = 0;
        while let Some((start, end)) = sparse::next_data(self.source, at, len)? {
            at = start;
            while at < end {
                let step = (end - at).min(STEP);
                self.piece(at, at + step)?;
                at += step;
                self.done += step;
                self.tell();
            }
        }
        Ok(())
    }

    fn tell(&self) {
        if let Some(progress) = self.options.progress {
            // A source that grew holes or data meanwhile is no reason to say more than all.
            progress(CloneProgress { done: Bytes(self.done.min(self.total)), total: Bytes(self.total) });
        }
    }

    fn piece(&mut self, mut from: u64, end: u64) -> std::result::Result<(), Halt> {
        if self.options.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
            return Err(Halt::Cancelled);
        }
        while self.way == Way::CopyRange && from < end {
            let (mut read, mut write) = (from, from);
            let left = usize::try_from(end - from).unwrap_or(usize::MAX);
            match rustix::fs::copy_file_range(
                self.source,
                Some(&mut read),
                self.target,
                Some(&mut write),
                left,
            ) {
                // Some filesystems answer 0 in the middle of a file; reading tells data from its end.
                Ok(0) => self.way = Way::ReadWrite,
                Ok(done) => {
                    from += sparse::bytes(done);
                    self.written += sparse::bytes(done);
                }
                Err(Errno::INTR) => {}
                Err(error) if is_refusal(error) => self.way = Way::ReadWrite,
                Err(error) => return Err(Halt::Io(error.into())),
            }
        }
        self.written += read_write(self.source, self.target, from, end)?;
        Ok(())
    }
}

/// Bytes of the file that are not in holes.
fn data_bytes(file: &File, len: u64) -> io::Result<u64> {
    let (mut sum, mut at) = (0, 0);
    while let Some((start, end)) = sparse::next_data(file, at, len)? {
        sum += end - start;
        at = end;
    }
    Ok(sum)
}

/// Copies by reading and writing; blocks of zeros are left as holes, for filesystems that cannot tell them.
fn read_write(source: &File, target: &File, from: u64, to: u64) -> io::Result<u64> {
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
    use std::cell::RefCell;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const WAYS: [Way; 3] = [Way::Reflink, Way::CopyRange, Way::ReadWrite];

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
        for way in WAYS {
            let to = dir.path().join(format!("{way:?}"));
            let report = clone_from(way, &from, &to, &CloneOptions { sync: true, ..CloneOptions::default() });
            let report = report.unwrap();
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
        assert_eq!(clone_file(&from, &to).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(!to.exists());
        std::fs::write(&from, "x").unwrap();
        std::fs::write(&to, "y").unwrap();
        assert_eq!(clone_file(&from, &to).unwrap_err().kind(), ErrorKind::Exists);
        assert_eq!(std::fs::read(&to).unwrap(), b"y");
    }

    #[test]
    fn a_copy_tells_how_far_it_is_and_ends_when_it_is_cancelled() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        let source = File::options().write(true).create_new(true).open(&from).unwrap();
        source.set_len(256 << 20).unwrap();
        for at in [3u64 << 20, 200 << 20] {
            source.write_all_at(&vec![7; 20 << 20], at).unwrap();
        }
        source.sync_all().unwrap();
        let total = Bytes(40 << 20);
        for way in [Way::CopyRange, Way::ReadWrite] {
            let to = dir.path().join(format!("{way:?}"));
            let seen = RefCell::new(Vec::new());
            let progress = |now: CloneProgress| seen.borrow_mut().push(now);
            let watched = CloneOptions { progress: Some(&progress), ..CloneOptions::default() };
            let report = clone_from(way, &from, &to, &watched).unwrap();
            assert_eq!(report.bytes_copied, total, "{way:?}");
            let seen = seen.into_inner();
            assert!(seen.windows(2).all(|pair| pair[0].done < pair[1].done), "{seen:?}");
            assert!(seen.iter().all(|now| now.total == total));
            assert_eq!(seen.last().unwrap().done, total);
            assert!((5..=8).contains(&seen.len()), "{seen:?}");
            std::fs::remove_file(&to).unwrap();

            let cancel = AtomicBool::new(false);
            let told = RefCell::new(0);
            let progress = |now: CloneProgress| {
                *told.borrow_mut() += 1;
                cancel.store(now.done.0 >= total.0 / 2, Ordering::Relaxed);
            };
            let cancelled =
                CloneOptions { progress: Some(&progress), cancel: Some(&cancel), ..CloneOptions::default() };
            let error = clone_from(way, &from, &to, &cancelled).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
            assert!(told.into_inner() < seen.len(), "it went on after it was cancelled");
            assert!(!to.exists(), "{way:?} left half a copy");
        }
    }
}
