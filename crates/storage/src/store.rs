//! The store: one data root, opened.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use types::{Mebibytes, SandboxId};

use crate::error::Result;
use crate::image::Images;
use crate::kernel::Kernels;
use crate::layout::Layout;
use crate::lock::{DaemonLock, SetupLock};
use crate::manifest::{Manifest, RamBase};
use crate::probe::FsCapabilities;
use crate::reconcile::{Leftover, ReconcileReport};
use crate::sandbox_dir::{SandboxDir, StagedSandbox};
use crate::template::Templates;

/// An opened data root. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    layout: Arc<Layout>,
}

impl Store {
    /// Opens a data root and makes what is missing of its directories (mode 0700).
    ///
    /// # Errors
    /// `Unwritable` when it cannot be written, naming the directory.
    pub fn open(root: &Path) -> Result<Self> {
        Ok(Self { layout: Arc::new(Layout::new(root)) })
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The data root, absolute.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.layout.root
    }

    /// The daemon's unix socket.
    #[must_use]
    pub fn socket_path(&self) -> PathBuf {
        self.root().join("bhatti.sock")
    }

    /// The SQLite index.
    #[must_use]
    pub fn db_path(&self) -> PathBuf {
        self.root().join("bhatti.db")
    }

    /// The admin key's file.
    #[must_use]
    pub fn admin_key_path(&self) -> PathBuf {
        self.root().join("admin.key")
    }

    /// Writes a small file of the daemon's own (the admin key) with mode 0600, durably, never seen half-written.
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn write_private(&self, _path: &Path, _bytes: &[u8]) -> Result<()> {
        unimplemented!()
    }

    /// Takes the data root for one daemon.
    ///
    /// # Errors
    /// `Busy` when another daemon has it, naming its process.
    pub fn lock_daemon(&self) -> Result<DaemonLock> {
        unimplemented!()
    }

    /// Waits until no other `setup` works here.
    ///
    /// # Errors
    /// What the system says.
    pub fn lock_setup(&self) -> Result<SetupLock> {
        unimplemented!()
    }

    /// Finds out what the filesystem can do, by doing it.
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn probe(&self) -> Result<FsCapabilities> {
        unimplemented!()
    }

    /// The base images.
    #[must_use]
    pub fn images(&self) -> Images<'_> {
        Images { store: self }
    }

    /// The guest kernels.
    #[must_use]
    pub fn kernel(&self) -> Kernels<'_> {
        Kernels { store: self }
    }

    /// The templates.
    #[must_use]
    pub fn templates(&self) -> Templates<'_> {
        Templates { store: self }
    }

    /// An all-hole file of that size, made when missing, as a VMM sees it whose working directory is a sandbox's or a
    /// template's.
    ///
    /// # Errors
    /// What the system says.
    pub fn zero_base(&self, _memory: Mebibytes) -> Result<PathBuf> {
        unimplemented!()
    }

    /// The file under a guest's memory, verified to be the one that is meant, as a VMM sees it whose working directory
    /// is a sandbox's.
    ///
    /// # Errors
    /// `Corrupt` when the template is not the one that the base names, `NotFound` when it is gone.
    pub fn ram_base(&self, _base: &RamBase, _memory: Mebibytes) -> Result<PathBuf> {
        unimplemented!()
    }

    /// A staging directory for a new sandbox.
    ///
    /// # Errors
    /// `Exists` when there is such a sandbox.
    pub fn stage_sandbox(&self, _id: &SandboxId) -> Result<StagedSandbox> {
        unimplemented!()
    }

    /// Every sandbox with its manifest, or why that cannot be read.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn sandboxes(&self) -> Result<Vec<(SandboxId, Result<Manifest>)>> {
        unimplemented!()
    }

    /// A sandbox's directory; whether there is one, its manifest tells.
    #[must_use]
    pub fn sandbox(&self, id: &SandboxId) -> SandboxDir {
        SandboxDir { store: self.clone(), id: id.clone(), path: self.layout.sandbox(id) }
    }

    /// What crashes left behind, and what would be done about it. Call it with the daemon's lock held.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn reconcile_plan(&self) -> Result<Vec<Leftover>> {
        unimplemented!()
    }

    /// Removes what the plan says; what is held by a living process by now is left alone.
    #[must_use]
    pub fn execute(&self, _plan: &[Leftover]) -> ReconcileReport {
        unimplemented!()
    }
}
