//! How far a check is, and whether anybody still wants it.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use types::{Bytes, ContentId, RamOffset};

use super::{FsckOptions, FsckProgress};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{MemoryImage, PageSink, hash_base_watched};
use crate::sparse;

/// So many bytes are read between two reports.
const STEP: u64 = 8 << 20;

/// Counts what is read.
pub(super) struct Watch<'a> {
    options: &'a FsckOptions<'a>,
    total: u64,
    done: Cell<u64>,
    told: Cell<u64>,
    what: RefCell<String>,
}

impl<'a> Watch<'a> {
    pub(super) fn new(options: &'a FsckOptions<'a>, total: Bytes) -> Self {
        Self { options, total: total.0, done: Cell::new(0), told: Cell::new(0), what: RefCell::default() }
    }

    pub(super) fn done(&self) -> Bytes {
        Bytes(self.done.get())
    }

    /// Something else is looked at.
    pub(super) fn begin(&self, what: impl Into<String>) -> Result<()> {
        *self.what.borrow_mut() = what.into();
        self.tell();
        self.wanted()
    }

    fn add(&self, bytes: u64) -> Result<()> {
        self.done.set(self.done.get() + bytes);
        if self.done.get() - self.told.get() >= STEP {
            self.tell();
        }
        self.wanted()
    }

    fn tell(&self) {
        self.told.set(self.done.get());
        (self.options.progress)(FsckProgress {
            what: self.what.borrow().clone(),
            done: self.done(),
            // What was looked at twice was counted once.
            total: Bytes(self.total.max(self.done.get())),
        });
    }

    fn wanted(&self) -> Result<()> {
        if self.options.cancel.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Cancelled, "check", "").because("it was called off"));
        }
        Ok(())
    }

    /// BLAKE3 of a file's content, and its length.
    pub(super) fn content(&self, path: &Path) -> Result<(ContentId, Bytes)> {
        let file = open(path)?;
        let len = file.metadata().map_err(|error| Error::io("stat", path, error))?.len();
        let id = sparse::content_id_watched(&file, path, &mut |bytes| self.add(bytes))?;
        Ok((id, Bytes(len)))
    }

    /// The identity of a RAM base, and how much of it is not zeros.
    pub(super) fn base(&self, path: &Path) -> Result<(ContentId, Bytes)> {
        let report = hash_base_watched(&open(path)?, path, &mut |bytes| self.add(bytes))?;
        Ok((report.id, report.private))
    }

    /// Reads a memory image as a wake would.
    pub(super) fn memory(&self, image: &MemoryImage) -> Result<()> {
        let loaded = image.load(&mut Pages(self));
        // A sink's failure comes back as the system's.
        self.wanted()?;
        loaded.map(drop)
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| Error::io("open", path, error))
}

/// Takes pages and keeps none.
struct Pages<'a, 'b>(&'a Watch<'b>);

impl PageSink for Pages<'_, '_> {
    fn write(&mut self, _at: RamOffset, data: &[u8]) -> io::Result<()> {
        self.0.add(sparse::bytes(data.len())).map_err(|_| io::ErrorKind::Interrupted.into())
    }
}
