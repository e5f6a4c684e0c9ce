//! The image `minimal`: a small Debian with what people reach for first.

use std::path::Path;

use types::{Arch, Bytes, ContentId};

use crate::{Build, Error, Result};

/// What was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MinimalImage {
    /// Where it came from, for the record: `debian trixie, mmdebstrap, recipe 0123456789ab`.
    pub source: String,
    /// Logical size of the file.
    pub size: Bytes,
    /// Installed packages.
    pub packages: usize,
}

/// A hash over everything that decides what [`build_minimal`] makes, save the archive's state: when it has not
/// changed, an image that is there need not be built again.
#[must_use]
pub fn minimal_recipe_id(arch: Arch) -> ContentId {
    ContentId::from_hash(blake3::hash(arch.as_str().as_bytes()).as_bytes())
}

/// Builds the image into the file `out`, which may exist and be empty.
///
/// # Errors
/// [`ErrorKind::Missing`](crate::ErrorKind::Missing) names the package to install; otherwise mostly
/// [`ErrorKind::Tool`](crate::ErrorKind::Tool) with mmdebstrap's last words.
pub fn build_minimal(build: &Build<'_>, arch: Arch, out: &Path) -> Result<MinimalImage> {
    let _ = (build, arch);
    Err(Error::input("build the image minimal", out, "not built yet"))
}
