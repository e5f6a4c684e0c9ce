//! What a machine is to be made of: values only, every path relative to the directory that it runs in.

use std::path::PathBuf;

use types::{Accel, Arch, Mebibytes};

/// One machine. Two machines whose specs differ only in paths, `incoming` and `ram_base_writable` have the same
/// device state, so one may load what the other saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineSpec {
    /// The guest's instruction set.
    pub arch: Arch,
    /// What executes it.
    pub accel: Accel,
    /// As from [`Qemu::machine_type`](crate::Qemu::machine_type), or what the snapshot to be loaded was made with.
    pub machine_type: String,
    /// As from [`cpu_model`], or what the snapshot to be loaded was made with.
    pub cpu_model: String,
    /// Virtual processors, at least 1.
    pub cpus: u32,
    /// Guest memory; the RAM base is a file of exactly this size.
    pub memory: Mebibytes,
    /// The kernel image; not opened when `incoming`.
    pub kernel: PathBuf,
    /// The initramfs; not opened when `incoming`.
    pub initramfs: PathBuf,
    /// Words added to the kernel's command line, e.g. `bhatti.probe`.
    pub extra_cmdline: Vec<String>,
    /// The file whose pages the guest's RAM starts as; mapped privately, never written.
    pub ram_base: PathBuf,
    /// Open the base read-write, as QEMU before 8.2 must.
    /// See [`Qemu::opens_base_read_only`](crate::Qemu::opens_base_read_only).
    pub ram_base_writable: bool,
    /// `/dev/vda` of the guest.
    pub root: Option<RootDisk>,
    /// A raw image, read-only: `/dev/vdb` of the guest.
    pub config: Option<PathBuf>,
    /// Wait for a device state instead of booting.
    pub incoming: bool,
}

/// How the root disk is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootDisk {
    /// A qcow2 file over a raw base that is only read.
    Overlay {
        /// The qcow2 file.
        path: PathBuf,
        /// The raw base image.
        base: PathBuf,
    },
    /// A raw file of its own.
    Raw {
        /// The raw file.
        path: PathBuf,
    },
}

/// The processor given to guests.
#[must_use]
pub const fn cpu_model(arch: Arch, accel: Accel) -> &'static str {
    match (accel, arch) {
        (Accel::Kvm, _) => "host",
        (Accel::Tcg, Arch::Amd64) => "Nehalem-v1",
        (Accel::Tcg, Arch::Arm64) => "cortex-a72",
    }
}
