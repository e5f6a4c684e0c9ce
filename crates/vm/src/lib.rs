//! Virtual machines as processes: QEMU started, spoken to, its guest's RAM read and written from outside.

mod argv;
mod blank;
mod cgroup;
mod codec;
mod disk;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod host;
mod machine;
mod maps;
mod nodes;
mod process;
mod qemu;
mod qmp;
mod ram;
mod reference;
mod room;
mod spec;
mod throttle;
mod touched;
mod volumes;

pub use blank::Blank;
pub use cgroup::{Cgroups, Limits};
pub use disk::{Folded, NextTop};
pub use error::{Error, ErrorKind, Result};
pub use host::{
    HostPressure, Resident, host_boot_id, host_cpus, host_memory, host_pressure, host_tsc_khz, kvm_opens,
    no_lock, resident,
};
pub use machine::{AGENT_SOCKET, End, Machine, QMP_SOCKET, Status, VMM_LOG};
pub use qemu::{Qemu, Version};
pub use ram::GuestRam;
pub use spec::{DiskFile, DiskFormat, MachineSpec, Nic, RootDisk, VolumeDisk, cpu_model};
pub use sys::host_buffer::PageBuffer;
pub use sys::host_confine::Confinement;
pub use sys::host_open_files::OpenFiles;
pub use touched::{Extent, Looker, ReadAhead, Touched};
pub use volumes::volume_serial;
