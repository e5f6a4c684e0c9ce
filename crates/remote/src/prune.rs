//! Removing backups, and the chunks that no manifest names any more.

use std::collections::HashSet;

use futures_util::{StreamExt as _, TryStreamExt as _};
use types::Bytes;

use crate::chunk::ChunkId;
use crate::lock::Lock;
use crate::plan::{Keep, PrunePlan, plan_prune};
use crate::shelf::{AT_ONCE, Shelf};
use crate::{BackupId, Error, ErrorKind, Result};

const OP: &str = "prune";

/// What was removed.
#[derive(Debug, Default)]
pub struct PruneReport {
    /// What was decided.
    pub plan: PrunePlan,
    /// Chunks that nothing names any more.
    pub chunks: u64,
    /// Their length in the store.
    pub freed: Bytes,
    /// Backups that cannot be read. While there are any, they stay, and no chunk is removed.
    pub unreadable: Vec<Error>,
}

impl Shelf {
    /// What [`Shelf::prune`] would do now.
    ///
    /// # Errors
    /// As [`plan_prune`], and when the store cannot be asked.
    pub async fn plan(&self, keep: Keep) -> Result<PrunePlan> {
        let listed = self.list().await?;
        // A backup that cannot be read is never chosen by its age.
        let readable: Vec<_> = listed
            .into_iter()
            .filter_map(|one| one.manifest.ok().map(|summary| (one.id, summary.created_at)))
            .collect();
        plan_prune(&readable, keep)
    }

    /// Removes the backups that `keep` does not want, then all chunks that nothing names.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] while a backup of the volume is under way; as [`Shelf::plan`]. What was removed before stays
    /// removed, and the next call goes on.
    pub async fn prune(&self, keep: Keep) -> Result<PruneReport> {
        let lock = Lock::take(self, "prune").await?;
        let done = async {
            let plan = self.plan(keep).await?;
            self.remove_planned(plan, &lock).await
        }
        .await;
        let _ = lock.release().await;
        done
    }

    /// Removes one backup, readable or not, and the chunks that nothing names any more.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Busy`] while a backup of the volume is under way.
    pub async fn delete(&self, id: &BackupId) -> Result<PruneReport> {
        let lock = Lock::take(self, "deletion").await?;
        let done = async {
            if !self.ids().await?.contains(id) {
                return Err(Error::new(ErrorKind::NotFound, "delete", self.manifest_path(id).to_string())
                    .because(format!("volume {} has no such backup", self.volume))
                    .hint_to("list the backups of the volume"));
            }
            let plan = PrunePlan { keep: Vec::new(), remove: vec![id.clone()] };
            self.remove_planned(plan, &lock).await
        }
        .await;
        let _ = lock.release().await;
        done
    }

    async fn remove_planned(&self, plan: PrunePlan, lock: &Lock) -> Result<PruneReport> {
        for id in &plan.remove {
            lock.still_held().await?;
            self.remove(&self.manifest_path(id)).await?;
        }
        let known = self.known().await?;
        let mut report = PruneReport { plan, unreadable: known.unreadable, ..PruneReport::default() };
        if !report.unreadable.is_empty() {
            return Ok(report);
        }
        let unnamed = self.unnamed(&known.chunks).await?;
        lock.still_held().await?;
        report.chunks = u64::try_from(unnamed.len()).unwrap_or(u64::MAX);
        report.freed = Bytes(unnamed.iter().map(|(_, len)| len).sum());
        futures_util::stream::iter(unnamed)
            .map(|(id, _)| async move { self.remove(&self.chunk_path(id)).await })
            .buffer_unordered(AT_ONCE)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(report)
    }

    /// Chunks in the store that no manifest names, with their lengths. Anything else there is left alone.
    async fn unnamed(&self, named: &HashSet<ChunkId>) -> Result<Vec<(ChunkId, u64)>> {
        let prefix = self.chunks_path();
        let fail = |error| Error::store(OP, prefix.to_string(), error);
        let mut all = self.store.objects.list(Some(&prefix));
        let mut unnamed = Vec::new();
        while let Some(found) = all.try_next().await.map_err(fail)? {
            let id = found.location.filename().and_then(ChunkId::from_hex);
            if let Some(id) = id.filter(|id| !named.contains(id) && found.location == self.chunk_path(*id)) {
                unnamed.push((id, found.size));
            }
        }
        Ok(unnamed)
    }
}
