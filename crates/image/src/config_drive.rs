//! Config drives: the 1 MiB disk from which a guest reads its environment, secrets, files and init command.

use std::collections::BTreeMap;
use std::path::Path;

use types::{Bytes, GuestFile};

use crate::{Error, Result};

/// Size of a config drive.
pub const CONFIG_DRIVE_BYTES: Bytes = Bytes(1 << 20);

/// How many bytes of files together are sure to fit, whatever their number up to 64.
pub const CONFIG_FILES_MAX_BYTES: Bytes = Bytes(640 << 10);

/// What a config drive says.
#[derive(Debug, Clone, Copy)]
pub struct ConfigDrive<'a> {
    /// Environment of every command, secrets among it.
    pub env: &'a BTreeMap<String, String>,
    /// A command line run by `sh -c` as a session at every boot.
    pub init: Option<&'a str>,
    /// Whether the guest is to write `files` into its disk: so at the first boot only.
    pub place_files: bool,
    /// Files to place.
    pub files: &'a [GuestFile],
}

/// Writes the config drive `drive` to `path`, mode 0600, the same bytes for the same content.
///
/// # Errors
/// [`ErrorKind::Input`](crate::ErrorKind::Input) when it does not fit,
/// [`ErrorKind::Missing`](crate::ErrorKind::Missing) without `mke2fs`.
pub fn config_drive(path: &Path, drive: &ConfigDrive<'_>) -> Result<()> {
    let _ = drive;
    Err(Error::input("write the config drive", path, "not built yet"))
}
