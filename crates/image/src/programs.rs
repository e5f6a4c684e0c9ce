//! The host's programs that bhatti runs, and where they come from.

use std::path::PathBuf;

/// A program of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// Where it is; `None` when it is not installed.
    pub path: Option<PathBuf>,
    /// Debian's package with it.
    pub package: &'static str,
    /// What does not work without it.
    pub used_for: &'static str,
    /// Whether sandboxes cannot be created without it; the others are needed by `setup` alone.
    pub needed_to_run: bool,
}

/// Every program that this room may run, looked up in `PATH` and in the directories of administrators' programs.
#[must_use]
pub fn programs() -> Vec<Program> {
    const ALL: [(&str, &str, &str, bool); 6] = [
        ("mke2fs", "e2fsprogs", "config drives and images cannot be made", true),
        ("qemu-img", "qemu-utils", "new templates cannot be made", true),
        ("mmdebstrap", "mmdebstrap", "`setup` cannot make the image minimal", false),
        ("apt-get", "apt", "`setup` cannot fetch a kernel: give --kernel and --modules", false),
        ("dpkg-deb", "dpkg", "`setup` cannot unpack a kernel: give --kernel and --modules", false),
        ("tar", "tar", "`setup` cannot make the image minimal", false),
    ];
    ALL.into_iter()
        .map(|(name, package, used_for, needed_to_run)| Program {
            name,
            path: find(name),
            package,
            used_for,
            needed_to_run,
        })
        .collect()
}

/// Where a program is, as [`Tool`](crate::run::Tool) would find it.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // mke2fs is in a directory that is in the PATH of root only.
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|dir| dir.join(name)).find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_where_they_are() {
        assert!(find("tar").is_some());
        assert_eq!(find("no-such-program-anywhere"), None);
    }
}
