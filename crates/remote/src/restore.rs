//! A restore: into a file that is handed over, compared before it is called good.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{StreamExt as _, TryStreamExt as _};
use types::Bytes;

use crate::chunk::{ChunkId, unpack};
use crate::manifest::{Manifest, Summary};
use crate::scan::scan;
use crate::shelf::{AT_ONCE, Shelf};
use crate::{BackupId, Error, ErrorKind, Progress, Result, Watch};

const OP: &str = "restore";

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreReport {
    /// What was restored.
    pub summary: Summary,
    /// Chunks that were read and written.
    pub chunks: u64,
    /// What was read of the store.
    pub moved: Bytes,
}

/// What a look at a backup found.
#[derive(Debug)]
pub struct VerifyReport {
    /// What was looked at.
    pub summary: Summary,
    /// Chunks that are what they should be.
    pub good: u64,
    /// Chunks that are not, each with what is wrong.
    pub bad: Vec<Error>,
}

impl VerifyReport {
    /// Whether it can be restored.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.bad.is_empty()
    }
}

impl Shelf {
    /// Makes `into` what the volume was: its size and its content, zeros as holes. What is in the file is lost at
    /// once, so it is to be a staging file; syncing and naming it is the caller's, after this returned.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`], [`ErrorKind::Foreign`], [`ErrorKind::TooNew`] name the object that is wrong;
    /// [`ErrorKind::NoSpace`] and [`ErrorKind::Io`] are the file's. The file is then worth nothing.
    pub async fn restore(&self, id: &BackupId, into: File, watch: Watch) -> Result<RestoreReport> {
        let (manifest, manifest_bytes) = self.manifest(id).await?;
        let manifest = Arc::new(manifest);
        let into = Arc::new(into);
        let size = manifest.summary.size;
        // First nothing, then the size: all of it is a hole.
        let fail = |error| Error::io("write", self.volume.as_str(), error);
        into.set_len(0).and_then(|()| into.set_len(size.0)).map_err(fail)?;

        let moved = AtomicU64::new(manifest_bytes);
        let write = async |number: u64, chunk: ChunkId| -> Result<u64> {
            let (into, name) = (Arc::clone(&into), self.volume.to_string());
            let at = number.saturating_mul(u64::from(manifest.chunk_bytes));
            let read = self.with_chunk(&manifest, number, chunk, move |plain| {
                into.write_all_at(plain, at).map_err(|error| Error::io("write", name, error))
            });
            let done = Bytes(at.saturating_add(u64::from(manifest.chunk_bytes)).min(size.0));
            let moved = Bytes(moved.fetch_add(read.await?, Ordering::Relaxed));
            watch.at(OP, self.volume.as_str(), Progress { done, total: size, moved }).map(|()| 1)
        };
        let chunks = futures_util::stream::iter(manifest.table.0.iter().copied())
            .map(|(number, chunk)| write(number, chunk))
            .buffer_unordered(AT_ONCE)
            .try_fold(0u64, async |all, one| Ok(all + one))
            .await?;
        self.compare(Arc::clone(&manifest), into).await?;
        let moved = Bytes(moved.load(Ordering::Relaxed));
        watch.at(OP, self.volume.as_str(), Progress { done: size, total: size, moved })?;
        Ok(RestoreReport { summary: manifest.summary.clone(), chunks, moved })
    }

    /// Reads every chunk of a backup and compares it with its name.
    ///
    /// # Errors
    /// As [`Shelf::restore`] for the manifest, and when the store does not answer. Damaged chunks are in the report.
    pub async fn verify(&self, id: &BackupId, watch: Watch) -> Result<VerifyReport> {
        let (manifest, _) = self.manifest(id).await?;
        let size = manifest.summary.size;
        let look = async |number: u64, chunk: ChunkId| {
            let read = self.with_chunk(&manifest, number, chunk, |_| Ok(())).await;
            let done = Bytes(number.saturating_mul(u64::from(manifest.chunk_bytes)).min(size.0));
            let seen =
                watch.at("verify", self.volume.as_str(), Progress { done, total: size, moved: Bytes(0) });
            seen.map(|()| read)
        };
        let mut report = VerifyReport { summary: manifest.summary.clone(), good: 0, bad: Vec::new() };
        let mut all = futures_util::stream::iter(manifest.table.0.iter().copied())
            .map(|(number, chunk)| look(number, chunk))
            .buffered(AT_ONCE);
        while let Some(read) = all.next().await {
            match read? {
                Ok(_) => report.good += 1,
                Err(error) if error.kind() == ErrorKind::Damaged => report.bad.push(error),
                Err(error) => return Err(error),
            }
        }
        drop(all);
        Ok(report)
    }

    /// Reads one chunk and hands its content over, on a thread that may block; gives what was read of the store.
    async fn with_chunk(
        &self,
        manifest: &Manifest,
        number: u64,
        chunk: ChunkId,
        then: impl FnOnce(&[u8]) -> Result<()> + Send + 'static,
    ) -> Result<u64> {
        let path = self.chunk_path(chunk);
        let len = manifest.chunk_len(number);
        // zstd makes nothing much longer than it was.
        let at_most = u64::from(manifest.chunk_bytes).saturating_add(64 << 10);
        let packed = match self.read(&path, at_most).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(Error::new(ErrorKind::Damaged, "read", path.to_string())
                    .because(format!("backup {} needs it, and it is not there", manifest.summary.id)));
            }
            read => read?,
        };
        let read = u64::try_from(packed.len()).unwrap_or(u64::MAX);
        let work = move || then(&unpack(&packed, chunk, len, path.as_ref())?);
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| Error::new(ErrorKind::Io, OP, self.volume.as_str()).caused_by(error))??;
        Ok(read)
    }

    /// Reads what was written and compares it with the manifest's root.
    async fn compare(&self, manifest: Arc<Manifest>, written: Arc<File>) -> Result<()> {
        let name = self.volume.to_string();
        let object = self.manifest_path(&manifest.summary.id).to_string();
        let work = move || {
            let size = manifest.summary.size.0;
            let found =
                scan(&written, size, manifest.chunk_bytes, &name, &mut |_| Ok(()), &mut |_, _, _| Ok(()))?;
            if found.root(size, manifest.chunk_bytes) == manifest.table.root(size, manifest.chunk_bytes) {
                return Ok(());
            }
            Err(Error::new(ErrorKind::Damaged, OP, object)
                .because("what was written is not what the manifest says"))
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| Error::new(ErrorKind::Io, OP, self.volume.as_str()).caused_by(error))?
    }
}
