//! apt on a private state directory: reads Debian's archive on any host that has apt, without its configuration of
//! sources, without its lists, without root.

use std::fs;
use std::path::{Path, PathBuf};

use types::Arch;

use crate::recipe::{KEYRING, sources};
use crate::run::Tool;
use crate::{Build, Error, Result};

/// Package lists of one Debian release.
pub(crate) struct PrivateApt<'a> {
    build: &'a Build<'a>,
    op: &'static str,
    options: Vec<String>,
}

impl<'a> PrivateApt<'a> {
    /// Fetches the lists of `suite` into `build.work_dir`, or brings those that are there up to date.
    pub(crate) fn update(build: &'a Build<'a>, op: &'static str, suite: &str, arch: Arch) -> Result<Self> {
        check_keyring(op)?;
        let state = build.work_dir.join(format!("apt-{suite}-{arch}"));
        let io = |error| Error::io(op, &state, error);
        for dir in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(state.join(dir)).map_err(io)?;
        }
        fs::write(state.join("status"), "").map_err(io)?;
        fs::write(state.join("sources.list"), sources(suite, &["main".to_owned()]).join("\n") + "\n")
            .map_err(io)?;
        let state = std::path::absolute(&state).map_err(io)?;
        let at = |name: &str| state.join(name).display().to_string();
        let options = [
            format!("Dir::Etc::sourcelist={}", at("sources.list")),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            "Dir::Etc::preferences=/dev/null".to_owned(),
            "Dir::Etc::preferencesparts=/dev/null".to_owned(),
            format!("Dir::State={}", at("")),
            format!("Dir::State::lists={}", at("lists")),
            format!("Dir::State::status={}", at("status")),
            format!("Dir::Cache={}", at("cache")),
            format!("APT::Architecture={arch}"),
            format!("APT::Architectures={arch}"),
            "APT::Default-Release=".to_owned(),
            "Acquire::Languages=none".to_owned(),
            // Desktop hosts fetch icons and descriptions beside the lists.
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            // The state directory may be readable by its owner alone, which the user _apt is not.
            "APT::Sandbox::User=root".to_owned(),
            "APT::Update::Post-Invoke=".to_owned(),
            "APT::Update::Post-Invoke-Success=".to_owned(),
        ];
        let options = options.into_iter().flat_map(|option| ["-o".to_owned(), option]).collect();
        let apt = Self { build, op, options };
        apt.tool("apt-get").args(["update", "-qq", "--error-on=any"]).run()?;
        Ok(apt)
    }

    fn tool(&self, program: &'static str) -> Tool<'a> {
        // The host's proxies and certificates stay in force; these options win over the rest of its settings.
        Tool::new(self.op, program, "apt").args(&self.options).cancel(self.build.cancel)
    }

    /// The first package that `package` depends on.
    pub(crate) fn dependency_of(&self, package: &str) -> Result<String> {
        let out = self.tool("apt-cache").args(["depends", "--important", package]).output()?;
        first_dependency(&String::from_utf8_lossy(&out)).ok_or_else(|| {
            Error::tool(self.op, format!("Debian's {package} names no kernel; use --kernel and --modules"))
        })
    }

    /// Downloads `package` into `dir`.
    pub(crate) fn download(&self, package: &str, dir: &Path) -> Result<PathBuf> {
        self.tool("apt-get").args(["download", "-qq", package]).dir(dir).run()?;
        let entries = fs::read_dir(dir).map_err(|error| Error::io(self.op, dir, error))?;
        entries
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .ok_or_else(|| Error::tool(self.op, format!("apt-get downloaded no {package}")))
    }
}

/// Nothing from the archive is believed without its signature.
pub(crate) fn check_keyring(op: &'static str) -> Result<()> {
    if Path::new(KEYRING).exists() {
        Ok(())
    } else {
        Err(Error::missing(op, KEYRING, "debian-archive-keyring"))
    }
}

fn first_dependency(text: &str) -> Option<String> {
    text.lines().find_map(|line| line.trim().strip_prefix("Depends: ")).map(|name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versioned_kernel_is_found_behind_its_metapackage() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-44-cloud-amd64\n";
        assert_eq!(first_dependency(text).unwrap(), "linux-image-6.1.0-44-cloud-amd64");
        assert_eq!(first_dependency("linux-image-cloud-amd64\n"), None);
    }
}
