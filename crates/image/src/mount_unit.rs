//! The systemd unit that mounts a btrfs file at every boot, or what else does.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::loop_fs::LOOP_MOUNT_OPTIONS;
use crate::run::Tool;
use crate::{Error, Result};

/// There while systemd is the init that runs: sd_booted(3).
const RUNNING: &str = "/run/systemd/system";
const UNITS: &str = "/etc/systemd/system";
const WANTS: &str = "local-fs.target.wants";
/// By this line a unit is known as one that was written here.
const HEAD: &str = "# Written by `bhatti setup --storage btrfs-loop`; `--undo` removes it.";
/// NAME_MAX of linux/limits.h: a unit is a file.
const NAME_MAX: usize = 255;

const WRITE: &str = "write the mount unit";
const REMOVE: &str = "remove the mount unit";

/// What mounts the file `backing` on the directory `at` when the host boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountUnit {
    backing: String,
    at: String,
}

/// Whether a unit is where systemd looks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitState {
    /// Another init runs, or its directory cannot be written.
    NoSystemd,
    /// There is none.
    Absent,
    /// It was written here, and is enabled.
    Installed,
    /// It was written here, and is out of date or not enabled.
    Stale,
    /// There is one of this name that somebody else wrote.
    Foreign,
}

impl MountUnit {
    /// For two absolute paths.
    ///
    /// # Errors
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) for paths that a unit cannot name: other than UTF-8, with control
    /// characters, ending in a space or a backslash, or too long.
    pub fn new(backing: &Path, at: &Path) -> Result<Self> {
        let named = |path: &Path| {
            let text = path.to_str().filter(|text| {
                !text.chars().any(char::is_control) && !text.ends_with([' ', '\\']) && text.starts_with('/')
            });
            text.map(str::to_owned)
                .ok_or_else(|| Error::input("mount", path, "a mount unit cannot name this path"))
        };
        let unit = Self { backing: named(backing)?, at: named(at)? };
        if unit.name().len() > NAME_MAX {
            return Err(Error::input("mount", at, "the path is too long for the name of a mount unit"));
        }
        Ok(unit)
    }

    /// Its file name, which systemd wants to follow from the directory: systemd-escape(1).
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}.mount", escape_path(&self.at))
    }

    /// Where it is when it is installed.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(UNITS).join(self.name())
    }

    fn wanted(&self) -> PathBuf {
        Path::new(UNITS).join(WANTS).join(self.name())
    }

    /// What is in it.
    #[must_use]
    pub fn text(&self) -> String {
        // A percent sign begins a specifier in a unit.
        let plain = |path: &str| path.replace('%', "%%");
        let above = Path::new(&self.backing).parent().and_then(Path::to_str).unwrap_or("/");
        // Here a value is a list of words.
        let word = plain(above).replace('\\', "\\\\").replace('"', "\\\"");
        format!(
            "{HEAD}\n[Unit]\nDescription=bhatti's data, a btrfs in a file\nRequiresMountsFor=\"{word}\"\n\n\
             [Mount]\nWhat={}\nWhere={}\nType=btrfs\nOptions={LOOP_MOUNT_OPTIONS}\n\n\
             [Install]\nWantedBy=local-fs.target\n",
            plain(&self.backing),
            plain(&self.at),
        )
    }

    /// The same for hosts without systemd: a line of fstab(5).
    #[must_use]
    pub fn fstab_line(&self) -> String {
        let field = |path: &str| path.replace('\\', "\\134").replace(' ', "\\040").replace('#', "\\043");
        format!("{} {} btrfs {LOOP_MOUNT_OPTIONS} 0 0", field(&self.backing), field(&self.at))
    }

    /// Looks.
    #[must_use]
    pub fn state(&self) -> UnitState {
        let writable = || rustix::fs::access(UNITS, rustix::fs::Access::WRITE_OK).is_ok();
        if !Path::new(RUNNING).is_dir() || !writable() {
            return UnitState::NoSystemd;
        }
        match fs::read_to_string(self.path()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => UnitState::Absent,
            Ok(text) if text == self.text() && fs::symlink_metadata(self.wanted()).is_ok() => {
                UnitState::Installed
            }
            Ok(text) if text.starts_with(HEAD) => UnitState::Stale,
            _ => UnitState::Foreign,
        }
    }

    /// Writes it and has systemd mount at every boot from now on. May be repeated.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io), or [`ErrorKind::Tool`](crate::ErrorKind::Tool) with what `systemctl`
    /// said.
    pub fn install(&self) -> Result<()> {
        let path = self.path();
        let write = || {
            let mut staged = tempfile::NamedTempFile::new_in(UNITS)?;
            staged.write_all(self.text().as_bytes())?;
            staged.as_file().set_permissions(Permissions::from_mode(0o644))?;
            staged.as_file().sync_all()?;
            staged.persist(&path).map_err(|error| error.error)
        };
        write().map_err(|error| Error::io(WRITE, &path, error))?;
        systemctl(WRITE, &["daemon-reload"])?;
        systemctl(WRITE, &["enable", &self.name()])
    }

    /// Takes it back; one that somebody else wrote stays. May be repeated.
    ///
    /// # Errors
    /// As for [`install`](Self::install).
    pub fn remove(&self) -> Result<()> {
        if !matches!(self.state(), UnitState::Installed | UnitState::Stale) {
            return Ok(());
        }
        let path = self.path();
        systemctl(REMOVE, &["disable", &self.name()])?;
        fs::remove_file(&path).map_err(|error| Error::io(REMOVE, &path, error))?;
        systemctl(REMOVE, &["daemon-reload"])
    }
}

fn systemctl(op: &'static str, args: &[&str]) -> Result<()> {
    Tool::new(op, "systemctl", "systemd").args(args).run()
}

/// The escaping of systemd.unit(5) for an absolute path.
fn escape_path(path: &str) -> String {
    use std::fmt::Write as _;
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return "-".to_owned();
    }
    let mut name = String::new();
    for (at, byte) in parts.join("/").bytes().enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if at == 0 => name.push_str("\\x2e"),
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b':' | b'_' | b'.' => name.push(char::from(byte)),
            _ => {
                let _always = write!(name, "\\x{byte:02x}");
            }
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(at: &str) -> MountUnit {
        MountUnit::new(Path::new(&format!("{at}.btrfs")), Path::new(at)).unwrap()
    }

    #[test]
    fn the_name_is_what_systemd_makes_of_the_path() {
        for (path, name) in [
            ("/var/lib/bhatti", "var-lib-bhatti.mount"),
            ("/var/lib/bha-tti", "var-lib-bha\\x2dtti.mount"),
            ("/.a//b c/d%é", "\\x2ea-b\\x20c-d\\x25\\xc3\\xa9.mount"),
        ] {
            assert_eq!(unit(path).name(), name);
            let escape =
                std::process::Command::new("systemd-escape").args(["-p", "--suffix=mount", path]).output();
            if let Ok(output) = escape
                && output.status.success()
            {
                assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), name);
            }
        }
    }

    #[test]
    fn the_unit_mounts_as_setup_does() {
        let text = unit("/srv/100% data").text();
        for line in [
            "What=/srv/100%% data.btrfs",
            "Where=/srv/100%% data",
            "Type=btrfs",
            "Options=loop,noatime,compress=zstd:1",
            "RequiresMountsFor=\"/srv\"",
            "WantedBy=local-fs.target",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in {text}");
        }
        assert_eq!(
            unit("/srv/a b").fstab_line(),
            "/srv/a\\040b.btrfs /srv/a\\040b btrfs loop,noatime,compress=zstd:1 0 0"
        );
    }

    #[test]
    fn paths_that_no_unit_can_name_are_refused() {
        for path in ["/a\nb", "/a\\", "relative", &format!("/{}", "a".repeat(260))] {
            assert!(MountUnit::new(Path::new("/b"), Path::new(path)).is_err(), "{path:?}");
        }
    }
}
