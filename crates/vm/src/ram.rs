//! A guest's RAM, seen from outside its VMM.
//!
//! The base is mapped privately, so a page that the guest (or this room) wrote is an anonymous page of the VMM, and all
//! others are the base's own, shared by every machine on it. The kernel tells them apart; see `sys::host_pagemap`.

use std::io;
use std::sync::Arc;

use sys::host_pagemap::{AddressRange, Pagemap};
use sys::host_process::Pidfd;
use sys::host_vmread;
use types::{Bytes, RamOffset, RamRun};

use crate::maps::Area;

/// The RAM of one machine; look at it while the machine is paused, else it changes under the reader. Cheap to clone.
/// Every call fails once the process is gone.
#[derive(Debug, Clone)]
pub struct GuestRam {
    inner: Arc<Inner>,
}

/// A shorter run is looked at again: that is quicker than to look at what is before and after it by itself.
const WORTH_SKIPPING: Bytes = Bytes(256 << 10);

#[derive(Debug)]
struct Inner {
    process: Pidfd,
    pagemap: Pagemap,
    areas: Vec<Area>,
    len: u64,
}

impl GuestRam {
    pub(crate) fn new(process: Pidfd, pagemap: Pagemap, areas: Vec<Area>) -> Self {
        let len = areas.iter().map(|area| area.len).sum();
        Self { inner: Arc::new(Inner { process, pagemap, areas, len }) }
    }

    /// How much RAM the guest has.
    #[must_use]
    pub fn len(&self) -> Bytes {
        Bytes(self.inner.len)
    }

    /// Whether there is none, which no machine has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.len == 0
    }

    /// The runs of pages that differ from the base, in ascending order, neighbours merged.
    ///
    /// # Errors
    /// The process is gone, or this user may not look at it.
    pub fn private_runs(&self) -> io::Result<Vec<RamRun>> {
        self.private_runs_beside(&[])
    }

    /// As [`GuestRam::private_runs`], without looking again at long runs that are `known` (ascending) to differ: the
    /// kernel looks at some ten pages in a microsecond. A page that was given up since is told as it was: it reads as
    /// the base's.
    ///
    /// # Errors
    /// As [`GuestRam::private_runs`].
    pub fn private_runs_beside(&self, known: &[RamRun]) -> io::Result<Vec<RamRun>> {
        let (mut runs, mut at) = (Vec::new(), 0);
        for run in known.iter().filter(|run| run.len >= WORTH_SKIPPING) {
            self.look(at, run.start.0, &mut runs)?;
            push(&mut runs, run.start.0, run.len.0);
            at = run.start.0 + run.len.0;
        }
        self.look(at, self.inner.len, &mut runs)?;
        // The page map of a process that has ended reads as empty, which must not be taken for an unchanged guest.
        self.require_alive()?;
        Ok(runs)
    }

    /// Adds the private runs from `start` to `end`.
    fn look(&self, start: u64, end: u64, runs: &mut Vec<RamRun>) -> io::Result<()> {
        for area in &self.inner.areas {
            let (from, to) = (start.max(area.offset), end.min(area.offset + area.len));
            if from >= to {
                continue;
            }
            let address = |offset| area.address + (offset - area.offset);
            let range = AddressRange { start: address(from), end: address(to) };
            for found in self.inner.pagemap.private_ranges(range).map_err(|error| self.explain(error))? {
                push(runs, found.start - area.address + area.offset, found.end - found.start);
            }
        }
        Ok(())
    }

    /// Reads `buf.len()` bytes at `at`.
    ///
    /// # Errors
    /// Out of range, the process is gone, or this user may not read it.
    pub fn read(&self, at: RamOffset, buf: &mut [u8]) -> io::Result<()> {
        self.read_runs(&[RamRun { start: at, len: Bytes(buf.len() as u64) }], buf)
    }

    /// Reads runs one after the other into `buf`, whose length is theirs together; one system call for a thousand.
    ///
    /// # Errors
    /// As [`GuestRam::read`].
    pub fn read_runs(&self, runs: &[RamRun], buf: &mut [u8]) -> io::Result<()> {
        let ranges = self.ranges(runs)?;
        host_vmread::read_memory(self.inner.process.pid(), &ranges, buf)
            .map_err(|error| self.explain(error))?;
        // Checked after reading: a number that was given to another process meanwhile cannot go unnoticed.
        self.require_alive()
    }

    /// Reads as [`GuestRam::read_runs`] does, by two threads when there is much to read: one cannot copy as fast as the
    /// memory gives. `buf` should have its memory already ([`sys::host_buffer::PageBuffer`]).
    ///
    /// # Errors
    /// As [`GuestRam::read`].
    pub fn read_runs_parallel(&self, runs: &[RamRun], buf: &mut [u8]) -> io::Result<()> {
        let ranges = self.ranges(runs)?;
        host_vmread::read_memory_parallel(self.inner.process.pid(), &ranges, buf)
            .map_err(|error| self.explain(error))?;
        self.require_alive()
    }

    /// Writes `data` at `at`; the pages become private, the base stays as it is.
    ///
    /// # Errors
    /// Out of range, the process is gone, or this user may not write to it.
    pub fn write(&self, at: RamOffset, data: &[u8]) -> io::Result<()> {
        self.write_runs(&[RamRun { start: at, len: Bytes(data.len() as u64) }], data)
    }

    /// Writes `data` over runs one after the other; its length is theirs together.
    ///
    /// # Errors
    /// As [`GuestRam::write`].
    pub fn write_runs(&self, runs: &[RamRun], data: &[u8]) -> io::Result<()> {
        let ranges = self.ranges(runs)?;
        // Checked before writing: nobody else's memory is written to.
        self.require_alive()?;
        host_vmread::write_memory(self.inner.process.pid(), &ranges, data)
            .map_err(|error| self.explain(error))
    }

    fn ranges(&self, runs: &[RamRun]) -> io::Result<Vec<AddressRange>> {
        let mut ranges = Vec::with_capacity(runs.len());
        for run in runs {
            locate(&self.inner.areas, run.start.0, run.len.0, &mut ranges).ok_or_else(|| {
                let text =
                    format!("{} bytes at {:#x} are not all in the guest's RAM", run.len.0, run.start.0);
                io::Error::new(io::ErrorKind::InvalidInput, text)
            })?;
        }
        Ok(ranges)
    }

    fn require_alive(&self) -> io::Result<()> {
        if self.inner.process.is_alive()? { Ok(()) } else { Err(self.gone()) }
    }

    fn gone(&self) -> io::Error {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("the VMM (process {}) is gone", self.inner.process.pid()),
        )
    }

    fn explain(&self, error: io::Error) -> io::Error {
        match self.inner.process.is_alive() {
            Ok(false) => self.gone(),
            _ if error.kind() == io::ErrorKind::PermissionDenied => not_permitted(self.inner.process.pid()),
            _ => error,
        }
    }
}

/// The words for a VMM whose memory this process may not touch.
pub(crate) fn not_permitted(pid: u32) -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "this user may not reach into the VMM (process {pid}); run the daemon as the user that started it, and \
             with CAP_SYS_PTRACE where kernel.yama.ptrace_scope is above 1"
        ),
    )
}

/// Adds a run that does not begin before the last one's end.
fn push(runs: &mut Vec<RamRun>, start: u64, len: u64) {
    match runs.last_mut() {
        Some(last) if last.start.0 + last.len.0 == start => last.len.0 += len,
        _ => runs.push(RamRun { start: RamOffset(start), len: Bytes(len) }),
    }
}

/// Adds where `len` bytes from `offset` on lie; `None` when not all of them are in `areas`, which are ascending.
fn locate(areas: &[Area], mut offset: u64, mut len: u64, into: &mut Vec<AddressRange>) -> Option<()> {
    while len > 0 {
        let area = areas.iter().find(|area| (area.offset..area.offset + area.len).contains(&offset))?;
        let skip = offset - area.offset;
        let here = len.min(area.len - skip);
        into.push(AddressRange { start: area.address + skip, end: area.address + skip + here });
        offset += here;
        len -= here;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const AREAS: [Area; 2] = [
        Area { offset: 0, len: 0x3000, address: 0x7000_0000 },
        Area { offset: 0x3000, len: 0x1000, address: 0x5000_0000 },
    ];

    fn at(offset: u64, len: u64) -> Option<Vec<(u64, u64)>> {
        let mut ranges = Vec::new();
        locate(&AREAS, offset, len, &mut ranges)?;
        Some(ranges.into_iter().map(|range| (range.start, range.end)).collect())
    }

    #[test]
    fn offsets_become_addresses_across_areas() {
        assert_eq!(at(0x2000, 0x2000), Some(vec![(0x7000_2000, 0x7000_3000), (0x5000_0000, 0x5000_1000)]));
        assert_eq!(at(0, 0), Some(vec![]));
        assert_eq!(at(0x3fff, 2), None);
        assert_eq!(at(u64::MAX, 2), None);
    }

    /// A file mapped privately by hand would need unsafe code here; this process's own data segment is one already.
    #[test]
    fn a_dead_process_has_no_ram_rather_than_unchanged_ram() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let pid = child.id();
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let stack = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
        let (start, end) = stack.split_once(' ').unwrap().0.split_once('-').unwrap();
        let (start, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
        let area = Area { offset: 0, len: end - start, address: start };
        let ram = GuestRam::new(Pidfd::open(pid).unwrap(), Pagemap::open(pid).unwrap(), vec![area]);

        let runs = ram.private_runs().unwrap();
        assert!(!runs.is_empty());
        let mut page = vec![0u8; 4096];
        ram.read(runs[0].start, &mut page).unwrap();
        ram.write(runs[0].start, &page).unwrap();
        assert_eq!(ram.read(ram_end(&ram), &mut page).unwrap_err().kind(), io::ErrorKind::InvalidInput);

        child.kill().unwrap();
        child.wait().unwrap();
        for error in [
            ram.private_runs().unwrap_err(),
            ram.read(runs[0].start, &mut page).unwrap_err(),
            ram.write(runs[0].start, &page).unwrap_err(),
        ] {
            assert!(error.to_string().contains("is gone"), "{error}");
        }
    }

    #[test]
    fn what_is_known_to_differ_is_told_again_with_what_differs_since() {
        const MIB: usize = 1 << 20;
        let mut memory = vec![0u8; 16 * MIB];
        let skip = memory.as_ptr().align_offset(4096);
        let memory = &mut memory[skip..skip + 15 * MIB];
        let address = memory.as_ptr().addr() as u64;
        // Two areas that are the other way round in the guest.
        let areas = vec![
            Area { offset: 0, len: 5 << 20, address: address + (10 << 20) },
            Area { offset: 5 << 20, len: 10 << 20, address },
        ];
        let me = std::process::id();
        let ram = GuestRam::new(Pidfd::open(me).unwrap(), Pagemap::open(me).unwrap(), areas);
        memory[2 * MIB..4 * MIB].fill(1);
        memory[6 * MIB..6 * MIB + 4096].fill(1);
        memory[11 * MIB..13 * MIB].fill(1);
        let known = ram.private_runs().unwrap();
        assert!(known.iter().any(|run| run.len >= WORTH_SKIPPING), "{known:?}");
        assert_eq!(ram.private_runs_beside(&known).unwrap(), known);
        // Before, between, after, and touching what is known.
        for at in [0, 4, 8, 10, 13, 14] {
            memory[at * MIB..at * MIB + 4096].fill(2);
        }
        let now = ram.private_runs_beside(&known).unwrap();
        assert_ne!(now, known);
        assert_eq!(now, ram.private_runs().unwrap());
    }

    fn ram_end(ram: &GuestRam) -> RamOffset {
        RamOffset(ram.len().0)
    }
}
