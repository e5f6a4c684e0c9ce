//! The QEMU program of this host: found, asked for its version, and what follows from the version.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use sys::host_confine::Confinement;
use types::Arch;

use crate::cgroup::Cgroups;
use crate::error::{Error, ErrorKind, Result};

/// A version of QEMU; ordered as versions are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// 10 of 10.0.2.
    pub major: u32,
    /// 0 of 10.0.2.
    pub minor: u32,
    /// 2 of 10.0.2.
    pub micro: u32,
}

impl Version {
    /// Takes `10.0.2`, and anything after it that is not part of a number.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().splitn(3, '.').map(|part| {
            let digits = part.bytes().take_while(u8::is_ascii_digit).count();
            part.get(..digits).and_then(|digits| digits.parse::<u32>().ok())
        });
        Some(Self {
            major: parts.next()??,
            minor: parts.next()??,
            micro: parts.next().flatten().unwrap_or(0),
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// The oldest QEMU whose snapshots and options this room was tried with.
const OLDEST: Version = Version { major: 7, minor: 2, micro: 0 };

/// The first one whose `memory-backend-file` can open its file read-only for a private, writable mapping
/// (`readonly=on,rom=off`).
const READ_ONLY_BASE: Version = Version { major: 8, minor: 2, micro: 0 };

/// A QEMU that was found and answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qemu {
    /// The program, or a script that runs it.
    pub path: PathBuf,
    /// What it says it is.
    pub version: Version,
    /// Where each machine gets a group of its own, if it gets one.
    pub cgroups: Option<Arc<Cgroups>>,
    /// What each VMM gives up before it begins, if it does.
    pub confinement: Option<Confinement>,
}

impl Qemu {
    /// Removes the groups of machines that have ended, and what held them if there is none left.
    ///
    /// # Errors
    /// What the system says.
    pub fn leave_cgroups(&self) -> std::io::Result<()> {
        self.cgroups.as_ref().map_or(Ok(()), |cgroups| cgroups.leave())
    }

    /// Finds the program (`given`, else by its usual name in `PATH`) and asks for its version. Blocks for as long as
    /// the program takes to print it.
    ///
    /// # Errors
    /// `Missing` with the package to install, `TooOld`, or `Spawn` when it does not run.
    pub fn discover(given: Option<&Path>, arch: Arch) -> Result<Self> {
        const OP: &str = "looking for QEMU";
        let (name, package) = match arch {
            Arch::Amd64 => ("qemu-system-x86_64", "qemu-system-x86"),
            Arch::Arm64 => ("qemu-system-aarch64", "qemu-system-arm"),
        };
        // It is started in another directory later, so a relative path with a slash would not be found again.
        let path = match given {
            Some(given) if given.components().count() > 1 => {
                std::path::absolute(given).unwrap_or_else(|_| given.to_path_buf())
            }
            Some(given) => given.to_path_buf(),
            None => PathBuf::from(name),
        };
        let shown = path.display().to_string();
        let output =
            Command::new(&path).arg("--version").stdin(Stdio::null()).output().map_err(
                |error| match error.kind() {
                    std::io::ErrorKind::NotFound if given.is_none() => Error::new(
                        ErrorKind::Missing,
                        OP,
                        format!("{name} is not installed; apt-get install {package}"),
                    ),
                    std::io::ErrorKind::NotFound => {
                        Error::new(ErrorKind::Missing, OP, format!("there is no {shown}"))
                    }
                    _ => Error::new(ErrorKind::Spawn, OP, format!("{shown} does not run")).with_source(error),
                },
            )?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text
            .split_once("version ")
            .and_then(|(_, rest)| Version::parse(rest))
            .filter(|_| output.status.success())
            .ok_or_else(|| {
                let said = String::from_utf8_lossy(&output.stderr);
                let line = said.lines().chain(text.lines()).next().unwrap_or("nothing").to_owned();
                Error::new(ErrorKind::Spawn, OP, format!("{shown} --version said: {line}"))
            })?;
        if version < OLDEST {
            return Err(Error::new(
                ErrorKind::TooOld,
                OP,
                format!("{shown} is {version}; {OLDEST} or newer is needed"),
            ));
        }
        Ok(Self { path, version, cgroups: None, confinement: None })
    }

    /// Whether it maps a RAM base without opening it for writing. When not, `MachineSpec::ram_base_writable` must be
    /// set, and the base must be a file that this user may open read-write; its content stays as it is either way.
    #[must_use]
    pub fn opens_base_read_only(&self) -> bool {
        self.version >= READ_ONLY_BASE
    }

    /// The machine type that every version from the oldest supported one on has, so that device states made by an
    /// older QEMU load in a newer one.
    #[must_use]
    pub const fn machine_type(arch: Arch) -> &'static str {
        match arch {
            Arch::Amd64 => "pc-q35-7.2",
            Arch::Arm64 => "virt-7.2",
        }
    }

    /// Refuses a device state that was saved by a newer release than this one; to be asked before anything is
    /// consumed. Point releases (the last number) may differ either way. A pinned machine type often lets an older
    /// QEMU load it all the same (10.0 to 7.2 did in a trial), but QEMU promises only the other direction, and a state
    /// half understood shows much later.
    ///
    /// # Errors
    /// `SnapshotTooNew`.
    pub fn check_loads(&self, saved_by: Version) -> Result<()> {
        if (saved_by.major, saved_by.minor) > (self.version.major, self.version.minor) {
            return Err(Error::new(
                ErrorKind::SnapshotTooNew,
                "loading a device state",
                format!(
                    "it was saved by QEMU {saved_by} and this is {}; install QEMU {}.{} or newer",
                    self.version, saved_by.major, saved_by.minor
                ),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn script(dir: &Path, says: &str) -> PathBuf {
        let path = dir.join("qemu");
        std::fs::write(&path, format!("#!/bin/sh\n{says}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn versions_are_read_and_ordered() {
        let version = |text| Version::parse(text).unwrap();
        assert!(version("7.2.22 (Debian 1:7.2)") < version("10.0.2"));
        assert_eq!(version("9.1-rc2").to_string(), "9.1.0");
        assert_eq!(version("8.2.50").micro, 50);
        for bad in ["", "x", "7", "7.", ".2", "99999999999.1"] {
            assert_eq!(Version::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_program_is_judged_by_what_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let ask = |says: &str| Qemu::discover(Some(&script(dir.path(), says)), Arch::Amd64);
        let found = ask("echo QEMU emulator version 8.2.0, more").unwrap();
        assert!(found.opens_base_read_only());
        assert!(!ask("echo QEMU emulator version 7.2.22").unwrap().opens_base_read_only());
        assert_eq!(ask("echo QEMU emulator version 7.1.0").unwrap_err().kind(), ErrorKind::TooOld);
        assert_eq!(ask("echo hello").unwrap_err().kind(), ErrorKind::Spawn);
        assert_eq!(ask("echo version 8.2.0; exit 1").unwrap_err().kind(), ErrorKind::Spawn);
        let missing = Qemu::discover(Some(Path::new("/no/such")), Arch::Amd64).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::Missing);
    }

    #[test]
    fn a_state_of_a_newer_release_is_refused_by_name() {
        let qemu = |text| Qemu {
            path: "q".into(),
            version: Version::parse(text).unwrap(),
            cgroups: None,
            confinement: None,
        };
        let saved_by = |text| Version::parse(text).unwrap();
        assert!(qemu("10.0.2").check_loads(saved_by("7.2.22")).is_ok());
        assert!(qemu("10.0.2").check_loads(saved_by("10.0.13")).is_ok());
        let error = qemu("7.2.22").check_loads(saved_by("10.0.2")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SnapshotTooNew);
        assert!(
            error.to_string().contains("saved by QEMU 10.0.2 and this is 7.2.22; install QEMU 10.0 or newer")
        );
    }
}
