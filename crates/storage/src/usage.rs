//! Where the bytes are: what each thing under the data root takes, and what would be free without it.
//!
//! `survey` walks, `place` says what a path belongs to, `gauge` what a file takes on the disk and where, `ledger` who has
//! which bytes.
//! Nothing is locked: what changes meanwhile is seen as before or as after.
//!
//! # The four figures
//! *Apparent* is what `ls -l` says. *Referenced* is without holes: what a copy would have to write. *Physical* is what lies
//! on the disk, each byte once however many files refer to it, compressed where the filesystem compresses. *Exclusive* is
//! the part of it that nothing else refers to: what is free when that thing alone is removed.

mod gauge;
mod ledger;
mod place;
mod survey;
mod trial;

use std::collections::BTreeSet;
use std::path::PathBuf;

use types::{Bytes, Owner, SandboxId, SandboxName};

use crate::error::{Error, Result};
use crate::store::Store;
use crate::usage::survey::Survey;

pub use trial::{Trial, TrialSize};

/// What something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UsageKind {
    /// A base image.
    Image,
    /// A frozen disk layer.
    Layer,
    /// A RAM base.
    Base,
    /// A machine that was booted once.
    Template,
    /// A guest kernel with its initramfs.
    Kernel,
    /// A volume.
    Volume,
    /// A root disk.
    RootDisk,
    /// A config drive.
    Config,
    /// Guest memory.
    Memory,
    /// Device state.
    Devices,
    /// A JSON record.
    Record,
    /// The index.
    Database,
    /// A log.
    Log,
    /// What is being made or removed.
    Staging,
    /// What fsck put aside.
    Quarantine,
    /// A directory.
    Directory,
    /// Anything else.
    Other,
}

impl UsageKind {
    /// The word in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Layer => "layer",
            Self::Base => "base",
            Self::Template => "template",
            Self::Kernel => "kernel",
            Self::Volume => "volume",
            Self::RootDisk => "root_disk",
            Self::Config => "config",
            Self::Memory => "memory",
            Self::Devices => "device_state",
            Self::Record => "record",
            Self::Database => "database",
            Self::Log => "log",
            Self::Staging => "staging",
            Self::Quarantine => "quarantine",
            Self::Directory => "directory",
            Self::Other => "other",
        }
    }
}

/// Where the figures come from, the best source that was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsageMethod {
    /// The file extent items of btrfs.
    BtrfsExtents,
    /// Extent maps.
    Fiemap,
    /// Counted blocks.
    Blocks,
}

impl UsageMethod {
    /// The word in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BtrfsExtents => "btrfs_extents",
            Self::Fiemap => "fiemap",
            Self::Blocks => "blocks",
        }
    }
}

/// The bytes of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// Lengths of files.
    pub apparent: Bytes,
    /// Without holes.
    pub referenced: Bytes,
    /// Each shared extent once, before compression.
    pub unique: Bytes,
    /// On the disk.
    pub physical: Bytes,
    /// On the disk, and referred to by nothing else.
    pub exclusive: Bytes,
}

impl Figures {
    /// How often bytes are used that are there once.
    #[must_use]
    pub fn dedup_ratio(&self) -> f64 {
        ratio(self.referenced, self.unique)
    }

    /// How many bytes are read from each that is on the disk.
    #[must_use]
    pub fn compression_ratio(&self) -> f64 {
        ratio(self.unique, self.physical)
    }
}

fn ratio(over: Bytes, under: Bytes) -> f64 {
    if under.0 == 0 { 1.0 } else { over.0 as f64 / under.0 as f64 }
}

/// A file of something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileUsage {
    /// What it is.
    pub kind: UsageKind,
    /// Where, from the data root.
    pub path: PathBuf,
    /// Its bytes.
    pub figures: Figures,
}

/// All that an owner has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerUsage {
    /// Who; `None` for sandboxes whose manifest cannot be read.
    pub owner: Option<Owner>,
    /// Its bytes.
    pub figures: Figures,
}

/// What is in a sandbox's own directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxUsage {
    /// Its id, or the directory's name when that is none.
    pub id: String,
    /// Its name; `None` when its manifest cannot be read.
    pub name: Option<SandboxName>,
    /// Whose it is; `None` when its manifest cannot be read.
    pub owner: Option<Owner>,
    /// Its bytes.
    pub figures: Figures,
    /// Its files.
    pub files: Vec<FileUsage>,
    /// The shared objects that it lies on, by their [`ObjectUsage::path`].
    pub lies_on: Vec<PathBuf>,
}

/// What is in a named snapshot's own directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotUsage {
    /// Its name, or the directory's when that is none.
    pub name: String,
    /// Whose it is.
    pub owner: Option<Owner>,
    /// Its bytes.
    pub figures: Figures,
    /// Its files.
    pub files: Vec<FileUsage>,
    /// The shared objects that it lies on, by their [`ObjectUsage::path`].
    pub lies_on: Vec<PathBuf>,
}

/// Anything that is not in a sandbox or a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectUsage {
    /// What it is.
    pub kind: UsageKind,
    /// What people call it.
    pub name: String,
    /// Where, from the data root: its one file, or its directory.
    pub path: PathBuf,
    /// Whose it is; `None` for what is shared.
    pub owner: Option<Owner>,
    /// Its bytes.
    pub figures: Figures,
    /// Its files.
    pub files: Vec<FileUsage>,
}

/// Where the bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Where the figures come from.
    pub method: UsageMethod,
    /// Whether all figures are what they are called; if not, `note` says which are not.
    pub exact: bool,
    /// What the reader should know.
    pub note: Option<String>,
    /// All of it.
    pub total: Figures,
    /// By owner.
    pub owners: Vec<OwnerUsage>,
    /// By sandbox.
    pub sandboxes: Vec<SandboxUsage>,
    /// By named snapshot.
    pub snapshots: Vec<SnapshotUsage>,
    /// Everything else, by kind and path.
    pub objects: Vec<ObjectUsage>,
}

impl Usage {
    /// What one owner has, and the shared objects that its sandboxes lie on.
    #[must_use]
    pub fn of_owner(mut self, owner: &Owner) -> Self {
        let has = |other: &Option<Owner>| other.as_ref() == Some(owner);
        self.owners.retain(|usage| has(&usage.owner));
        self.sandboxes.retain(|usage| has(&usage.owner));
        self.snapshots.retain(|usage| has(&usage.owner));
        self.total = self.owners.first().map(|usage| usage.figures).unwrap_or_default();
        self.keep_objects(|usage| has(&usage.owner));
        self
    }

    /// What one sandbox has, and the shared objects that it lies on. `None` when it is not there.
    #[must_use]
    pub fn of_sandbox(mut self, id: &SandboxId) -> Option<Self> {
        self.owners.clear();
        self.sandboxes.retain(|usage| usage.id == id.as_str());
        self.snapshots.clear();
        self.total = self.sandboxes.first()?.figures;
        self.keep_objects(|_| false);
        Some(self)
    }

    /// Keeps the objects that sandboxes and snapshots lie on, and others.
    fn keep_objects(&mut self, others: impl Fn(&ObjectUsage) -> bool) {
        let (sandboxes, snapshots) = (self.sandboxes.iter(), self.snapshots.iter());
        let under: BTreeSet<&PathBuf> = (sandboxes.flat_map(|sandbox| &sandbox.lies_on))
            .chain(snapshots.flat_map(|snapshot| &snapshot.lies_on))
            .collect();
        self.objects.retain(|object| under.contains(&object.path) || others(object));
    }
}

impl Store {
    /// What everything under the data root takes. Files being written are written out first.
    ///
    /// # Errors
    /// When the data root cannot be read. What cannot be read below it is told in the note.
    pub fn usage(&self) -> Result<Usage> {
        let mut survey = Survey::new();
        survey.walk(self.root()).map_err(|error| Error::io("list", self.root(), error))?;
        Ok(survey.finish(self))
    }
}
