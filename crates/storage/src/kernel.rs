//! Guest kernels with their initramfs: named by their content, one current per architecture.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use types::{Arch, ContentId, Timestamp};

use crate::durable::StagedDir;
use crate::error::Result;
use crate::store::Store;

/// A kernel and its initramfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelRecord {
    /// BLAKE3 of kernel and initramfs.
    pub id: ContentId,
    /// The guests it is for.
    pub arch: Arch,
    /// The kernel's release.
    pub version: String,
    /// The agent inside the initramfs.
    pub agent_version: String,
    /// Fingerprint of what it was made from, in the words of who made it.
    pub source: String,
    /// When it was committed.
    pub created_at: Timestamp,
}

impl KernelRecord {
    /// The kernel as a VMM sees it whose working directory is a sandbox's or a template's.
    #[must_use]
    pub fn vmlinuz_from_machine_dir(&self) -> PathBuf {
        unimplemented!()
    }

    /// The initramfs as a VMM sees it whose working directory is a sandbox's or a template's.
    #[must_use]
    pub fn initramfs_from_machine_dir(&self) -> PathBuf {
        unimplemented!()
    }
}

/// The kernels of a store.
#[derive(Debug, Clone, Copy)]
pub struct Kernels<'a> {
    pub(crate) store: &'a Store,
}

/// A kernel being made; removed when dropped.
#[derive(Debug)]
pub struct StagedKernel {
    pub(crate) store: Store,
    pub(crate) staged: StagedDir,
}

impl Kernels<'_> {
    /// The current kernel.
    ///
    /// # Errors
    /// `NotFound` before `setup`, `Corrupt` for a damaged record.
    pub fn get(&self, _arch: Arch) -> Result<KernelRecord> {
        unimplemented!()
    }

    /// The kernel with that content, current or not.
    ///
    /// # Errors
    /// `NotFound`, or `Corrupt` for a damaged record.
    pub fn by_id(&self, _id: &ContentId) -> Result<KernelRecord> {
        let _ = self.store;
        unimplemented!()
    }

    /// An empty staging directory.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn stage(&self) -> Result<StagedKernel> {
        unimplemented!()
    }
}

impl StagedKernel {
    /// A directory to work in; everything but the two files is removed at commit.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.staged.path
    }

    /// Where the kernel must be at commit.
    #[must_use]
    pub fn vmlinuz_path(&self) -> PathBuf {
        self.staged.path.join("vmlinuz")
    }

    /// Where the initramfs must be at commit.
    #[must_use]
    pub fn initramfs_path(&self) -> PathBuf {
        self.staged.path.join("initramfs")
    }

    /// Makes it last and current for its architecture; older ones stay.
    ///
    /// # Errors
    /// `Invalid` when a file is missing or empty, or what the system says.
    pub fn commit(self, _arch: Arch, _version: &str, _agent_version: &str, _source: &str) -> Result<KernelRecord> {
        let _ = self.store;
        unimplemented!()
    }
}
