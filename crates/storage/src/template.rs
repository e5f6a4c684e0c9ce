//! Templates: one booted machine per key, never written again, cloned by every create.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use types::{Bytes, ContentId, Mebibytes, StorageLayout, Timestamp};

use crate::clone::CloneReport;
use crate::durable::StagedDir;
use crate::error::Result;
use crate::image::ImageRecord;
use crate::layout;
use crate::manifest::{ImageRef, MachineRecord, RamBase};
use crate::memory::PageSource;
use crate::store::Store;

/// What a template was made of: everything its key stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateSpec {
    /// The image under or behind its root disk.
    pub image: ImageRef,
    /// The kernel it booted.
    pub kernel: ContentId,
    /// How its root disk is kept.
    pub layout: StorageLayout,
    /// Virtual processors.
    pub cpus: u32,
    /// Guest memory.
    pub memory_mib: Mebibytes,
    /// The machine.
    pub machine: MachineRecord,
    /// Whether the agent had detached cleanly.
    pub detached: bool,
}

/// A committed template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateRecord {
    /// Its key, and its directory's name.
    pub key: ContentId,
    /// What it was made of.
    pub spec: TemplateSpec,
    /// Identity of its RAM base.
    pub ram_base_id: ContentId,
    /// Bytes of the RAM base that are not holes.
    pub ram_private_bytes: Bytes,
    /// BLAKE3 of its `vm.snap`.
    pub vm_blake3: ContentId,
    /// Size of its `vm.snap`.
    pub vm_bytes: Bytes,
    /// When it was committed.
    pub created_at: Timestamp,
}

impl TemplateRecord {
    /// The base that clones of it lie over.
    #[must_use]
    pub fn ram_base(&self) -> RamBase {
        RamBase::Template { key: self.key.clone(), ram: self.ram_base_id.clone() }
    }

    /// Its root disk's file name.
    #[must_use]
    pub fn root_disk(&self) -> &'static str {
        layout::root_disk(self.spec.layout)
    }
}

/// The templates of a store.
#[derive(Debug, Clone, Copy)]
pub struct Templates<'a> {
    pub(crate) store: &'a Store,
}

/// A template being made; removed when dropped.
#[derive(Debug)]
pub struct StagedTemplate {
    pub(crate) store: Store,
    pub(crate) staged: StagedDir,
    pub(crate) key: ContentId,
    pub(crate) layout: StorageLayout,
    pub(crate) ram: Option<RamBaseReport>,
}

/// A RAM base that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamBaseReport {
    /// Identity of its content.
    pub id: ContentId,
    /// Bytes that are not holes.
    pub private: Bytes,
}

impl Templates<'_> {
    /// The template of that key, if it was made.
    ///
    /// # Errors
    /// `Corrupt` when its record is damaged or files of it are missing.
    pub fn get(&self, _key: &ContentId) -> Result<Option<TemplateRecord>> {
        unimplemented!()
    }

    /// All templates, by key; a damaged one as its error.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> Result<Vec<(ContentId, Result<TemplateRecord>)>> {
        unimplemented!()
    }

    /// The template's directory.
    #[must_use]
    pub fn dir(&self, key: &ContentId) -> PathBuf {
        self.store.layout().template(key)
    }

    /// Its device state, verified, to be handed to a VMM.
    ///
    /// # Errors
    /// `Corrupt` when it is not what was committed.
    pub fn open_devices(&self, _record: &TemplateRecord) -> Result<File> {
        unimplemented!()
    }

    /// A staging directory for the template of that key: a VMM boots in it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn stage(&self, _key: &ContentId, _layout: StorageLayout) -> Result<StagedTemplate> {
        unimplemented!()
    }

    /// Takes a template out of use (a damaged one): renamed away, then removed. Sandboxes over its RAM base keep their
    /// disks and lose what they sleep on.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove(&self, _key: &ContentId) -> Result<()> {
        unimplemented!()
    }
}

impl StagedTemplate {
    /// The working directory of its VMM.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.staged.path
    }

    /// Where its root disk must be: made by `qemu-img` for layout overlay, by `clone_image` for layout reflink.
    #[must_use]
    pub fn root_disk_path(&self) -> PathBuf {
        self.staged.path.join(layout::root_disk(self.layout))
    }

    /// Makes the root disk a raw clone of the image (layout reflink).
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn clone_image(&self, _image: &ImageRecord) -> Result<CloneReport> {
        unimplemented!()
    }

    /// Locks the root disk for the VMM that will run on it.
    ///
    /// # Errors
    /// `Busy` when it is locked.
    pub fn lock_root(&self) -> Result<File> {
        unimplemented!()
    }

    /// Where the VMM must write its device state before `commit`.
    #[must_use]
    pub fn devices_path(&self) -> PathBuf {
        self.staged.path.join(layout::VM_SNAP)
    }

    /// Writes the RAM of the paused guest as a sparse file with its private pages at their offsets.
    ///
    /// # Errors
    /// `NoSpace`, or what the source or the system says.
    pub fn write_ram(&mut self, _source: &dyn PageSource) -> Result<RamBaseReport> {
        unimplemented!()
    }

    /// Makes it last. Who loses a race to the same key discards its own and gets the winner's. The VMM must have ended.
    ///
    /// # Errors
    /// `Invalid` when a part is missing, `Busy` while a VMM has the disk, or what the system says.
    pub fn commit(self, _spec: TemplateSpec) -> Result<TemplateRecord> {
        let _ = (self.store, self.key, self.ram);
        unimplemented!()
    }
}
