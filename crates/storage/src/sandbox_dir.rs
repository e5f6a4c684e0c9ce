//! One sandbox's directory: its files, its locks, its commits.

use std::fs::File;
use std::path::{Path, PathBuf};

use types::{SandboxId, StorageLayout};

use crate::clone::CloneReport;
use crate::durable::StagedDir;
use crate::error::Result;
use crate::image::ImageRecord;
use crate::layout;
use crate::manifest::Manifest;
use crate::memory::{MemoryHeader, MemoryImage, PageSource, StagedMemory};
use crate::store::Store;
use crate::template::TemplateRecord;

/// A sandbox being created; removed when dropped.
#[derive(Debug)]
pub struct StagedSandbox {
    pub(crate) store: Store,
    pub(crate) staged: StagedDir,
    pub(crate) id: SandboxId,
}

impl StagedSandbox {
    /// Its staging directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.staged.path
    }

    /// Where the config drive must be built.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.staged.path.join(layout::CONFIG_DRIVE)
    }

    /// Where the root disk is, once cloned.
    #[must_use]
    pub fn root_disk_path(&self, layout: StorageLayout) -> PathBuf {
        self.staged.path.join(layout::root_disk(layout))
    }

    /// Clones the template's root disk.
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn clone_root_from_template(&self, _template: &TemplateRecord) -> Result<CloneReport> {
        unimplemented!()
    }

    /// Clones an image as a raw root disk (layout reflink, cold boot).
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn clone_root_from_image(&self, _image: &ImageRecord) -> Result<CloneReport> {
        unimplemented!()
    }

    /// Makes it last: files, manifest, then the name.
    ///
    /// # Errors
    /// `Invalid` when the manifest is another sandbox's or a file is missing, `Exists`, `NoSpace`.
    pub fn commit(self, _manifest: &Manifest) -> Result<SandboxDir> {
        let _ = (self.store, self.id);
        unimplemented!()
    }
}

/// A sandbox's directory.
#[derive(Debug, Clone)]
pub struct SandboxDir {
    pub(crate) store: Store,
    pub(crate) id: SandboxId,
    pub(crate) path: PathBuf,
}

impl SandboxDir {
    /// The sandbox.
    #[must_use]
    pub fn id(&self) -> &SandboxId {
        &self.id
    }

    /// The directory: the working directory of its VMM.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The manifest as it is on disk.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `TooNew`.
    pub fn manifest(&self) -> Result<Manifest> {
        unimplemented!()
    }

    /// Replaces the manifest, durably. The caller holds the transition lock of this sandbox.
    ///
    /// # Errors
    /// `Invalid` when it is another sandbox's, contradicts itself or goes back in generation; `Undecided`; `NoSpace`.
    pub fn commit(&self, _manifest: &Manifest) -> Result<()> {
        unimplemented!()
    }

    /// Locks the root disk for a VMM, which inherits the file and so holds the lock itself.
    ///
    /// # Errors
    /// `Busy` when a VMM has it.
    pub fn lock_root(&self) -> Result<File> {
        unimplemented!()
    }

    /// Whether some process has the root disk.
    ///
    /// # Errors
    /// When the disk cannot be opened.
    pub fn is_locked(&self) -> Result<bool> {
        unimplemented!()
    }

    /// Removes sockets that an earlier VMM left.
    ///
    /// # Errors
    /// What the system says.
    pub fn clear_sockets(&self) -> Result<()> {
        unimplemented!()
    }

    /// The last bytes that the VMM wrote to its log, at most `max`; empty when there is none.
    #[must_use]
    pub fn vmm_log_tail(&self, _max: usize) -> String {
        unimplemented!()
    }

    /// Writes the private pages of a paused guest under a staging name. Nothing is synced yet.
    ///
    /// # Errors
    /// `NoSpace`, or what the source or the system says.
    pub fn stage_memory(
        &self,
        _source: &dyn PageSource,
        _header: MemoryHeader,
        _level: i32,
    ) -> Result<StagedMemory> {
        unimplemented!()
    }

    /// Where the VMM must write its device state; an earlier attempt's is removed.
    ///
    /// # Errors
    /// What the system says.
    pub fn stage_devices(&self) -> Result<PathBuf> {
        unimplemented!()
    }

    /// The commit of a stop: memory and device state become part of the manifest's generation. `manifest` is the one to
    /// be committed but for `state` and `memory`, which are set here. Returns it as committed.
    ///
    /// # Errors
    /// Whatever the kind but `Undecided`, the sandbox is as before and the guest may resume.
    pub fn commit_cold(&self, _memory: StagedMemory, _manifest: Manifest, _detached: bool) -> Result<Manifest> {
        unimplemented!()
    }

    /// The memory image of a cold manifest, its header verified.
    ///
    /// # Errors
    /// `Corrupt` when it is not the one that the manifest names, with the way out.
    pub fn open_memory(&self, _manifest: &Manifest) -> Result<MemoryImage> {
        unimplemented!()
    }

    /// The device state of a cold manifest, verified, to be handed to a VMM.
    ///
    /// # Errors
    /// `Corrupt` when it is not the one that the manifest names, with the way out.
    pub fn open_devices(&self, _manifest: &Manifest) -> Result<File> {
        unimplemented!()
    }

    /// Gives up the memory image: commits the next generation as off, then removes the files.
    ///
    /// # Errors
    /// What the system says; the memory image is then still valid.
    pub fn discard_memory(&self, _manifest: Manifest) -> Result<Manifest> {
        unimplemented!()
    }

    /// Removes memory files that a committed `running` manifest has consumed.
    ///
    /// # Errors
    /// `Invalid` while the manifest on disk is cold.
    pub fn drop_consumed_memory(&self) -> Result<()> {
        unimplemented!()
    }

    /// Takes the sandbox away for good.
    ///
    /// # Errors
    /// `Busy` while a VMM has its disk.
    pub fn destroy(self) -> Result<()> {
        let _ = &self.store;
        unimplemented!()
    }
}
