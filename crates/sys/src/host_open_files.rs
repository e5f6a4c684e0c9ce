//! Which files the host's processes have open or mapped, as `/proc` tells it.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The files that processes had open or mapped at one moment. Of processes of other users nothing is known, unless this
/// one runs as root.
#[derive(Debug, Clone, Default)]
pub struct OpenFiles {
    /// Device and inode of what descriptors refer to.
    open: HashSet<(u64, u64)>,
    /// Inode and last name of what is mapped. The device that proc(5) tells there is another one than stat(2)'s on btrfs.
    mapped: HashSet<(u64, String)>,
}

impl OpenFiles {
    /// Looks at every process but this one.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn of_other_processes() -> io::Result<Self> {
        let mut found = Self::default();
        let itself = std::process::id();
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
            if pid.is_some_and(|pid| pid != itself) {
                // A process may end while it is looked at, or be somebody else's.
                found.add(&entry.path());
            }
        }
        Ok(found)
    }

    fn add(&mut self, process: &Path) {
        if let Ok(descriptors) = fs::read_dir(process.join("fd")) {
            // Following the link finds the file itself, whatever its name is by now.
            let open = descriptors.flatten().filter_map(|entry| fs::metadata(entry.path()).ok());
            self.open.extend(open.filter(Metadata::is_file).map(|meta| (meta.dev(), meta.ino())));
        }
        if let Ok(maps) = fs::read_to_string(process.join("maps")) {
            self.mapped.extend(maps.lines().filter_map(mapped_file));
        }
    }

    /// Whether the file at `path`, which `meta` is of, was open or mapped.
    #[must_use]
    pub fn has(&self, path: &Path, meta: &Metadata) -> bool {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.open.contains(&(meta.dev(), meta.ino())) || self.mapped.contains(&(meta.ino(), name))
    }
}

/// Inode and last name of the file in a line of `/proc/PID/maps` (proc(5)).
fn mapped_file(line: &str) -> Option<(u64, String)> {
    let mut words = line.splitn(6, ' ');
    let inode: u64 = words.nth(4)?.parse().ok().filter(|&inode| inode != 0)?;
    let path = words.next()?.trim_start();
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    Some((inode, path.rsplit('/').next()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_line_of_maps_names_its_file() {
        let line = "7f0010000000-7f0010001000 rw-p 10000000 00:2a 4242                       /srv/a b/ram.base (deleted)";
        assert_eq!(mapped_file(line), Some((4242, "ram.base".to_owned())));
        assert_eq!(mapped_file("7f2000000000-7f2000001000 rw-p 00000000 00:00 0 "), None);
        assert_eq!(mapped_file("7f2000000000-7f2000001000 rw-p 00000000 00:00 0    [heap]"), None);
        assert_eq!(mapped_file("nonsense"), None);
    }

    #[test]
    fn what_another_process_has_open_is_found_also_after_it_lost_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let (held, free) = (dir.path().join("held"), dir.path().join("free"));
        fs::write(&held, "x").unwrap();
        fs::write(&free, "x").unwrap();
        let (held_meta, free_meta) = (fs::metadata(&held).unwrap(), fs::metadata(&free).unwrap());
        let mut child = Command::new("sleep")
            .arg("600")
            .stdin(Stdio::from(fs::File::open(&held).unwrap()))
            .spawn()
            .unwrap();
        let found = OpenFiles::of_other_processes().unwrap();
        fs::rename(&held, dir.path().join("moved")).unwrap();
        let again = OpenFiles::of_other_processes().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.has(&held, &held_meta) && again.has(&held, &held_meta));
        assert!(!found.has(&free, &free_meta));
        assert!(!OpenFiles::of_other_processes().unwrap().has(&held, &held_meta));
    }
}
