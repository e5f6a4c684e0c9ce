//! Device state at rest: what a VMM wrote, as one zstd frame. Why: `docs/decisions/0041-device-state-is-packed.md`.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use rustix::fs::{MemfdFlags, memfd_create};
use types::{Bytes, ContentId};

use crate::durable::{self, Staged};
use crate::error::{Error, ErrorKind, Result};
use crate::sparse;

/// More than any device state is: a bound on what a damaged or hostile record makes this process allocate.
const MOST: u64 = 256 << 20;
/// zstd's quickest usual level: there is little to pack, and a stop waits for it.
const LEVEL: i32 = 1;

/// Device state, packed into its staging file.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) staged: Staged,
    pub(crate) unpacked: Bytes,
}

/// Packs in place what the VMM wrote at `path`; that is removed when it fails. Nothing is synced.
///
/// # Errors
/// `Invalid` when it is missing, empty or too large, `NoSpace`.
pub(crate) fn pack(path: &Path) -> Result<Packed> {
    let invalid = |why: &str| Error::new(ErrorKind::Invalid, "commit memory", path).because(why);
    let written = Staged::adopt(path.to_owned()).map_err(|error| match error.kind() {
        ErrorKind::NotFound => invalid("the device state is missing").caused_by(error),
        _ => error,
    })?;
    let mut raw = Vec::new();
    let read = written.file().take(MOST + 1).read_to_end(&mut raw);
    read.map_err(|error| Error::io("read", path, error))?;
    let unpacked = sparse::bytes(raw.len());
    match unpacked {
        0 => return Err(invalid("the device state is empty")),
        1..=MOST => {}
        _ => return Err(invalid("the device state is larger than any that is known")),
    }
    let packed = zstd::bulk::compress(&raw, LEVEL).map_err(|error| Error::io("pack", path, error))?;
    // Removes what was written: not later, for the other has the same name.
    drop(written);
    let staged = Staged::create(path.to_owned(), 0o600)?;
    durable::write_at(staged.file(), path, 0, &packed)?;
    Ok(Packed { staged, unpacked: Bytes(unpacked) })
}

/// The state in `file`, to be read by a VMM from its beginning: an anonymous file when it is packed.
///
/// # Errors
/// An I/O error that says what is wrong with it when it is not `unpacked` bytes long, or no zstd frame.
pub(crate) fn unpack(mut file: File, unpacked: Bytes) -> io::Result<File> {
    if unpacked.0 > MOST {
        return Err(io::Error::other("it says that it is larger than any device state is"));
    }
    let mut packed = Vec::new();
    file.read_to_end(&mut packed)?;
    let capacity = usize::try_from(unpacked.0).map_err(io::Error::other)?;
    let raw = zstd::bulk::decompress(&packed, capacity)?;
    if raw.len() != capacity {
        return Err(io::Error::other("it is shorter than it was"));
    }
    let mut file = File::from(memfd_create("devices", MemfdFlags::CLOEXEC)?);
    file.write_all(&raw)?;
    file.rewind()?;
    Ok(file)
}

/// What a stored file is to be known by.
pub(crate) fn content_of(file: &File, path: &Path) -> Result<(ContentId, Bytes)> {
    let len = file.metadata().map_err(|error| Error::io("stat", path, error))?.len();
    Ok((sparse::content_id(file, path)?, Bytes(len)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn what_is_packed_comes_back_and_anything_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.snap.new");
        let raw: Vec<u8> = (0..200_000u32).flat_map(|n| (n / 1000).to_le_bytes()).collect();
        std::fs::write(&path, &raw).unwrap();
        let packed = pack(&path).unwrap();
        assert_eq!(packed.unpacked.0, 800_000);
        assert!(packed.staged.file().metadata().unwrap().len() < 40_000);
        let open = || File::open(&path).unwrap();
        let mut back = Vec::new();
        unpack(open(), packed.unpacked).unwrap().read_to_end(&mut back).unwrap();
        assert!(back == raw);
        for lie in [0, 799_999, 800_001, MOST + 1] {
            assert!(unpack(open(), Bytes(lie)).is_err(), "{lie}");
        }
        std::fs::write(&path, &raw).unwrap();
        assert!(unpack(open(), Bytes(800_000)).is_err());

        std::fs::write(&path, "").unwrap();
        assert_eq!(pack(&path).unwrap_err().kind(), ErrorKind::Invalid);
        assert!(!path.exists());
        assert_eq!(pack(&path).unwrap_err().kind(), ErrorKind::Invalid);
    }
}
