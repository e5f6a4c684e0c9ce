//! A btrfs in a file: whether this host can have one, making it, mounting it.
//!
//! The filesystems mounted here are made by this program and hold its data; none of them comes from a guest. The loop
//! device is the kernel's to free: `mount -o loop` marks it so, and unmounting is all there is to undo.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, OpenOptions};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::IFlags;
use types::Bytes;

use crate::programs::find;
use crate::run::Tool;
use crate::{Error, Result};

/// How the filesystem is mounted. Level 1 costs the least time and still stores guest memory in a fraction.
pub const LOOP_MOUNT_OPTIONS: &str = "loop,noatime,compress=zstd:1";

const MAKE: &str = "make the btrfs in";
const MOUNT: &str = "mount the btrfs on";
const UNMOUNT: &str = "unmount";
const GROW: &str = "grow the btrfs on";
const LOOK: &str = "look at the mounts in";

/// The capability that mounting needs: CAP_SYS_ADMIN of linux/capability.h.
const SYS_ADMIN: u32 = 21;
/// How long the kernel may take to let go of the file of an unmounted loop device: whoever looks at the device in
/// that moment, as udev does after every change, delays it.
const LET_GO: Duration = Duration::from_secs(30);

/// What of the host a btrfs in a file needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopHost {
    /// This is root.
    pub root: bool,
    /// It may mount: CAP_SYS_ADMIN, and not in a user namespace, where that means less.
    pub may_mount: bool,
    /// `mkfs.btrfs` is there.
    pub mkfs: bool,
    /// The kernel knows btrfs.
    pub btrfs: bool,
    /// The kernel hands out loop devices.
    pub loop_devices: bool,
}

impl LoopHost {
    /// Looks. A kernel that has btrfs or loop devices as modules is made to load them, if this may.
    #[must_use]
    pub fn look() -> Self {
        let root = rustix::process::geteuid().is_root();
        let may_mount = root && has_sys_admin() && !in_user_namespace();
        Self {
            root,
            may_mount,
            mkfs: find("mkfs.btrfs").is_some(),
            btrfs: with_module(may_mount, "btrfs", knows_btrfs),
            loop_devices: with_module(may_mount, "loop", has_loop_control),
        }
    }
}

fn with_module(may_load: bool, module: &'static str, there: fn() -> bool) -> bool {
    if there() {
        return true;
    }
    // What modprobe says does not matter, only whether it is there afterwards.
    may_load && Tool::new("load a kernel module", "modprobe", "kmod").arg(module).run().is_ok() && there()
}

fn knows_btrfs() -> bool {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.lines().any(|line| line.split_whitespace().next_back() == Some("btrfs"))
}

fn has_loop_control() -> bool {
    fs::metadata("/dev/loop-control").is_ok_and(|meta| meta.file_type().is_char_device())
}

fn has_sys_admin() -> bool {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    held.and_then(|held| u64::from_str_radix(held.trim(), 16).ok())
        .is_some_and(|held| held >> SYS_ADMIN & 1 == 1)
}

/// The first user namespace maps every number onto itself (user_namespaces(7)).
fn in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let fields: Vec<_> = map.split_whitespace().collect();
    !fields.is_empty() && fields != ["0", "0", "4294967295"]
}

/// One mounted filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// Where.
    pub at: PathBuf,
    /// Its type, such as `btrfs`.
    pub fs_type: String,
    /// What is mounted: a device, or a word.
    pub source: PathBuf,
    /// The file behind it, when that is a loop device.
    pub backing: Option<PathBuf>,
}

/// All that is mounted, in order: of two at one place the later one is seen.
///
/// # Errors
/// [`ErrorKind::Io`](crate::ErrorKind::Io) without `/proc`.
pub fn mount_points() -> Result<Vec<MountPoint>> {
    let path = Path::new("/proc/thread-self/mountinfo");
    let info = fs::read(path).map_err(|error| Error::io(LOOK, path, error))?;
    Ok(parse_mounts(&info))
}

/// proc_pid_mountinfo(5): the fifth field is where, the two after the lone `-` are type and source.
fn parse_mounts(info: &[u8]) -> Vec<MountPoint> {
    let line = |line: &[u8]| {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let after = fields.iter().position(|field| *field == b"-")?;
        let source = unescape(fields.get(after + 2)?);
        Some(MountPoint {
            at: unescape(fields.get(4)?),
            fs_type: String::from_utf8_lossy(fields.get(after + 1)?).into_owned(),
            backing: backing_file(&source),
            source,
        })
    };
    info.split(|&byte| byte == b'\n').filter_map(line).collect()
}

/// Octal escapes of space, tab, newline, backslash and number sign.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let code = (byte == b'\\').then(|| after.get(..3)).flatten();
        let code = code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 8).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = &after[3..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

/// The file behind a loop device, as the kernel names it now.
fn backing_file(device: &Path) -> Option<PathBuf> {
    let name = device.strip_prefix("/dev").ok()?;
    read_backing(&Path::new("/sys/block").join(name))
}

fn read_backing(block: &Path) -> Option<PathBuf> {
    let mut text = fs::read(block.join("loop/backing_file")).ok()?;
    if text.last() == Some(&b'\n') {
        text.pop();
    }
    Some(OsString::from_vec(text).into())
}

/// A process that has something open in a directory, or is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirUser {
    /// Its number.
    pub pid: u32,
    /// The name of its program.
    pub program: String,
}

impl fmt::Display for DirUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.program, self.pid)
    }
}

/// The processes that have files of `dir` open or mapped, run a program from it, or work in it. Of this process only
/// its working directory counts.
///
/// # Errors
/// [`ErrorKind::Io`](crate::ErrorKind::Io) without `/proc`.
pub fn users_of_dir(dir: &Path) -> Result<Vec<DirUser>> {
    let mut users = Vec::new();
    // Processes end while they are looked at: what cannot be read any more is no user.
    for (pid, process) in processes()? {
        let within = |link: &str| fs::read_link(process.join(link)).is_ok_and(|to| to.starts_with(dir));
        let uses = within("cwd")
            || (pid != std::process::id()
                && (within("root") || within("exe") || has_open(&process, dir) || has_mapped(&process, dir)));
        if uses {
            users.push(DirUser { pid, program: program_of(&process) });
        }
    }
    Ok(users)
}

/// The processes that run now, by their numbers, each with its directory in `/proc`.
fn processes() -> Result<Vec<(u32, PathBuf)>> {
    let proc = Path::new("/proc");
    let entries = fs::read_dir(proc).map_err(|error| Error::io("look for processes in", proc, error))?;
    let pid = |entry: &fs::DirEntry| entry.file_name().to_str().and_then(|name| name.parse().ok());
    let mut found: Vec<_> =
        entries.flatten().filter_map(|entry| Some((pid(&entry)?, entry.path()))).collect();
    found.sort_unstable();
    Ok(found)
}

fn program_of(process: &Path) -> String {
    fs::read_to_string(process.join("comm")).unwrap_or_default().trim().to_owned()
}

fn has_open(process: &Path, dir: &Path) -> bool {
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else { return false };
    descriptors.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(dir)))
}

/// proc_pid_maps(5): the path is the sixth field and may have spaces.
fn has_mapped(process: &Path, dir: &Path) -> bool {
    let maps = fs::read(process.join("maps")).unwrap_or_default();
    maps.split(|&byte| byte == b'\n').any(|line| {
        let start = line.iter().position(|&byte| byte == b'/');
        start.is_some_and(|start| Path::new(OsStr::from_bytes(&line[start..])).starts_with(dir))
    })
}

/// Makes the sparse file `path` of `size` with an empty btrfs in it; for root only. What is there is not replaced. A
/// file that could not be finished is left to the caller.
///
/// # Errors
/// [`ErrorKind::Missing`](crate::ErrorKind::Missing) without `mkfs.btrfs`,
/// [`ErrorKind::Io`](crate::ErrorKind::Io) when the filesystem has no files of that size, else
/// [`ErrorKind::Tool`](crate::ErrorKind::Tool).
pub fn make_btrfs_file(path: &Path, size: Bytes) -> Result<()> {
    let fail = |error| Error::io(MAKE, path, error);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(fail)?;
    // Where files are copied on write, doing that below a filesystem that does it again only scatters both. Other
    // filesystems have no such flag, and need none.
    if let Ok(flags) = rustix::fs::ioctl_getflags(&file) {
        let _no_such_flag = rustix::fs::ioctl_setflags(&file, flags | IFlags::NOCOW);
    }
    file.set_len(size.0).map_err(fail)?;
    drop(file);
    Tool::new(MAKE, "mkfs.btrfs", "btrfs-progs").args(["-q", "-L", "bhatti"]).arg(path).run()
}

/// Mounts the btrfs in the file `backing` on the directory `at`.
///
/// # Errors
/// [`ErrorKind::Tool`](crate::ErrorKind::Tool) with what `mount` said.
pub fn mount_btrfs_file(backing: &Path, at: &Path) -> Result<()> {
    Tool::new(MOUNT, "mount", "mount")
        .args(["-t", "btrfs", "-o", LOOP_MOUNT_OPTIONS])
        .arg(backing)
        .arg(at)
        .run()
}

/// Unmounts what is on `at` and waits until no loop device has the file `backing` any more.
///
/// # Errors
/// [`ErrorKind::Tool`](crate::ErrorKind::Tool) with what `umount` said, or because the file is still held, as it is
/// while another mount namespace has the filesystem mounted.
pub fn unmount_btrfs_file(backing: &Path, at: &Path) -> Result<()> {
    Tool::new(UNMOUNT, "umount", "mount").arg(at).run()?;
    let deadline = Instant::now() + LET_GO;
    while let Some(device) = loop_device_of(backing) {
        if Instant::now() > deadline {
            let holders: Vec<_> = holders_of_mount(&device).iter().map(DirUser::to_string).collect();
            let who = if holders.is_empty() { "somebody".to_owned() } else { holders.join(", ") };
            let why = format!("{} is unmounted here, and still mounted for {who}", at.display());
            return Err(Error::tool(UNMOUNT, why));
        }
        // The kernel tells nobody when it has let go.
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn loop_device_of(backing: &Path) -> Option<PathBuf> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    devices
        .filter(|device| read_backing(&device.path()).is_some_and(|file| file == backing))
        .map(|device| Path::new("/dev").join(device.file_name()))
        .next()
}

/// A process of each mount namespace in which `device` is mounted.
fn holders_of_mount(device: &Path) -> Vec<DirUser> {
    let mut holders = Vec::new();
    let mut seen = Vec::new();
    for (pid, process) in processes().unwrap_or_default() {
        let Ok(namespace) = fs::read_link(process.join("ns/mnt")) else { continue };
        if seen.contains(&namespace) {
            continue;
        }
        seen.push(namespace);
        let info = fs::read(process.join("mountinfo")).unwrap_or_default();
        if parse_mounts(&info).iter().any(|mount| mount.source == device) {
            holders.push(DirUser { pid, program: program_of(&process) });
        }
    }
    holders
}

/// Makes the file and the btrfs in it, which is mounted on `at`, as large as `size`. May be repeated.
///
/// # Errors
/// [`ErrorKind::Missing`](crate::ErrorKind::Missing) or [`ErrorKind::Tool`](crate::ErrorKind::Tool).
pub fn grow_btrfs_file(backing: &Path, device: &Path, at: &Path, size: Bytes) -> Result<()> {
    let fail = |error| Error::io(GROW, backing, error);
    let file = OpenOptions::new().write(true).open(backing).map_err(fail)?;
    if file.metadata().map_err(fail)?.len() < size.0 {
        file.set_len(size.0).map_err(fail)?;
    }
    Tool::new(GROW, "losetup", "mount").arg("--set-capacity").arg(device).run()?;
    Tool::new(GROW, "btrfs", "btrfs-progs").args(["filesystem", "resize", "max"]).arg(at).run()
}

/// Does `work` where mounts are seen by nobody else, and end with it: should this process be killed meanwhile, the
/// kernel unmounts them.
///
/// # Errors
/// That of `work`, or [`ErrorKind::Io`](crate::ErrorKind::Io) when this may not mount.
pub fn with_mounts_of_own<T: Send, E: Send + From<Error>>(
    work: impl FnOnce() -> std::result::Result<T, E> + Send,
) -> std::result::Result<T, E> {
    let alone = || {
        sys::host_mounts::mounts_of_own()
            .map_err(|error| Error::io("take mounts of its own for", Path::new("bhatti"), error))?;
        work()
    };
    std::thread::scope(|scope| match scope.spawn(alone).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_with_their_escapes() {
        let info = b"25 1 8:1 / / rw shared:1 - ext4 /dev/sda rw\n\
                     30 25 0:40 /sub /a\\040b/f\\134s rw,noatime - btrfs /dev/loop0 rw,compress=zstd:1\n\
                     garbage\n";
        let mounts = parse_mounts(info);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[1].at, Path::new("/a b/f\\s"));
        assert_eq!(
            (mounts[1].fs_type.as_str(), mounts[1].source.as_path()),
            ("btrfs", Path::new("/dev/loop0"))
        );
        assert_eq!(mounts[0].backing, None);
    }

    #[test]
    fn a_process_with_an_open_file_is_a_user_and_this_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        let open = fs::File::create(path.join("open")).unwrap();
        assert_eq!(users_of_dir(&path).unwrap(), []);
        let mut child = std::process::Command::new("sleep").arg("600").stdin(open).spawn().unwrap();
        let users = users_of_dir(&path).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(users, [DirUser { pid: child.id(), program: "sleep".to_owned() }]);
        assert_eq!(users_of_dir(&path).unwrap(), []);
    }

    #[test]
    fn what_is_there_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "mine").unwrap();
        assert_eq!(make_btrfs_file(&path, Bytes(1 << 30)).unwrap_err().kind(), crate::ErrorKind::Io);
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }
}
