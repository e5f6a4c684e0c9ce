//! The image `minimal`: a small Debian with what people reach for first.
//!
//! mmdebstrap makes a tar archive of the tree, in a user namespace where the caller is not root. The archive is
//! unpacked and turned into a filesystem by `mke2fs -d` inside the same kind of namespace, so that owners are right
//! either way and nothing is mounted.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use types::{Arch, Bytes, ContentId};

use crate::apt::check_keyring;
use crate::programs::find;
use crate::recipe::{MINIMAL, Recipe};
use crate::run::Tool;
use crate::{Build, Error, Result};

const OP: &str = "build the image minimal";
/// Raised when this file makes another image from the same recipe.
const BUILDER: u32 = 2;
/// Fixed, so that two builds give the same filesystem; every image is the only one of its guest.
const UUID: &str = "b4a77100-0000-4000-8000-000000000001";

/// Run by mmdebstrap with the tree as $1, before it cleans up. `USER_NAME` and `SOURCES` are in its environment.
const CUSTOMIZE: &str = r#"set -eu
chroot "$1" useradd --create-home --uid 1000 --shell /bin/bash "$USER_NAME"
printf '%s ALL=(ALL:ALL) NOPASSWD: ALL\n' "$USER_NAME" > "$1/etc/sudoers.d/$USER_NAME"
chmod 0440 "$1/etc/sudoers.d/$USER_NAME"
printf '%s' "$SOURCES" > "$1/etc/apt/sources.list"
: > "$1/etc/hostname"
printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n' > "$1/etc/hosts"
sed -i /force-unsafe-io/d "$1/etc/dpkg/dpkg.cfg.d/99mmdebstrap"
chroot "$1" passwd --lock root > /dev/null
"#;

/// Run by `sh` with the archive, a directory to unpack it into and the image, followed by mke2fs' arguments.
/// Prints the number of installed packages. Device nodes are left out: nobody but root can make them, and the guest
/// mounts a devtmpfs there anyway.
const ASSEMBLE: &str = r#"set -eu
tar=$1 tree=$2 image=$3; shift 3
trap 'rm -rf "$tree"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$tree"
tar -C "$tree" -xp --numeric-owner --xattrs '--xattrs-include=*' --exclude './dev/*' -f "$tar"
rm -f "$tar" "$tree/etc/resolv.conf" "$tree/var/lib/dbus/machine-id"
: > "$tree/etc/machine-id"
: > "$tree/etc/resolv.conf"
touch -d "@$SOURCE_DATE_EPOCH" "$tree/etc" "$tree/etc/machine-id" "$tree/etc/resolv.conf"
mke2fs "$@" -d "$tree" "$image"
grep -c '^Status: install ok installed' "$tree/var/lib/dpkg/status"
"#;

/// What was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MinimalImage {
    /// Where it came from, for the record: `debian trixie, recipe 0123456789ab`.
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
    let mut hash = blake3::Hasher::new();
    let builder = BUILDER.to_string();
    for part in [builder.as_str(), arch.as_str(), MINIMAL, CUSTOMIZE, ASSEMBLE] {
        hash.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    ContentId::from_hash(hash.finalize().as_bytes())
}

/// Builds the image into the file `out`, which may exist; what is in it is lost. Not synced.
///
/// # Errors
/// [`ErrorKind::Missing`](crate::ErrorKind::Missing) names the package to install; otherwise mostly
/// [`ErrorKind::Tool`](crate::ErrorKind::Tool) with mmdebstrap's last words.
pub fn build_minimal(build: &Build<'_>, arch: Arch, out: &Path) -> Result<MinimalImage> {
    let recipe = Recipe::minimal();
    let namespace = if rustix::process::geteuid().is_root() { Namespace::Root } else { Namespace::User };
    check_host(namespace)?;
    let io = |error| Error::io(OP, build.work_dir, error);
    fs::create_dir_all(build.work_dir).map_err(io)?;
    let scratch = tempfile::Builder::new().prefix("minimal-").tempdir_in(build.work_dir).map_err(io)?;
    if namespace == Namespace::Root {
        // Root here may be nobody on the way to the tree: apt's own user reads what is below.
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).map_err(io)?;
    }
    let tar = scratch.path().join("tree.tar");
    bootstrap(build, &recipe, arch, namespace, scratch.path(), &tar)?;
    build.at("making the filesystem", STEPS.len() as u64, STEPS.len() as u64 + 1);
    let size = Bytes(recipe.size_mib << 20);
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(out);
    file.and_then(|file| file.set_len(size.0)).map_err(|error| Error::io(OP, out, error))?;
    let printed = assemble(build, &recipe, namespace, &scratch.path().join("tree"), &tar, out)?;
    build.at("the image minimal is ready", STEPS.len() as u64 + 1, STEPS.len() as u64 + 1);
    Ok(MinimalImage {
        source: format!("debian {}, recipe {}", recipe.suite, minimal_recipe_id(arch).short()),
        size,
        // The last line: before it mke2fs may have said something.
        packages: String::from_utf8_lossy(&printed)
            .lines()
            .last()
            .and_then(|line| line.parse().ok())
            .unwrap_or(0),
    })
}

/// How files get their owners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Namespace {
    Root,
    User,
}

/// Everything is looked for before the first minute is spent.
fn check_host(namespace: Namespace) -> Result<()> {
    check_keyring(OP)?;
    let always =
        [("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs"), ("tar", "tar"), ("unshare", "util-linux")];
    let without_root = [("newuidmap", "uidmap")].into_iter().filter(|_| namespace == Namespace::User);
    match always.into_iter().chain(without_root).find(|(program, _)| find(program).is_none()) {
        Some((program, package)) => Err(Error::missing(OP, program, package)),
        None => Ok(()),
    }
}

/// mmdebstrap's stations, by how its messages begin, and what people are told.
const STEPS: [(&str, &str); 6] = [
    ("running apt-get update", "reading Debian's package lists"),
    ("downloading packages", "downloading packages"),
    ("extracting archives", "unpacking the essential packages"),
    ("installing essential", "installing the essential packages"),
    ("installing remaining", "installing the other packages"),
    ("cleaning package lists", "cleaning up"),
];

fn bootstrap(
    build: &Build<'_>,
    recipe: &Recipe,
    arch: Arch,
    namespace: Namespace,
    scratch: &Path,
    tar: &Path,
) -> Result<()> {
    let at = AtomicU64::new(0);
    let on_line = |line: &str| {
        let station = STEPS.iter().zip(0u64..).find(|((words, _), _)| line.contains(words));
        // apt speaks in between; steps never go back.
        if let Some(((_, step), done)) = station
            && done >= at.load(Ordering::Relaxed)
        {
            at.store(done, Ordering::Relaxed);
            build.at(*step, done, STEPS.len() as u64 + 1);
        }
    };
    let include = recipe.packages.join(",");
    let mut tool = match namespace {
        // mmdebstrap mounts in the tree. In namespaces of its own, ended with its first process, nothing of that can
        // outlive it, however it ends.
        Namespace::Root => Tool::new(OP, "unshare", "util-linux").args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--",
            "mmdebstrap",
            "--mode=root",
        ]),
        Namespace::User => Tool::new(OP, "mmdebstrap", "mmdebstrap").arg("--mode=unshare"),
    };
    tool = tool
        .args(["--variant=apt", "--format=tar"])
        .arg(format!("--architectures={arch}"))
        .arg(format!("--include={include}"))
        .args(["--aptopt=Acquire::Languages \"none\"", "--aptopt=APT::Install-Recommends \"false\""])
        // For the build only, and taken out again at its end: what is half done is thrown away whole.
        .arg("--dpkgopt=force-unsafe-io")
        .args(recipe.left_out.iter().map(|path| format!("--dpkgopt=path-exclude={path}")))
        .args(recipe.kept.iter().map(|path| format!("--dpkgopt=path-include={path}")))
        .arg(format!("--customize-hook={CUSTOMIZE}"))
        .arg(&recipe.suite)
        .arg(tar)
        .args(recipe.sources())
        .env("USER_NAME", &recipe.user)
        .env("SOURCES", recipe.guest_sources())
        .env("SOURCE_DATE_EPOCH", recipe.source_date_epoch.to_string())
        .env("DEBIAN_FRONTEND", "noninteractive")
        .cancel(build.cancel)
        .on_line(&on_line);
    if namespace == Namespace::Root {
        // A user namespace's root cannot enter the caller's private directories; it stays in /tmp.
        tool = tool.env("TMPDIR", scratch);
    }
    tool.run()
}

fn assemble(
    build: &Build<'_>,
    recipe: &Recipe,
    namespace: Namespace,
    tree: &Path,
    tar: &Path,
    out: &Path,
) -> Result<Vec<u8>> {
    let tool = match namespace {
        Namespace::Root => Tool::new(OP, "sh", "dash"),
        Namespace::User => {
            Tool::new(OP, "unshare", "util-linux").args(["--user", "--map-root-user", "--map-auto", "sh"])
        }
    };
    tool.args(["-c", ASSEMBLE, "sh"])
        .args([tar, tree, out])
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0", "-L", "root"])
        // Named one by one, because mke2fs' defaults differ between releases and a guest's kernel must know them all.
        .args(["-O", "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg"])
        .args(["-O", "sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"])
        .args(["-J", &format!("size={}", recipe.journal_mib), "-U", UUID])
        // Tables are zeroed now, as holes, so that no guest does it later and fills its overlay with them; metadata
        // lies together at the front, so that data is in few large extents.
        .args([
            "-E",
            &format!("lazy_itable_init=0,lazy_journal_init=0,packed_meta_blocks=1,hash_seed={UUID}"),
        ])
        .env("MKE2FS_CONFIG", "/dev/null")
        .env("SOURCE_DATE_EPOCH", recipe.source_date_epoch.to_string())
        .env("E2FSPROGS_FAKE_TIME", recipe.source_date_epoch.to_string())
        .cancel(build.cancel)
        .output()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipe_id_tells_architectures_apart_and_stays() {
        assert_eq!(minimal_recipe_id(Arch::Amd64), minimal_recipe_id(Arch::Amd64));
        assert_ne!(minimal_recipe_id(Arch::Amd64), minimal_recipe_id(Arch::Arm64));
    }
}
