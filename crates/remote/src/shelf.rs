//! One volume's part of a store: its names, its manifests, what they know.

use std::collections::HashSet;

use bytes::Bytes as Buffer;
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStoreExt as _, PutMode};
use types::{Owner, VolumeName};

use crate::chunk::ChunkId;
use crate::manifest::{Manifest, Summary};
use crate::store::Store;
use crate::{BackupId, Error, ErrorKind, Result};

/// Requests that are under way at once.
pub(crate) const AT_ONCE: usize = 8;
/// No manifest is longer: 64 hex digits for each of the 18 Mi chunks of a volume of 4.5 TiB.
const MANIFEST_BYTES_MAX: u64 = 1200 << 20;

/// One volume's backups.
#[derive(Debug, Clone)]
pub struct Shelf {
    pub(crate) store: Store,
    pub(crate) owner: Owner,
    pub(crate) volume: VolumeName,
}

/// One entry of a list: a backup, or why it cannot be read.
#[derive(Debug)]
pub struct Listed {
    /// Its id.
    pub id: BackupId,
    /// What its manifest says.
    pub manifest: Result<Summary>,
}

/// Everything that the manifests of a shelf say.
pub(crate) struct Known {
    /// Chunks that a readable manifest names, and so are there.
    pub(crate) chunks: HashSet<ChunkId>,
    /// Manifests that cannot be read.
    pub(crate) unreadable: Vec<Error>,
    /// Length of all manifests that were read.
    pub(crate) read_bytes: u64,
}

impl Shelf {
    /// The store's URL.
    #[must_use]
    pub fn store_url(&self) -> &str {
        self.store.url()
    }

    pub(crate) fn new(store: Store, owner: Owner, volume: VolumeName) -> Self {
        Self { store, owner, volume }
    }

    /// The backups, oldest first. A damaged one is in the list and says so.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub async fn list(&self) -> Result<Vec<Listed>> {
        let ids = self.ids().await?;
        let all = futures_util::stream::iter(ids).map(async |id| {
            let manifest = self.manifest(&id).await.map(|(manifest, _)| manifest.summary);
            Listed { id, manifest }
        });
        let mut all: Vec<Listed> = all.buffered(AT_ONCE).collect().await;
        // Ids have whole seconds; a damaged backup keeps the place that its id gives it.
        let at = |one: &Listed| one.manifest.as_ref().ok().map(|summary| summary.created_at);
        all.sort_by(|a, b| a.id.second().cmp(b.id.second()).then_with(|| at(a).cmp(&at(b))));
        Ok(all)
    }

    /// What one backup says of itself.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Damaged`], [`ErrorKind::TooNew`], [`ErrorKind::Foreign`].
    pub async fn summary(&self, id: &BackupId) -> Result<Summary> {
        self.manifest(id).await.map(|(manifest, _)| manifest.summary)
    }

    pub(crate) async fn ids(&self) -> Result<Vec<BackupId>> {
        let prefix = self.path(&["backups"]);
        let found: Vec<_> = self
            .store
            .objects
            .list(Some(&prefix))
            .try_collect()
            .await
            .map_err(|error| Error::store("list", prefix.to_string(), error))?;
        let id = |path: &ObjectPath| path.filename()?.strip_suffix(".json")?.parse().ok();
        // What has no id's name was put there by somebody else and is left alone.
        let mut ids: Vec<BackupId> = found.iter().filter_map(|meta| id(&meta.location)).collect();
        ids.sort();
        Ok(ids)
    }

    /// A manifest of this volume, and its length.
    pub(crate) async fn manifest(&self, id: &BackupId) -> Result<(Manifest, u64)> {
        let path = self.manifest_path(id);
        let bytes = match self.read(&path, MANIFEST_BYTES_MAX).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(Error::new(ErrorKind::NotFound, "read", path.to_string())
                    .because(format!("volume {} has no such backup", self.volume))
                    .hint_to("list the backups of the volume"));
            }
            read => read?,
        };
        let manifest = Manifest::decode(&bytes, path.as_ref())?;
        let Summary { owner, volume, id: said, .. } = &manifest.summary;
        if owner != &self.owner || volume != &self.volume {
            return Err(Error::new(ErrorKind::Foreign, "read", path.to_string())
                .because(format!("it is a backup of volume {volume} of {owner}")));
        }
        if said != id {
            return Err(Error::new(ErrorKind::Damaged, "read", path.to_string())
                .because(format!("it is the manifest of the backup {said}")));
        }
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok((manifest, len))
    }

    pub(crate) async fn known(&self) -> Result<Known> {
        let ids = self.ids().await?;
        let mut known = Known { chunks: HashSet::new(), unreadable: Vec::new(), read_bytes: 0 };
        let mut all = futures_util::stream::iter(ids).map(async |id| self.manifest(&id).await).buffered(2);
        while let Some(read) = all.next().await {
            match read {
                Ok((manifest, len)) => {
                    known.read_bytes += len;
                    known.chunks.extend(manifest.table.0.iter().map(|(_, id)| *id));
                }
                Err(error) if says_what_is_wrong_with_it(&error) => known.unreadable.push(error),
                // A store that does not answer says nothing about what is in it.
                Err(error) => return Err(error),
            }
        }
        Ok(known)
    }

    pub(crate) async fn read(&self, path: &ObjectPath, at_most: u64) -> Result<Buffer> {
        let fail = |error| Error::store("read", path.to_string(), error);
        let found = self.store.objects.get(path).await.map_err(fail)?;
        if found.meta.size > at_most {
            return Err(Error::new(ErrorKind::Damaged, "read", path.to_string())
                .because("it is larger than anything that belongs there"));
        }
        found.bytes().await.map_err(fail)
    }

    /// Writes an object; one that must be new is never put in place of another.
    pub(crate) async fn write(&self, path: &ObjectPath, bytes: Vec<u8>, new: bool) -> Result<()> {
        let mode = if new { PutMode::Create } else { PutMode::Overwrite };
        let put = self.store.objects.put_opts(path, bytes.into(), mode.into()).await;
        put.map(drop).map_err(|error| Error::store("write", path.to_string(), error))
    }

    /// Removes an object; that it is gone already is no error.
    pub(crate) async fn remove(&self, path: &ObjectPath) -> Result<()> {
        match self.store.objects.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(Error::store("remove", path.to_string(), error)),
        }
    }

    pub(crate) fn manifest_path(&self, id: &BackupId) -> ObjectPath {
        self.path(&["backups", &format!("{id}.json")])
    }

    pub(crate) fn chunks_path(&self) -> ObjectPath {
        self.path(&["chunks"])
    }

    pub(crate) fn chunk_path(&self, id: ChunkId) -> ObjectPath {
        let name = id.to_string();
        self.path(&["chunks", &name[..2], &name])
    }

    pub(crate) fn lock_path(&self) -> ObjectPath {
        self.path(&["lock.json"])
    }

    fn path(&self, parts: &[&str]) -> ObjectPath {
        [self.owner.as_str(), self.volume.as_str()].iter().chain(parts).copied().collect()
    }
}

/// Whether an error is about the manifest itself, not about the way to it.
pub(crate) fn says_what_is_wrong_with_it(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Damaged | ErrorKind::TooNew | ErrorKind::Foreign)
}
