//! Root disk overlays.

use std::path::Path;

use types::Bytes;

use crate::{Error, Result};

/// Makes the empty qcow2 overlay `path` of `size` bytes on the raw image that `base_relative` names as seen from
/// the overlay's directory. The base is not opened.
///
/// # Errors
/// [`ErrorKind::Missing`](crate::ErrorKind::Missing) without `qemu-img`, else
/// [`ErrorKind::Tool`](crate::ErrorKind::Tool).
pub fn qemu_img_create_overlay(path: &Path, base_relative: &Path, size: Bytes) -> Result<()> {
    Err(Error::input("make the overlay", path, format!("on {}, {size}: not built yet", base_relative.display())))
}
