//! Filesystems in sparse files, made for one run.
//!
//! The file loses its name as soon as it is mounted, and the mount is seen by the bench and its children alone: however
//! the bench ends, the kernel gives everything back when the last of them has ended.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::error::{During as _, Error, Result};

/// Logical size of the file; what is written is what it takes.
const SIZE: u64 = 32 << 30;

/// Where to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filesystem {
    /// The one that the data directory is on.
    Here,
    /// No reflinks, no compression.
    Ext4,
    /// Reflinks and transparent compression.
    Btrfs,
    /// Reflinks.
    Xfs,
}

impl Filesystem {
    /// Its name, as mount(8) knows it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Here => "here",
            Self::Ext4 => "ext4",
            Self::Btrfs => "btrfs",
            Self::Xfs => "xfs",
        }
    }

    const fn make(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Here => ("true", &[]),
            Self::Ext4 => ("mkfs.ext4", &["-q", "-F"]),
            Self::Btrfs => ("mkfs.btrfs", &["-q", "-f"]),
            Self::Xfs => ("mkfs.xfs", &["-q", "-f", "-m", "reflink=1"]),
        }
    }

    const fn options(self) -> &'static str {
        match self {
            Self::Btrfs => image::LOOP_MOUNT_OPTIONS,
            Self::Here | Self::Ext4 | Self::Xfs => "loop,noatime",
        }
    }
}

/// A mounted filesystem; dropped, it is gone.
pub(crate) struct Mounted {
    at: PathBuf,
    device: PathBuf,
    _dir: TempDir,
}

impl Mounted {
    /// Makes it in a file below `scratch` and mounts it beside that; the calling thread must have mounts of its own.
    pub(crate) fn new(scratch: &Path, kind: Filesystem) -> Result<Self> {
        fs::create_dir_all(scratch).during("making a directory for filesystems")?;
        let mut builder = tempfile::Builder::new();
        let dir =
            builder.prefix(".bench-fs-").tempdir_in(scratch).during("making a directory for filesystems")?;
        let root = dir.path().canonicalize().during("making a directory for filesystems")?;
        let (file, at) = (root.join("file"), root.join(kind.name()));
        fs::create_dir(&at).during("making a mount point")?;
        fs::File::create_new(&file)
            .and_then(|made| made.set_len(SIZE))
            .during("making a file for a filesystem")?;
        let (program, args) = kind.make();
        run(Command::new(program).args(args).arg(&file))?;
        run(Command::new("mount").args(["-t", kind.name(), "-o", kind.options()]).arg(&file).arg(&at))?;
        let mut mounted = Self { at, device: PathBuf::new(), _dir: dir };
        fs::remove_file(&file).during("taking away the name of a mounted file")?;
        mounted.device = device_of(&mounted.at)?;
        Ok(mounted)
    }

    pub(crate) fn at(&self) -> &Path {
        &self.at
    }

    /// The loop device.
    pub(crate) fn device(&self) -> &Path {
        &self.device
    }
}

/// The device of the filesystem that `path` is on.
pub(crate) fn device_of(path: &Path) -> Result<PathBuf> {
    let path = path.canonicalize().during("looking for a mount")?;
    let mounts = image::mount_points().during("looking for a mount")?;
    // Of two mounts at one place the later one is seen.
    let mount = mounts
        .into_iter()
        .filter(|mount| path.starts_with(&mount.at))
        .max_by_key(|mount| mount.at.as_os_str().len());
    mount.map(|mount| mount.source).ok_or_else(|| Error::new("looking for a mount", path.display()))
}

/// Runs a program to its end; what it says is told when it fails.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().during(&name)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::new(name, format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())))
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Only what the bench started can be here, and it was ended; what was not is ended now.
        for user in image::users_of_dir(&self.at).unwrap_or_default() {
            if let Some(pid) = i32::try_from(user.pid).ok().and_then(Pid::from_raw) {
                let _gone = kill_process(pid, Signal::KILL);
            }
        }
        if run(Command::new("umount").arg(&self.at)).is_err() {
            // Nobody else sees it: the kernel ends it with its last user.
            let _gone = run(Command::new("umount").arg("--lazy").arg(&self.at));
        }
    }
}
