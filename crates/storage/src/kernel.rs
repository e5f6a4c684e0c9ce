//! Guest kernels with their initramfs: named by their content, one current per architecture.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use types::{Arch, ContentId, Timestamp};

use crate::durable::{self, StagedDir};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::{self, INITRAMFS, MANIFEST, VMLINUZ};
use crate::record::{self, Format};
use crate::references::Shared;
use crate::sparse;
use crate::store::Store;

const FORMAT: Format = Format { name: "bhatti-kernel", version: 1 };

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
        layout::from_machine_dir(&layout::kernel_below_root(&self.id)).join(VMLINUZ)
    }

    /// The initramfs as a VMM sees it whose working directory is a sandbox's or a template's.
    #[must_use]
    pub fn initramfs_from_machine_dir(&self) -> PathBuf {
        layout::from_machine_dir(&layout::kernel_below_root(&self.id)).join(INITRAMFS)
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
    pub fn get(&self, arch: Arch) -> Result<KernelRecord> {
        let record: KernelRecord = self.read(&self.store.layout().kernel_record(arch))?;
        self.by_id(&record.id)?;
        Ok(record)
    }

    /// The kernel with that content, current or not.
    ///
    /// # Errors
    /// `NotFound`, or `Corrupt` for a damaged record.
    pub fn by_id(&self, id: &ContentId) -> Result<KernelRecord> {
        let dir = self.store.layout().kernel_dir(id);
        let record = self.read(&dir.join(MANIFEST))?;
        for file in [VMLINUZ, INITRAMFS] {
            let path = dir.join(file);
            fs::metadata(&path).map_err(|error| {
                Error::new(ErrorKind::Corrupt, "use kernel", path)
                    .because("a file of it is missing")
                    .hint_to("run `bhatti setup`")
                    .caused_by(error)
            })?;
        }
        Ok(record)
    }

    /// The records of the current kernels by their path, or why they cannot be read.
    pub(crate) fn current(&self) -> Result<Vec<(PathBuf, Result<KernelRecord>)>> {
        let dir = self.store.layout().kernel();
        let names = self.store.names_in(&dir)?;
        let records = names.into_iter().filter(|name| name.ends_with(".json"));
        let read = |path: PathBuf| (path.clone(), self.read(&path));
        Ok(records.map(|name| read(dir.join(name))).collect())
    }

    fn read(&self, path: &Path) -> Result<KernelRecord> {
        record::read(FORMAT, path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::new(ErrorKind::NotFound, "use kernel", path)
                .because("there is no such guest kernel here")
                .hint_to("run `bhatti setup`"),
            _ => error,
        })
    }

    /// An empty staging directory.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn stage(&self) -> Result<StagedKernel> {
        let path = self.store.layout().kernel().join(layout::staging_name());
        Ok(StagedKernel { store: self.store.clone(), staged: StagedDir::create(path)? })
    }
}

impl StagedKernel {
    /// A directory to work in; everything but the two files is removed at commit.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.staged.path()
    }

    /// Where the kernel must be at commit.
    #[must_use]
    pub fn vmlinuz_path(&self) -> PathBuf {
        self.staged.path().join(VMLINUZ)
    }

    /// Where the initramfs must be at commit.
    #[must_use]
    pub fn initramfs_path(&self) -> PathBuf {
        self.staged.path().join(INITRAMFS)
    }

    /// Makes it last and current for its architecture; older ones stay.
    ///
    /// # Errors
    /// `Invalid` when a file is missing or empty, or what the system says.
    pub fn commit(
        self,
        arch: Arch,
        version: &str,
        agent_version: &str,
        source: &str,
    ) -> Result<KernelRecord> {
        let layout = self.store.layout();
        let mut files = Vec::new();
        let mut hasher = blake3::Hasher::new();
        for path in [self.vmlinuz_path(), self.initramfs_path()] {
            let missing =
                || Error::new(ErrorKind::Invalid, "commit kernel", &path).because("it is missing or empty");
            let file = File::open(&path).map_err(|error| missing().caused_by(error))?;
            let len = file.metadata().map_err(|error| Error::io("stat", &path, error))?.len();
            if len == 0 {
                return Err(missing());
            }
            durable::set_mode(&file, &path, 0o444)?;
            hasher.update(&len.to_le_bytes());
            hasher.update(sparse::content_id(&file, &path)?.as_str().as_bytes());
            files.push(file);
        }
        for name in self.store.names_in(self.dir())? {
            let path = self.dir().join(&name);
            if name == VMLINUZ || name == INITRAMFS {
                continue;
            }
            match path.is_dir() && !path.is_symlink() {
                true => durable::remove_tree(&path)?,
                false => durable::remove_if_there(&path).map(drop)?,
            }
        }
        let record = KernelRecord {
            id: ContentId::from_hash(hasher.finalize().as_bytes()),
            arch,
            version: version.to_owned(),
            agent_version: agent_version.to_owned(),
            source: source.to_owned(),
            created_at: Timestamp::now(),
        };
        let bytes = record::encode(FORMAT, &record);
        files.push(durable::new_file(&self.dir().join(MANIFEST), &bytes, 0o600)?);
        // No record names it yet.
        let _pin = self.store.pin_objects(vec![Shared::Kernel(record.id.clone())]);
        match self.staged.commit(&files.iter().collect::<Vec<_>>(), &layout.kernel_dir(&record.id)) {
            Err(error) if error.kind() == ErrorKind::Exists => {}
            done => done?,
        }
        durable::replace(&layout.kernel_record(arch), &bytes, 0o600)?;
        Ok(record)
    }
}
