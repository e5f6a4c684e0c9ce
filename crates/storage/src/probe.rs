//! What the filesystem can do, found by doing it.

use types::Bytes;

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
