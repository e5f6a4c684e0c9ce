//! A backup's manifest: written last, never again, and the only thing that makes chunks a backup.

use serde::{Deserialize, Serialize};
use types::{Bytes, Owner, Timestamp, VolumeName};

use crate::chunk::{CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, Run, Table};
use crate::record::{self, Format};
use crate::{BackupId, Error, ErrorKind, Result};

const FORMAT: Format = Format { name: "bhatti-backup", version: 1 };

/// As it is stored; see `docs/formats/backup.md`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    id: BackupId,
    owner: Owner,
    volume: VolumeName,
    created_at: Timestamp,
    size_bytes: u64,
    data_bytes: u64,
    sent_bytes: u64,
    chunk_bytes: u32,
    root: String,
    chunks: Vec<Run>,
}

/// What is told of a backup without its list of chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Its id.
    pub id: BackupId,
    /// Whose the volume was.
    pub owner: Owner,
    /// The volume's name.
    pub volume: VolumeName,
    /// When the copy that it was made from was taken.
    pub created_at: Timestamp,
    /// The volume's size.
    pub size: Bytes,
    /// What of it is not zeros, in whole chunks.
    pub data: Bytes,
    /// What this backup added to the store.
    pub sent: Bytes,
}

/// A manifest that holds together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) summary: Summary,
    pub(crate) chunk_bytes: u32,
    pub(crate) table: Table,
}

impl Manifest {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let Summary { id, owner, volume, created_at, size, data, sent } = self.summary.clone();
        let body = Body {
            id,
            owner,
            volume,
            created_at,
            size_bytes: size.0,
            data_bytes: data.0,
            sent_bytes: sent.0,
            chunk_bytes: self.chunk_bytes,
            root: self.table.root(size.0, self.chunk_bytes).to_string(),
            chunks: self.table.runs(),
        };
        record::encode(FORMAT, &body)
    }

    /// Everything that a manifest says is looked at before anything is done with it.
    pub(crate) fn decode(bytes: &[u8], object: &str) -> Result<Self> {
        let body: Body = record::decode(FORMAT, bytes, object)?;
        let damaged = |reason: &str| Error::new(ErrorKind::Damaged, "read", object).because(reason);
        let size_ok = (CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&body.chunk_bytes);
        if !size_ok || !body.chunk_bytes.is_power_of_two() {
            return Err(damaged("its chunk size is none that was ever written"));
        }
        let table = Table::from_runs(&body.chunks).ok_or_else(|| damaged("its list of chunks is no list"))?;
        let end = body.size_bytes.div_ceil(u64::from(body.chunk_bytes));
        if table.0.last().is_some_and(|(number, _)| *number >= end) {
            return Err(damaged("it has chunks behind the volume's end"));
        }
        if table.root(body.size_bytes, body.chunk_bytes).to_string() != body.root {
            return Err(damaged("its root does not match its list of chunks"));
        }
        let summary = Summary {
            id: body.id,
            owner: body.owner,
            volume: body.volume,
            created_at: body.created_at,
            size: Bytes(body.size_bytes),
            data: Bytes(body.data_bytes),
            sent: Bytes(body.sent_bytes),
        };
        Ok(Self { summary, chunk_bytes: body.chunk_bytes, table })
    }

    /// Length of the chunk with that number: whole, or the volume's end.
    pub(crate) fn chunk_len(&self, number: u64) -> usize {
        let chunk = u64::from(self.chunk_bytes);
        let left = self.summary.size.0.saturating_sub(number.saturating_mul(chunk));
        usize::try_from(left.min(chunk)).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::ChunkId;

    const GOLDEN: &str = include_str!("../tests/golden/backup-1.json");

    fn manifest() -> Manifest {
        let chunk = |text: &str| ChunkId::of(text.as_bytes());
        Manifest {
            summary: Summary {
                id: "20261125t192352-1a2b3c4d".parse().unwrap(),
                owner: Owner::admin(),
                volume: "data".parse().unwrap(),
                created_at: Timestamp(1_795_634_632_123),
                size: Bytes(8 << 20),
                data: Bytes(3 << 20),
                sent: Bytes(2_345_678),
            },
            chunk_bytes: 1 << 20,
            table: Table(vec![(0, chunk("first")), (1, chunk("second")), (7, chunk("last"))]),
        }
    }

    #[test]
    fn the_first_version_stays_readable_and_is_what_is_written() {
        assert_eq!(Manifest::decode(GOLDEN.as_bytes(), "golden").unwrap(), manifest());
        assert_eq!(String::from_utf8(manifest().encode()).unwrap(), GOLDEN);
    }

    #[test]
    fn a_manifest_that_was_cut_or_changed_is_refused_at_every_byte() {
        let good = manifest().encode();
        for cut in 0..good.len() - 1 {
            let error = Manifest::decode(&good[..cut], "m.json").unwrap_err();
            assert_eq!((error.kind(), error.object()), (ErrorKind::Damaged, "m.json"), "{cut}");
        }
        for at in 0..good.len() - 1 {
            let mut bad = good.clone();
            bad[at] ^= 1;
            match Manifest::decode(&bad, "m.json") {
                Err(error) => {
                    assert!(matches!(error.kind(), ErrorKind::Damaged | ErrorKind::TooNew), "{at}: {error}");
                }
                Ok(_) => panic!("byte {at} was changed and nobody saw it"),
            }
        }
    }

    #[test]
    fn a_newer_version_is_refused_by_its_number() {
        let newer = r#"{"format":"bhatti-backup","version":2,"something":"else"}"#;
        let error = Manifest::decode(newer.as_bytes(), "backups/x.json").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooNew);
        assert!(error.to_string().contains("backups/x.json: it has version 2"), "{error}");
    }

    #[test]
    fn a_manifest_with_a_right_checksum_and_nonsense_in_it_is_refused() {
        let with = |change: &dyn Fn(&mut Manifest)| {
            let mut manifest = manifest();
            change(&mut manifest);
            Manifest::decode(&manifest.encode(), "m").unwrap_err().message()
        };
        assert!(with(&|m| m.chunk_bytes = 3 << 20).contains("chunk size"));
        assert!(with(&|m| m.chunk_bytes = 1 << 30).contains("chunk size"));
        assert!(with(&|m| m.summary.size = Bytes(7 << 20)).contains("behind the volume's end"));
    }
}
