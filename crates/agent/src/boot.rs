//! From the kernel's hand-over to a root file system with everything mounted that programs expect.
//!
//! # Order
//! Modules need nothing; `/dev` is needed to wait for the root disk; the new root gets its own `/dev`, `/proc` and so on
//! before it becomes `/`; the initramfs is emptied last, because its pages are never given back otherwise.

use std::fmt::Display;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode};
use rustix::mount::{MountFlags, mount, mount_move};

use crate::console::{self, fatal, say};
use crate::modules;

/// How long a root disk may take to appear.
const DISK_WITHIN: Duration = Duration::from_secs(10);

/// What the kernel's command line says to the agent.
#[derive(Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// `bhatti.root=`: the root disk.
    pub root: String,
    /// `bhatti.probe`: only prove that a guest boots.
    pub probe: bool,
}

impl CommandLine {
    fn parse(text: &str) -> CommandLine {
        let mut line = CommandLine { root: "/dev/vda".to_string(), probe: false };
        for word in text.split_ascii_whitespace() {
            match word.split_once('=') {
                Some(("bhatti.root", disk)) => line.root = disk.to_string(),
                None if word == "bhatti.probe" => line.probe = true,
                _ => {}
            }
        }
        line
    }
}

/// Polls every millisecond, which is nothing to a guest that has nothing else to do yet.
pub fn wait_for<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let until = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= until {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Boots; does not return without a root file system, and gives the device it is on.
pub fn boot() -> String {
    // Before modules: the command line says whether any are needed.
    mount_new("proc", "/proc", "proc", "", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC);
    mount_new("devtmpfs", "/dev", "devtmpfs", "mode=755", MountFlags::NOSUID);
    console::adopt();
    let line = CommandLine::parse(&fs::read_to_string("/proc/cmdline").unwrap_or_default());
    if line.probe {
        let _ = io::Write::write_all(&mut io::stderr(), b"bhatti-probe-ok\n");
        console::power_off();
    }
    modules::load_all(Path::new("/modules"));
    if wait_for(DISK_WITHIN, || fs::metadata(&line.root).ok()).is_none() {
        fatal(format_args!("{}: no such disk has appeared", line.root));
    }
    let flags = MountFlags::NOATIME;
    // What is deleted goes back to the host with the journal's next commit; that costs nothing that could be measured.
    if let Err(error) = mount(line.root.as_str(), "/newroot", "ext4", flags, c"discard") {
        fatal(format_args!("{}: cannot be mounted: {error}", line.root));
    }
    mount_tree();
    if let Err(error) = switch_root() {
        fatal(format_args!("switching to the root disk: {error}"));
    }
    links_in_dev();
    if let Err(error) = sys::guest_ioctl::loopback_up() {
        say(format_args!("loopback device: {error}"));
    }
    line.root
}

/// Mounts; a failure is told and survived, since most of a guest works without most mounts.
fn mount_new(source: &str, target: &str, kind: &str, data: &str, flags: MountFlags) {
    let data = std::ffi::CString::new(data).unwrap_or_default();
    if let Err(error) = mount(source, target, kind, flags, Some(data.as_c_str())) {
        complain(target, error);
    }
}

fn complain(what: &str, error: impl Display) {
    say(format_args!("{what}: {error}"));
}

fn mount_tree() {
    let (nosuid, nodev, noexec) = (MountFlags::NOSUID, MountFlags::NODEV, MountFlags::NOEXEC);
    let strict = nosuid | nodev | noexec;
    for (source, target, kind, data, flags) in [
        ("devtmpfs", "/newroot/dev", "devtmpfs", "mode=755", nosuid),
        ("devpts", "/newroot/dev/pts", "devpts", "gid=5,mode=620,ptmxmode=666", nosuid | noexec),
        ("tmpfs", "/newroot/dev/shm", "tmpfs", "mode=1777", nosuid | nodev),
        ("proc", "/newroot/proc", "proc", "", strict),
        ("sysfs", "/newroot/sys", "sysfs", "", strict),
        ("cgroup2", "/newroot/sys/fs/cgroup", "cgroup2", "nsdelegate", strict),
        ("tmpfs", "/newroot/run", "tmpfs", "mode=755", nosuid | nodev),
        ("tmpfs", "/newroot/run/lock", "tmpfs", "mode=1777,size=5m", strict),
        ("tmpfs", "/newroot/tmp", "tmpfs", "mode=1777", nosuid | nodev),
    ] {
        // In sysfs the directories are there and cannot be made.
        if !Path::new(target).exists()
            && let Err(error) = rustix::fs::mkdirat(CWD, target, Mode::from_raw_mode(0o755))
        {
            complain(target, error);
        }
        mount_new(source, target, kind, data, flags);
    }
}

/// Makes /newroot the root, then deletes what the initramfs held: it is a ramfs, whose files are memory.
fn switch_root() -> io::Result<()> {
    let old_root = fs::File::open("/")?;
    let old_device = old_root.metadata()?.dev();
    // With their mounts gone, the old directories can go too.
    for old in ["/dev", "/proc"] {
        if let Err(error) = rustix::mount::unmount(old, rustix::mount::UnmountFlags::DETACH) {
            complain(old, error);
        }
    }
    empty(Path::new("/"), old_device, &["newroot"]);
    std::env::set_current_dir("/newroot")?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    std::env::set_current_dir("/")
}

/// Deletes everything under `directory` that is on the file system `device`, but for `kept`.
fn empty(directory: &Path, device: u64, kept: &[&str]) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.filter_map(Result::ok) {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.dev() != device || kept.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        if metadata.is_dir() {
            empty(&entry.path(), device, &[]);
            let _ = fs::remove_dir(entry.path());
        } else {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn links_in_dev() {
    for (name, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        if let Err(error) = symlink(target, name) {
            complain(name, error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_tells_the_root_disk_and_the_probe_among_other_words() {
        let line = CommandLine::parse("console=ttyS0 bhatti.root=/dev/vdc quiet\n");
        assert_eq!(line, CommandLine { root: "/dev/vdc".to_string(), probe: false });
        let line = CommandLine::parse("bhatti.probe bhatti.probed=1");
        assert_eq!(line, CommandLine { root: "/dev/vda".to_string(), probe: true });
    }
}
