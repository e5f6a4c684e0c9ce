//! What images and the kernel are made of, read from `images/*.json` of this repository.

use std::collections::BTreeMap;

use serde::Deserialize;
use types::Arch;

/// Debian's keys, from the package `debian-archive-keyring`.
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The variable that names another mirror than [`DEFAULT_MIRROR`], without `/debian` at its end.
const MIRROR_VARIABLE: &str = "BHATTI_DEBIAN_MIRROR";
const DEFAULT_MIRROR: &str = "http://deb.debian.org";

/// One declared image.
#[derive(Debug)]
pub(crate) struct Tier {
    pub(crate) name: &'static str,
    /// What is said to fail when its build does.
    pub(crate) op: &'static str,
    /// The declaration; part of the recipe's id.
    pub(crate) text: &'static str,
}

macro_rules! tier {
    ($name:literal) => {
        Tier {
            name: $name,
            op: concat!("build the image ", $name),
            text: include_str!(concat!("../../../images/", $name, ".json")),
        }
    };
}

/// All of them; `minimal` is the first.
pub(crate) static TIERS: [Tier; 5] =
    [tier!("minimal"), tier!("dev"), tier!("browser"), tier!("docker"), tier!("computer")];

impl Tier {
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        TIERS.iter().find(|tier| tier.name == name)
    }

    pub(crate) fn recipe(&self) -> Recipe {
        serde_json::from_str(self.text).expect("images/*.json are checked by a test")
    }
}

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
    pub about: String,
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
    /// Groups of the packages that the user belongs to.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Files that no package has.
    #[serde(default)]
    pub files: Vec<GuestText>,
    /// What the guest runs when nobody says otherwise.
    #[serde(default)]
    pub init: Vec<String>,
    /// Whether the guest kernel's modules are in it, for what loads more than the initramfs has.
    #[serde(default)]
    pub modules: bool,
}

/// A text file in an image.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GuestText {
    /// Where it is in the guest.
    pub path: String,
    /// Its mode in octal digits.
    pub mode: String,
    /// Its lines, without their ends.
    pub lines: Vec<String>,
}

impl Recipe {
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
        for tier in &TIERS {
            let recipe = tier.recipe();
            for wanted in ["bash", "coreutils", "ca-certificates", "curl", "iproute2", "procps", "sudo"] {
                assert!(recipe.packages.iter().any(|package| package == wanted), "{}: {wanted}", tier.name);
            }
            let mut sorted = recipe.packages.clone();
            sorted.sort();
            sorted.dedup();
            assert_eq!(recipe.packages, sorted, "{}: in order, each once", tier.name);
            for file in &recipe.files {
                assert!(file.path.starts_with('/') && !file.path.contains(['\'', '"', '$']), "{}", file.path);
                assert!(u32::from_str_radix(&file.mode, 8).is_ok(), "{}", file.mode);
            }
            for group in &recipe.groups {
                assert!(group.bytes().all(|byte| byte.is_ascii_lowercase()), "{group}");
            }
            let init = recipe.init.first();
            assert!(init.is_none_or(|init| recipe.files.iter().any(|file| &file.path == init)));
            let security =
                format!("deb [signed-by={KEYRING}] http://m/debian-security {}-security main", recipe.suite);
            assert_eq!(sources_at("http://m/", &recipe.suite, &recipe.components)[2], security);
        }
        assert_eq!(TIERS.iter().find(|tier| tier.name == "computer").unwrap().recipe().size_mib, 4096);
        assert!(!KernelRecipe::read().suites.is_empty());
        assert!(
            [Arch::Amd64, Arch::Arm64].iter().all(|arch| KernelRecipe::read().packages.contains_key(arch))
        );
    }
}
