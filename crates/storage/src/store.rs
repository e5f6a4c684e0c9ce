//! The store: one data root, opened.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use types::{Bytes, Mebibytes, SandboxId};

use crate::blob::Blobs;
use crate::durable::{self, Staged, StagedDir};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Images;
use crate::kernel::Kernels;
use crate::layer::Layers;
use crate::layout::{self, Layout};
use crate::lock::{self, DaemonLock, SetupLock};
use crate::manifest::{Manifest, RamBase};
use crate::probe::{self, FsCapabilities};
use crate::reconcile::{self, Leftover, ReconcileReport};
use crate::references::Pins;
use crate::relocate;
use crate::sandbox_dir::{SandboxDir, StagedSandbox};
use crate::snapshot::Snapshots;
use crate::template::Templates;

/// The room on a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Free for this user.
    pub free: Bytes,
    /// Its size.
    pub total: Bytes,
}

/// An opened data root. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    layout: Arc<Layout>,
    pins: Arc<Pins>,
}

impl Store {
    /// Opens a data root and makes what is missing of its directories (mode 0700).
    ///
    /// # Errors
    /// `Unwritable` when it cannot be written, naming the directory.
    pub fn open(root: &Path) -> Result<Self> {
        relocate::refuse_mount_point(root)?;
        Self::open_inner(root).map_err(|error| match error.kind() {
            ErrorKind::Unwritable => Error::new(ErrorKind::Unwritable, "open data directory", root)
                .because(format!("{} cannot be written", error.path().display()))
                .hint_to("make it writable for this user, or give another with --data-dir")
                .caused_by(error),
            _ => error,
        })
    }

    fn open_inner(root: &Path) -> Result<Self> {
        match root.parent() {
            Some(parent) if !root.exists() => {
                fs::create_dir_all(parent).map_err(|error| Error::io("create", parent, error))?;
                make_if_missing(root)?;
            }
            _ => {}
        }
        let root = root.canonicalize().map_err(|error| Error::io("open", root, error))?;
        if !root.is_dir() {
            return Err(Error::new(ErrorKind::Unwritable, "open", &root).because("it is not a directory"));
        }
        let layout = Layout::new(&root);
        for dir in layout.directories() {
            make_if_missing(&dir)?;
        }
        // The directories may all be there on a filesystem that has become read-only; only a write tells.
        drop(Staged::create(root.join(format!("{}open-{}", layout::NEW, types::Nonce::random())), 0o600)?);
        Ok(Self { layout: Arc::new(layout), pins: Arc::default() })
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn pins(&self) -> &Arc<Pins> {
        &self.pins
    }

    /// The names in a directory, sorted.
    pub(crate) fn names_in(&self, dir: &Path) -> Result<Vec<String>> {
        let fail = |error| Error::io("list", dir, error);
        let mut names = Vec::new();
        for entry in fs::read_dir(dir).map_err(fail)? {
            // A name that is not UTF-8 was not made here; it is shown as well as it can be, and never touched.
            names.push(entry.map_err(fail)?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// As `names_in`; nothing is in a directory that is not there, or that goes while it is read.
    pub(crate) fn names_if_there(&self, dir: &Path) -> Result<Vec<String>> {
        match self.names_in(dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            names => names,
        }
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

    /// Where the sandboxes of one owner find each other; nothing there is worth keeping.
    #[must_use]
    pub fn lanes_path(&self) -> PathBuf {
        self.root().join("lanes")
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

    /// The file of the key that secrets are sealed to.
    #[must_use]
    pub fn secrets_key_path(&self) -> PathBuf {
        self.root().join("secrets.key")
    }

    /// Writes a small file of the daemon's own (the admin key) with mode 0600, durably, never seen half-written.
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn write_private(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        durable::replace(path, bytes, 0o600)
    }

    /// Takes the data root for one daemon.
    ///
    /// # Errors
    /// `Busy` when another daemon has it, naming its process.
    pub fn lock_daemon(&self) -> Result<DaemonLock> {
        lock::daemon(self.root())
    }

    /// Waits until no other `setup` works here.
    ///
    /// # Errors
    /// What the system says.
    pub fn lock_setup(&self) -> Result<SetupLock> {
        lock::setup(self.root())
    }

    /// Finds out what the filesystem can do, by doing it.
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn probe(&self) -> Result<FsCapabilities> {
        probe::probe(self.root())
    }

    /// What the filesystem of the data root holds, and what of it is free for this user.
    ///
    /// # Errors
    /// What the system says.
    pub fn space(&self) -> Result<Space> {
        let space = rustix::fs::statvfs(self.root())
            .map_err(|error| Error::io("ask the filesystem of", self.root(), error))?;
        Ok(Space {
            free: Bytes(space.f_bavail.saturating_mul(space.f_frsize)),
            total: Bytes(space.f_blocks.saturating_mul(space.f_frsize)),
        })
    }

    /// The base images.
    #[must_use]
    pub fn images(&self) -> Images<'_> {
        Images { store: self }
    }

    /// The blobs of registries.
    #[must_use]
    pub fn blobs(&self) -> Blobs<'_> {
        Blobs { store: self }
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

    /// The frozen disk layers.
    #[must_use]
    pub fn layers(&self) -> Layers<'_> {
        Layers { store: self }
    }

    /// The named snapshots.
    #[must_use]
    pub fn snapshots(&self) -> Snapshots<'_> {
        Snapshots { store: self }
    }

    /// An all-hole file of that size, made when missing, as a VMM sees it whose working directory is a sandbox's or a
    /// template's. Once made it stays the same file: machines are found by their base's inode.
    ///
    /// # Errors
    /// What the system says.
    pub fn zero_base(&self, memory: Mebibytes) -> Result<PathBuf> {
        let below_root = layout::zero_below_root(memory);
        let path = self.root().join(&below_root);
        let seen = layout::from_machine_dir(&below_root);
        let len = memory.bytes().0;
        match fs::metadata(&path) {
            Ok(meta) if meta.len() == len => return Ok(seen),
            Ok(_) => {
                return Err(Error::new(ErrorKind::Corrupt, "use zero base", &path)
                    .because("it has another size than its name says")
                    .hint_to("remove it; it is made again"));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("stat", &path, error)),
        }
        let staged = Staged::create(self.layout.zero().join(layout::staging_name()), 0o444)?;
        staged.file().set_len(len).map_err(|error| Error::io("write", &path, error))?;
        durable::sync(staged.file(), staged.path())?;
        staged.rename_if_new(&path)?;
        durable::sync_parent(&path)?;
        Ok(seen)
    }

    /// The file under a guest's memory, verified to be the one that is meant, as a VMM sees it whose working directory
    /// is a sandbox's.
    ///
    /// # Errors
    /// `Corrupt` when the template is not the one that the base names, `NotFound` when it is gone.
    pub fn ram_base(&self, base: &RamBase, memory: Mebibytes) -> Result<PathBuf> {
        let (key, ram) = match base {
            RamBase::Zero => return self.zero_base(memory),
            RamBase::Own { ram } => return self.own_base(ram, memory),
            RamBase::Template { key, ram } => (key, ram),
        };
        let path = self.templates().dir(key);
        let Some(record) = self.templates().get(key)? else {
            return Err(Error::new(ErrorKind::NotFound, "use template", path).because("it is gone"));
        };
        if record.ram_base_id != *ram || record.spec.memory_mib != memory {
            return Err(Error::new(ErrorKind::Corrupt, "use template", path)
                .because("its RAM base is not the one that the memory image lies over"));
        }
        Ok(layout::from_machine_dir(&layout::template_ram_below_root(key)))
    }

    /// A staging directory for a new sandbox.
    ///
    /// # Errors
    /// `Exists` when there is such a sandbox, `Busy` when it is being made.
    pub fn stage_sandbox(&self, id: &SandboxId) -> Result<StagedSandbox> {
        let path = self.layout.sandbox(id);
        if path.exists() {
            return Err(
                Error::new(ErrorKind::Exists, "create", path).because("there is a sandbox of that id")
            );
        }
        let staging = self.layout.sandboxes().join(format!("{}{id}", layout::NEW));
        Ok(StagedSandbox { store: self.clone(), staged: StagedDir::create(staging)?, id: id.clone() })
    }

    /// Every sandbox with its manifest, or why that cannot be read.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn sandboxes(&self) -> Result<Vec<(SandboxId, Result<Manifest>)>> {
        let names = self.names_in(&self.layout.sandboxes())?;
        let ids = names.iter().filter_map(|name| name.parse::<SandboxId>().ok());
        Ok(ids.map(|id| (id.clone(), self.sandbox(&id).manifest())).collect())
    }

    /// A sandbox's directory; whether there is one, its manifest tells.
    #[must_use]
    pub fn sandbox(&self, id: &SandboxId) -> SandboxDir {
        SandboxDir { id: id.clone(), path: self.layout.sandbox(id) }
    }

    /// What crashes left behind, and what would be done about it. Call it with the daemon's lock held.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn reconcile_plan(&self) -> Result<Vec<Leftover>> {
        reconcile::plan(self)
    }

    /// Removes what the plan says; what a living process holds by now is left alone.
    #[must_use]
    pub fn execute(&self, plan: &[Leftover]) -> ReconcileReport {
        reconcile::execute(self, plan)
    }
}

fn make_if_missing(dir: &Path) -> Result<()> {
    match durable::make_dir(dir) {
        Err(error) if error.kind() == ErrorKind::Exists => Ok(()),
        made => made,
    }
}
