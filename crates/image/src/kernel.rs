//! Guest kernels: taken out of Debian's kernel package, or given by path.
//!
//! Every host gets the same kernel, whatever distribution it runs: `images/kernel.json` names it. `apt-get` works on a private state directory, so the host's package lists and settings stay as they are,
//! and nothing needs root.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use types::Arch;

use crate::apt::PrivateApt;
use crate::recipe::KernelRecipe;
use crate::run::Tool;
use crate::{Build, Error, ErrorKind, Result};

const OP: &str = "fetch the guest kernel";

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

/// Takes Debian's kernel for virtual machines out of its package, without installing anything.
///
/// The result lies in `build.work_dir` under `kernel/`, in place of an earlier one there. Needs no root, but the
/// network.
///
/// # Errors
/// [`ErrorKind::Missing`](crate::ErrorKind::Missing) without `apt-get`, `dpkg-deb` or Debian's keyring,
/// [`ErrorKind::Tool`](crate::ErrorKind::Tool) when the download fails.
pub fn fetch_kernel(build: &Build<'_>, arch: Arch) -> Result<KernelTree> {
    const STEPS: u64 = 3;
    build.at("reading Debian's package lists", 0, STEPS);
    let (apt, version) = find(build, arch)?;

    let tree = build.work_dir.join("kernel");
    let io = |error| Error::io(OP, &tree, error);
    if tree.exists() {
        fs::remove_dir_all(&tree).map_err(io)?;
    }
    fs::create_dir_all(&tree).map_err(io)?;
    build.at(format!("downloading {version}"), 1, STEPS);
    let deb = apt.download(&version, &tree)?;
    build.at(format!("unpacking {version}"), 2, STEPS);
    Tool::new(OP, "dpkg-deb", "dpkg").arg("-x").arg(&deb).arg(&tree).cancel(build.cancel).run()?;
    fs::remove_file(&deb).map_err(io)?;

    let modules = ["lib/modules", "usr/lib/modules"].map(|dir| tree.join(dir));
    let modules = modules.iter().find_map(|dir| only_entry(dir, "")).ok_or_else(|| {
        Error::input(
            OP,
            &tree,
            format!("the package {version} has no lib/modules; use --kernel and --modules"),
        )
    })?;
    let vmlinuz = only_entry(&tree.join("boot"), "vmlinuz-").ok_or_else(|| {
        Error::input(
            OP,
            &tree,
            format!("the package {version} has no boot/vmlinuz; use --kernel and --modules"),
        )
    })?;
    let kernel = kernel_from_paths(&vmlinuz, &modules)?;
    build.at(format!("kernel {} is ready", kernel.version), STEPS, STEPS);
    Ok(kernel)
}

/// The first of the wanted releases that the archive still has; a release moves away some years after its end.
fn find<'a>(build: &'a Build<'a>, arch: Arch) -> Result<(PrivateApt<'a>, String)> {
    let recipe = KernelRecipe::read();
    let package = recipe.packages.get(&arch).map(String::as_str).unwrap_or_default();
    let mut first_error = None;
    for suite in &recipe.suites {
        // The package itself is empty and depends on the one of today's version.
        let found = PrivateApt::update(build, OP, suite, arch)
            .and_then(|apt| apt.dependency_of(package).map(|version| (apt, version)));
        match found {
            Err(error) if error.kind() == ErrorKind::Tool => first_error = first_error.or(Some(error)),
            done => return done,
        }
    }
    Err(first_error.unwrap_or_else(|| Error::tool(OP, "images/kernel.json names no release")))
}

fn only_entry(dir: &Path, prefix: &str) -> Option<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(dir)
        .ok()?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
        .collect();
    found.sort();
    found.into_iter().next()
}

/// A kernel and modules that somebody has already: `modules` is a `lib/modules/<version>` directory.
///
/// # Errors
/// [`ErrorKind::Input`](crate::ErrorKind::Input) when either is not what it should be.
pub fn kernel_from_paths(kernel: &Path, modules: &Path) -> Result<KernelTree> {
    const OP: &str = "use the kernel";
    let mut head = [0u8; 0x240];
    let mut file = fs::File::open(kernel).map_err(|error| Error::io(OP, kernel, error))?;
    let bootable = file.read_exact(&mut head).is_ok() && is_bootable(&head);
    if !bootable {
        return Err(Error::input(
            OP,
            kernel,
            "it is neither a bzImage nor an arm64 Image; give the distribution's vmlinuz",
        ));
    }
    let version = modules.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if version.is_empty() || !modules.join("modules.builtin").is_file() {
        let detail = "it is no lib/modules/<version> directory (modules.builtin is not in it)";
        return Err(Error::input("use the modules", modules, detail));
    }
    Ok(KernelTree { vmlinuz: kernel.to_owned(), modules: modules.to_owned(), version })
}

/// Knows a kernel by its first 576 bytes.
///
/// "HdrS" at 0x202: Linux, `Documentation/arch/x86/boot.rst`. "ARM\x64" at 0x38:
/// `Documentation/arch/arm64/booting.rst`. Debian's arm64 kernels may be EFI zboot images ("zimg" at 4), which QEMU
/// unpacks since 8.0.
fn is_bootable(head: &[u8; 0x240]) -> bool {
    &head[0x202..0x206] == b"HdrS" || &head[0x38..0x3c] == b"ARM\x64" || &head[4..8] == b"zimg"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_and_its_modules_are_known_by_what_is_in_them() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("vmlinuz");
        let modules = dir.path().join("6.1.0-test");
        fs::create_dir(&modules).unwrap();
        fs::write(&kernel, b"MZ not really").unwrap();
        assert_eq!(kernel_from_paths(&kernel, &modules).unwrap_err().kind(), ErrorKind::Input);

        let mut image = vec![0u8; 4096];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        fs::write(&kernel, &image).unwrap();
        let error = kernel_from_paths(&kernel, &modules).unwrap_err();
        assert!(error.to_string().contains("modules.builtin"), "{error}");

        fs::write(modules.join("modules.builtin"), "").unwrap();
        assert_eq!(kernel_from_paths(&kernel, &modules).unwrap().version, "6.1.0-test");
        let missing = kernel_from_paths(&dir.path().join("none"), &modules).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::Io);
    }
}
