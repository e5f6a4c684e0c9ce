//! Guest kernels: taken out of the distribution's kernel package, or given by path.

use std::path::{Path, PathBuf};

use types::Arch;

use crate::{Build, Error, Result};

/// A kernel and the modules that belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelTree {
    /// The bootable kernel (`bzImage` on amd64, `Image` on arm64).
    pub vmlinuz: PathBuf,
    /// The directory `lib/modules/<version>`.
    pub modules: PathBuf,
    /// The version by which its modules are named, such as `6.1.0-44-cloud-amd64`.
    pub version: String,
}

/// Takes the distribution's kernel for virtual machines out of its packages, without installing anything.
///
/// The result lies in `build.work_dir`. Needs no root. Where the distribution has no such package for `arch`, the
/// error says to use `--kernel` and `--modules`.
///
/// # Errors
/// [`ErrorKind::Missing`](crate::ErrorKind::Missing) without `apt-get` or `dpkg-deb`,
/// [`ErrorKind::Tool`](crate::ErrorKind::Tool) when the download fails.
pub fn fetch_kernel(build: &Build<'_>, arch: Arch) -> Result<KernelTree> {
    let _ = (build, arch);
    Err(Error::tool("fetch the guest kernel", "not built yet"))
}

/// A kernel and modules that somebody has already: `modules` is a `lib/modules/<version>` directory.
///
/// # Errors
/// [`ErrorKind::Input`](crate::ErrorKind::Input) when either is not what it should be.
pub fn kernel_from_paths(kernel: &Path, modules: &Path) -> Result<KernelTree> {
    Err(Error::input("use the kernel", kernel, format!("with {}: not built yet", modules.display())))
}
