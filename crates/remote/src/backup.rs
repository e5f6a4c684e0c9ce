//! A backup: what of a volume the store has not yet, then the manifest.
//!
//! One thread reads, hashes and compresses; up to eight uploads are under way; a queue of four chunks lies between
//! them, so that memory stays at some MiB however large the volume and however slow the store.

use std::collections::HashSet;
use std::fs::File;

use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use types::{Bytes, Timestamp};

use crate::chunk::{CHUNK_BYTES, ChunkId, Table, pack};
use crate::lock::Lock;
use crate::manifest::{Manifest, Summary};
use crate::scan::scan;
use crate::shelf::{AT_ONCE, Shelf};
use crate::{BackupId, Error, ErrorKind, Progress, Result, Watch};

const OP: &str = "back up";
/// Chunks that wait for an upload.
const QUEUE: usize = 4;

/// What a backup did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupReport {
    /// What it is.
    pub summary: Summary,
    /// Chunks that are not zeros.
    pub chunks: u64,
    /// Those that the store did not have.
    pub new_chunks: u64,
    /// Everything that went over the wire in either direction: chunks, this manifest, the earlier ones.
    pub moved: Bytes,
}

struct Packed {
    id: ChunkId,
    bytes: Vec<u8>,
}

impl Shelf {
    /// Stores what `source` holds, which nobody may write meanwhile: a point-in-time copy, taken at `created_at`.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] while another backup or prune of the volume is under way; [`ErrorKind::Cancelled`]; what the
    /// store or the file says. There is then no backup; chunks that were sent are removed by the next prune.
    pub async fn backup(&self, source: File, created_at: Timestamp, watch: Watch) -> Result<BackupReport> {
        let lock = Lock::take(self, "backup").await?;
        let done = self.backup_locked(source, created_at, watch, &lock).await;
        // A backup whose manifest is written is one, whatever becomes of the lock: that is given up by its age.
        let _ = lock.release().await;
        done
    }

    async fn backup_locked(
        &self,
        source: File,
        created_at: Timestamp,
        watch: Watch,
        lock: &Lock,
    ) -> Result<BackupReport> {
        let size = source.metadata().map_err(|error| Error::io(OP, self.volume.as_str(), error))?.len();
        let known = self.known().await?;
        let name = self.volume.to_string();
        let (queue, packed) = mpsc::channel(QUEUE);
        let reader = tokio::task::spawn_blocking(move || {
            read_and_pack(&source, size, known.chunks, &name, &watch, &queue)
        });
        let sent = ReceiverStream::new(packed)
            .map(|Packed { id, bytes }| async move {
                let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                self.write(&self.chunk_path(id), bytes, false).await.map(|()| len)
            })
            .buffer_unordered(AT_ONCE)
            .try_fold((0u64, 0u64), async |(count, all), len| Ok((count + 1, all + len)))
            .await;
        let read = reader
            .await
            .map_err(|error| Error::new(ErrorKind::Io, OP, self.volume.as_str()).caused_by(error))?;
        // A failed upload ends the reader too; the upload's error is the one that says why.
        let (new_chunks, sent_bytes) = sent?;
        let table = read?;
        let chunks = u64::try_from(table.0.len()).unwrap_or(u64::MAX);
        let summary = Summary {
            id: BackupId::new(created_at),
            owner: self.owner.clone(),
            volume: self.volume.clone(),
            created_at,
            size: Bytes(size),
            data: Bytes(data_bytes(&table, size)),
            sent: Bytes(sent_bytes),
        };
        let manifest = Manifest { summary, chunk_bytes: CHUNK_BYTES, table };
        let bytes = manifest.encode();
        let manifest_bytes = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        lock.still_held().await?;
        self.write(&self.manifest_path(&manifest.summary.id), bytes, true).await?;
        let moved = Bytes(sent_bytes + manifest_bytes + known.read_bytes);
        Ok(BackupReport { summary: manifest.summary, chunks, new_chunks, moved })
    }
}

fn read_and_pack(
    source: &File,
    size: u64,
    mut known: HashSet<ChunkId>,
    name: &str,
    watch: &Watch,
    queue: &mpsc::Sender<Packed>,
) -> Result<Table> {
    let moved = std::cell::Cell::new(0u64);
    scan(
        source,
        size,
        CHUNK_BYTES,
        name,
        &mut |at| {
            watch.at(OP, name, Progress { done: Bytes(at), total: Bytes(size), moved: Bytes(moved.get()) })
        },
        &mut |_, id, plain| {
            if !known.insert(id) {
                return Ok(());
            }
            let bytes = pack(plain).map_err(|error| Error::io("compress", name, error))?;
            moved.set(moved.get() + u64::try_from(bytes.len()).unwrap_or(u64::MAX));
            queue
                .blocking_send(Packed { id, bytes })
                .map_err(|_| Error::new(ErrorKind::Store, OP, name).because("an upload failed"))
        },
    )
}

fn data_bytes(table: &Table, size: u64) -> u64 {
    let chunk = u64::from(CHUNK_BYTES);
    table.0.iter().map(|(number, _)| chunk.min(size.saturating_sub(number.saturating_mul(chunk)))).sum()
}
