//! Volumes: disks that come and go, found by their serial number, mounted where the host says.
//!
//! Everything here may wait for a disk, so it is done by workers; only what an attach brings is mounted in the loop,
//! before any command of the sandbox runs.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount as mount_at, unmount as unmount_at};
use wire::{ErrorCode, Failure, VolumeGrowth, VolumeMount};

use crate::boot::wait_for;
use crate::failure::{failure, failure_io};
use crate::identity;

/// How long a disk that was plugged in may take to be known to the kernel.
const DISK_WITHIN: Duration = Duration::from_secs(20);

/// Where clones are mounted for a moment; only root looks in there.
const OUT_OF_SIGHT: &str = "/run/bhatti/settle";

/// How many processes a refusal names.
const NAMED: usize = 3;

/// Mounts a volume; one that is mounted there already is as good.
pub fn mount(volume: &VolumeMount) -> Result<(), Failure> {
    let path = checked(volume)?;
    let Some(disk) = wait_for(DISK_WITHIN, || living_disk_of(&volume.serial)) else {
        return Err(told(volume, ErrorCode::NotFound, "its disk does not appear"));
    };
    match mounted_at(path) {
        Some(device) if Some(device) == number_of(&disk) => return Ok(()),
        Some(_) => return Err(told(volume, ErrorCode::Busy, "something else is mounted there")),
        None => {}
    }
    let io_failure =
        |error: io::Error| failure_io(format_args!("{} for volume {}", volume.path, volume.name), &error);
    fs::create_dir_all(path).map_err(io_failure)?;
    let real = fs::canonicalize(path).map_err(io_failure)?;
    if real != path {
        let why = format!("a link leads from there to {}", real.display());
        return Err(told(volume, ErrorCode::BadRequest, &why));
    }
    if !path.is_dir() {
        return Err(told(volume, ErrorCode::NotDirectory, "a file is there"));
    }
    let (flags, data) = match volume.read_only {
        true => (MountFlags::NOATIME | MountFlags::RDONLY, c""),
        // As the root disk's: what is deleted goes back to the host.
        false => (MountFlags::NOATIME, c"discard"),
    };
    mount_at(&disk, path, "ext4", flags, data).map_err(|error| match error {
        Errno::ROFS | Errno::ACCESS if volume.read_only => {
            let why = "it was not unmounted cleanly and has to be attached once without `:ro`";
            told(volume, ErrorCode::Unclean, why)
        }
        Errno::INVAL | Errno::UCLEAN | Errno::NODATA => {
            told(volume, ErrorCode::Io, &format!("it holds no whole ext4 file system ({error})"))
        }
        error => told(volume, ErrorCode::Io, &format!("it cannot be mounted: {error}")),
    })?;
    if volume.read_only {
        return Ok(());
    }
    // It may have been made larger while nobody had it mounted.
    identity::grow(&disk.to_string_lossy(), path, 0)
        .map_err(|error| told(volume, ErrorCode::Io, &format!("its file system cannot grow: {error}")))
}

/// Writes a volume out and unmounts it; one that is not mounted is as good.
pub fn unmount(volume: &VolumeMount) -> Result<(), Failure> {
    let path = checked(volume)?;
    let Some(disk) = disk_of(&volume.serial) else { return Ok(()) };
    if mounted_at(path).is_none_or(|device| Some(device) != number_of(&disk)) {
        return Ok(());
    }
    let io_failure =
        |error: io::Error| told(volume, ErrorCode::Io, &format!("it cannot be written out: {error}"));
    let root = File::open(path).map_err(io_failure)?;
    rustix::fs::syncfs(&root).map_err(|error| io_failure(error.into()))?;
    drop(root);
    match unmount_at(path, UnmountFlags::empty()) {
        Ok(()) => {}
        Err(Errno::BUSY) => return Err(told(volume, ErrorCode::Busy, &users_of(path))),
        Err(error) => return Err(told(volume, ErrorCode::Io, &format!("it cannot be unmounted: {error}"))),
    }
    // A container of the guest's own may have it mounted still: the kernel opens a mounted disk for nobody else.
    let exclusive = OFlags::EXCL.bits().cast_signed();
    match OpenOptions::new().read(true).custom_flags(exclusive).open(&disk) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::BUSY) => {
            mount(volume)?;
            Err(told(volume, ErrorCode::Busy, "a container in the guest has it mounted"))
        }
        _ => Ok(()),
    }
}

/// Lets a volume's file system grow to its disk.
pub fn grow(growth: &VolumeGrowth) -> Result<(), Failure> {
    let volume = &growth.volume;
    let (path, disk) = mounted(volume)?;
    identity::grow(&disk.to_string_lossy(), path, growth.bytes)
        .map_err(|error| told(volume, ErrorCode::Io, &format!("its file system cannot grow: {error}")))
}

/// Plays back the journal of a clone that was plugged in: mounted out of sight for a moment, so that its next user finds
/// it as if it had been unmounted.
pub fn settle(volume: &VolumeMount) -> Result<(), Failure> {
    let Some(disk) = wait_for(DISK_WITHIN, || living_disk_of(&volume.serial)) else {
        return Err(told(volume, ErrorCode::NotFound, "its disk does not appear"));
    };
    let place = Path::new(OUT_OF_SIGHT).join(&volume.serial);
    let io_failure = |error: io::Error| failure_io(place.display(), &error);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&place).map_err(io_failure)?;
    let flags = MountFlags::NOATIME | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let settled = mount_at(&disk, &place, "ext4", flags, c"")
        .and_then(|()| unmount_at(&place, UnmountFlags::empty()))
        .map_err(|error| told(volume, ErrorCode::Io, &format!("its journal cannot be played back: {error}")));
    let _ = fs::remove_dir(&place);
    settled
}

fn told(volume: &VolumeMount, code: ErrorCode, why: &str) -> Failure {
    failure(code, format_args!("volume {} on {}", volume.name, volume.path), why)
}

/// The path, if it is one that this agent would touch.
fn checked(volume: &VolumeMount) -> Result<&Path, Failure> {
    let path = Path::new(&volume.path);
    let plain = path.is_absolute() && volume.path != "/" && !volume.path.split('/').any(|part| part == "..");
    if plain { Ok(path) } else { Err(told(volume, ErrorCode::BadRequest, "that is no place for it")) }
}

/// Path and disk of a volume that is mounted.
fn mounted(volume: &VolumeMount) -> Result<(&Path, PathBuf), Failure> {
    let path = checked(volume)?;
    disk_of(&volume.serial)
        .filter(|disk| mounted_at(path).is_some_and(|device| Some(device) == number_of(disk)))
        .map(|disk| (path, disk))
        .ok_or_else(|| told(volume, ErrorCode::NotFound, "it is not mounted there"))
}

/// The disk of that serial number.
fn disk_of(serial: &str) -> Option<PathBuf> {
    let disks = fs::read_dir("/sys/block").ok()?;
    disks.filter_map(Result::ok).find_map(|disk| {
        let known = fs::read_to_string(disk.path().join("serial")).ok()?;
        let node = Path::new("/dev").join(disk.file_name());
        (known.trim() == serial && node.exists()).then_some(node)
    })
}

/// The same, once it can be used: a disk has its name some time before it lives, and for some time after it is gone.
fn living_disk_of(serial: &str) -> Option<PathBuf> {
    disk_of(serial).filter(|disk| match File::open(disk) {
        Ok(_) => true,
        Err(error) => Errno::from_io_error(&error) != Some(Errno::NXIO),
    })
}

/// The number of a disk's device, as `major:minor`.
fn number_of(disk: &Path) -> Option<(u32, u32)> {
    let number = fs::metadata(disk).ok()?.rdev();
    Some((rustix::fs::major(number), rustix::fs::minor(number)))
}

/// The number of the device that is mounted on a path.
fn mounted_at(path: &Path) -> Option<(u32, u32)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    last_mounted_at(&mounts, path)
}

fn last_mounted_at(mounts: &str, path: &Path) -> Option<(u32, u32)> {
    // Id, parent, device, root, mount point (proc(5)); the last line is the topmost mount.
    mounts.lines().rev().find_map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let [_, _, device, _, point, ..] = words[..] else { return None };
        if Path::new(&unescaped(point)) != path {
            return None;
        }
        let (major, minor) = device.split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    })
}

/// A path as /proc writes it: blanks, tabs, line ends and backslashes in octal.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_string(), |text, (from, to)| text.replace(from, to))
}

/// Who uses the file system mounted on a path, in words.
fn users_of(path: &Path) -> String {
    let Ok(device) = fs::metadata(path).map(|metadata| metadata.dev()) else {
        return "it is in use".to_string();
    };
    let mut users: Vec<(u32, String)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|process| {
            let pid = process.file_name().to_str()?.parse().ok()?;
            uses(&process.path(), device).then(|| {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                (pid, name.trim_end().to_string())
            })
        })
        .collect();
    users.sort();
    in_words(&users)
}

fn in_words(users: &[(u32, String)]) -> String {
    let named: Vec<String> =
        users.iter().take(NAMED).map(|(pid, name)| format!("{name} (pid {pid})")).collect();
    match users.len() {
        0 => "it is in use".to_string(),
        count if count > NAMED => format!("it is in use by {} and {} more", named.join(", "), count - NAMED),
        _ => format!("it is in use by {}", named.join(", ")),
    }
}

/// Whether a process has a file, a directory or a mapping there.
fn uses(process: &Path, device: u64) -> bool {
    let there = |path: PathBuf| fs::metadata(path).is_ok_and(|metadata| metadata.dev() == device);
    if ["cwd", "root", "exe"].iter().any(|link| there(process.join(link))) {
        return true;
    }
    let open = fs::read_dir(process.join("fd")).into_iter().flatten().filter_map(Result::ok);
    if open.map(|entry| entry.path()).any(there) {
        return true;
    }
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let wanted = format!("{major:02x}:{minor:02x}");
    let maps = fs::read_to_string(process.join("maps")).unwrap_or_default();
    maps.lines().any(|line| line.split_ascii_whitespace().nth(3) == Some(wanted.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_on_exactly_that_path_counts() {
        let mounts = "22 1 254:0 / / rw - ext4 /dev/vda rw\n\
                      30 22 254:32 / /my\\040data rw - ext4 /dev/vdc rw\n\
                      31 30 0:40 / /my\\040data/x rw - tmpfs tmpfs rw\n\
                      32 22 254:48 / /my\\040data rw - ext4 /dev/vdd rw\n";
        assert_eq!(last_mounted_at(mounts, Path::new("/my data")), Some((254, 48)));
        assert_eq!(last_mounted_at(mounts, Path::new("/my data/x")), Some((0, 40)));
        assert_eq!(last_mounted_at(mounts, Path::new("/my")), None);
    }

    #[test]
    fn a_process_that_has_a_file_open_is_named() {
        let users = users_of(Path::new("/proc"));
        assert!(users.starts_with("it is in use"), "{users}");
        let directory = tempfile::tempdir().expect("a directory");
        let _open = File::open(directory.path()).expect("opens");
        let device = fs::metadata(directory.path()).expect("is there").dev();
        assert!(uses(Path::new("/proc/self"), device));
    }

    #[test]
    fn many_users_are_counted_and_not_all_named() {
        let user = |pid| (pid, "sh".to_string());
        assert_eq!(in_words(&[user(7)]), "it is in use by sh (pid 7)");
        assert_eq!(
            in_words(&[user(1), user(2), user(3), user(4), user(5)]),
            "it is in use by sh (pid 1), sh (pid 2), sh (pid 3) and 2 more"
        );
        assert_eq!(in_words(&[]), "it is in use");
    }

    #[test]
    fn places_that_are_none_are_refused() {
        for path in ["", "/", "data", "/a/../b"] {
            let volume = VolumeMount {
                name: "v".to_string(),
                serial: "volume0".to_string(),
                path: path.to_string(),
                read_only: false,
            };
            assert_eq!(mount(&volume).expect_err("refused").code, ErrorCode::BadRequest, "{path:?}");
        }
    }
}
