//! One chunk: an aligned piece of a volume, named by its content, stored as one zstd frame.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// How large a chunk is; the last one of a volume may be shorter.
pub(crate) const CHUNK_BYTES: u32 = 256 << 10;
/// Sizes that a manifest may name: powers of two between these.
pub(crate) const CHUNK_BYTES_MIN: u32 = 4 << 10;
pub(crate) const CHUNK_BYTES_MAX: u32 = 16 << 20;
/// As for memory images: what more would gain is lost in time.
const LEVEL: i32 = 1;

/// BLAKE3 of a chunk's plain content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ChunkId(pub(crate) [u8; 32]);

impl ChunkId {
    pub(crate) fn of(plain: &[u8]) -> Self {
        Self(*blake3::hash(plain).as_bytes())
    }

    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        let canonical = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let hash = blake3::Hash::from_hex(text).ok().filter(|_| canonical)?;
        Some(Self(*hash.as_bytes()))
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

/// As it is stored: a whole frame with its content's size and a checksum, so that `zstd -t` and `zstd -d` work on it.
pub(crate) fn pack(plain: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut packer = zstd::bulk::Compressor::new(LEVEL)?;
    packer.include_checksum(true)?;
    packer.include_contentsize(true)?;
    packer.compress(plain)
}

/// The content again, of exactly `len` bytes, or which object is not what its name says.
pub(crate) fn unpack(packed: &[u8], id: ChunkId, len: usize, object: &str) -> Result<Vec<u8>> {
    let damaged = |reason: &str| Error::new(ErrorKind::Damaged, "read", object).because(reason);
    // Never more than a chunk is unpacked, whatever the frame claims.
    let plain = zstd::bulk::decompress(packed, len)
        .map_err(|error| damaged("it is cut or damaged").caused_by(error))?;
    if plain.len() != len {
        return Err(damaged("it is not as long as the manifest says"));
    }
    if ChunkId::of(&plain) != id {
        return Err(damaged("its content does not match its name"));
    }
    Ok(plain)
}

/// Chunks that follow one another, as a manifest lists them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Run {
    /// Number of the first one: its offset in chunks.
    pub(crate) at: u64,
    /// Their hashes, 64 hex digits each, one after the other.
    pub(crate) hashes: String,
}

/// All chunks of a volume that are not zeros, by number, ascending.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Table(pub(crate) Vec<(u64, ChunkId)>);

impl Table {
    /// What stands for the whole content: BLAKE3 of size, chunk size, and number and hash of each chunk.
    pub(crate) fn root(&self, size_bytes: u64, chunk_bytes: u32) -> ChunkId {
        let mut hash = blake3::Hasher::new();
        hash.update(&size_bytes.to_le_bytes()).update(&u64::from(chunk_bytes).to_le_bytes());
        for (number, id) in &self.0 {
            hash.update(&number.to_le_bytes()).update(&id.0);
        }
        ChunkId(*hash.finalize().as_bytes())
    }

    pub(crate) fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let mut next = None;
        for (number, id) in &self.0 {
            if next != Some(*number) {
                runs.push(Run { at: *number, hashes: String::new() });
            }
            if let Some(run) = runs.last_mut() {
                run.hashes.push_str(&blake3::Hash::from_bytes(id.0).to_hex());
            }
            next = number.checked_add(1);
        }
        runs
    }

    /// `None` when they are no ascending list of hashes.
    pub(crate) fn from_runs(runs: &[Run]) -> Option<Self> {
        let mut all = Vec::new();
        let mut next = 0;
        for run in runs {
            if run.at < next || run.hashes.is_empty() || run.hashes.len() % 64 != 0 || !run.hashes.is_ascii()
            {
                return None;
            }
            next = run.at;
            for at in (0..run.hashes.len()).step_by(64) {
                all.push((next, ChunkId::from_hex(&run.hashes[at..at + 64])?));
                next = next.checked_add(1)?;
            }
        }
        Some(Self(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_comes_back_or_says_what_is_wrong_with_it() {
        let plain = b"something ".repeat(1000);
        let (id, packed) = (ChunkId::of(&plain), pack(&plain).unwrap());
        assert_eq!(unpack(&packed, id, plain.len(), "c").unwrap(), plain);
        let kinds = |packed: &[u8], id, len| unpack(packed, id, len, "chunks/x").unwrap_err();
        for cut in 0..packed.len() {
            assert_eq!(kinds(&packed[..cut], id, plain.len()).kind(), ErrorKind::Damaged, "{cut}");
        }
        for at in 0..packed.len() {
            let mut bad = packed.clone();
            bad[at] ^= 1;
            // A bit of the frame's header may not matter; the content never differs.
            if let Ok(same) = unpack(&bad, id, plain.len(), "c") {
                assert_eq!(same, plain, "{at}");
            }
        }
        assert!(kinds(&packed, ChunkId::of(b"other"), plain.len()).message().contains("its name"));
        assert!(kinds(&packed, id, plain.len() + 1).message().contains("as long"));
        let bomb = pack(&vec![0; 64 << 20]).unwrap();
        assert_eq!(kinds(&bomb, id, 4096).kind(), ErrorKind::Damaged);
    }

    #[test]
    fn runs_say_the_same_as_the_table_and_nonsense_is_none() {
        let id = |byte| ChunkId([byte; 32]);
        let table = Table(vec![(0, id(1)), (1, id(2)), (5, id(1)), (9, id(3))]);
        let runs = table.runs();
        assert_eq!(runs.iter().map(|run| run.at).collect::<Vec<_>>(), [0, 5, 9]);
        assert_eq!(Table::from_runs(&runs), Some(table));
        let run = |at, hashes: &str| Run { at, hashes: hashes.to_owned() };
        let hash = "ab".repeat(32);
        for bad in [
            vec![run(0, "")],
            vec![run(0, "ab")],
            vec![run(0, &"AB".repeat(32))],
            vec![run(1, &hash), run(1, &hash)],
            vec![run(u64::MAX, &hash)],
        ] {
            assert_eq!(Table::from_runs(&bad), None, "{bad:?}");
        }
    }
}
