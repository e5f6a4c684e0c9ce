//! What images and the kernel are made of, read from `images/*.json` of this repository.

use std::collections::BTreeMap;

use serde::Deserialize;
use types::Arch;

/// Debian's keys, from the package `debian-archive-keyring`.
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The variable that names another mirror than [`DEFAULT_MIRROR`], without `/debian` at its end.
const MIRROR_VARIABLE: &str = "BHATTI_DEBIAN_MIRROR";
const DEFAULT_MIRROR: &str = "http://deb.debian.org";

/// The text of the image `minimal`; part of its recipe's id.
pub(crate) const MINIMAL: &str = include_str!("../../../images/minimal.json");

/// The text that says where the guest's kernel comes from.
const KERNEL: &str = include_str!("../../../images/kernel.json");

/// The guest's kernel, declared.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KernelRecipe {
    /// Why this one.
    #[serde(rename = "about")]
    _about: String,
    /// Debian's releases by code name, the preferred one first.
    pub suites: Vec<String>,
    /// The package by Debian's name of the architecture.
    pub packages: BTreeMap<Arch, String>,
}

impl KernelRecipe {
    /// The only one.
    pub(crate) fn read() -> Self {
        serde_json::from_str(KERNEL).expect("images/kernel.json is checked by a test")
    }
}

/// One image, declared.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recipe {
    /// One sentence for people.
    #[serde(rename = "about")]
    _about: String,
    /// Debian's release by code name.
    pub suite: String,
    /// Archive areas.
    pub components: Vec<String>,
    /// Logical size of the filesystem.
    pub size_mib: u64,
    /// Size of its journal. A small one is rewritten in place more often, and so makes overlays smaller.
    pub journal_mib: u64,
    /// No file is younger than this (seconds since 1970), so that two builds give the same bytes.
    pub source_date_epoch: u64,
    /// Name of the user with uid 1000.
    pub user: String,
    /// Packages beyond the essential ones and apt.
    pub packages: Vec<String>,
    /// Paths that dpkg does not install.
    pub left_out: Vec<String>,
    /// Exceptions from `left_out`.
    pub kept: Vec<String>,
}

impl Recipe {
    /// The image `minimal`.
    pub(crate) fn minimal() -> Self {
        serde_json::from_str(MINIMAL).expect("images/minimal.json is checked by a test")
    }

    /// Lines of a sources.list that fetch this release for the build.
    pub(crate) fn sources(&self) -> Vec<String> {
        sources(&self.suite, &self.components)
    }

    /// The sources that the guest itself is to use: never the build's private mirror.
    pub(crate) fn guest_sources(&self) -> String {
        sources_at(DEFAULT_MIRROR, &self.suite, &self.components).join("\n") + "\n"
    }
}

/// Lines of a sources.list that fetch `suite` with its updates from the mirror in use.
pub(crate) fn sources(suite: &str, components: &[String]) -> Vec<String> {
    let mirror = std::env::var(MIRROR_VARIABLE).ok().filter(|mirror| !mirror.is_empty());
    sources_at(mirror.as_deref().unwrap_or(DEFAULT_MIRROR), suite, components)
}

fn sources_at(at: &str, suite: &str, components: &[String]) -> Vec<String> {
    let (at, components) = (at.trim_end_matches('/'), components.join(" "));
    ["debian", "debian", "debian-security"]
        .into_iter()
        .zip(["", "-updates", "-security"])
        .map(|(archive, pocket)| {
            format!("deb [signed-by={KEYRING}] {at}/{archive} {suite}{pocket} {components}")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_declared_images_can_be_read() {
        let recipe = Recipe::minimal();
        for wanted in ["bash", "coreutils", "ca-certificates", "curl", "iproute2", "procps", "sudo"] {
            assert!(recipe.packages.iter().any(|package| package == wanted), "{wanted}");
        }
        let security =
            format!("deb [signed-by={KEYRING}] http://m/debian-security {}-security main", recipe.suite);
        assert_eq!(sources_at("http://m/", &recipe.suite, &recipe.components)[2], security);
        assert!(!KernelRecipe::read().suites.is_empty());
        assert!(
            [Arch::Amd64, Arch::Arm64].iter().all(|arch| KernelRecipe::read().packages.contains_key(arch))
        );
    }
}
