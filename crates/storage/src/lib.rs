//! Every file under one data root: images, templates, sandboxes, and the promises about them.

mod clone;
mod durable;
mod error;
mod host_files;
mod image;
mod kernel;
pub mod layout;
mod lock;
mod manifest;
mod memory;
mod probe;
mod reconcile;
mod record;
mod sandbox_dir;
mod sparse;
mod store;
mod template;

pub use clone::{CloneReport, clone_file};
pub use error::{Error, ErrorKind, Result};
pub use host_files::Scratch;
pub use image::{ImageRecord, Images, StagedImage, object_from_machine_dir};
pub use kernel::{KernelRecord, Kernels, StagedKernel};
pub use lock::{DaemonLock, SetupLock};
pub use manifest::{DeviceRecord, ImageRef, MachineRecord, Manifest, MemoryRecord, RamBase, RunState};
pub use memory::{
    LoadReport, MemoryHeader, MemoryImage, MemoryStats, PageSink, PageSource, RamBaseReport, StagedMemory,
};
pub use probe::FsCapabilities;
pub use reconcile::{Leftover, LeftoverKind, ReconcileReport};
pub use sandbox_dir::{SandboxDir, StagedSandbox};
pub use store::Store;
pub use template::{StagedTemplate, TemplateRecord, TemplateSpec, Templates};
