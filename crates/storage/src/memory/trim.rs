//! What a guest has given back: pages that are zero where its base is, too, need not be kept.
//!
//! A guest that clears what it frees leaves zeros where it had data. Under most of them the base has a hole, so that
//! without them the memory is the same.

use std::fs::File;
use std::io;

use types::{Bytes, RamOffset, RamRun};

use super::PageSource;
use super::write::{PAGE, private_runs};
use crate::error::{Error, Result};
use crate::manifest::RamBase;
use crate::sparse;
use crate::store::Store;

/// Private memory above which it pays to look for such pages: a read of all of them, a millisecond for 4 MiB.
pub const TRIM_ABOVE: Bytes = Bytes(8 << 20);

/// Read at once: 4 MiB.
const PIECE: u64 = 4 << 20;

/// A guest's memory without the pages that are zero over a hole of its base.
pub struct Trimmed<'a> {
    source: &'a dyn PageSource,
    runs: Vec<RamRun>,
}

impl Store {
    /// Looks at the private pages of a paused guest that lies over `under`.
    ///
    /// # Errors
    /// `Corrupt` for what lies under it, or what the source or the system says.
    pub fn trimmed<'a>(&self, under: &RamBase, source: &'a dyn PageSource) -> Result<Trimmed<'a>> {
        let path = self.ram_base_file(under)?.unwrap_or_else(|| self.root().to_owned());
        let read = |error| Error::io("read guest memory over", &path, error);
        let base = match under {
            RamBase::Zero => None,
            RamBase::Own { .. } | RamBase::Template { .. } => {
                Some(File::open(&path).map_err(|error| Error::io("open", &path, error))?)
            }
        };
        let (mut runs, mut buffer) = (Vec::new(), Vec::new());
        let mut data = Data { file: base.as_ref(), len: source.len().0, next: Some((0, 0)) };
        for run in private_runs(source, &path)? {
            let (mut at, end) = (run.start.0, run.start.0 + run.len.0);
            while at < end {
                let (start, stop) = data.after(at).map_err(read)?.unwrap_or((end, end));
                if start <= at {
                    // The base has something here: even zeros are news.
                    keep(&mut runs, at, stop.min(end));
                    at = stop.min(end);
                    continue;
                }
                let len = (start.min(end) - at).min(PIECE);
                buffer.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
                source
                    .read_runs(&[RamRun { start: RamOffset(at), len: Bytes(len) }], &mut buffer)
                    .map_err(read)?;
                for (from, pages) in sparse::stretches(&buffer, PAGE) {
                    let from = at + sparse::bytes(from);
                    keep(&mut runs, from, from + sparse::bytes(pages.len()));
                }
                at += len;
            }
        }
        Ok(Trimmed { source, runs })
    }
}

fn keep(runs: &mut Vec<RamRun>, from: u64, to: u64) {
    match runs.last_mut() {
        Some(last) if last.start.0 + last.len.0 == from => last.len.0 += to - from,
        _ => runs.push(RamRun { start: RamOffset(from), len: Bytes(to - from) }),
    }
}

/// Where a base has data, asked from low to high.
struct Data<'a> {
    file: Option<&'a File>,
    len: u64,
    next: Option<(u64, u64)>,
}

impl Data<'_> {
    /// The next stretch of data that ends after `at`, widened to whole pages.
    fn after(&mut self, at: u64) -> io::Result<Option<(u64, u64)>> {
        let Some(file) = self.file else { return Ok(None) };
        let page = sparse::bytes(PAGE);
        while let Some((_, end)) = self.next.filter(|(_, end)| *end <= at) {
            let found = sparse::next_data(file, end.max(at), self.len)?;
            self.next =
                found.map(|(start, end)| (start / page * page, end.next_multiple_of(page).min(self.len)));
        }
        Ok(self.next)
    }
}

impl Trimmed<'_> {
    /// How much is to be kept.
    #[must_use]
    pub fn kept(&self) -> Bytes {
        Bytes(self.runs.iter().map(|run| run.len.0).sum())
    }
}

impl PageSource for Trimmed<'_> {
    fn len(&self) -> Bytes {
        self.source.len()
    }

    fn private_runs(&self) -> io::Result<Vec<RamRun>> {
        Ok(self.runs.clone())
    }

    fn read(&self, at: RamOffset, buf: &mut [u8]) -> io::Result<()> {
        self.source.read(at, buf)
    }

    fn read_runs(&self, runs: &[RamRun], buf: &mut [u8]) -> io::Result<()> {
        self.source.read_runs(runs, buf)
    }
}
