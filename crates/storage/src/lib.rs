//! Every file under one data root: images, templates, sandboxes, and the promises about them.

mod blob;
mod clone;
mod crash;
mod devices;
mod durable;
mod error;
mod freeze;
mod fsck;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gc;
mod hole;
mod host_files;
mod image;
mod kernel;
mod layer;
pub mod layout;
mod layout_choice;
mod lock;
mod manifest;
mod memory;
mod place;
mod probe;
mod reconcile;
mod record;
mod references;
mod relocate;
mod sandbox_dir;
mod settle;
mod snapshot;
mod sparse;
mod store;
mod template;
mod tree_copy;
mod usage;
mod volume;
mod working_set;

pub use blob::{Blob, Blobs, PartialBlob};
pub use clone::{CloneOptions, CloneProgress, CloneReport, clone_file, clone_file_with};
pub use error::{Error, ErrorKind, Result};
pub use freeze::Freeze;
pub use fsck::{
    Checked, Finding, FsckOptions, FsckProgress, FsckReport, Outcome, OverlayCheck, Repair, Severity, Subject,
};
pub use gc::{Company, GcItem, GcKind, GcPlan, GcReport};
pub use host_files::{OwnCertificate, Scratch, Spool};
pub use image::{ImageRecord, Images, NameRemoval, StagedImage, object_from_machine_dir};
pub use kernel::{KernelRecord, Kernels, StagedKernel};
pub use layer::{LayerSeal, Layers};
pub use layout_choice::{LayoutChoice, LayoutCost, LayoutMeasurement};
pub use lock::{DaemonLock, SetupLock, is_held};
pub use manifest::{
    DeviceRecord, ImageRef, LayerFormat, LayerRef, MachineRecord, Manifest, MemoryRecord, NetRecord, RamBase,
    RunState, VolumeRef,
};
pub use memory::{
    LoadReport, MemoryHeader, MemoryImage, MemoryStats, OWN_BASE_ABOVE, PageSink, PageSource, RamBaseReport,
    StagedMemory, TRIM_ABOVE, Trimmed, Unchanged,
};
pub use probe::FsCapabilities;
pub use reconcile::{Leftover, LeftoverKind, ReconcileReport};
pub use references::Pin;
pub use relocate::{
    HeldRoot, MOUNT_POINT_NOTE, MovingDir, Relocation, RelocationLock, RootState, Surroundings,
};
pub use sandbox_dir::{DepartedSandbox, SandboxDir, StagedSandbox};
pub use snapshot::{SnapshotDir, SnapshotRecord, Snapshots, StagedSnapshot};
pub use store::{Space, Store};
pub use template::{StagedTemplate, TemplateRecord, TemplateSpec, Templates};
pub use tree_copy::TreeSize;
pub use usage::{
    Figures, FileUsage, ObjectUsage, OwnerUsage, SandboxUsage, SnapshotUsage, Trial, TrialSize, Usage,
    UsageKind, UsageMethod,
};
pub use volume::{
    BackupSchedule, StagedVolume, Volume, VolumeLock, VolumeRecord, Volumes, snapshot_volume,
    volume_from_machine_dir,
};
