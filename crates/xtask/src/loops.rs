//! Filesystems in sparse files, mounted below `target/fs/` for as long as a test run needs them.
//!
//! The loop device is the kernel's to free: `mount -o loop` marks it so, and unmounting is all there is to undo.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::step::output;

/// Logical size of each file; what tests write is what it takes.
const SIZE: u64 = 16 << 30;

/// One filesystem of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// No reflinks, no compression: the least that every host has.
    Ext4,
    /// Reflinks and transparent compression.
    Btrfs,
    /// Reflinks.
    Xfs,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ext4, Self::Btrfs, Self::Xfs];

    /// Its name to mount(8).
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Btrfs => "btrfs",
            Self::Xfs => "xfs",
        }
    }

    const fn make(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Ext4 => ("mkfs.ext4", &["-q", "-F"]),
            Self::Btrfs => ("mkfs.btrfs", &["-q", "-f"]),
            Self::Xfs => ("mkfs.xfs", &["-q", "-f", "-m", "reflink=1"]),
        }
    }

    const fn options(self) -> &'static str {
        match self {
            Self::Btrfs => "loop,noatime,compress=zstd:1",
            Self::Ext4 | Self::Xfs => "loop,noatime",
        }
    }
}

/// A mounted filesystem; dropped, it is gone.
pub struct Mounted {
    dir: PathBuf,
    file: PathBuf,
    gone: bool,
}

impl Mounted {
    /// Makes it and mounts it at `below/<name>`.
    pub fn new(below: &Path, kind: Kind) -> Result<Self> {
        let (dir, file) = (below.join(kind.name()), below.join(format!("{}.img", kind.name())));
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let made = fs::File::create(&file).and_then(|made| made.set_len(SIZE));
        made.with_context(|| format!("make {}", file.display()))?;
        let mounted = Self { dir, file, gone: false };
        let (program, args) = kind.make();
        let file = mounted.file.display().to_string();
        output(below, program, &[args, &[file.as_str()]].concat())?;
        let dir = mounted.dir.display().to_string();
        output(below, "mount", &["-t", kind.name(), "-o", kind.options(), &file, &dir])?;
        Ok(mounted)
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Unmounts and deletes it. An error tells which processes were left on it; they are ended first.
    pub fn remove(mut self) -> Result<String> {
        self.gone = true;
        remove(&self.dir, &self.file)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.gone
            && let Err(error) = remove(&self.dir, &self.file)
        {
            eprintln!("xtask: {error:#}");
        }
    }
}

fn remove(dir: &Path, file: &Path) -> Result<String> {
    let left = end_users_of(dir)?;
    for at in mounts_below(dir)? {
        output(Path::new("/"), "umount", &[&at.display().to_string()])?;
    }
    for (path, result) in [(file, fs::remove_file(file)), (dir, fs::remove_dir(dir))] {
        match result {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", path.display()));
            }
            _ => {}
        }
    }
    if !left.is_empty() {
        bail!("the tests left processes behind, ended now:\n  {}", left.join("\n  "));
    }
    Ok(String::new())
}

/// Removes what a run that was killed has left below `target/fs`; says what that was.
pub fn sweep(below: &Path) -> Result<String> {
    let mut swept = Vec::new();
    for kind in Kind::ALL {
        let (dir, file) = (below.join(kind.name()), below.join(format!("{}.img", kind.name())));
        if dir.exists() || file.exists() {
            // Processes that are left on it are the earlier run's failure, not this one's.
            let left = remove(&dir, &file).err();
            if left.is_some() {
                remove(&dir, &file)?;
            }
            swept.push(kind.name());
        }
    }
    Ok(if swept.is_empty() {
        String::new()
    } else {
        format!("removed {} of an earlier run", swept.join(", "))
    })
}

/// Mount points at and below `dir`, the innermost first.
fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let info = fs::read_to_string("/proc/self/mountinfo").context("read mountinfo")?;
    let mut found = mount_points(&info);
    found.retain(|at| at.starts_with(dir));
    found.reverse();
    Ok(found)
}

/// The fifth field, with its octal escapes undone: proc_pid_mountinfo(5).
fn mount_points(info: &str) -> Vec<PathBuf> {
    let unescape = |field: &str| {
        [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
            .iter()
            .fold(field.to_owned(), |text, (code, plain)| text.replace(code, plain))
    };
    info.lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
        .collect()
}

/// Kills the processes that have files or their working directory below a mount made for tests: nothing else can
/// have. Says which.
fn end_users_of(dir: &Path) -> Result<Vec<String>> {
    let mut left = Vec::new();
    if mounts_below(dir)?.is_empty() {
        return Ok(left);
    }
    for attempt in 0..2 {
        let users = users_of(dir)?;
        // What is about to end by itself gets a moment.
        if attempt == 0 {
            if users.is_empty() {
                return Ok(left);
            }
            sleep(Duration::from_secs(1));
            continue;
        }
        for (pid, command) in users {
            left.push(format!("{} {command}", pid.as_raw_nonzero()));
            let _ = kill_process(pid, Signal::KILL);
        }
        if !left.is_empty() {
            sleep(Duration::from_millis(300));
        }
    }
    Ok(left)
}

fn users_of(dir: &Path) -> Result<Vec<(Pid, String)>> {
    let mut users = Vec::new();
    for entry in fs::read_dir("/proc").context("read /proc")?.filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
        else {
            continue;
        };
        let process = entry.path();
        let mut links = vec![process.join("cwd"), process.join("exe")];
        links.extend(
            fs::read_dir(process.join("fd"))
                .into_iter()
                .flatten()
                .filter_map(|fd| fd.ok().map(|fd| fd.path())),
        );
        if links.iter().any(|link| fs::read_link(link).is_ok_and(|target| target.starts_with(dir))) {
            let command = fs::read(process.join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            users.push((pid, command.chars().take(120).collect()));
        }
    }
    Ok(users)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_spaces_are_read() {
        let info = "25 1 8:1 / / rw - ext4 /dev/sda rw\n30 25 7:0 / /a\\040b/fs rw - xfs /dev/loop0 rw\n";
        assert_eq!(mount_points(info), [PathBuf::from("/"), PathBuf::from("/a b/fs")]);
    }
}
