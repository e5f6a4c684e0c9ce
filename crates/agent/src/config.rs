//! The config drive: environment, files and init command of this sandbox, read when it becomes itself.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde::Deserialize;
use wire::{CommandDefaults, InlineConfig};

use crate::replace::replace;

const DEVICE: &str = "/dev/vdb";
const MOUNT_POINT: &str = "/run/bhatti/config";
/// 2 has `defaults`.
const VERSION: u32 = 2;

/// What the drive says.
#[derive(Debug, Deserialize)]
struct Config {
    version: u32,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    init: Option<String>,
    #[serde(default)]
    defaults: CommandDefaults,
    #[serde(default)]
    files: Vec<PlacedFile>,
}

#[derive(Debug, Deserialize)]
struct PlacedFile {
    path: String,
    mode: u32,
    source: String,
}

/// Reads the drive and, at the first boot under an identity, places its files. What the kernel cached of the drive is
/// dropped first: in a clone it may be that of a sibling. The drive is mounted only while it is read, where root alone can look.
pub fn read(first_boot: bool, warnings: &mut Vec<String>) -> Result<InlineConfig, String> {
    let say = |what: &'static str| move |error: io::Error| format!("config drive: {what}: {error}");
    let device = File::open(DEVICE).map_err(say(DEVICE))?;
    sys::guest_ioctl::flush_block_buffers(&device).map_err(say("dropping its cached blocks"))?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(MOUNT_POINT).map_err(say(MOUNT_POINT))?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(DEVICE, MOUNT_POINT, "ext4", flags, None).map_err(|error| say("mounting it")(error.into()))?;
    let config = read_mounted(Path::new(MOUNT_POINT), first_boot, warnings);
    unmount(MOUNT_POINT, UnmountFlags::DETACH).map_err(|error| say("unmounting it")(error.into()))?;
    let _ = fs::remove_dir(MOUNT_POINT);
    config
}

fn read_mounted(drive: &Path, first_boot: bool, warnings: &mut Vec<String>) -> Result<InlineConfig, String> {
    let json =
        fs::read(drive.join("config.json")).map_err(|error| format!("config drive: config.json: {error}"))?;
    let config: Config =
        serde_json::from_slice(&json).map_err(|error| format!("config drive: config.json: {error}"))?;
    if !(1..=VERSION).contains(&config.version) {
        return Err(format!(
            "config drive: version {} is newer than {VERSION}; this agent is too old",
            config.version
        ));
    }
    if first_boot {
        for file in &config.files {
            let placed = match File::open(drive.join(&file.source)) {
                Ok(mut content) => replace(&file.path, Some(file.mode), true, &mut content)
                    .map(drop)
                    .map_err(|failed| failed.message),
                Err(error) => Err(format!("{}: {}: {error}", file.path, file.source)),
            };
            if let Err(message) = placed {
                warnings.push(format!("file not placed: {message}"));
            }
        }
    }
    Ok(InlineConfig { env: config.env, init: config.init, defaults: config.defaults })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_placed_where_the_drive_says_and_one_that_cannot_be_is_a_warning() {
        let directory = tempfile::tempdir().expect("a directory");
        let (drive, target) = (directory.path().join("drive"), directory.path().join("deep/target"));
        fs::create_dir_all(drive.join("files")).expect("a directory");
        fs::write(drive.join("files/0"), "zero").expect("writes");
        let json = serde_json::json!({"version": 1, "env": {"A": "b"}, "init": null, "files": [
            {"path": target, "mode": 0o600, "source": "files/0"},
            {"path": "/dev/null", "mode": 0o600, "source": "files/0"},
            {"path": target, "mode": 0o600, "source": "files/1"},
        ]});
        fs::write(drive.join("config.json"), json.to_string()).expect("writes");
        let mut warnings = vec![];
        let config = read_mounted(&drive, true, &mut warnings).expect("reads");
        assert_eq!((config.env["A"].as_str(), config.init), ("b", None));
        assert_eq!(fs::read(&target).expect("reads"), b"zero");
        assert!(config.defaults.is_empty(), "a drive of version 1 has none");
        assert_eq!(warnings.len(), 2);

        fs::write(&target, "changed since").expect("writes");
        read_mounted(&drive, false, &mut warnings).expect("reads");
        assert_eq!(fs::read(&target).expect("reads"), b"changed since", "a later boot undoes nothing");
    }

    #[test]
    fn a_newer_drive_is_refused_by_its_version() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("config.json"), r#"{"version":3}"#).expect("writes");
        let error = read_mounted(directory.path(), true, &mut vec![]).expect_err("refused");
        assert!(error.contains("version 3"), "{error}");
    }
}
