//! Named snapshots and forks: the verbs that make sandboxes out of a sandbox.

use types::{Labels, Mebibytes, Owner, SandboxName, SnapshotName};

use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::view::{Report, SnapshotReport, SnapshotView};

/// A snapshot to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotWish {
    /// Its name, free among the owner's.
    pub name: SnapshotName,
    /// Only the disk: what is resumed from it boots.
    pub disk_only: bool,
}

/// A sandbox to be made from a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resume {
    /// Its name, free among the owner's.
    pub name: SandboxName,
    /// Labels beside the source's.
    pub labels: Labels,
    /// Exempt from going to sleep by itself.
    pub keep_hot: bool,
    /// A larger root disk.
    pub disk_size: Option<Mebibytes>,
    /// Refuse the slow path.
    pub strict: bool,
}

/// Copies to be made of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fork {
    /// Their names, each free among the owner's.
    pub names: Vec<SandboxName>,
    /// Labels beside the source's.
    pub labels: Labels,
    /// Exempt from going to sleep by itself.
    pub keep_hot: bool,
    /// A larger root disk.
    pub disk_size: Option<Mebibytes>,
    /// Refuse the slow path.
    pub strict: bool,
}

fn not_there() -> Error {
    Error::new(ErrorKind::NotReady, "snapshots are not there yet")
}

impl Host {
    /// Makes a named snapshot of a sandbox, which goes on as it was.
    ///
    /// # Errors
    /// `Conflict` when the name is taken, `NoSpace`; nothing is left then and the guest still runs.
    pub async fn snapshot_create(
        &self,
        _owner: &Owner,
        _which: &str,
        _wish: SnapshotWish,
    ) -> Result<SnapshotReport> {
        Err(not_there())
    }

    /// The owner's snapshots, by name.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn snapshots(&self, _owner: &Owner) -> Result<Vec<SnapshotView>> {
        Ok(Vec::new())
    }

    /// One snapshot.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`.
    pub async fn snapshot(&self, _owner: &Owner, _name: &SnapshotName) -> Result<SnapshotView> {
        Err(not_there())
    }

    /// Makes a sandbox from a snapshot: with its memory, or booted if it has none.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `Conflict` for a name that is taken, `NoSpace`; nothing is left then.
    pub async fn snapshot_resume(
        &self,
        _owner: &Owner,
        _name: &SnapshotName,
        _resume: Resume,
    ) -> Result<Report> {
        Err(not_there())
    }

    /// Removes a snapshot. Sandboxes made from it keep what they need.
    ///
    /// # Errors
    /// `NotFound`, `Busy` while something is made from it, saying what.
    pub async fn snapshot_delete(&self, _owner: &Owner, _name: &SnapshotName) -> Result<()> {
        Err(not_there())
    }

    /// Makes live copies of a sandbox, which goes on as it was.
    ///
    /// # Errors
    /// `Conflict` for a name that is taken, `NoSpace`; no copy is left then.
    pub async fn fork(&self, _owner: &Owner, _which: &str, _fork: Fork) -> Result<Vec<Report>> {
        Err(not_there())
    }
}
