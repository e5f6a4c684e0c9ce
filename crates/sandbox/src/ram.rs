//! The join of two rooms that do not know each other: a VMM's guest RAM as a source and sink of pages.

use std::io;

use storage::{PageSink, PageSource};
use types::{Bytes, RamOffset, RamRun};
use vm::GuestRam;

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
