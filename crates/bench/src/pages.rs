//! The memory of a guest, kept by the bench: the same pages can be written again and again, anywhere.

use std::io;

use storage::PageSource;
use types::{Bytes, RamOffset, RamRun};
use vm::GuestRam;

/// Pages that differ from the base, read from a guest that stood still.
#[derive(Debug)]
pub(crate) struct Pages {
    len: Bytes,
    runs: Vec<RamRun>,
    /// Where each run begins in `bytes`.
    starts: Vec<usize>,
    bytes: Vec<u8>,
}

impl Pages {
    pub(crate) fn of(ram: &GuestRam) -> io::Result<Self> {
        let runs = ram.private_runs()?;
        let (mut starts, mut at) = (Vec::with_capacity(runs.len()), 0);
        for run in &runs {
            starts.push(at);
            at += usize::try_from(run.len.0).map_err(io::Error::other)?;
        }
        let mut bytes = vec![0; at];
        ram.read_runs(&runs, &mut bytes)?;
        Ok(Self { len: ram.len(), runs, starts, bytes })
    }

    /// How much it is.
    pub(crate) fn private(&self) -> Bytes {
        Bytes(self.runs.iter().map(|run| run.len.0).sum())
    }
}

impl PageSource for Pages {
    fn len(&self) -> Bytes {
        self.len
    }

    fn private_runs(&self) -> io::Result<Vec<RamRun>> {
        Ok(self.runs.clone())
    }

    fn read(&self, at: RamOffset, buf: &mut [u8]) -> io::Result<()> {
        let number = self.runs.partition_point(|run| run.start.0 <= at.0).checked_sub(1);
        let found = number.and_then(|number| {
            let within = usize::try_from(at.0 - self.runs[number].start.0).ok()?;
            let from = self.starts[number] + within;
            let end = self.starts[number] + usize::try_from(self.runs[number].len.0).ok()?;
            self.bytes[..end].get(from..from + buf.len())
        });
        buf.copy_from_slice(found.ok_or(io::ErrorKind::InvalidInput)?);
        Ok(())
    }
}
