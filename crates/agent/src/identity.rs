//! Becoming one particular sandbox: randomness, time, names, keys, and the size of the disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_settime};
use wire::{Entropy, Identity};

const MACHINE_ID: &str = "/etc/machine-id";
const SSH: &str = "/etc/ssh";

/// Things that go less than well are pushed here, to be told in the welcome.
pub type Warnings = Vec<String>;

fn note(warnings: &mut Warnings, what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        warnings.push(format!("{what}: {error}"));
    }
}

/// Mixes entropy in. Two clones that draw the same random numbers share their secrets, so failing is fatal.
pub fn add_entropy(entropy: &Entropy) -> Result<(), String> {
    OpenOptions::new()
        .write(true)
        .open("/dev/urandom")
        .and_then(|random| sys::guest_ioctl::add_entropy(random, entropy.0))
        .map_err(|error| format!("adding entropy: {error}"))
}

/// Sets the clock.
pub fn set_clock(now_unix_ns: u64, warnings: &mut Warnings) {
    const SECOND: u64 = 1_000_000_000;
    let now = Timespec {
        tv_sec: i64::try_from(now_unix_ns / SECOND).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(now_unix_ns % SECOND).unwrap_or(0),
    };
    note(warnings, "setting the clock", clock_settime(ClockId::Realtime, now).map_err(io::Error::from));
}

/// Takes names and keys on.
pub fn assume(identity: &Identity, warnings: &mut Warnings) {
    note(warnings, "host name", set_hostname(&identity.hostname));
    let fresh = fs::read_to_string(MACHINE_ID).map(|id| id.trim() != identity.machine_id).unwrap_or(true);
    if fresh {
        note(warnings, MACHINE_ID, set_machine_id(&identity.machine_id));
        note(warnings, "ssh host keys", renew_host_keys(Path::new(SSH)));
    }
}

fn set_hostname(name: &str) -> io::Result<()> {
    rustix::system::sethostname(name.as_bytes())?;
    write_if_changed("/etc/hostname", &format!("{name}\n"))?;
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    write_if_changed("/etc/hosts", &hosts_with(&hosts, name))
}

/// Without a change nothing is written: each block written is one that the sandbox no longer shares.
fn write_if_changed(path: &str, content: &str) -> io::Result<()> {
    if fs::read(path).is_ok_and(|old| old == content.as_bytes()) {
        return Ok(());
    }
    overwrite(path.as_ref(), content)
}

/// Writes over what is there and cuts off the rest. Not by truncating first: ext4 writes a file out at once when it is
/// closed after that (`auto_da_alloc`), and a fresh clone would wait for its disk.
fn overwrite(path: &Path, content: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.write_all(content.as_bytes())?;
    let length = u64::try_from(content.len()).map_err(io::Error::other)?;
    if file.metadata()?.len() > length { file.set_len(length) } else { Ok(()) }
}

/// The hosts file with `name` on 127.0.1.1 (Debian's place for it) and everything else as it was.
fn hosts_with(hosts: &str, name: &str) -> String {
    let mut lines: Vec<&str> =
        hosts.lines().filter(|line| line.split_whitespace().next() != Some("127.0.1.1")).collect();
    if !lines.iter().any(|line| line.split_whitespace().next() == Some("127.0.0.1")) {
        lines.insert(0, "127.0.0.1\tlocalhost");
        lines.insert(1, "::1\tlocalhost ip6-localhost ip6-loopback");
    }
    let own = format!("127.0.1.1\t{name}");
    let after_loopback = lines.iter().position(|line| line.starts_with("127.0.0.1")).map_or(0, |at| at + 1);
    lines.insert(after_loopback, &own);
    lines.join("\n") + "\n"
}

fn set_machine_id(id: &str) -> io::Result<()> {
    let line = format!("{id}\n");
    overwrite(MACHINE_ID.as_ref(), &line)?;
    // Usually a link to the other; a file of its own where an image made it so.
    let dbus = Path::new("/var/lib/dbus/machine-id");
    if fs::symlink_metadata(dbus).is_ok_and(|metadata| metadata.is_file()) {
        overwrite(dbus, &line)?;
    }
    Ok(())
}

/// Replaces the host keys of an image that came with some, each by one of its own kind, so that no two sandboxes
/// share one. An image without keys gets none: making them is its own business.
fn renew_host_keys(directory: &Path) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
    for entry in entries.filter_map(Result::ok) {
        let Some(kind) = host_key_kind(&entry.file_name().to_string_lossy()).map(str::to_string) else {
            continue;
        };
        let key = entry.path();
        fs::remove_file(&key)?;
        let _ = fs::remove_file(key.with_extension("pub"));
        let status = Command::new("/usr/bin/ssh-keygen")
            .args(["-q", "-N", "", "-t", &kind, "-f"])
            .arg(&key)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        if !status.success() {
            return Err(io::Error::other(format!("ssh-keygen for {} ended with {status}", key.display())));
        }
    }
    Ok(())
}

/// The kind of key in a file of that name, `None` if it holds no private host key.
fn host_key_kind(name: &str) -> Option<&str> {
    name.strip_prefix("ssh_host_")?.strip_suffix("_key")
}

/// Grows the root file system to its disk, if that is larger.
pub fn grow_root(disk: &str, bytes: u64, warnings: &mut Warnings) {
    note(warnings, "growing the root file system", try_grow(disk, bytes));
}

fn try_grow(disk: &str, bytes: u64) -> io::Result<()> {
    // The kernel learns of a new size by an interrupt and takes note of it in a task of its own; nothing tells when.
    const LOOKS: u32 = 2500;
    const BETWEEN: Duration = Duration::from_millis(2);
    let mut device = File::open(disk)?;
    let mut disk_bytes = device.seek(SeekFrom::End(0))?;
    for _ in 0..LOOKS {
        if disk_bytes >= bytes {
            break;
        }
        std::thread::sleep(BETWEEN);
        disk_bytes = device.seek(SeekFrom::End(0))?;
    }
    if disk_bytes < bytes {
        return Err(io::Error::other(format!("the disk has {disk_bytes} bytes, not {bytes}")));
    }
    let root = File::open("/")?;
    let block_size = rustix::fs::fstatvfs(&root)?.f_bsize.max(1);
    // The same size is nothing to do, to the kernel too.
    sys::guest_ioctl::resize_ext4(&root, disk_bytes / block_size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_written_over_holds_the_new_content_and_nothing_of_the_old() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("hostname");
        for content in ["a\n", "longer\n", "b\n", ""] {
            overwrite(&path, content).expect("writes");
            assert_eq!(fs::read_to_string(&path).expect("reads"), content);
        }
    }

    #[test]
    fn the_hosts_file_keeps_what_users_wrote_and_has_the_name_once() {
        let made = hosts_with("", "one");
        assert_eq!(made, "127.0.0.1\tlocalhost\n127.0.1.1\tone\n::1\tlocalhost ip6-localhost ip6-loopback\n");
        let renamed = hosts_with(&(made + "10.0.0.7 mine\n"), "two");
        assert!(renamed.contains("127.0.1.1\ttwo\n") && renamed.contains("10.0.0.7 mine\n"));
        assert!(!renamed.contains("one"));
        assert_eq!(hosts_with(&renamed, "two"), renamed);
    }

    #[test]
    fn only_private_host_keys_are_renewed() {
        assert_eq!(host_key_kind("ssh_host_ed25519_key"), Some("ed25519"));
        assert_eq!(host_key_kind("ssh_host_rsa_key.pub"), None);
        assert_eq!(host_key_kind("ssh_config"), None);
        assert_eq!(host_key_kind("moduli"), None);
    }
}
