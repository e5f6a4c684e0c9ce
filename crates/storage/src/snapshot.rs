//! Named snapshots: a sandbox's disk and memory at one moment, in a directory of their own.
//!
//! # Layout
//! `snapshots/<owner>/<name>/`: `manifest.json` (what was asleep here), `config.ext4`, `mem.snap` and `vm.snap` unless
//! it is the disk alone, `volume-<v>.ext4` for each volume that its guest could write to, and the root disk: an empty
//! overlay over the layer that was frozen for it, or a raw clone.
//! Nothing in it is ever written again; what is big lies in `layers/` and `bases/` and is shared.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use types::{Owner, SandboxId, SandboxName, SnapshotName, StorageLayout, Timestamp, VolumeName};

use crate::clone::{CloneOptions, CloneReport, clone_file, clone_file_with};
use crate::devices;
use crate::durable::{self, Staged, StagedDir};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::{self, MANIFEST, MEM_SNAP, NEW, VM_SNAP};
use crate::lock;
use crate::manifest::{Manifest, RunState};
use crate::memory::{self, MemoryHeader, MemoryImage, PageSource, StagedMemory};
use crate::record::{self, Format};
use crate::sandbox_dir::{SandboxDir, StagedSandbox, memory_record, open_devices_of, open_memory_of};
use crate::store::Store;
use crate::volume::snapshot_volume;

const FORMAT: Format = Format { name: "bhatti-snapshot", version: 5 };

/// The record of a named snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRecord {
    /// Its name.
    pub name: SnapshotName,
    /// Whose it is.
    pub owner: Owner,
    /// The sandbox it was made of.
    pub source_id: SandboxId,
    /// That sandbox's name then.
    pub source_name: SandboxName,
    /// When it was made.
    pub created_at: Timestamp,
    /// How long the guest stood still for it.
    pub pause_ms: f64,
    /// The sandbox as it would be asleep: cold with its memory, or off when it is the disk alone.
    pub sandbox: Manifest,
}

impl SnapshotRecord {
    /// Whether it has no memory.
    #[must_use]
    pub fn disk_only(&self) -> bool {
        self.sandbox.memory.is_none()
    }
}

/// The named snapshots of a store.
#[derive(Debug, Clone, Copy)]
pub struct Snapshots<'a> {
    pub(crate) store: &'a Store,
}

impl Snapshots<'_> {
    /// Every snapshot with its record, or why that cannot be read.
    ///
    /// # Errors
    /// When a directory cannot be read.
    #[allow(clippy::type_complexity)]
    pub fn all(&self) -> Result<Vec<(Owner, SnapshotName, Result<SnapshotRecord>)>> {
        let mut found = Vec::new();
        for owner in self.store.names_in(&self.store.layout().snapshots())? {
            let dir = self.store.layout().snapshots().join(&owner);
            if let Ok(owner) = owner.parse::<Owner>()
                && durable::is_dir_itself(&dir)
            {
                found
                    .extend(self.of(&owner)?.into_iter().map(|(name, record)| (owner.clone(), name, record)));
            }
        }
        Ok(found)
    }

    /// The owner's snapshots by name, each with its record or why that cannot be read.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn of(&self, owner: &Owner) -> Result<Vec<(SnapshotName, Result<SnapshotRecord>)>> {
        let names = self.store.names_if_there(&self.store.layout().snapshots_of(owner))?;
        let names = names.iter().filter_map(|name| name.parse::<SnapshotName>().ok());
        Ok(names.map(|name| (name.clone(), self.open(owner, &name).map(|dir| dir.record))).collect())
    }

    /// One snapshot.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `TooNew`.
    pub fn open(&self, owner: &Owner, name: &SnapshotName) -> Result<SnapshotDir> {
        let path = self.store.layout().snapshot(owner, name);
        let damaged = |error: Error| match error.kind() {
            ErrorKind::Corrupt => error
                .because(format!("the record of snapshot {name} is damaged"))
                .hint_to(format!("restore the file, or `bhatti snapshot delete {name}`")),
            _ => error,
        };
        let record: SnapshotRecord =
            record::read(FORMAT, &path.join(MANIFEST)).map_err(|error| match error.kind() {
                ErrorKind::NotFound if !path.exists() => {
                    Error::new(ErrorKind::NotFound, "use snapshot", name.as_str())
                        .because(format!("there is no snapshot {name}"))
                        .hint_to("`bhatti snapshot list` shows what there is")
                }
                ErrorKind::NotFound => damaged(error.of_kind(ErrorKind::Corrupt)),
                _ => damaged(error),
            })?;
        if record.name != *name || record.owner != *owner {
            return Err(damaged(Error::new(ErrorKind::Corrupt, "read", path.join(MANIFEST))));
        }
        record.sandbox.check(&path.join(MANIFEST))?;
        Ok(SnapshotDir { path, record })
    }

    /// A staging directory for a new snapshot.
    ///
    /// # Errors
    /// `Exists` when the name is taken, `Busy` when it is being made.
    pub fn stage(&self, owner: &Owner, name: &SnapshotName) -> Result<StagedSnapshot> {
        let target = self.store.layout().snapshot(owner, name);
        if target.exists() {
            return Err(Error::new(ErrorKind::Exists, "make snapshot", name.as_str())
                .because(format!("there is a snapshot {name} already"))
                .hint_to("choose another name, or delete that one first"));
        }
        let parent = self.store.layout().snapshots_of(owner);
        match durable::make_dir(&parent) {
            Err(error) if error.kind() == ErrorKind::Exists => {}
            made => {
                made?;
                durable::sync_parent(&parent)?;
            }
        }
        let staged = StagedDir::create(parent.join(format!("{NEW}{name}")))?;
        Ok(StagedSnapshot { staged, named: Some((owner.clone(), name.clone(), target)) })
    }

    /// A staging directory for what a fork is made of; it is never committed.
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn stage_fork(&self) -> Result<StagedSnapshot> {
        let path = self.store.layout().snapshots().join(layout::staging_name());
        Ok(StagedSnapshot { staged: StagedDir::create(path)?, named: None })
    }

    /// Removes a snapshot, damaged or not.
    ///
    /// # Errors
    /// `NotFound`, `Busy` while something is made from it.
    pub fn remove(&self, owner: &Owner, name: &SnapshotName) -> Result<()> {
        let path = self.store.layout().snapshot(owner, name);
        let _lock = match lock::directory(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(Error::new(ErrorKind::NotFound, "delete snapshot", name.as_str())
                    .because(format!("there is no snapshot {name}"))
                    .hint_to("`bhatti snapshot list` shows what there is"));
            }
            lock => lock?,
        };
        durable::remove_named_dir(&path)
    }
}

/// A snapshot being made, or what a fork is made of; removed when dropped.
#[derive(Debug)]
pub struct StagedSnapshot {
    staged: StagedDir,
    /// Whose it is, its name and its directory; none for a fork's.
    named: Option<(Owner, SnapshotName, PathBuf)>,
}

impl StagedSnapshot {
    /// Its staging directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.staged.path()
    }

    /// Takes a copy of the sandbox's config drive.
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn take_config(&self, source: &SandboxDir) -> Result<()> {
        let config = layout::CONFIG_DRIVE;
        clone_file(&source.path.join(config), &self.staged.path().join(config)).map(drop)
    }

    /// Takes a copy of a root disk: an empty top, or a raw disk that may be copied at leisure.
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn take_root(&self, top: &Path, layout: StorageLayout) -> Result<CloneReport> {
        clone_file(top, &self.staged.path().join(layout::root_disk(layout)))
    }

    /// Takes a raw root disk by sharing its extents; `false`, and nothing is taken, where the filesystem cannot.
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn reflink_root(&self, source: &SandboxDir) -> Result<bool> {
        let name = layout::root_disk(StorageLayout::Reflink);
        reflink(&source.path.join(name), &self.staged.path().join(name))
    }

    /// Where the clone of a volume is to be.
    #[must_use]
    pub fn volume_path(&self, name: &VolumeName) -> PathBuf {
        self.staged.path().join(snapshot_volume(name))
    }

    /// Takes a copy of a volume, synced: a disk that still has much to write would make a guest wait that stands still for
    /// it. What is written to the volume meanwhile must be copied again.
    ///
    /// # Errors
    /// `NotFound`, `NoSpace`, or what the system says.
    pub fn take_volume(&self, store: &Store, owner: &Owner, name: &VolumeName) -> Result<CloneReport> {
        let options = CloneOptions { sync: true, ..CloneOptions::default() };
        clone_file_with(&store.layout().volume(owner, name), &self.volume_path(name), &options)
    }

    /// Takes a volume by sharing its extents; `false`, and nothing is taken, where the filesystem cannot.
    ///
    /// # Errors
    /// `NotFound`, `NoSpace`, or what the system says.
    pub fn reflink_volume(&self, store: &Store, owner: &Owner, name: &VolumeName) -> Result<bool> {
        reflink(&store.layout().volume(owner, name), &self.volume_path(name))
    }

    /// Whether a root disk was taken.
    #[must_use]
    pub fn has_root(&self) -> bool {
        let layouts = [StorageLayout::Overlay, StorageLayout::Reflink];
        layouts.iter().any(|&layout| self.staged.path().join(layout::root_disk(layout)).exists())
    }

    /// Its memory image, the header verified; `record` is the one that its commit or its source has made.
    ///
    /// # Errors
    /// `Corrupt` when it is not the one that the manifest names.
    pub fn open_memory(&self, manifest: &Manifest) -> Result<Option<MemoryImage>> {
        let Some(memory) = &manifest.memory else { return Ok(None) };
        open_memory_of(self.staged.path(), manifest, memory, sleeper(manifest)).map(Some)
    }

    /// The device state in it, to be handed to a VMM: verified when it is a sleeper's, as `manifest` tells it; else what a
    /// VMM has just written.
    ///
    /// # Errors
    /// `Corrupt` when it is not the one that the manifest names; what the system says.
    pub fn open_devices(&self, manifest: &Manifest) -> Result<File> {
        if let Some(memory) = &manifest.memory {
            return open_devices_of(self.staged.path(), memory, &sleeper(manifest));
        }
        let path = self.staged.path().join(VM_SNAP);
        File::open(&path).map_err(|error| Error::io("open", &path, error))
    }

    /// Takes the memory of a sandbox that sleeps: second names of files that are never written again.
    ///
    /// # Errors
    /// What the system says.
    pub fn take_memory(&self, source: &SandboxDir) -> Result<()> {
        for name in [MEM_SNAP, VM_SNAP] {
            let to = self.staged.path().join(name);
            durable::hard_link(&source.path.join(name), &to)?;
        }
        Ok(())
    }

    /// Takes the device state that the VMM of `source` has just written there.
    ///
    /// # Errors
    /// What the system says.
    pub fn take_devices(&self, source: &SandboxDir) -> Result<()> {
        let (from, to) = (source.path.join(layout::VM_SNAP_NEW), self.staged.path().join(VM_SNAP));
        durable::rename(&from, &to)
    }

    /// Writes a guest's pages.
    ///
    /// # Errors
    /// `NoSpace`, or what the source or the system says.
    pub fn write_memory(
        &self,
        source: &dyn PageSource,
        header: MemoryHeader,
        level: i32,
    ) -> Result<StagedMemory> {
        memory::write(Staged::create(self.staged.path().join(MEM_SNAP), 0o600)?, source, header, level)
    }

    /// Makes it last: `sandbox` as it was, cold if there is memory. `memory` is what `write_memory` gave, `None` for the
    /// disk alone or for memory that was taken; `pause` is how long the guest stood still.
    ///
    /// # Errors
    /// `Invalid` when a part is missing, `Exists`, `NoSpace`; nothing is left then.
    pub fn commit(
        self,
        memory: Option<(StagedMemory, bool)>,
        pause: Duration,
        sandbox: Manifest,
    ) -> Result<SnapshotRecord> {
        let Self { staged, named } = self;
        let Some((owner, name, target)) = named else {
            return Err(
                Error::new(ErrorKind::Invalid, "commit snapshot", staged.path()).because("it has no name")
            );
        };
        let mut record = SnapshotRecord {
            name,
            owner,
            source_id: sandbox.id.clone(),
            source_name: sandbox.name.clone(),
            created_at: Timestamp::now(),
            pause_ms: (pause.as_secs_f64() * 1e6).round() / 1e3,
            sandbox,
        };
        let dir = staged.path().to_owned();
        let mut files = Vec::new();
        let open = |name: &str| {
            let path = dir.join(name);
            let file = File::open(&path).map_err(|error| {
                Error::new(ErrorKind::Invalid, "commit snapshot", &path)
                    .because("a part of it is missing")
                    .caused_by(error)
            })?;
            durable::set_mode(&file, &path, 0o400)?;
            Ok(file)
        };
        for name in [layout::root_disk(record.sandbox.layout), layout::CONFIG_DRIVE] {
            files.push(open(name)?);
        }
        for volume in record.sandbox.volumes.iter().filter(|volume| !volume.read_only) {
            files.push(open(&snapshot_volume(&volume.name))?);
        }
        if let Some((memory, detached)) = memory {
            let devices = devices::pack(&dir.join(VM_SNAP))?;
            let written = memory_record(&memory, &record.sandbox, &devices, detached)?;
            record.sandbox = Manifest { state: RunState::Cold, memory: Some(written), ..record.sandbox };
            memory.staged.keep();
            devices.staged.keep();
        }
        if let Some(memory) = &mut record.sandbox.memory {
            // Its own top is empty for ever; `fsck` looks at that.
            memory.root_tables_blake3 = None;
            files.extend([open(MEM_SNAP)?, open(VM_SNAP)?]);
        } else if record.sandbox.state != RunState::Off {
            record.sandbox = Manifest { state: RunState::Off, memory: None, ..record.sandbox };
        }
        record.sandbox.check(&dir)?;
        files.push(durable::new_file(&dir.join(MANIFEST), &record::encode(FORMAT, &record), 0o400)?);
        staged.commit(&files.iter().collect::<Vec<_>>(), &target)?;
        Ok(record)
    }
}

/// A named snapshot, opened.
#[derive(Debug, Clone)]
pub struct SnapshotDir {
    path: PathBuf,
    record: SnapshotRecord,
}

impl SnapshotDir {
    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its record.
    #[must_use]
    pub fn record(&self) -> &SnapshotRecord {
        &self.record
    }

    /// Keeps it from being removed for as long as the file is open.
    ///
    /// # Errors
    /// `Busy` when it is being removed.
    pub fn hold(&self) -> Result<File> {
        lock::share_directory(&self.path)
    }

    fn named(&self) -> (String, String) {
        let name = &self.record.name;
        (
            format!("snapshot {name}"),
            format!("`bhatti snapshot delete {name}`; what was resumed from it is not touched"),
        )
    }

    /// Its memory image, the header verified; `None` when it is the disk alone.
    ///
    /// # Errors
    /// `Corrupt` when it is not the one that the record names.
    pub fn open_memory(&self) -> Result<Option<MemoryImage>> {
        let Some(memory) = &self.record.sandbox.memory else { return Ok(None) };
        open_memory_of(&self.path, &self.record.sandbox, memory, self.named()).map(Some)
    }

    /// Its device state, verified; `None` when it is the disk alone.
    ///
    /// # Errors
    /// `Corrupt` when it is not the one that the record names.
    pub fn open_devices(&self) -> Result<Option<File>> {
        let Some(memory) = &self.record.sandbox.memory else { return Ok(None) };
        open_devices_of(&self.path, memory, &self.named()).map(Some)
    }
}

impl StagedSandbox {
    /// Takes copies of the config drive and of the root disk in `from`, the directory of a snapshot.
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn take_disks_from(&self, from: &Path, layout: StorageLayout) -> Result<CloneReport> {
        clone_file(&from.join(layout::CONFIG_DRIVE), &self.config_path())?;
        clone_file(&from.join(layout::root_disk(layout)), &self.root_disk_path(layout))
    }
}

/// Whose memory it is that was taken, and what there is to do when it is damaged.
fn sleeper(manifest: &Manifest) -> (String, String) {
    (format!("sandbox {}", manifest.name), "`bhatti fsck` tells more".to_owned())
}

/// FICLONE alone; `false` where the filesystem refuses it.
fn reflink(from: &Path, to: &Path) -> Result<bool> {
    let source = File::open(from).map_err(|error| Error::io("open", from, error))?;
    let target = Staged::create(to.to_owned(), 0o600)?;
    match rustix::fs::ioctl_ficlone(target.file(), &source) {
        Ok(()) => {
            target.keep();
            Ok(true)
        }
        Err(error) if crate::clone::is_refusal(error) => Ok(false),
        Err(error) => Err(Error::io("clone to", to, error)),
    }
}

impl Store {
    /// Whether the root disk of this sandbox can be shared by extents: tried on a small file beside it.
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn can_reflink(&self, sandbox: &SandboxDir) -> Result<bool> {
        let from = sandbox.path.join(layout::CONFIG_DRIVE);
        let to = self.layout().snapshots().join(layout::staging_name());
        let can = reflink(&from, &to)?;
        durable::remove_if_there(&to)?;
        Ok(can)
    }
}
