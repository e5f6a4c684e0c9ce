//! The words every room shares: ids, names, units and the specification of a sandbox.
//!
//! Nothing here does I/O, and nothing here is a request or a stored record: those belong to the rooms that
//! receive or store them.

mod egress;
mod id;
mod image_config;
mod name;
mod quota;
mod rate;
mod rule;
mod spec;
mod time;
mod unit;
mod volume;

pub use egress::{Cidr, Egress, HostRule};
pub use id::{ContentId, IdError, LayerId, Nonce, SandboxId, TaskId};
pub use image_config::{CommandDefaults, ImageConfig};
pub use name::{Alias, ImageName, NameError, Owner, SandboxName, SecretName, SnapshotName, VolumeName};
pub use quota::{Counted, Quota};
pub use rate::Rate;
pub use rule::{After, ThermalRule, ThermalTimes};
pub use spec::{
    Accel, Arch, Boot, CloneMethod, GuestFile, InvalidSpec, Labels, NetMode, SandboxSpec, SpecLimits,
    StorageLayout, Thermal, check_guest_path,
};
pub use time::{Since, Timestamp};
pub use unit::{Bytes, Mebibytes, PAGE_SIZE, RamOffset, RamRun};
pub use volume::{MAX_VOLUMES, MIN_VOLUME, MountPath, VolumeMount, check_mounts, check_volume_size};
