//! The join of two rooms that do not know each other: a VMM's guest RAM as a source and sink of pages.

use std::io;

use storage::{PageSink, PageSource};

use types::{Bytes, RamOffset, RamRun};
use vm::{GuestRam, PageBuffer};

/// Images up to this size are decoded while their VMM starts; larger ones go straight into it.
pub(crate) const DECODE_AHEAD: Bytes = Bytes(64 << 20);

/// A guest's RAM as storage wants to see it.
#[derive(Debug)]
pub(crate) struct Ram(pub(crate) GuestRam);

impl PageSource for Ram {
    fn len(&self) -> Bytes {
        self.0.len()
    }

    fn private_runs(&self) -> io::Result<Vec<RamRun>> {
        self.0.private_runs()
    }

    fn read(&self, at: RamOffset, buf: &mut [u8]) -> io::Result<()> {
        self.0.read(at, buf)
    }

    fn read_runs(&self, runs: &[RamRun], buf: &mut [u8]) -> io::Result<()> {
        self.0.read_runs(runs, buf)
    }
}

impl PageSink for Ram {
    fn write(&mut self, at: RamOffset, data: &[u8]) -> io::Result<()> {
        self.0.write(at, data)
    }
}

/// The pages of a memory image, decoded before there is a machine to take them.
#[derive(Debug, Default)]
pub(crate) struct Decoded {
    runs: Vec<RamRun>,
    bytes: Vec<u8>,
}

impl PageSink for Decoded {
    fn write(&mut self, at: RamOffset, data: &[u8]) -> io::Result<()> {
        let len = Bytes(u64::try_from(data.len()).map_err(io::Error::other)?);
        self.runs.push(RamRun { start: at, len });
        self.bytes.extend_from_slice(data);
        Ok(())
    }
}

impl Decoded {
    /// Gives them to the machine.
    pub(crate) fn write_to(&self, ram: &GuestRam) -> io::Result<()> {
        ram.write_runs(&self.runs, &self.bytes)
    }
}

/// The private pages of a guest at one moment, copied while it stood still.
#[derive(Debug)]
pub(crate) struct Captured {
    len: Bytes,
    runs: Vec<RamRun>,
    /// Where each run begins in the buffer.
    starts: Vec<usize>,
    buffer: PageBuffer,
    used: usize,
}

/// Memory made ready to take a guest's pages quickly.
#[derive(Debug)]
pub(crate) struct CaptureBuffer {
    /// What had changed when it was made.
    runs: Vec<RamRun>,
    pages: PageBuffer,
}

/// What a guest may change between the look at it and its standing still, without the copy getting slower for it.
const SLACK: usize = 32 << 20;

impl CaptureBuffer {
    /// Room for what the guest has changed so far and some more, already backed by memory.
    pub(crate) fn for_guest(ram: &GuestRam) -> io::Result<Self> {
        let runs = ram.private_runs()?;
        let pages = PageBuffer::prefaulted(size_of_runs(&runs)? + SLACK)?;
        Ok(Self { runs, pages })
    }

    /// Copies the pages of a guest that stands still.
    pub(crate) fn capture(self, ram: &GuestRam) -> io::Result<Captured> {
        let Self { runs, pages: mut buffer } = self;
        let runs = ram.private_runs_beside(&runs)?;
        let used = size_of_runs(&runs)?;
        if used > buffer.len() {
            buffer = PageBuffer::prefaulted(used)?;
        }
        ram.read_runs_parallel(&runs, &mut buffer[..used])?;
        let mut starts = Vec::with_capacity(runs.len());
        let mut at = 0;
        for run in &runs {
            starts.push(at);
            at += usize::try_from(run.len.0).map_err(io::Error::other)?;
        }
        Ok(Captured { len: ram.len(), runs, starts, buffer, used })
    }
}

fn size_of_runs(runs: &[RamRun]) -> io::Result<usize> {
    usize::try_from(runs.iter().map(|run| run.len.0).sum::<u64>()).map_err(io::Error::other)
}

impl Captured {
    /// How much it is.
    pub(crate) fn private(&self) -> Bytes {
        Bytes(self.runs.iter().map(|run| run.len.0).sum())
    }

    /// Gives them to a machine.
    pub(crate) fn write_to(&self, ram: &GuestRam) -> io::Result<()> {
        ram.write_runs(&self.runs, &self.buffer[..self.used])
    }
}

impl PageSource for Captured {
    fn len(&self) -> Bytes {
        self.len
    }

    fn private_runs(&self) -> io::Result<Vec<RamRun>> {
        Ok(self.runs.clone())
    }

    fn read(&self, at: RamOffset, buf: &mut [u8]) -> io::Result<()> {
        let missing = || io::Error::from(io::ErrorKind::InvalidInput);
        let which =
            self.runs.partition_point(|run| run.start.0 <= at.0).checked_sub(1).ok_or_else(missing)?;
        let within = usize::try_from(at.0 - self.runs[which].start.0).map_err(io::Error::other)?;
        let run = usize::try_from(self.runs[which].len.0).map_err(io::Error::other)?;
        if within + buf.len() > run {
            return Err(missing());
        }
        let from = self.starts[which] + within;
        buf.copy_from_slice(&self.buffer[from..from + buf.len()]);
        Ok(())
    }
}
