//! The join of two rooms that do not know each other: a VMM's guest RAM as a source and sink of pages.

use std::io;

use storage::{PageSink, PageSource};
use types::{Bytes, RamOffset, RamRun};
use vm::GuestRam;

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
