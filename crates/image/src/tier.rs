//! The image tiers: Debian images, each declared by a file in `images/`.
//!
//! mmdebstrap makes a tar archive of the tree, in a user namespace where the caller is not root. The archive is
//! unpacked and turned into a filesystem by `mke2fs -d` inside the same kind of namespace, so that owners are right
//! either way and nothing is mounted.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use types::{Arch, Bytes, ContentId};

use crate::apt::check_keyring;
use crate::kernel::{KernelTree, fetch_kernel};
use crate::programs::find;
use crate::recipe::{GuestText, Recipe, TIERS, Tier};
use crate::run::Tool;
use crate::{Build, Error, Result};

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

/// Run after [`CUSTOMIZE`] where the image has the kernel's modules, whose tree was copied in before.
const MODULES: &str = r#"set -eu
chroot "$1" depmod "$KERNEL"
"#;
/// Ends a file's text in the script that writes it.
const END_OF_TEXT: &str = "END_OF_BHATTI_TEXT";

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
pub struct TierImage {
    /// Where it came from, for the record: `debian trixie, recipe 0123456789ab`.
    pub source: String,
    /// Logical size of the file.
    pub size: Bytes,
    /// Installed packages.
    pub packages: usize,
    /// What the guest is to run when nobody says otherwise; empty for most.
    pub init: Vec<String>,
}

/// One tier, told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierInfo {
    /// Its name, which is the image's too.
    pub name: &'static str,
    /// One sentence for people.
    pub about: String,
    /// Logical size of its images.
    pub size: Bytes,
}

/// All tiers, the smallest first.
#[must_use]
pub fn tiers() -> Vec<TierInfo> {
    let info = |tier: &Tier| {
        let recipe = tier.recipe();
        TierInfo { name: tier.name, about: recipe.about, size: Bytes(recipe.size_mib << 20) }
    };
    TIERS.iter().map(info).collect()
}

/// A hash over everything that decides what [`build_tier`] makes, save the archive's state: when it has not changed,
/// an image that is there need not be built again. `None` when there is no such tier.
#[must_use]
pub fn tier_recipe_id(tier: &str, arch: Arch) -> Option<ContentId> {
    Tier::named(tier).map(|tier| recipe_id(tier, arch))
}

/// [`tier_recipe_id`] of `minimal`, which is always there.
#[must_use]
pub fn minimal_recipe_id(arch: Arch) -> ContentId {
    recipe_id(&TIERS[0], arch)
}

fn recipe_id(tier: &Tier, arch: Arch) -> ContentId {
    let mut hash = blake3::Hasher::new();
    let builder = BUILDER.to_string();
    let modules = if tier.recipe().modules { MODULES } else { "" };
    let parts = [builder.as_str(), arch.as_str(), tier.text, CUSTOMIZE, ASSEMBLE, modules];
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        hash.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    ContentId::from_hash(hash.finalize().as_bytes())
}

/// [`build_tier`] of `minimal`.
///
/// # Errors
/// As [`build_tier`].
pub fn build_minimal(build: &Build<'_>, arch: Arch, out: &Path) -> Result<TierImage> {
    build_tier(build, TIERS[0].name, arch, out)
}

/// Builds the image of a tier into the file `out`, which may exist; what is in it is lost. Not synced.
///
/// # Errors
/// [`ErrorKind::Input`](crate::ErrorKind::Input) names the tiers when there is none of that name;
/// [`ErrorKind::Missing`](crate::ErrorKind::Missing) names the package to install; otherwise mostly
/// [`ErrorKind::Tool`](crate::ErrorKind::Tool) with mmdebstrap's last words.
pub fn build_tier(build: &Build<'_>, tier: &str, arch: Arch, out: &Path) -> Result<TierImage> {
    let Some(tier) = Tier::named(tier) else {
        let names = TIERS.each_ref().map(|tier| tier.name).join(", ");
        return Err(Error::input("build the image", Path::new(tier), format!("the tiers are {names}")));
    };
    let recipe = tier.recipe();
    let namespace = if rustix::process::geteuid().is_root() { Namespace::Root } else { Namespace::User };
    check_host(tier.op, namespace)?;
    let io = |error| Error::io(tier.op, build.work_dir, error);
    fs::create_dir_all(build.work_dir).map_err(io)?;
    let scratch =
        tempfile::Builder::new().prefix(&format!("{}-", tier.name)).tempdir_in(build.work_dir).map_err(io)?;
    if namespace == Namespace::Root {
        // Root here may be nobody on the way to the tree: apt's own user reads what is below.
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).map_err(io)?;
    }
    let kernel = if recipe.modules {
        let inner = Build { work_dir: scratch.path(), ..*build };
        Some(fetch_kernel(&inner, arch)?)
    } else {
        None
    };
    let work = Work { build, op: tier.op, recipe: &recipe, namespace, scratch: scratch.path() };
    let tar = scratch.path().join("tree.tar");
    bootstrap(&work, arch, kernel.as_ref(), &tar)?;
    build.at("making the filesystem", STEPS.len() as u64, STEPS.len() as u64 + 1);
    let size = Bytes(recipe.size_mib << 20);
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(out);
    file.and_then(|file| file.set_len(size.0)).map_err(|error| Error::io(tier.op, out, error))?;
    let printed = assemble(&work, &scratch.path().join("tree"), &tar, out)?;
    let ready = format!("the image {} is ready", tier.name);
    build.at(ready, STEPS.len() as u64 + 1, STEPS.len() as u64 + 1);
    Ok(TierImage {
        source: format!("debian {}, recipe {}", recipe.suite, recipe_id(tier, arch).short()),
        size,
        // The last line: before it mke2fs may have said something.
        packages: String::from_utf8_lossy(&printed)
            .lines()
            .last()
            .and_then(|line| line.parse().ok())
            .unwrap_or(0),
        init: recipe.init.clone(),
    })
}

/// One build under way.
struct Work<'a> {
    build: &'a Build<'a>,
    op: &'static str,
    recipe: &'a Recipe,
    namespace: Namespace,
    scratch: &'a Path,
}

/// How files get their owners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Namespace {
    Root,
    User,
}

/// Everything is looked for before the first minute is spent.
fn check_host(op: &'static str, namespace: Namespace) -> Result<()> {
    check_keyring(op)?;
    let always =
        [("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs"), ("tar", "tar"), ("unshare", "util-linux")];
    let without_root = [("newuidmap", "uidmap")].into_iter().filter(|_| namespace == Namespace::User);
    match always.into_iter().chain(without_root).find(|(program, _)| find(program).is_none()) {
        Some((program, package)) => Err(Error::missing(op, program, package)),
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

fn bootstrap(work: &Work<'_>, arch: Arch, kernel: Option<&KernelTree>, tar: &Path) -> Result<()> {
    let Work { build, op, recipe, namespace, scratch } = *work;
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
        Namespace::Root => Tool::new(op, "unshare", "util-linux").args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--",
            "mmdebstrap",
            "--mode=root",
        ]),
        Namespace::User => Tool::new(op, "mmdebstrap", "mmdebstrap").arg("--mode=unshare"),
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
        .args(recipe.groups.iter().map(|group| {
            format!("--customize-hook=chroot \"$1\" usermod --append --groups {group} \"$USER_NAME\"")
        }))
        .args(recipe.files.iter().map(|file| format!("--customize-hook={}", writing(file))));
    if let Some(kernel) = kernel {
        // Two hooks: copy-in is mmdebstrap's own, with the path outside first.
        let copy = format!("--customize-hook=copy-in {} /usr/lib/modules", kernel.modules.display());
        tool = tool
            .arg("--customize-hook=mkdir -p \"$1/usr/lib/modules\"")
            .arg(copy)
            .arg(format!("--customize-hook={MODULES}"))
            .env("KERNEL", &kernel.version);
    }
    tool = tool
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

/// A script that writes a file of the recipe into the tree, as root of it.
fn writing(file: &GuestText) -> String {
    let mut script = format!(
        "set -eu\nmkdir -p \"$(dirname \"$1{path}\")\"\ncat > \"$1{path}\" <<'{END_OF_TEXT}'\n",
        path = file.path
    );
    for line in &file.lines {
        let _ = writeln!(script, "{line}");
    }
    let _ = write!(script, "{END_OF_TEXT}\nchmod {} \"$1{}\"\n", file.mode, file.path);
    script
}

fn assemble(work: &Work<'_>, tree: &Path, tar: &Path, out: &Path) -> Result<Vec<u8>> {
    let Work { build, op, recipe, namespace, .. } = *work;
    let tool = match namespace {
        Namespace::Root => Tool::new(op, "sh", "dash"),
        Namespace::User => {
            Tool::new(op, "unshare", "util-linux").args(["--user", "--map-root-user", "--map-auto", "sh"])
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
    fn the_recipe_id_tells_tiers_and_architectures_apart_and_stays() {
        let mut ids: Vec<_> = [Arch::Amd64, Arch::Arm64]
            .into_iter()
            .flat_map(|arch| TIERS.iter().map(move |tier| tier_recipe_id(tier.name, arch).unwrap()))
            .collect();
        assert_eq!(ids[0], minimal_recipe_id(Arch::Amd64));
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 2 * TIERS.len());
        assert_eq!(tier_recipe_id("none", Arch::Amd64), None);
    }

    #[test]
    fn a_tier_that_is_not_there_is_refused_with_those_that_are() {
        let dir = tempfile::tempdir().unwrap();
        let build = Build { work_dir: dir.path(), progress: &|_| {}, cancel: &crate::Cancel::new() };
        let error = build_tier(&build, "huge", Arch::host(), &dir.path().join("out")).unwrap_err();
        assert!(error.to_string().contains("minimal, dev, browser, docker, computer"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_of_a_recipe_is_written_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let text = "a 'quoted' $word \\ \"`and`\" more";
        let file = GuestText {
            path: "/etc/deep/down".to_owned(),
            mode: "0750".to_owned(),
            lines: vec![text.to_owned(), String::new(), "end".to_owned()],
        };
        let script = writing(&file);
        let done = std::process::Command::new("sh").args(["-c", &script, "sh"]).arg(dir.path()).status();
        assert!(done.unwrap().success());
        let made = dir.path().join("etc/deep/down");
        assert_eq!(fs::read_to_string(&made).unwrap(), format!("{text}\n\nend\n"));
        assert_eq!(fs::metadata(made).unwrap().permissions().mode() & 0o777, 0o750);
    }
}
