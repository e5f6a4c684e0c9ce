//! Config drives: the 1 MiB disk from which a guest reads its environment, secrets, files and init command.
//!
//! # Layout
//! An ext4 filesystem without a journal that holds `config.json` and `files/0`, `files/1`, and so on. The JSON names
//! for each file the path in the guest, the permission bits and its `source` on the drive.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use serde::Serialize;
use types::{Bytes, CommandDefaults, GuestFile};

use crate::run::Tool;
use crate::{Error, ErrorKind, Result};

/// Size of a config drive.
pub const CONFIG_DRIVE_BYTES: Bytes = Bytes(1 << 20);

/// How many bytes of files together are sure to fit beside 64 KiB of environment, as up to 128 files.
pub const CONFIG_FILES_MAX_BYTES: Bytes = Bytes(640 << 10);

const OP: &str = "write the config drive";
const INODES: &str = "192";
/// A fixed identity: the guest finds the drive by its place, not by its name.
const UUID: &str = "b4a77100-0000-4000-8000-00000000c0f1";
const BLOCK: usize = 4096;

/// What a config drive says.
#[derive(Debug, Clone, Copy)]
pub struct ConfigDrive<'a> {
    /// Environment of every command, secrets among it.
    pub env: &'a BTreeMap<String, String>,
    /// A command line run by `sh -c` as a session at every boot.
    pub init: Option<&'a str>,
    /// What the image wants; empty for those that were built here.
    pub defaults: &'a CommandDefaults,
    /// Files that the guest writes into its disk at the first boot.
    pub files: &'a [GuestFile],
}

#[derive(Serialize)]
struct ConfigJson<'a> {
    version: u32,
    env: &'a BTreeMap<String, String>,
    init: Option<&'a str>,
    #[serde(skip_serializing_if = "CommandDefaults::is_empty")]
    defaults: &'a CommandDefaults,
    files: Vec<FileJson<'a>>,
}

#[derive(Serialize)]
struct FileJson<'a> {
    path: &'a str,
    mode: u32,
    source: String,
}

/// Writes the config drive `drive` to `path`, mode 0600. A file that is there is replaced in place. Not synced.
///
/// The content passes through a directory beside `path` that only the caller's user can read, and is gone from
/// there when the call returns.
///
/// # Errors
/// [`ErrorKind::Input`] when it does not fit, [`ErrorKind::Missing`] without `mke2fs`.
pub fn config_drive(path: &Path, drive: &ConfigDrive<'_>) -> Result<()> {
    let io = |error: std::io::Error| Error::io(OP, path, error);
    let beside = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let tree = tempfile::Builder::new().prefix(".config-").tempdir_in(beside).map_err(io)?;
    lay_out(tree.path(), drive).map_err(io)?;

    // mke2fs syncs four times; in memory that costs nothing, and the caller syncs the result once anyway.
    let image = memory_file().map_err(io)?;
    let made = Tool::new(OP, "mke2fs", "e2fsprogs")
        .args(["-q", "-F", "-t", "ext4", "-b", "1024", "-I", "128", "-m", "0", "-N", INODES])
        .args(["-O", "none,filetype,extent,sparse_super", "-U", UUID, "-L", "config"])
        .args(["-E", "root_owner=0:0,nodiscard,lazy_itable_init=0", "-d"])
        .arg(tree.path())
        .args(["/proc/self/fd/0", "1024"])
        .env("MKE2FS_CONFIG", "/dev/null")
        .stdin(OwnedFd::from(image.try_clone().map_err(io)?))
        .run();
    if let Err(error) = made {
        let full = ["allocate block", "allocate inode", "No space", "no free space"];
        return Err(
            if error.kind() == ErrorKind::Tool && full.iter().any(|words| error.to_string().contains(words)) {
                let detail = format!(
                    "its content does not fit {CONFIG_DRIVE_BYTES}; give less here and send the rest with `bhatti file write`"
                );
                Error::input(OP, path, detail)
            } else {
                error
            },
        );
    }
    copy_sparse(&image, path).map_err(io)
}

fn lay_out(tree: &Path, drive: &ConfigDrive<'_>) -> std::io::Result<()> {
    let files = tree.join("files");
    std::fs::create_dir(&files)?;
    let mut listed = Vec::with_capacity(drive.files.len());
    for (number, file) in drive.files.iter().enumerate() {
        std::fs::write(files.join(number.to_string()), &file.content)?;
        listed.push(FileJson { path: &file.path, mode: file.mode, source: format!("files/{number}") });
    }
    // An agent that knows nothing of defaults must not go on without them.
    let version = if drive.defaults.is_empty() { 1 } else { 2 };
    let (env, init, defaults) = (drive.env, drive.init, drive.defaults);
    let json = ConfigJson { version, env, init, defaults, files: listed };
    std::fs::write(tree.join("config.json"), serde_json::to_vec(&json)?)
}

fn memory_file() -> std::io::Result<File> {
    let fd = rustix::fs::memfd_create("config", rustix::fs::MemfdFlags::CLOEXEC)?;
    let file = File::from(fd);
    file.set_len(CONFIG_DRIVE_BYTES.0)?;
    Ok(file)
}

/// Copies what is not zero.
fn copy_sparse(image: &File, path: &Path) -> std::io::Result<()> {
    let mut out = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    out.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    out.set_len(CONFIG_DRIVE_BYTES.0)?;
    let mut block = [0u8; BLOCK];
    for at in (0..CONFIG_DRIVE_BYTES.0).step_by(BLOCK) {
        image.read_exact_at(&mut block, at)?;
        if block != [0u8; BLOCK] {
            out.write_all_at(&block, at)?;
        }
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: CommandDefaults = CommandDefaults { cwd: None, user: None, init: Vec::new() };

    fn file(path: &str, content: Vec<u8>) -> GuestFile {
        GuestFile { path: path.into(), content, mode: 0o640 }
    }

    fn debugfs(image: &Path, command: &str) -> String {
        let out =
            Tool::new("read back", "debugfs", "e2fsprogs").args(["-R", command]).arg(image).output().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_drive_is_a_clean_small_private_filesystem_with_what_was_given() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.ext4");
        let env = BTreeMap::from([("K".to_owned(), "v \"quoted\" \n".to_owned())]);
        let files = [file("/etc/motd", b"hello\n".to_vec()), file("/empty", Vec::new())];
        let drive = ConfigDrive { env: &env, init: Some("sleep 1"), defaults: &NONE, files: &files };
        config_drive(&path, &drive).unwrap();

        Tool::new("check", "e2fsck", "e2fsprogs").args(["-f", "-n"]).arg(&path).run().unwrap();
        let json: serde_json::Value = serde_json::from_str(&debugfs(&path, "cat config.json")).unwrap();
        assert_eq!(json["version"], 1);
        assert_eq!(json["env"]["K"], "v \"quoted\" \n");
        assert_eq!(json["init"], "sleep 1");
        assert_eq!(json["files"][0]["path"], "/etc/motd");
        assert_eq!(json["files"][0]["mode"], 0o640);
        assert_eq!(debugfs(&path, "cat files/0"), "hello\n");
        assert_eq!(debugfs(&path, "cat files/1"), "");

        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!((meta.len(), meta.permissions().mode() & 0o7777), (1 << 20, 0o600));
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["config.ext4"], "nothing of the secrets stays beside it");
    }

    #[test]
    fn what_an_image_wants_is_on_a_drive_that_older_agents_refuse() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.ext4");
        let (env, defaults) = (BTreeMap::new(), CommandDefaults { user: Some("7".into()), ..NONE });
        config_drive(&path, &ConfigDrive { env: &env, init: None, defaults: &defaults, files: &[] }).unwrap();
        let json: serde_json::Value = serde_json::from_str(&debugfs(&path, "cat config.json")).unwrap();
        assert_eq!((json["version"].as_u64(), json["defaults"]["user"].as_str()), (Some(2), Some("7")));
    }

    #[test]
    fn what_is_promised_to_fit_fits() {
        let dir = tempfile::tempdir().unwrap();
        let env = BTreeMap::from([("K".to_owned(), "x".repeat(64 << 10))]);
        let size = usize::try_from(CONFIG_FILES_MAX_BYTES.0).unwrap() / 128;
        let files: Vec<_> = (0..128).map(|n| file(&format!("/f{n}"), vec![7; size])).collect();
        let drive = ConfigDrive { env: &env, init: None, defaults: &NONE, files: &files };
        config_drive(&dir.path().join("many"), &drive).unwrap();
        let one = [file("/f", vec![7; size * 128])];
        config_drive(&dir.path().join("one"), &ConfigDrive { files: &one, ..drive }).unwrap();
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let files = [file("/big", vec![7; 2 << 20])];
        let env = BTreeMap::new();
        let drive = ConfigDrive { env: &env, init: None, defaults: &NONE, files: &files };
        let error = config_drive(&dir.path().join("c"), &drive).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Input, "{error}");
        assert!(error.to_string().contains("bhatti file write"), "{error}");
    }
}
