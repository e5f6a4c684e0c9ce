//! Blobs of registries, kept so that no pull moves the same bytes twice: a cache, which `gc` may empty at any time.
//!
//! # Crash order
//! A blob grows as `<digest>.part`, which whoever wants it next goes on with; it gets its name when its digest was
//! compared and it was synced. So a name without `.part` is a whole blob, and nothing else needs to be known.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Store;

/// The blobs of a store, by the 64 hex digits of their SHA-256.
#[derive(Debug, Clone, Copy)]
pub struct Blobs<'a> {
    pub(crate) store: &'a Store,
}

/// A whole blob, kept from `gc` for as long as this value lives.
#[derive(Debug)]
pub struct Blob {
    path: PathBuf,
    _held: File,
}

/// A blob that is not whole yet. Dropped it stays as it is, to be gone on with.
#[derive(Debug)]
pub struct PartialBlob {
    path: PathBuf,
    target: PathBuf,
    file: File,
}

/// Whether bhatti makes files of this name among the blobs.
pub(crate) fn is_blob_name(name: &str) -> bool {
    let digest = name.strip_suffix(".part").unwrap_or(name);
    digest.len() == 64 && digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a pull reads or writes it.
pub(crate) fn is_in_use(path: &Path) -> Result<bool> {
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        opened => opened.map_err(|error| Error::io("open", path, error))?,
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(Error::io("lock", path, error)),
    }
}

impl Blobs<'_> {
    fn path(&self, hex: &str) -> Result<PathBuf> {
        if is_blob_name(hex) && !hex.ends_with(".part") {
            return Ok(self.store.layout().blobs().join(hex));
        }
        Err(Error::new(ErrorKind::Invalid, "use blob", hex).because("that is no digest"))
    }

    /// The blob, if it is there.
    ///
    /// # Errors
    /// What the system says.
    pub fn find(&self, hex: &str) -> Result<Option<Blob>> {
        let path = self.path(hex)?;
        let held = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|error| Error::io("open", &path, error))?,
        };
        flock(&held, FlockOperation::NonBlockingLockShared)
            .map_err(|error| Error::io("lock", &path, error))?;
        Ok(Some(Blob { path, _held: held }))
    }

    /// What is there of a blob that is not whole, or the beginning of one.
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn partial(&self, hex: &str) -> Result<PartialBlob> {
        let target = self.path(hex)?;
        let path = target.with_file_name(format!("{hex}.part"));
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path);
        let file = file.map_err(|error| Error::io("open", &path, error))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| Error::io("lock", &path, error))?;
        Ok(PartialBlob { path, target, file })
    }
}

impl Blob {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl PartialBlob {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it last: its digest must have been compared.
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn commit(self) -> Result<Blob> {
        durable::sync(&self.file, &self.path)?;
        durable::rename(&self.path, &self.target)?;
        durable::sync_parent(&self.target)?;
        // Others may read it, too, from now on.
        flock(&self.file, FlockOperation::NonBlockingLockShared)
            .map_err(|error| Error::io("lock", &self.target, error))?;
        Ok(Blob { path: self.target, _held: self.file })
    }

    /// Throws it away: what is there is not what was wanted.
    ///
    /// # Errors
    /// What the system says.
    pub fn discard(self) -> Result<()> {
        durable::remove_if_there(&self.path).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_blob_is_found_when_it_is_whole_and_goes_on_where_it_was_cut() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let hex = "a".repeat(64);
        let partial = store.blobs().partial(&hex).unwrap();
        (&partial.file).write_all(b"one ").unwrap();
        assert_eq!(store.blobs().partial(&hex).unwrap_err().kind(), ErrorKind::Busy);
        drop(partial);
        assert!(store.blobs().find(&hex).unwrap().is_none());
        let partial = store.blobs().partial(&hex).unwrap();
        (&partial.file).write_all(b"two").unwrap();
        partial.commit().unwrap();
        let blob = store.blobs().find(&hex).unwrap().unwrap();
        assert_eq!(std::fs::read(blob.path()).unwrap(), b"one two");
        let _another_reader = store.blobs().find(&hex).unwrap().unwrap();
        assert!(is_in_use(blob.path()).unwrap());
        assert_eq!(store.blobs().find("../../x").unwrap_err().kind(), ErrorKind::Invalid);
    }
}
