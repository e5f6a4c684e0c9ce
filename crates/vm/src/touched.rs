//! Which pages of files a VMM has in its address space: of its program and libraries, and of the RAM base. That is what a
//! wake has to read, and it is much the same each time, so it can be read in order before it is asked for.
//!
//! # Invariants
//! What was written down is never trusted: a file is read ahead only if it is the one that was seen (inode, length, time of
//! change), and nothing but time depends on it.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{Advice, fadvise};
use serde::{Deserialize, Serialize};
use sys::host_pagemap::{AddressRange, Pagemap};
use sys::host_process::Pidfd;
use types::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::{Machine, maps, process};

const PAGE: u64 = 4096;
/// Pages between two that were touched which are read with them: one longer read is quicker than two.
const GAP: u64 = 8;
/// The kernel reads no more than its read-ahead window for one piece of advice, so advice is given in such pieces.
const PIECE: u64 = 128 << 10;
/// More than any VMM maps; beyond it something is wrong.
const MOST_FILES: usize = 1024;

/// Pages of files, as one process had them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    files: Vec<FilePages>,
}

/// Pages of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FilePages {
    path: String,
    inode: u64,
    len_bytes: u64,
    changed_ns: i64,
    /// First page and how many, ascending.
    runs: Vec<(u64, u64)>,
}

/// How much of a file is read ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// The pages that were touched.
    Touched,
    /// Every page of every file of which one was touched.
    Everything,
}

/// What came of reading ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadAhead {
    /// So much was asked for; what was there already is not read again.
    pub asked: Bytes,
    /// Files that are not those that were seen any more.
    pub stale: usize,
}

/// Looks at a VMM later, without keeping it.
#[derive(Debug)]
pub struct Looker {
    process: Pidfd,
}

impl Machine {
    /// Who can look later at what this VMM has touched.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn looker(&self) -> Result<Looker> {
        let cloned = self.inner.process.try_clone();
        let process = cloned.map_err(|error| Error::io("watching the VMM", "its process", error))?;
        Ok(Looker { process })
    }
}

impl Looker {
    /// The pages that the VMM has touched so far.
    ///
    /// # Errors
    /// It is gone, or belongs to somebody else.
    pub fn look(&self) -> Result<Touched> {
        const OP: &str = "looking at what the VMM has touched";
        let pid = self.process.pid();
        let io = |error| Error::io(OP, format!("process {pid}"), error);
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"));
        let pagemap = Pagemap::open(pid);
        // What was opened by number is the VMM's if the VMM still has the number now.
        if !self.process.is_alive().map_err(io)? {
            return Err(process::died(OP, Path::new("")));
        }
        let pagemap = pagemap.map_err(io)?;
        Touched::of_maps(&maps.map_err(io)?, |range| pagemap.file_ranges(range)).map_err(io)
    }
}

impl Touched {
    fn of_maps(
        maps: &str,
        present: impl Fn(AddressRange) -> io::Result<Vec<AddressRange>>,
    ) -> io::Result<Self> {
        let mut files: BTreeMap<(&str, u64), Vec<(u64, u64)>> = BTreeMap::new();
        for mapping in maps::of_files(maps) {
            for found in present(mapping.range)? {
                let first = (mapping.offset + (found.start - mapping.range.start)) / PAGE;
                let pages = (found.end - found.start) / PAGE;
                files.entry((mapping.path, mapping.inode)).or_default().push((first, pages));
            }
        }
        let files = files.into_iter().filter_map(|((path, inode), runs)| {
            // Replaced or removed since it was mapped: there is nothing to be read under that name.
            let meta = std::fs::metadata(path).ok().filter(|meta| meta.is_file() && meta.ino() == inode)?;
            let (len_bytes, changed_ns) = (meta.len(), changed(&meta));
            Some(FilePages { path: path.to_owned(), inode, len_bytes, changed_ns, runs: merged(runs) })
        });
        Ok(Self { files: files.take(MOST_FILES).collect() })
    }

    /// As text, to be kept.
    ///
    /// # Errors
    /// `Protocol`: it cannot be written as JSON, which does not happen.
    pub fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|error| {
            Error::new(ErrorKind::Protocol, "writing down what a VMM touched", error.to_string())
        })
    }

    /// What was kept. `None`: it is not what [`encode`](Self::encode) made.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok().filter(|touched: &Self| touched.files.len() <= MOST_FILES)
    }

    /// How much it is.
    #[must_use]
    pub fn size(&self) -> Bytes {
        let runs = self.files.iter().flat_map(|file| &file.runs);
        Bytes(runs.fold(0, |sum: u64, (_, pages)| sum.saturating_add(pages.saturating_mul(PAGE))))
    }

    /// Asks the kernel to read it, in order; returns when all was asked for, which may be before it is read.
    #[must_use]
    pub fn read_ahead(&self, extent: Extent) -> ReadAhead {
        let mut done = ReadAhead::default();
        for file in &self.files {
            match file.read_ahead(extent) {
                Some(asked) => done.asked.0 = done.asked.0.saturating_add(asked),
                None => done.stale += 1,
            }
        }
        done
    }
}

impl FilePages {
    /// How many bytes were asked for; `None` if it is another file.
    fn read_ahead(&self, extent: Extent) -> Option<u64> {
        // Whatever has the name by now: opening it waits for nobody.
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = File::options().read(true).custom_flags(flags).open(&self.path).ok()?;
        let meta = file.metadata().ok()?;
        let same = meta.is_file()
            && (meta.ino(), meta.len(), changed(&meta)) == (self.inode, self.len_bytes, self.changed_ns);
        if !same {
            return None;
        }
        let everything = [(0, self.len_bytes.div_ceil(PAGE))];
        let runs = if extent == Extent::Touched { &self.runs[..] } else { &everything[..] };
        let mut asked = 0u64;
        for (first, pages) in runs {
            let mut at = first.saturating_mul(PAGE);
            let end = at.saturating_add(pages.saturating_mul(PAGE)).min(self.len_bytes);
            while at < end {
                let len = PIECE.min(end - at);
                fadvise(&file, at, std::num::NonZeroU64::new(len), Advice::WillNeed).ok()?;
                asked += len;
                at += len;
            }
        }
        Some(asked)
    }
}

/// When a file was last changed.
fn changed(meta: &Metadata) -> i64 {
    meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec())
}

/// Ascending, with what overlaps, touches, or is only a small gap apart put together.
fn merged(mut runs: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    runs.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for (first, pages) in runs {
        match merged.last_mut() {
            Some((start, len)) if first <= *start + *len + GAP => *len = (*len).max(first + pages - *start),
            _ => merged.push((first, pages)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &Path, name: &str, pages: usize) -> (String, Metadata) {
        let path = dir.join(name);
        std::fs::write(&path, vec![1u8; pages * 4096]).unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        (path.to_str().unwrap().to_owned(), meta)
    }

    #[test]
    fn pages_of_several_mappings_of_one_file_are_told_once_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let (path, meta) = file(dir.path(), "lib with a space.so", 64);
        let inode = meta.ino();
        let maps = format!(
            "10000-14000 r-xp 00020000 fe:00 {inode}    {path}\n\
             20000-24000 r--p 00000000 fe:00 {inode}    {path}\n\
             30000-34000 rw-p 00000000 00:00 0\n\
             40000-44000 r--p 00000000 fe:00 {inode}    {path} (deleted)\n\
             50000-54000 r--p 00000000 fe:00 1    /no/such\n\
             60000-64000 r--p 00000000 00:00 0    [vdso]\n"
        );
        let touched = Touched::of_maps(&maps, |range| {
            Ok(vec![AddressRange { start: range.start + PAGE, end: range.start + 3 * PAGE }])
        })
        .unwrap();
        assert_eq!(touched.files.len(), 1, "{touched:?}");
        assert_eq!(touched.files[0].runs, [(1, 2), (33, 2)]);
        assert_eq!(touched.size(), Bytes(4 * PAGE));
        assert_eq!(Touched::decode(&touched.encode().unwrap()), Some(touched.clone()));
        assert_eq!(touched.read_ahead(Extent::Touched), ReadAhead { asked: Bytes(4 * PAGE), stale: 0 });
        assert_eq!(touched.read_ahead(Extent::Everything), ReadAhead { asked: Bytes(64 * PAGE), stale: 0 });
    }

    #[test]
    fn another_file_of_that_name_and_pages_that_it_has_not_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, meta) = file(dir.path(), "a", 4);
        let seen = |inode, len_bytes, runs| Touched {
            files: vec![FilePages { path: path.clone(), inode, len_bytes, changed_ns: changed(&meta), runs }],
        };
        let ahead = |touched: Touched| touched.read_ahead(Extent::Touched);
        assert_eq!(ahead(seen(meta.ino(), 4 * PAGE, vec![(2, u64::MAX)])).asked, Bytes(2 * PAGE));
        assert_eq!(ahead(seen(meta.ino(), 4 * PAGE, vec![(u64::MAX, 1)])).asked, Bytes(0));
        for other in [seen(meta.ino() + 1, 4 * PAGE, vec![(0, 1)]), seen(meta.ino(), PAGE, vec![(0, 1)])] {
            assert_eq!(ahead(other), ReadAhead { asked: Bytes(0), stale: 1 });
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(ahead(seen(meta.ino(), 4 * PAGE, vec![(0, 1)])).stale, 1);
    }

    #[test]
    fn what_is_not_a_record_is_none() {
        for bytes in [&b""[..], b"{}", b"[1]", b"{\"files\":[{\"path\":1}]}"] {
            assert_eq!(Touched::decode(bytes), None);
        }
    }

    #[test]
    fn small_gaps_are_read_through() {
        assert_eq!(merged(vec![(20, 1), (0, 2), (1, 4), (6, 1), (40, 1)]), [(0, 7), (20, 1), (40, 1)]);
    }
}
