//! What an image is made of, read from `images/*.json` of this repository.

use serde::Deserialize;

/// Debian's keys, from the package `debian-archive-keyring`.
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The variable that names another mirror than [`DEFAULT_MIRROR`], without `/debian` at its end.
const MIRROR_VARIABLE: &str = "BHATTI_DEBIAN_MIRROR";
const DEFAULT_MIRROR: &str = "http://deb.debian.org";

/// The text of the image `minimal`; part of its recipe's id.
pub(crate) const MINIMAL: &str = include_str!("../../../images/minimal.json");

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

    /// Lines of a sources.list that fetch this release with its security updates.
    pub(crate) fn sources(&self) -> Vec<String> {
        let mirror = std::env::var(MIRROR_VARIABLE).ok().filter(|mirror| !mirror.is_empty());
        self.sources_at(mirror.as_deref().unwrap_or(DEFAULT_MIRROR))
    }

    /// The same from the mirror `at`.
    pub(crate) fn sources_at(&self, at: &str) -> Vec<String> {
        let (at, suite, components) = (at.trim_end_matches('/'), &self.suite, self.components.join(" "));
        ["debian", "debian", "debian-security"]
            .into_iter()
            .zip(["", "-updates", "-security"])
            .map(|(archive, pocket)| format!("deb [signed-by={KEYRING}] {at}/{archive} {suite}{pocket} {components}"))
            .collect()
    }

    /// The sources that the guest itself is to use: never the build's private mirror.
    pub(crate) fn guest_sources(&self) -> String {
        self.sources_at(DEFAULT_MIRROR).join("\n") + "\n"
    }
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
        let security = format!("deb [signed-by={KEYRING}] http://m/debian-security {}-security main", recipe.suite);
        assert_eq!(recipe.sources_at("http://m/")[2], security);
    }
}
