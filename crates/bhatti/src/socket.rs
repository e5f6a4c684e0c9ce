//! Unix sockets at paths of any length.
//!
//! The kernel takes at most 107 bytes of path (`sun_path` in unix(7)). So the directory is opened first and the
//! socket named through `/proc/self/fd`, which is always short.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// A short name for a path, good for as long as this lives.
#[derive(Debug)]
pub struct ShortPath {
    _directory: OwnedFd,
    path: PathBuf,
}

impl ShortPath {
    /// Names `path`, whose directory must be there.
    ///
    /// # Errors
    /// What opening the directory gives.
    pub fn new(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directory =
            rustix::fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        Ok(Self { _directory: directory, path })
    }

    /// The short name.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_at_a_long_path_can_be_bound_and_found() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let path = deep.join("bhatti.sock");
        assert!(std::os::unix::net::UnixListener::bind(&path).is_err());
        let _listener =
            std::os::unix::net::UnixListener::bind(ShortPath::new(&path).unwrap().path()).unwrap();
        assert!(std::os::unix::net::UnixStream::connect(ShortPath::new(&path).unwrap().path()).is_ok());
    }
}
