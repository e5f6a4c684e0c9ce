//! What a sandbox's last wake read, kept beside it so that the next one reads it in order (`docs/formats/wake-set.md`).
//!
//! # Invariants
//! It stands for nothing: whether it is there, old or damaged costs time only. So whoever cannot read it gets none, and it
//! is written without being waited for.

use std::fs::File;
use std::io::Read as _;

use crate::durable;
use crate::error::Result;
use crate::layout::WAKE_SET;
use crate::sandbox_dir::SandboxDir;

/// The first words of the file; the checksum of all that follows the first line comes after them.
const MAGIC: &str = "bhatti-wake-set 1 ";
/// A longer one is none: some hundred kilobytes are many.
const MOST: u64 = 4 << 20;

impl SandboxDir {
    /// Keeps a working set, in place of the one before.
    ///
    /// # Errors
    /// `NoSpace`, or what the system says; the one before is still there.
    pub fn put_working_set(&self, set: &[u8]) -> Result<()> {
        let mut bytes = format!("{MAGIC}{}\n", blake3::hash(set).to_hex()).into_bytes();
        bytes.extend_from_slice(set);
        durable::replace(&self.path.join(WAKE_SET), &bytes, 0o600)
    }

    /// The working set that was kept, if there is one and it is as it was written.
    #[must_use]
    pub fn working_set(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.path.join(WAKE_SET)).ok()?.take(MOST + 1).read_to_end(&mut bytes).ok()?;
        if u64::try_from(bytes.len()).ok()? > MOST {
            return None;
        }
        let line = bytes.iter().position(|byte| *byte == b'\n')?;
        let set = bytes.split_off(line + 1);
        let told = std::str::from_utf8(&bytes).ok()?.trim_end().strip_prefix(MAGIC)?;
        (told == blake3::hash(&set).to_hex().as_str()).then_some(set)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use types::SandboxId;

    use super::*;
    use crate::Store;

    #[test]
    fn what_was_kept_comes_back_and_anything_else_is_none() {
        let root = tempfile::tempdir().unwrap();
        let dir = Store::open(root.path()).unwrap().sandbox(&SandboxId::random());
        assert_eq!(dir.working_set(), None);
        fs::create_dir(dir.path()).unwrap();
        for set in [&b"one\ntwo"[..], b"", b"other"] {
            dir.put_working_set(set).unwrap();
            assert_eq!(dir.working_set().as_deref(), Some(set));
        }
        let path = dir.path().join(WAKE_SET);
        let good = fs::read(&path).unwrap();
        for index in 0..good.len() {
            let mut bad = good.clone();
            bad[index] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert_eq!(dir.working_set(), None, "byte {index}");
        }
        fs::write(&path, &good[..good.len() - 1]).unwrap();
        assert_eq!(dir.working_set(), None);
        fs::write(&path, vec![b'x'; 5 << 20]).unwrap();
        assert_eq!(dir.working_set(), None);
    }
}
