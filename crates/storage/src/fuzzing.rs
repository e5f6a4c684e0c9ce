//! What fuzz targets need and nobody else; not in any other build.

use std::path::Path;

use crate::Result;
use crate::memory::{MemoryImage, seal};

/// The newest version of a manifest.
pub const MANIFEST_VERSION: u32 = crate::manifest::FORMAT.version;

/// Makes the checksums of a memory image right, as far as its tables can be found.
pub fn seal_memory(bytes: &mut [u8]) {
    let _sealed = seal(bytes);
}

/// Opens a memory image.
///
/// # Errors
/// As a wake's.
pub fn open_memory(path: &Path) -> Result<MemoryImage> {
    MemoryImage::open(path, None)
}
