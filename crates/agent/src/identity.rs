//! Becoming one particular sandbox: randomness, time, names, keys, and the size of the disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, Timespec, clock_settime};
use wire::{Entropy, Identity};

const MACHINE_ID: &str = "etc/machine-id";
const HOSTNAME: &str = "etc/hostname";
const HOSTS: &str = "etc/hosts";
const SSH: &str = "etc/ssh";
const SSH_SERVER: &str = "run/sshd.pid";
const SSH_KEYGEN: &str = "usr/bin/ssh-keygen";

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

/// Takes names and keys on, in the file system at `root` and in the kernel. A guest that has them already (it boots
/// from its own disk, or is told again) keeps its keys.
pub fn assume(root: &Path, identity: &Identity, warnings: &mut Warnings) {
    let kernel = rustix::system::sethostname(identity.hostname.as_bytes()).map_err(io::Error::from);
    note(warnings, "host name", kernel);
    take_names(root, identity, warnings);
}

/// What of an identity is files.
fn take_names(root: &Path, identity: &Identity, warnings: &mut Warnings) {
    note(warnings, "host name", write_hostname(root, &identity.hostname));
    let known = fs::read_to_string(root.join(MACHINE_ID));
    if known.is_ok_and(|id| id.trim() == identity.machine_id) {
        return;
    }
    note(warnings, "machine-id", set_machine_id(root, &identity.machine_id));
    match renew_host_keys(root) {
        Ok(false) => {}
        Ok(true) => note(warnings, "ssh server", reload_ssh_server(root)),
        Err(error) => note(warnings, "ssh host keys", Err(error)),
    }
}

fn write_hostname(root: &Path, name: &str) -> io::Result<()> {
    write_if_changed(&root.join(HOSTNAME), &format!("{name}\n"))?;
    let path = root.join(HOSTS);
    let hosts = fs::read_to_string(&path).unwrap_or_default();
    write_if_changed(&path, &hosts_with(&hosts, name))
}

/// Without a change nothing is written: each block written is one that the sandbox no longer shares.
pub fn write_if_changed(path: &Path, content: &str) -> io::Result<()> {
    if fs::read(path).is_ok_and(|old| old == content.as_bytes()) {
        return Ok(());
    }
    overwrite(path, content)
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

fn set_machine_id(root: &Path, id: &str) -> io::Result<()> {
    let line = format!("{id}\n");
    overwrite(&root.join(MACHINE_ID), &line)?;
    // Usually a link to the other; a file of its own where an image made it so.
    let dbus = root.join("var/lib/dbus/machine-id");
    if fs::symlink_metadata(&dbus).is_ok_and(|metadata| metadata.is_file()) {
        overwrite(&dbus, &line)?;
    }
    Ok(())
}

/// Replaces the host keys of a disk that came with some, each by one of its own kind, so that no two sandboxes
/// share one, and tells whether there were any. A disk without keys gets none: making them is its own business.
fn renew_host_keys(root: &Path) -> io::Result<bool> {
    let Ok(entries) = fs::read_dir(root.join(SSH)) else { return Ok(false) };
    let mut keys = vec![];
    for entry in entries.filter_map(Result::ok) {
        let Some(kind) = host_key_kind(&entry.file_name().to_string_lossy()).map(str::to_string) else {
            continue;
        };
        // All of them first: a key that cannot be made anew must not be the source's either.
        fs::remove_file(entry.path())?;
        let _ = fs::remove_file(entry.path().with_extension("pub"));
        keys.push((entry.path(), kind));
    }
    for (key, kind) in &keys {
        let status = Command::new(root.join(SSH_KEYGEN))
            .args(["-q", "-N", "", "-t", kind, "-f"])
            .arg(key)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        if !status.success() {
            return Err(io::Error::other(format!("ssh-keygen for {} ended with {status}", key.display())));
        }
    }
    Ok(!keys.is_empty())
}

/// Has a server that runs already (in a clone of a running guest) read its new keys: it holds its source's in memory.
/// Its connections stay.
fn reload_ssh_server(root: &Path) -> io::Result<()> {
    let Ok(text) = fs::read_to_string(root.join(SSH_SERVER)) else { return Ok(()) };
    // Neither a group nor everybody (0 and below), nor this very process (1).
    let number = text.trim().parse().ok().filter(|number| *number > 1);
    let Some(pid) = number.and_then(Pid::from_raw) else { return Ok(()) };
    // The file may be a leftover, and the number somebody else's by now.
    let name = fs::read_to_string(root.join(format!("proc/{}/comm", pid.as_raw_nonzero())));
    if name.is_ok_and(|name| name.trim_end() == "sshd") {
        kill_process(pid, Signal::HUP)?;
    }
    Ok(())
}

/// The kind of key in a file of that name, `None` if it holds no private host key.
fn host_key_kind(name: &str) -> Option<&str> {
    name.strip_prefix("ssh_host_")?.strip_suffix("_key")
}

/// Grows the root file system to its disk, if that is larger.
pub fn grow_root(disk: &str, bytes: u64, warnings: &mut Warnings) {
    note(warnings, "growing the root file system", grow(disk, Path::new("/"), bytes));
}

/// Grows the file system mounted on `mounted` to its disk, which has so many bytes or is about to.
pub fn grow(disk: &str, mounted: &Path, bytes: u64) -> io::Result<()> {
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
    let root = File::open(mounted)?;
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

    /// A disk with the names and keys of another sandbox, and a program that makes keys.
    fn disk_of_another() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        let write = |path: &str, content: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("has one")).expect("a directory");
            fs::write(path, content).expect("writes");
        };
        write(HOSTNAME, "source\n");
        write(HOSTS, "127.0.0.1\tlocalhost\n127.0.1.1\tsource\n10.0.0.7 mine\n");
        write(MACHINE_ID, &format!("{}\n", "1".repeat(32)));
        write("var/lib/dbus/machine-id", &format!("{}\n", "1".repeat(32)));
        write("etc/ssh/ssh_host_ed25519_key", "the source's");
        write("etc/ssh/ssh_host_ed25519_key.pub", "the source's");
        write("etc/ssh/sshd_config", "kept");
        write(SSH_KEYGEN, "#!/bin/sh\necho \"$5\" >\"$7\"\necho public >\"$7.pub\"\n");
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(root.path().join(SSH_KEYGEN), executable).expect("changes");
        root
    }

    fn identity(name: &str, machine_id: &str) -> Identity {
        Identity {
            sandbox_id: "0123456789abcdef".to_string(),
            hostname: name.to_string(),
            machine_id: machine_id.repeat(32),
            read_config: false,
            first_boot: false,
            config: None,
        }
    }

    #[test]
    fn a_clone_takes_its_own_names_and_keys_and_leaves_the_rest_as_it_was() {
        let root = disk_of_another();
        let read = |path: &str| fs::read_to_string(root.path().join(path)).expect("reads");
        let mut warnings = vec![];
        take_names(root.path(), &identity("copy", "2"), &mut warnings);
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(read(HOSTNAME), "copy\n");
        assert_eq!(read(HOSTS), "127.0.0.1\tlocalhost\n127.0.1.1\tcopy\n10.0.0.7 mine\n");
        for path in [MACHINE_ID, "var/lib/dbus/machine-id"] {
            assert_eq!(read(path).trim_end(), "2".repeat(32), "{path}");
        }
        assert_eq!(read("etc/ssh/ssh_host_ed25519_key"), "ed25519\n");
        assert_eq!(read("etc/ssh/ssh_host_ed25519_key.pub"), "public\n");
        assert_eq!(read("etc/ssh/sshd_config"), "kept");
    }

    #[test]
    fn a_guest_that_is_told_again_who_it_is_keeps_its_keys() {
        let root = disk_of_another();
        let mut warnings = vec![];
        take_names(root.path(), &identity("renamed", "1"), &mut warnings);
        assert_eq!(warnings, Vec::<String>::new());
        let key = fs::read_to_string(root.path().join("etc/ssh/ssh_host_ed25519_key")).expect("reads");
        assert_eq!(key, "the source's");
        assert_eq!(fs::read_to_string(root.path().join(HOSTNAME)).expect("reads"), "renamed\n");
    }

    #[test]
    fn a_key_that_cannot_be_made_anew_is_gone_all_the_same() {
        let root = disk_of_another();
        fs::remove_file(root.path().join(SSH_KEYGEN)).expect("removes");
        let mut warnings = vec![];
        take_names(root.path(), &identity("copy", "2"), &mut warnings);
        assert!(warnings.len() == 1 && warnings[0].starts_with("ssh host keys: "), "{warnings:?}");
        assert!(!root.path().join("etc/ssh/ssh_host_ed25519_key").exists());
    }

    #[test]
    fn only_a_process_that_is_an_ssh_server_is_told_to_read_its_keys() {
        let root = tempfile::tempdir().expect("a directory");
        // No number, no process, and this very process under its true name.
        let own = std::process::id().to_string();
        fs::create_dir_all(root.path().join("proc").join(&own)).expect("a directory");
        fs::create_dir(root.path().join("run")).expect("a directory");
        fs::write(root.path().join("proc").join(&own).join("comm"), "cargo-nextest\n").expect("writes");
        for pid in ["", "-1", "0", "1", "words", "999999999", &own] {
            fs::write(root.path().join(SSH_SERVER), format!("{pid}\n")).expect("writes");
            reload_ssh_server(root.path()).expect("nothing to tell");
        }
    }

    #[test]
    fn only_private_host_keys_are_renewed() {
        assert_eq!(host_key_kind("ssh_host_ed25519_key"), Some("ed25519"));
        assert_eq!(host_key_kind("ssh_host_rsa_key.pub"), None);
        assert_eq!(host_key_kind("ssh_config"), None);
        assert_eq!(host_key_kind("moduli"), None);
    }
}
