//! Makes what a guest starts from: a kernel, an initramfs, Debian images and config drives.
//!
//! Everything is built into files that the caller names; nothing here knows the data root. Programs of the host
//! do the work (`apt-get`, `mmdebstrap`, `mke2fs`, `qemu-img`), as children that end with the call, and the host's
//! own package state is never touched. No filesystem that a guest could have written is ever mounted.
//!
//! The functions block, but for those of [`Registry`]. Long ones take a [`Build`], which says where to keep scratch files, how to report progress
//! and how to be stopped.

mod apt;
mod archive;
mod config_drive;
mod digest;
mod error;
mod flatten;
#[cfg(fuzzing)]
pub mod fuzzing;
mod initramfs;
mod kernel;
mod layer;
mod loop_fs;
mod modules;
mod mount_unit;
mod oci;
mod overlay;
mod programs;
mod progress;
mod recipe;
mod registry;
mod run;
mod tier;
mod tree;
mod tree_path;
mod volume_fs;

pub use archive::import_archive;
pub use config_drive::{CONFIG_DRIVE_BYTES, CONFIG_FILES_MAX_BYTES, ConfigDrive, config_drive};
pub use digest::Sha256Digest;
pub use error::{Error, ErrorKind, Result};
pub use flatten::{FlatImage, LayerFile, flatten};
pub use initramfs::{Initramfs, build_initramfs};
pub use kernel::{KernelTree, fetch_kernel, kernel_from_paths};
pub use layer::{Compression, Limits};
pub use loop_fs::{
    DirUser, LOOP_MOUNT_OPTIONS, LoopHost, MountPoint, grow_btrfs_file, make_btrfs_file, mount_btrfs_file,
    mount_points, unmount_btrfs_file, users_of_dir, with_mounts_of_own,
};
pub use mount_unit::{MountUnit, UnitState};
pub use oci::{Blob, ImageManifest, OciConfig};
pub use overlay::{BackingFormat, RootChain, qemu_img_check, qemu_img_create_overlay, qemu_img_flatten};
pub use programs::{Program, programs};
pub use progress::{Build, Cancel, Progress};
pub use registry::{Pull, Registry};
pub use tier::{TierImage, TierInfo, build_minimal, build_tier, minimal_recipe_id, tier_recipe_id, tiers};
pub use volume_fs::make_volume_fs;
