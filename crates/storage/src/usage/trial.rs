//! Files of known content, to compare what is told of them with what the filesystem says is free before and after.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use types::Bytes;

use crate::clone::clone_file;
use crate::error::{Error, ErrorKind, Result};
use crate::host_files::Scratch;
use crate::store::Store;

/// How large a trial is: random bytes, as many that compress well, and a clone of the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrialSize(pub Bytes);

/// Files in a scratch directory, written out; removed when dropped.
#[derive(Debug)]
pub struct Trial {
    _scratch: Scratch,
}

impl Store {
    /// What is free on the filesystem under the data root, whoever may use it, once all that was written is on the disk.
    ///
    /// # Errors
    /// What the system says.
    pub fn free_after_sync(&self) -> Result<Bytes> {
        let fail = |error: io::Error| Error::io("ask for the free space of", self.root(), error);
        let root = File::open(self.root()).map_err(fail)?;
        rustix::fs::syncfs(&root).map_err(|error| fail(error.into()))?;
        let space = rustix::fs::fstatvfs(&root).map_err(|error| fail(error.into()))?;
        Ok(Bytes(space.f_bfree.saturating_mul(space.f_frsize)))
    }

    /// Makes files of known content.
    ///
    /// # Errors
    /// `NoSpace` when they would take more than a tenth of what is free, or what the system says.
    pub fn usage_trial(&self, size: TrialSize) -> Result<Trial> {
        let free = self.free_after_sync()?;
        let wanted = size.0.0.saturating_mul(3);
        if wanted > free.0 / 10 {
            return Err(Error::new(ErrorKind::NoSpace, "try out", self.root())
                .because(format!("a trial takes up to {}, and only {free} is free", Bytes(wanted))));
        }
        let scratch = self.scratch()?;
        let random = scratch.path().join("random");
        write(&random, size.0.0, &mut Random::new())?;
        write(&scratch.path().join("text"), size.0.0, &mut Text)?;
        clone_file(&random, &scratch.path().join("clone"))?;
        self.free_after_sync()?;
        Ok(Trial { _scratch: scratch })
    }
}

trait Source {
    fn fill(&mut self, chunk: &mut [u8]);
}

/// Bytes that no filesystem compresses: a hash of a counter.
struct Random(blake3::OutputReader);

impl Random {
    fn new() -> Self {
        Self(blake3::Hasher::new().update(b"what is free before and after").finalize_xof())
    }
}

impl Source for Random {
    fn fill(&mut self, chunk: &mut [u8]) {
        self.0.fill(chunk);
    }
}

/// Bytes that every compression makes fewer.
struct Text;

impl Source for Text {
    fn fill(&mut self, chunk: &mut [u8]) {
        let line = b"what repeats itself can be told in fewer bytes than it has\n";
        for (byte, letter) in chunk.iter_mut().zip(line.iter().cycle()) {
            *byte = *letter;
        }
    }
}

fn write(path: &Path, len: u64, source: &mut dyn Source) -> Result<()> {
    let fail = |error: io::Error| Error::io("write", PathBuf::from(path), error);
    let mut file = File::create_new(path).map_err(fail)?;
    let mut chunk = vec![0; 1 << 20];
    let mut left = usize::try_from(len).unwrap_or(usize::MAX);
    while left > 0 {
        let piece = left.min(chunk.len());
        source.fill(&mut chunk[..piece]);
        file.write_all(&chunk[..piece]).map_err(fail)?;
        left -= piece;
    }
    file.sync_all().map_err(fail)
}
