//! Virtual machines as processes: QEMU started, spoken to, its guest's RAM read and written from outside.

mod error;
mod machine;
mod qemu;
mod ram;
mod spec;

pub use error::{Error, ErrorKind, Result};
pub use machine::{AGENT_SOCKET, End, Machine, QMP_SOCKET, Status, VMM_LOG};
pub use qemu::{Qemu, Version};
pub use ram::GuestRam;
pub use spec::{MachineSpec, RootDisk, cpu_model};
