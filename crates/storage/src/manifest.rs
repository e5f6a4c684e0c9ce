//! A sandbox's generation record: which of its files belong together, and in which state the last commit left it.
//!
//! `docs/formats/manifest.md` draws the file.

use std::path::Path;

use serde::{Deserialize, Serialize};
use types::{
    Accel, Bytes, ContentId, ImageName, Labels, Mebibytes, Owner, SandboxId, SandboxName, StorageLayout, Timestamp,
};

use crate::error::{Error, ErrorKind, Result};
use crate::record::{self, Format};

/// What the last commit says about the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// A VMM runs it; if none does, host or VMM died and the next start boots from the disk.
    Running,
    /// Its memory is in `mem.snap` and `vm.snap`.
    Cold,
    /// Powered off: the disk alone counts.
    Off,
}

/// The base image a root disk was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRef {
    /// Its name when the sandbox was created.
    pub name: ImageName,
    /// Its content.
    pub id: ContentId,
}

/// What lies under a guest's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RamBase {
    /// A template's RAM base.
    Template {
        /// The template.
        key: ContentId,
        /// The base's content.
        ram: ContentId,
    },
    /// Nothing but zeros: the guest was booted.
    Zero,
}

impl RamBase {
    /// The id that a memory image over this base carries; 64 zeros for the zero base.
    #[must_use]
    pub fn id(&self) -> ContentId {
        match self {
            Self::Template { ram, .. } => ram.clone(),
            Self::Zero => ContentId::from_hash(&[0; 32]),
        }
    }
}

/// A device in port order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceRecord {
    /// The VMM's id of it.
    pub id: String,
    /// What it is, in the VMM's words.
    pub kind: String,
    /// The port it is on.
    pub port: String,
}

/// The machine that a memory image fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineRecord {
    /// The VMM's version that ran it last.
    pub qemu_version: String,
    /// The pinned machine type.
    pub machine_type: String,
    /// What executed the guest.
    pub accel: Accel,
    /// The processor the guest saw.
    pub cpu_model: String,
    /// Devices in port order.
    pub devices: Vec<DeviceRecord>,
}

/// The memory image that belongs to this generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryRecord {
    /// BLAKE3 of `mem.snap`'s header, which in turn holds the checksum of every frame.
    pub mem_header_blake3: ContentId,
    /// Bytes of `mem.snap` up to the end of its last frame; its logical size is at least the memory's.
    pub mem_content_bytes: Bytes,
    /// BLAKE3 of `vm.snap`.
    pub vm_blake3: ContentId,
    /// Size of `vm.snap`.
    pub vm_bytes: Bytes,
    /// Whether the agent had detached cleanly, so that the channel holds no half frame.
    pub detached: bool,
}

/// The generation record of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The sandbox, and its directory's name.
    pub id: SandboxId,
    /// Its name.
    pub name: SandboxName,
    /// Whose it is.
    pub owner: Owner,
    /// Counts up with every change of state; a memory image is valid for exactly one.
    pub generation: u64,
    /// What the last commit says.
    pub state: RunState,
    /// How the root disk is kept.
    pub layout: StorageLayout,
    /// The image under or behind the root disk.
    pub image: ImageRef,
    /// The kernel and initramfs it boots.
    pub kernel: ContentId,
    /// Virtual processors.
    pub cpus: u32,
    /// Guest memory.
    pub memory_mib: Mebibytes,
    /// Size of the root disk.
    pub disk_size_mib: Mebibytes,
    /// Free-form labels.
    pub labels: Labels,
    /// Exempt from going to sleep by itself.
    pub keep_hot: bool,
    /// When it was created.
    pub created_at: Timestamp,
    /// What lies under its memory.
    pub ram_base: RamBase,
    /// The machine it runs on.
    pub machine: MachineRecord,
    /// The memory image; there is one if and only if the state is cold.
    pub memory: Option<MemoryRecord>,
    /// Whether the config drive's files have been placed.
    pub first_boot_done: bool,
}

pub(crate) const FORMAT: Format = Format { name: "bhatti-sandbox", version: 1 };

impl Manifest {
    /// The next generation, in which a guest runs: no memory image is valid any more.
    #[must_use]
    pub fn into_running(mut self) -> Self {
        self.generation = self.generation.saturating_add(1);
        self.state = RunState::Running;
        self.memory = None;
        self
    }

    /// The next generation, in which the disk alone counts.
    #[must_use]
    pub fn into_off(mut self) -> Self {
        self.generation = self.generation.saturating_add(1);
        self.state = RunState::Off;
        self.memory = None;
        self
    }

    /// The file's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        record::encode(FORMAT, self)
    }

    /// Reads a file's bytes; `path` is for the error only.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are not those of [`Manifest::encode`], `TooNew` for a later version.
    pub fn decode(bytes: &[u8], path: &Path) -> Result<Self> {
        let manifest: Self = record::decode(FORMAT, bytes, path)?;
        manifest.check(path)?;
        Ok(manifest)
    }

    /// What holds between the fields whatever the state.
    pub(crate) fn check(&self, path: &Path) -> Result<()> {
        if (self.state == RunState::Cold) != self.memory.is_some() {
            return Err(Error::new(ErrorKind::Invalid, "check manifest", path)
                .because("a memory image belongs to the cold state and to no other"));
        }
        if self.memory_mib.checked_bytes().is_none() || self.memory_mib.0 == 0 {
            return Err(Error::new(ErrorKind::Invalid, "check manifest", path).because("the memory size is impossible"));
        }
        Ok(())
    }
}
