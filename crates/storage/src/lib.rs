//! Every file under one data root: images, templates, sandboxes, and the promises about them.

mod clone;
mod durable;
mod error;
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
mod store;
mod template;

pub use clone::{CloneReport, clone_file};
pub use error::{Error, ErrorKind, Result};
pub use image::{ImageRecord, Images, StagedImage};
pub use kernel::{KernelRecord, Kernels, StagedKernel};
pub use lock::{DaemonLock, SetupLock};
pub use manifest::{DeviceRecord, ImageRef, MachineRecord, Manifest, MemoryRecord, RamBase, RunState};
pub use memory::{
    LoadReport, MemoryHeader, MemoryImage, MemoryStats, PageSink, PageSource, StagedMemory,
};
pub use probe::FsCapabilities;
pub use reconcile::{Leftover, LeftoverKind, ReconcileReport};
pub use sandbox_dir::{SandboxDir, StagedSandbox};
pub use store::Store;
pub use template::{RamBaseReport, StagedTemplate, TemplateRecord, TemplateSpec, Templates};
