//! Volumes: disks that outlive sandboxes, an ext4 file each, with a record beside it.
//!
//! # Layout
//! `volumes/<owner>/<name>.ext4`, sparse, and `<name>.json`, which says what the file cannot. The size is the file's own.
//! Which sandboxes use a volume stands in their manifests, not here: a manifest is what a crash leaves consistent.
//!
//! # Crash order
//! Made: the content under `.new-<nonce>.ext4`, synced; the record; the name. Removed: the name becomes
//! `.gone-<name>.ext4`; the record goes; the content goes. So a record without a file is nothing, and a file without a
//! record was damaged by somebody else. Replaced: the new content under `.new-<nonce>.ext4`, synced; renamed over the
//! old one while that is locked: either of them is there, whole.
//!
//! # Invariants
//! Whoever writes to a volume, or replaces or removes it, has it alone; whoever reads it shares it with others who read.
//! These are QEMU's own locks (`sys::host_image_lock`), so a VMM that outlived its daemon counts.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use types::{Bytes, Owner, SandboxId, Timestamp, VolumeName};

use crate::clone::CloneReport;
use crate::durable::{self, Staged};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::{self, NEW};
use crate::record::{self, Format};
use crate::store::Store;

pub(crate) const FORMAT: Format = Format { name: "bhatti-volume", version: 1 };

/// The record of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRecord {
    /// Its name.
    pub name: VolumeName,
    /// Whose it is.
    pub owner: Owner,
    /// When it was made.
    pub created_at: Timestamp,
    /// The copy of a sandbox that it was cloned for, with which it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_for: Option<SandboxId>,
    /// When it is backed up by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<BackupSchedule>,
}

/// When a volume is backed up by itself, and what became of it last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupSchedule {
    /// Minute, hour, day of the month, month, day of the week, as crontab(5) writes them; UTC.
    pub cron: String,
    /// How many backups are kept.
    pub keep: u32,
    /// Since when this is wanted, or when it was done last.
    pub since: Timestamp,
    /// Why the last one did not come to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

impl VolumeRecord {
    /// The record of a volume that is made now and goes with nobody.
    #[must_use]
    pub fn new(owner: Owner, name: VolumeName) -> Self {
        Self { name, owner, created_at: Timestamp::now(), made_for: None, schedule: None }
    }
}

/// A volume as it is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its record.
    pub record: VolumeRecord,
    /// What the guest sees.
    pub size: Bytes,
    /// What it takes on the disk.
    pub allocated: Bytes,
    path: PathBuf,
}

impl Volume {
    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A volume's file, locked until dropped.
#[derive(Debug)]
#[must_use = "the lock ends with this value"]
pub struct VolumeLock {
    file: File,
    path: PathBuf,
}

/// The volumes of a store.
#[derive(Debug, Clone, Copy)]
pub struct Volumes<'a> {
    pub(crate) store: &'a Store,
}

impl Volumes<'_> {
    /// Every volume, or why it cannot be read.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn all(&self) -> Result<Vec<(Owner, VolumeName, Result<Volume>)>> {
        let mut found = Vec::new();
        for owner in self.store.names_in(&self.store.layout().volumes())? {
            let dir = self.store.layout().volumes().join(&owner);
            if let Ok(owner) = owner.parse::<Owner>()
                && durable::is_dir_itself(&dir)
            {
                found
                    .extend(self.of(&owner)?.into_iter().map(|(name, volume)| (owner.clone(), name, volume)));
            }
        }
        Ok(found)
    }

    /// The owner's volumes by name, or why one cannot be read.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn of(&self, owner: &Owner) -> Result<Vec<(VolumeName, Result<Volume>)>> {
        let names = match self.store.names_in(&self.store.layout().volumes_of(owner)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            names => names?,
        };
        let names = names.iter().filter_map(|name| name.strip_suffix(".ext4")?.parse::<VolumeName>().ok());
        let names: BTreeSet<VolumeName> = names.collect();
        Ok(names.into_iter().map(|name| (name.clone(), self.open(owner, &name))).collect())
    }

    /// Whether there is a file of that name, readable or not.
    #[must_use]
    pub fn exists(&self, owner: &Owner, name: &VolumeName) -> bool {
        self.store.layout().volume(owner, name).symlink_metadata().is_ok()
    }

    /// One volume.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `TooNew`.
    pub fn open(&self, owner: &Owner, name: &VolumeName) -> Result<Volume> {
        let path = self.store.layout().volume(owner, name);
        let meta = fs::metadata(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => missing("use volume", name),
            _ => Error::io("stat", &path, error),
        })?;
        let record_path = self.store.layout().volume_record(owner, name);
        let damaged = |error: Error| {
            error
                .of_kind(ErrorKind::Corrupt)
                .because(format!("the record of volume {name} is missing or damaged"))
                .hint_to("`bhatti fsck --repair` makes it anew; the volume's content is another file")
        };
        let record: VolumeRecord =
            record::read(FORMAT, &record_path).map_err(|error| match error.kind() {
                ErrorKind::NotFound | ErrorKind::Corrupt => damaged(error),
                _ => error,
            })?;
        if record.name != *name || record.owner != *owner {
            return Err(damaged(Error::new(ErrorKind::Corrupt, "read", &record_path)));
        }
        Ok(Volume { record, size: Bytes(meta.len()), allocated: Bytes(meta.blocks() * 512), path })
    }

    /// An empty file that is to become a volume of this owner, or a volume's new content. Removed when dropped.
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn stage(&self, owner: &Owner) -> Result<StagedVolume> {
        let dir = self.store.layout().volumes_of(owner);
        match durable::make_dir(&dir) {
            Err(error) if error.kind() == ErrorKind::Exists => {}
            made => {
                made?;
                durable::sync_parent(&dir)?;
            }
        }
        let staged = Staged::create(dir.join(format!("{}.ext4", layout::staging_name())), 0o600)?;
        Ok(StagedVolume { store: self.store.clone(), staged })
    }

    /// Takes a volume for one who writes to it, replaces or removes it.
    ///
    /// # Errors
    /// `Busy` while any process uses it, `NotFound`.
    pub fn lock(&self, owner: &Owner, name: &VolumeName) -> Result<VolumeLock> {
        self.lock_by(owner, name, sys::host_image_lock::take_alone)
    }

    /// Takes a volume for one who reads it.
    ///
    /// # Errors
    /// `Busy` while a process writes to it, `NotFound`.
    pub fn share(&self, owner: &Owner, name: &VolumeName) -> Result<VolumeLock> {
        self.lock_by(owner, name, sys::host_image_lock::take_shared)
    }

    fn lock_by(
        &self,
        owner: &Owner,
        name: &VolumeName,
        take: impl FnOnce(&File) -> std::io::Result<bool>,
    ) -> Result<VolumeLock> {
        let path = self.store.layout().volume(owner, name);
        let file =
            OpenOptions::new().read(true).write(true).open(&path).map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => missing("lock volume", name),
                _ => Error::io("open", &path, error),
            })?;
        match take(&file) {
            Ok(true) => Ok(VolumeLock { file, path }),
            Ok(false) => Err(Error::new(ErrorKind::Busy, "lock volume", name.as_str())
                .because(format!("a virtual machine has volume {name} open"))
                .hint_to("detach it there first; `bhatti volume inspect` tells where")),
            Err(error) => Err(Error::io("lock", &path, error)),
        }
    }

    /// Notes that a volume goes with nobody any more.
    ///
    /// # Errors
    /// `NotFound`, `NoSpace`, or what the system says.
    pub fn set_free(&self, owner: &Owner, name: &VolumeName) -> Result<()> {
        let volume = self.open(owner, name)?;
        if volume.record.made_for.is_none() {
            return Ok(());
        }
        self.write_record(&VolumeRecord { made_for: None, ..volume.record })
    }

    /// Notes when a volume is to be backed up by itself, or that it is not.
    ///
    /// # Errors
    /// `NotFound`, `NoSpace`, or what the system says.
    pub fn set_schedule(
        &self,
        owner: &Owner,
        name: &VolumeName,
        schedule: Option<BackupSchedule>,
    ) -> Result<()> {
        let volume = self.open(owner, name)?;
        self.write_record(&VolumeRecord { schedule, ..volume.record })
    }

    pub(crate) fn write_record(&self, record: &VolumeRecord) -> Result<()> {
        let path = self.store.layout().volume_record(&record.owner, &record.name);
        durable::replace(&path, &record::encode(FORMAT, record), 0o600)
    }

    /// Makes an unattached volume's file larger; its filesystem follows when it is mounted next.
    ///
    /// # Errors
    /// `Invalid` when that would make it smaller, or what the system says.
    pub fn grow(&self, lock: &VolumeLock, size: Bytes) -> Result<()> {
        let fail = |error| Error::io("grow", &lock.path, error);
        let now = lock.file.metadata().map_err(fail)?.len();
        if size.0 < now {
            return Err(Error::new(ErrorKind::Invalid, "grow", &lock.path).because("volumes only grow"));
        }
        lock.file.set_len(size.0).map_err(fail)?;
        durable::sync(&lock.file, &lock.path)
    }

    /// Removes a volume for good, damaged or not.
    ///
    /// # Errors
    /// `NotFound`, `Busy` while a process uses it.
    pub fn remove(&self, owner: &Owner, name: &VolumeName) -> Result<()> {
        let lock = self.lock(owner, name)?;
        let gone = durable::take_away(&lock.path)?;
        durable::remove_if_there(&self.store.layout().volume_record(owner, name))?;
        durable::sync_parent(&lock.path)?;
        durable::remove_if_there(&gone).map(drop)
    }
}

fn missing(op: &'static str, name: &VolumeName) -> Error {
    Error::new(ErrorKind::NotFound, op, name.as_str())
        .because(format!("there is no volume {name}"))
        .hint_to("`bhatti volume list` shows what there is")
}

/// A volume's content being made; removed when dropped.
#[derive(Debug)]
pub struct StagedVolume {
    store: Store,
    staged: Staged,
}

impl StagedVolume {
    /// Where it is being made.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.staged.path()
    }

    /// Its file, open for reading and writing.
    #[must_use]
    pub fn file(&self) -> &File {
        self.staged.file()
    }

    /// Gives it its size, as one hole.
    ///
    /// # Errors
    /// What the system says.
    pub fn set_size(&self, size: Bytes) -> Result<()> {
        self.staged.file().set_len(size.0).map_err(|error| Error::io("size", self.path(), error))
    }

    /// Makes it a copy of `from`, which must not be written meanwhile unless what is written is copied again.
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn copy_of(&self, from: &Path) -> Result<CloneReport> {
        let source = File::open(from).map_err(|error| Error::io("open", from, error))?;
        crate::clone::clone_into(&source, self.staged.file(), self.path())
    }

    /// Writes what it has so far to the disk.
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn sync(&self) -> Result<()> {
        durable::sync(self.staged.file(), self.path())
    }

    /// Shares the extents of `from`; `false`, and it is as before, where the filesystem cannot.
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn share_extents_of(&self, from: &Path) -> Result<bool> {
        let source = File::open(from).map_err(|error| Error::io("open", from, error))?;
        crate::clone::reflink(&source, self.staged.file(), self.path())
    }

    /// Makes it last as a new volume.
    ///
    /// # Errors
    /// `Exists` when there is one of that name; `NoSpace`.
    pub fn commit(self, record: &VolumeRecord) -> Result<Volume> {
        let (owner, name) = (record.owner.clone(), record.name.clone());
        let target = self.store.layout().volume(&owner, &name);
        let exists = || {
            Error::new(ErrorKind::Exists, "make volume", name.as_str())
                .because(format!("there is a volume {name} already"))
                .hint_to("choose another name, or delete that one first")
        };
        if target.symlink_metadata().is_ok() {
            return Err(exists());
        }
        durable::sync(self.staged.file(), self.staged.path())?;
        let Self { store, staged, .. } = self;
        let mut named = false;
        let placed = (|| {
            store.volumes().write_record(record)?;
            named = staged.rename_if_new(&target)?;
            if !named {
                return Err(exists());
            }
            durable::sync_parent(&target)?;
            store.volumes().open(&owner, &name)
        })();
        // Nobody was told of it, so nobody has it; whoever was quicker keeps what is there.
        if placed.as_ref().is_err_and(|error| error.kind() != ErrorKind::Exists) {
            if named {
                let _ = durable::remove_if_there(&target);
            }
            let _ = durable::remove_if_there(&store.layout().volume_record(&owner, &name));
        }
        placed
    }

    /// Puts it in the place of the content of a volume that nobody else uses.
    ///
    /// # Errors
    /// `NoSpace`, or what the system says; the old content is then still there, whole.
    pub fn replace(self, lock: VolumeLock) -> Result<()> {
        // A VMM that opens the name from now on meets this file, which its maker has locked until it has its name.
        if !sys::host_image_lock::take_alone(self.staged.file())
            .map_err(|error| Error::io("lock", self.staged.path(), error))?
        {
            return Err(
                Error::new(ErrorKind::Busy, "replace", &lock.path).because("its new content is in use")
            );
        }
        self.staged.commit(&lock.path)
    }
}

/// A volume as a VMM sees it whose working directory is a sandbox's.
#[must_use]
pub fn volume_from_machine_dir(owner: &Owner, name: &VolumeName) -> PathBuf {
    layout::from_machine_dir(&layout::volume_below_root(owner, name))
}

/// What a snapshot calls its clone of a volume.
#[must_use]
pub fn snapshot_volume(name: &VolumeName) -> String {
    format!("volume-{name}.ext4")
}

impl Store {
    /// Where backups go when nothing else is said. Made by whoever puts them there.
    #[must_use]
    pub fn backups_dir(&self) -> PathBuf {
        self.layout().root.join("backups")
    }

    /// The volumes.
    #[must_use]
    pub fn volumes(&self) -> Volumes<'_> {
        Volumes { store: self }
    }

    /// Whether files of volumes can be cloned by sharing their extents: tried.
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn volumes_reflink(&self) -> Result<bool> {
        let dir = self.layout().volumes();
        let one = Staged::create(dir.join(layout::staging_name()), 0o600)?;
        let other = Staged::create(dir.join(layout::staging_name()), 0o600)?;
        durable::write_at(one.file(), one.path(), 0, &[1; 4096])?;
        crate::clone::reflink(one.file(), other.file(), other.path())
    }

    /// Makes durable what was written to a volume so far, as far as the host knows.
    ///
    /// # Errors
    /// What the system says.
    pub fn sync_volume(&self, owner: &Owner, name: &VolumeName) -> Result<()> {
        let path = self.layout().volume(owner, name);
        let file = File::open(&path).map_err(|error| Error::io("open", &path, error))?;
        durable::sync(&file, &path)
    }

    /// Volumes that were cloned for sandboxes that never came to be or are gone, by a crash between the two.
    pub(crate) fn orphaned_volumes(&self) -> Result<Vec<Volume>> {
        let mut orphans = Vec::new();
        for (_, _, volume) in self.volumes().all()? {
            // One whose record cannot be read may be anybody's.
            let Ok(volume) = volume else { continue };
            let Some(id) = &volume.record.made_for else { continue };
            if self.layout().sandbox(id).symlink_metadata().is_err() && !self.is_quarantined(id)? {
                orphans.push(volume);
            }
        }
        Ok(orphans)
    }

    /// Whether a sandbox was put aside by a repair: it may be put back, and wants its volumes then.
    fn is_quarantined(&self, id: &SandboxId) -> Result<bool> {
        let end = format!("-sandbox-{id}");
        match self.names_in(&self.layout().quarantine()) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            names => Ok(names?.iter().any(|name| name.ends_with(&end))),
        }
    }
}

/// Whether a name in an owner's directory is one that bhatti makes.
pub(crate) fn is_volume_name(name: &str) -> bool {
    let stem = name.strip_suffix(".ext4").or_else(|| name.strip_suffix(".json"));
    stem.is_some_and(|stem| stem.parse::<VolumeName>().is_ok()) || name.starts_with(NEW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_every_version_are_still_read_and_the_present_one_is_written_alike() {
        let record = VolumeRecord {
            name: "data".parse().unwrap(),
            owner: Owner::admin(),
            created_at: Timestamp(1_700_000_000_123),
            schedule: None,
            made_for: Some("0123456789abcdef".parse().unwrap()),
        };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/volume-1.json");
        if std::env::var_os("BHATTI_WRITE_GOLDEN").is_some() && !path.exists() {
            fs::write(&path, record::encode(FORMAT, &record)).unwrap();
        }
        assert_eq!(record::read::<VolumeRecord>(FORMAT, &path).unwrap(), record);
        assert_eq!(record::encode(FORMAT, &record), fs::read(&path).unwrap());
    }

    #[test]
    fn names_of_others_are_told_from_our_own() {
        for own in ["data.ext4", "data.json", ".new-0123.ext4"] {
            assert!(is_volume_name(own), "{own}");
        }
        for other in ["data", "data.img", "-x.ext4", "lost+found"] {
            assert!(!is_volume_name(other), "{other}");
        }
    }
}
