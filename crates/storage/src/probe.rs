//! What the filesystem can do, found by doing it.

use std::path::Path;

use types::{Bytes, Nonce};

use crate::durable::{self, Staged};
use crate::error::{Error, Result};
use crate::layout::NEW;
use crate::sparse;

/// What the filesystem under the data root can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsCapabilities {
    /// Its name, for people only: nothing is decided by it.
    pub fs_type: String,
    /// Whether files can share extents.
    pub reflink: bool,
    /// Whether holes stay holes.
    pub sparse: bool,
    /// Whether it compressed what was written.
    pub compression: bool,
    /// What is free for this user.
    pub free: Bytes,
    /// Its size.
    pub total: Bytes,
}

const MIB: u64 = 1 << 20;

pub(crate) fn probe(root: &Path) -> Result<FsCapabilities> {
    let dense = scratch(root)?;
    let line = b"what repeats itself can be told in fewer bytes than it has\n";
    let text: Vec<u8> = line.iter().copied().cycle().take(1 << 20).collect();
    durable::write_at(dense.file(), dense.path(), 0, &text)?;
    durable::sync(dense.file(), dense.path())?;

    let holey = scratch(root)?;
    durable::write_at(holey.file(), holey.path(), MIB, &text[..4096])?;
    durable::sync(holey.file(), holey.path())?;

    let copy = scratch(root)?;
    let reflink = rustix::fs::ioctl_ficlone(copy.file(), dense.file()).is_ok();

    let fail = |error| Error::io("ask the filesystem of", root, error);
    let space = rustix::fs::statvfs(root).map_err(fail)?;
    // btrfs counts a compressed extent with its plain size in st_blocks; only its extent map tells. Others that
    // compress (zfs, f2fs) count what they store.
    let compression = sys::host_fiemap::has_encoded_extent(dense.file()).unwrap_or(false)
        || sparse::allocated(dense.file(), dense.path())?.0 < MIB / 2;
    Ok(FsCapabilities {
        fs_type: fs_type(root)?,
        reflink,
        sparse: sparse::allocated(holey.file(), holey.path())?.0 < MIB / 2,
        compression,
        free: Bytes(space.f_bavail.saturating_mul(space.f_frsize)),
        total: Bytes(space.f_blocks.saturating_mul(space.f_frsize)),
    })
}

fn scratch(root: &Path) -> Result<Staged> {
    Staged::create(root.join(format!("{NEW}probe-{}", Nonce::random())), 0o600)
}

/// Its name, for people only.
pub(crate) fn fs_type(path: &Path) -> Result<String> {
    let found = rustix::fs::statfs(path).map_err(|error| Error::io("ask the filesystem of", path, error))?;
    Ok(name(u64::try_from(found.f_type).unwrap_or(0)))
}

/// Names of linux/magic.h; they are shown and never compared.
fn name(magic: u64) -> String {
    match magic {
        0xef53 => "ext4".to_owned(),
        0x9123_683e => "btrfs".to_owned(),
        0x5846_5342 => "xfs".to_owned(),
        0x0102_1994 => "tmpfs".to_owned(),
        0x2fc1_2fc1 => "zfs".to_owned(),
        0x794c_7630 => "overlayfs".to_owned(),
        0xca45_1a4e => "bcachefs".to_owned(),
        0xf2f5_2010 => "f2fs".to_owned(),
        0x6969 => "nfs".to_owned(),
        other => format!("filesystem 0x{other:x}"),
    }
}
