//! Where volumes may be mounted in a guest, and how large they may be.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::spec::{InvalidSpec, check_guest_path};
use crate::{Mebibytes, VolumeName};

/// How many volumes a sandbox may have: one for each port that its machine was built with.
pub const MAX_VOLUMES: usize = 4;

/// The least size of a volume in MiB: an ext4 with a journal and some room.
pub const MIN_VOLUME: Mebibytes = Mebibytes(8);

/// Neither these nor anything below them may be covered: the guest would not boot, run commands, or answer.
const SYSTEM: [&str; 12] = [
    "/proc", "/sys", "/dev", "/run", "/boot", "/etc", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32",
];

/// These may not be covered themselves; what is below them may.
const NOT_THEMSELVES: [&str; 4] = ["/", "/var", "/tmp", "/usr/local"];

/// A place in a guest where a volume may be mounted: absolute, without `.`, `..` and doubled slashes, and not over what
/// the system needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MountPath(String);

impl MountPath {
    /// The path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether one of the two is the other, or lies in it.
    #[must_use]
    pub fn collides(&self, other: &Self) -> bool {
        is_at_or_below(&self.0, &other.0) || is_at_or_below(&other.0, &self.0)
    }
}

fn is_at_or_below(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl FromStr for MountPath {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        let path = format!("/{}", parts.join("/"));
        let shown: String = path.chars().take(120).collect();
        let refuse = || {
            InvalidSpec::new(
                format!("no volume can be mounted on {shown}: the system is there"),
                "use a directory of its own such as /data",
            )
        };
        if text.starts_with('/') && NOT_THEMSELVES.contains(&path.as_str()) {
            return Err(refuse());
        }
        check_guest_path(if text.starts_with('/') { &path } else { text })?;
        if text.contains(|letter: char| letter.is_control()) {
            return Err(InvalidSpec::new(
                "a mount path has a control character in it",
                "use a directory such as /data",
            ));
        }
        let system = SYSTEM.iter().any(|top| is_at_or_below(&path, top));
        let programs = is_at_or_below(&path, "/usr") && !is_at_or_below(&path, "/usr/local");
        if system || programs {
            return Err(refuse());
        }
        Ok(Self(path))
    }
}

impl TryFrom<String> for MountPath {
    type Error = InvalidSpec;
    fn try_from(text: String) -> Result<Self, InvalidSpec> {
        text.parse()
    }
}

impl From<MountPath> for String {
    fn from(path: MountPath) -> Self {
        path.0
    }
}

impl fmt::Display for MountPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A volume as it is wanted in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeMount {
    /// Which one, of the sandbox's owner.
    pub name: VolumeName,
    /// Where.
    pub mount: MountPath,
    /// Whether the guest may only read it.
    pub read_only: bool,
}

/// Checks that volumes can be mounted side by side.
///
/// # Errors
/// Too many, one of them twice, or two on one path or one in the other.
pub fn check_mounts<'a>(
    volumes: impl IntoIterator<Item = (&'a VolumeName, &'a MountPath)>,
) -> Result<(), InvalidSpec> {
    let volumes: Vec<_> = volumes.into_iter().collect();
    if volumes.len() > MAX_VOLUMES {
        return Err(InvalidSpec::new(
            format!("{} volumes are more than a sandbox can have", volumes.len()),
            format!("use at most {MAX_VOLUMES}"),
        ));
    }
    for (at, (name, mount)) in volumes.iter().enumerate() {
        for (other, beside) in &volumes[..at] {
            if name == other {
                return Err(InvalidSpec::new(
                    format!("volume {name} is there twice"),
                    "mount it once; links in the guest can show it elsewhere",
                ));
            }
            if mount.collides(beside) {
                return Err(InvalidSpec::new(
                    format!("volume {name} on {mount} and volume {other} on {beside} would cover each other"),
                    "use directories that do not lie in each other",
                ));
            }
        }
    }
    Ok(())
}

/// Checks the size of a volume, as far as that is possible without looking at the host.
///
/// # Errors
/// Less than [`MIN_VOLUME`], or more than 16 TiB.
pub fn check_volume_size(size: Mebibytes) -> Result<(), InvalidSpec> {
    if (MIN_VOLUME.0..=16 * 1024 * 1024).contains(&size.0) {
        return Ok(());
    }
    Err(InvalidSpec::new(
        format!("a volume of {size} is not possible"),
        format!("use {} to 16777216 (MiB)", MIN_VOLUME.0),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_paths_are_absolute_and_not_over_the_system() {
        for (given, path) in [
            ("/data", "/data"),
            ("/data/", "/data"),
            ("//srv/./www//x", "/srv/www/x"),
            ("/home/user", "/home/user"),
            ("/var/lib/x", "/var/lib/x"),
            ("/tmp/x", "/tmp/x"),
            ("/usr/local/share", "/usr/local/share"),
            ("/libs", "/libs"),
            ("/root", "/root"),
        ] {
            assert_eq!(given.parse::<MountPath>().unwrap().as_str(), path);
        }
        for bad in [
            "",
            "data",
            "./data",
            "/",
            "//",
            "/.",
            "/data/..",
            "/../data",
            "/data/../etc",
            "/proc",
            "/proc/x",
            "/sys/fs",
            "/dev/shm",
            "/etc",
            "/etc/x",
            "/usr",
            "/usr/bin",
            "/usr/local",
            "/bin",
            "/lib64/x",
            "/sbin",
            "/boot",
            "/run/lock",
            "/var",
            "/tmp",
            "/var/",
            "/a\0b",
            "/a\nb",
            "/etc/.",
        ] {
            assert!(bad.parse::<MountPath>().is_err(), "{bad:?}");
        }
        assert!(format!("/{}", "x".repeat(5000)).parse::<MountPath>().is_err());
    }

    #[test]
    fn volumes_that_would_cover_each_other_are_refused() {
        let check = |list: &[(&str, &str)]| {
            let parsed: Vec<(VolumeName, MountPath)> =
                list.iter().map(|(name, path)| (name.parse().unwrap(), path.parse().unwrap())).collect();
            check_mounts(parsed.iter().map(|(name, path)| (name, path))).map_err(|error| error.message)
        };
        assert_eq!(check(&[("a", "/a"), ("b", "/b"), ("c", "/ab"), ("d", "/d/x")]), Ok(()));
        for (list, word) in [
            (&[("a", "/a"), ("a", "/b")][..], "twice"),
            (&[("a", "/a"), ("b", "/a")], "cover"),
            (&[("a", "/a/b"), ("b", "/a")], "cover"),
            (&[("a", "/a"), ("b", "/a/b/c")], "cover"),
            (&[("a", "/1"), ("b", "/2"), ("c", "/3"), ("d", "/4"), ("e", "/5")], "more than"),
        ] {
            assert!(check(list).unwrap_err().contains(word), "{list:?}");
        }
    }

    #[test]
    fn sizes_that_no_filesystem_fits_are_refused() {
        for bad in [0, 7, 16 * 1024 * 1024 + 1, u64::MAX] {
            assert!(check_volume_size(Mebibytes(bad)).is_err(), "{bad}");
        }
        assert!(check_volume_size(Mebibytes(8)).is_ok() && check_volume_size(Mebibytes(1024)).is_ok());
    }
}
