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
    /// The network card, and what it is plugged into.
    pub nic: Option<Nic>,
    /// Whether its guest announces itself on the network when its state was loaded, which is part of that state. Nobody
    /// on a line for two needs to hear it, and it keeps the guest busy just when it is waited for.
    pub announces: bool,
    /// Disks on ports, which may come and go while the guest runs; in the order of their ports.
    pub volumes: Vec<VolumeDisk>,
    /// Rate of an emulated guest's time-stamp counter, as from [`host_tsc_khz`](crate::host_tsc_khz); when missing, the
    /// guest's kernel has to find it out.
    pub tsc_khz: Option<u32>,
    /// Wait for a device state instead of booting.
    pub incoming: bool,
}

/// What a network card is plugged into. The device state is the same either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nic {
    /// Nothing.
    Nothing,
    /// The socket that the machine is launched with.
    Line,
}

/// What a disk's file looks like inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFormat {
    /// The disk's bytes as they are; complete, nothing lies below it.
    Raw,
    /// What differs from the file below it.
    Qcow2,
}

/// One file of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it looks like inside.
    pub format: DiskFormat,
}

impl DiskFile {
    /// A raw file.
    #[must_use]
    pub fn raw(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), format: DiskFormat::Raw }
    }

    /// A qcow2 file.
    #[must_use]
    pub fn qcow2(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), format: DiskFormat::Qcow2 }
    }
}

/// A raw disk on a port that devices can be plugged into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeDisk {
    /// The port's number, from 0.
    pub port: u8,
    /// Its file.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
}

/// How the root disk is kept: one file that is written to, and what is read through it. What lies below is
/// said here, never read from the headers of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootDisk {
    /// Takes all writes.
    pub top: DiskFile,
    /// Only read, the nearest to the top first. Only the last one may be raw; none for a raw top.
    pub below: Vec<DiskFile>,
}

/// The processor given to guests: the host's own under KVM (a state then loads on hosts with that processor only),
/// a fixed one under emulation that every supported QEMU emulates completely: what x86-64-v2 asks for, and the
/// instructions that make random numbers. `max` would be another processor with every QEMU release.
#[must_use]
pub const fn cpu_model(arch: Arch, accel: Accel) -> &'static str {
    match (accel, arch) {
        (Accel::Kvm, _) => "host",
        (Accel::Tcg, Arch::Amd64) => "Nehalem-v1,+rdrand,+rdseed,+fsgsbase",
        (Accel::Tcg, Arch::Arm64) => "cortex-a72",
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    pub(crate) fn spec(arch: Arch, accel: Accel) -> MachineSpec {
        MachineSpec {
            arch,
            accel,
            machine_type: crate::Qemu::machine_type(arch).to_owned(),
            cpu_model: cpu_model(arch, accel).to_owned(),
            cpus: 2,
            memory: Mebibytes(512),
            kernel: "../../kernel/vmlinuz".into(),
            initramfs: "../../kernel/initramfs".into(),
            extra_cmdline: vec!["bhatti.probe".into()],
            ram_base: "../../templates/zero/512.ram".into(),
            ram_base_writable: false,
            root: Some(RootDisk {
                top: DiskFile::qcow2("rootfs.qcow2"),
                below: vec![DiskFile::raw("../../images/rootfs-minimal.ext4")],
            }),
            config: Some("config.ext4".into()),
            nic: None,
            announces: false,
            volumes: Vec::new(),
            tsc_khz: Some(2_600_000),
            incoming: false,
        }
    }
}
