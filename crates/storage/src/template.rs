//! Templates: one booted machine per key, never written again, cloned by every create.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use types::{Bytes, ContentId, Mebibytes, StorageLayout, Timestamp};

use crate::clone::{CloneReport, clone_file};
use crate::durable::{self, StagedDir};
use crate::error::{Error, ErrorKind, Result};
use crate::image::ImageRecord;
use crate::layout::{self, MANIFEST, RAM_BASE, VM_SNAP};
use crate::lock;
use crate::manifest::{ImageRef, MachineRecord, Manifest, RamBase, RunState};
use crate::memory::{PageSource, RamBaseReport, write_ram_base};
use crate::record::{self, Format};
use crate::sparse;
use crate::store::Store;

const FORMAT: Format = Format { name: "bhatti-template", version: 1 };

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

impl Templates<'_> {
    /// The template of that key, if it was made.
    ///
    /// # Errors
    /// `Corrupt` when its record is damaged or files of it are missing.
    pub fn get(&self, key: &ContentId) -> Result<Option<TemplateRecord>> {
        let dir = self.dir(key);
        let record: TemplateRecord = match record::read(FORMAT, &dir.join(MANIFEST)) {
            Err(error) if error.kind() == ErrorKind::NotFound && !dir.exists() => return Ok(None),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(damaged(&dir, "its record is missing"));
            }
            read => read?,
        };
        if record.key != *key {
            return Err(damaged(&dir, "its record is another template's"));
        }
        let lens = [
            (RAM_BASE, Some(record.spec.memory_mib.bytes().0)),
            (VM_SNAP, Some(record.vm_bytes.0)),
            (record.root_disk(), None),
        ];
        for (name, expected) in lens {
            match fs::metadata(dir.join(name)) {
                Ok(meta) if expected.is_none_or(|expected| expected == meta.len()) => {}
                Ok(_) => return Err(damaged(&dir.join(name), "it has another size than was committed")),
                Err(error) => return Err(damaged(&dir.join(name), "it is missing").caused_by(error)),
            }
        }
        Ok(Some(record))
    }

    /// All templates, by key; a damaged one as its error.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> Result<Vec<(ContentId, Result<TemplateRecord>)>> {
        let names = self.store.names_in(&self.store.layout().templates())?;
        let keys = names.iter().filter_map(|name| name.parse::<ContentId>().ok());
        Ok(keys.filter_map(|key| self.get(&key).transpose().map(|record| (key, record))).collect())
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
    pub fn open_devices(&self, record: &TemplateRecord) -> Result<File> {
        let path = self.dir(&record.key).join(VM_SNAP);
        let file =
            File::open(&path).map_err(|error| damaged(&path, "it cannot be opened").caused_by(error))?;
        if sparse::content_id(&file, &path)? != record.vm_blake3 {
            return Err(damaged(&path, "its checksum does not match"));
        }
        Ok(file)
    }

    /// A staging directory for the template of that key: a VMM boots in it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn stage(&self, key: &ContentId, layout: StorageLayout) -> Result<StagedTemplate> {
        let path = self.store.layout().templates().join(layout::staging_name());
        let (store, key) = (self.store.clone(), key.clone());
        Ok(StagedTemplate { store, staged: StagedDir::create(path)?, key, layout, ram: None })
    }

    /// Takes a template out of use (a damaged one): renamed away, then removed.
    ///
    /// # Errors
    /// `Corrupt` while memory lies over its RAM base, which may be good still; or what the system says.
    pub fn remove(&self, key: &ContentId) -> Result<()> {
        let dir = self.dir(key);
        let references = self.store.references()?;
        let lies_over = |manifest: &Manifest| {
            let over = matches!(&manifest.ram_base, RamBase::Template { key: named, .. } if named == key);
            over && manifest.state != RunState::Off
        };
        if let Some((namer, _)) = references.manifests.iter().find(|(_, manifest)| lies_over(manifest)) {
            return Err(Error::new(ErrorKind::Corrupt, "replace template", dir)
                .because(format!("it is damaged, and the memory of {namer} lies over it"))
                .hint_to("`bhatti fsck` tells what is damaged, and who else needs it"));
        }
        durable::remove_named_dir(&dir)
    }
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, "use template", path)
        .because(what)
        .hint_to("remove that template's directory; the next create makes it again")
}

impl StagedTemplate {
    /// The working directory of its VMM.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.staged.path()
    }

    /// Where its root disk must be: made by `qemu-img` for layout overlay, by `clone_image` for layout reflink.
    #[must_use]
    pub fn root_disk_path(&self) -> PathBuf {
        self.staged.path().join(layout::root_disk(self.layout))
    }

    /// Makes the root disk a raw clone of the image (layout reflink).
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn clone_image(&self, image: &ImageRecord) -> Result<CloneReport> {
        clone_file(&self.store.images().object_path(&image.id), &self.root_disk_path())
    }

    /// Locks the root disk for the VMM that will run on it.
    ///
    /// # Errors
    /// `Busy` when it is locked.
    pub fn lock_root(&self) -> Result<File> {
        lock::root_disk(&self.root_disk_path())
    }

    /// Where the VMM must write its device state before `commit`.
    #[must_use]
    pub fn devices_path(&self) -> PathBuf {
        self.staged.path().join(layout::VM_SNAP)
    }

    /// Writes the RAM of the paused guest as a sparse file with its private pages at their offsets.
    ///
    /// # Errors
    /// `NoSpace`, or what the source or the system says.
    pub fn write_ram(&mut self, source: &dyn PageSource) -> Result<RamBaseReport> {
        let path = self.staged.path().join(RAM_BASE);
        durable::remove_if_there(&path)?;
        let file = durable::new_file(&path, &[], 0o444)?;
        let report = write_ram_base(&file, &path, source)?;
        self.ram = Some(report.clone());
        Ok(report)
    }

    /// Makes it last. Who loses a race to the same key discards its own and gets the winner's. The VMM must have ended.
    ///
    /// # Errors
    /// `Invalid` when a part is missing, `Busy` while a VMM has the disk, or what the system says.
    pub fn commit(self, spec: TemplateSpec) -> Result<TemplateRecord> {
        let dir = self.staged.path().to_owned();
        let invalid = |what: &str| Error::new(ErrorKind::Invalid, "commit template", &dir).because(what);
        let Some(ram) = self.ram.clone() else { return Err(invalid("its RAM base was not written")) };
        if spec.layout != self.layout {
            return Err(invalid("its root disk is of another layout than its record says"));
        }
        let open = |path: &Path| {
            File::open(path).map_err(|error| invalid("a part of it is missing").caused_by(error))
        };
        let ram_file = open(&dir.join(RAM_BASE))?;
        if ram_file.metadata().map_err(|error| Error::io("stat", &dir, error))?.len()
            != spec.memory_mib.bytes().0
        {
            return Err(invalid("its RAM base is of another size than its record says"));
        }
        let (root, vm) = (open(&self.root_disk_path())?, open(&self.devices_path())?);
        if lock::is_held(&self.root_disk_path())? {
            return Err(Error::new(ErrorKind::Busy, "commit template", &dir)
                .because("its machine still has the root disk open"));
        }
        for (file, path) in [(&root, self.root_disk_path()), (&vm, self.devices_path())] {
            durable::set_mode(file, &path, 0o444)?;
        }
        for name in [layout::QMP_SOCKET, layout::AGENT_SOCKET, layout::VMM_LOG] {
            durable::remove_if_there(&dir.join(name))?;
        }
        durable::remove_any(&dir.join(layout::VMM_ROOM))?;
        let vm_len = vm.metadata().map_err(|error| Error::io("stat", &dir, error))?.len();
        let record = TemplateRecord {
            key: self.key,
            spec,
            ram_base_id: ram.id,
            ram_private_bytes: ram.private,
            vm_blake3: sparse::content_id(&vm, &self.staged.path().join(VM_SNAP))?,
            vm_bytes: Bytes(vm_len),
            created_at: Timestamp::now(),
        };
        let manifest = durable::new_file(&dir.join(MANIFEST), &record::encode(FORMAT, &record), 0o600)?;
        let target = self.store.layout().template(&record.key);
        match self.staged.commit(&[&ram_file, &root, &vm, &manifest], &target) {
            Err(error) if error.kind() == ErrorKind::Exists => self
                .store
                .templates()
                .get(&record.key)?
                .ok_or_else(|| damaged(&target, "it was removed while another of its key was made")),
            done => done.map(|()| record),
        }
    }
}
