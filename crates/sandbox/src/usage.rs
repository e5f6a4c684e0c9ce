//! Where the bytes are, for all sandboxes and for one.

use std::path::{Path, PathBuf};

use storage::{Store, Trial, TrialSize, Usage};
use types::{Bytes, Owner};

use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::services::blocking;

impl Host {
    /// What everything takes; of `owner` only what it has and what that lies on.
    ///
    /// # Errors
    /// When the data directory cannot be read.
    pub async fn usage(&self, owner: Option<&Owner>) -> Result<Usage> {
        let store = self.inner.services.store.clone();
        let usage = blocking(move || Ok(store.usage()?)).await?;
        Ok(match owner {
            Some(owner) => usage.of_owner(owner),
            None => usage,
        })
    }

    /// What one sandbox takes, and what it lies on.
    ///
    /// # Errors
    /// `NotFound`, `BadRequest` for an ambiguous beginning of an id.
    pub async fn sandbox_usage(&self, owner: &Owner, which: &str) -> Result<Usage> {
        let id = self.inspect(owner, which)?.id;
        // What is exclusive to it shows only beside everything else.
        let usage = self.usage(None).await?;
        usage
            .of_sandbox(&id)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("sandbox {which} was destroyed")))
    }
}

/// A data directory beside its daemon, to compare what the daemon tells with what the filesystem says is free.
#[derive(Debug, Clone)]
pub struct UsageCheck {
    store: Store,
}

impl UsageCheck {
    /// Opens the data directory.
    ///
    /// # Errors
    /// `NotReady` when it cannot be written.
    pub async fn open(data_dir: PathBuf) -> Result<Self> {
        blocking(move || Ok(Self { store: Store::open(&data_dir)? })).await
    }

    /// The data directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.store.root()
    }

    /// What is free once all that was written is on the disk.
    ///
    /// # Errors
    /// What the system says.
    pub async fn free(&self) -> Result<Bytes> {
        let store = self.store.clone();
        blocking(move || Ok(store.free_after_sync()?)).await
    }

    /// Makes files of known content: `size` random bytes, as many that compress, and a clone.
    ///
    /// # Errors
    /// `NoSpace` when they would take more than a tenth of what is free.
    pub async fn trial(&self, size: Bytes) -> Result<Trial> {
        let store = self.store.clone();
        blocking(move || Ok(store.usage_trial(TrialSize(size))?)).await
    }
}
