//! Unix sockets at paths of any length, and files sent over them.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

/// A directory held open, whose entries have short paths while it is: socket addresses end at 107 bytes
/// (`sun_path`, unix(7)), data directories do not.
#[derive(Debug)]
pub struct ProcFdPath {
    directory: OwnedFd,
}

impl ProcFdPath {
    /// Opens `directory` (`O_PATH`: neither read nor write permission is needed).
    ///
    /// # Errors
    /// It is not there or not a directory.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { directory: rustix::fs::open(directory, flags, Mode::empty())? })
    }

    /// `/proc/self/fd/N/<name>`; right in this process and as long as `self` lives.
    #[must_use]
    pub fn path_of(&self, name: impl AsRef<OsStr>) -> PathBuf {
        let mut path = PathBuf::from(format!("/proc/self/fd/{}", self.directory.as_raw_fd()));
        path.push(name.as_ref());
        path
    }
}

/// Sends `bytes` with one file attached (`SCM_RIGHTS`). Returns how many bytes were taken; the file went with the
/// first of them.
///
/// # Errors
/// The other end is gone, or (`WouldBlock`) the socket is non-blocking and full: nothing was sent then.
pub fn send_with_file(socket: impl AsFd, bytes: &[u8], file: impl AsFd) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [file.as_fd()];
    if !control.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    Ok(rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn a_file_arrives_with_the_bytes() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"inside").unwrap();
        assert_eq!(send_with_file(&here, b"take", &file).unwrap(), 4);

        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0u8; 16];
        let got = rustix::net::recvmsg(
            &there,
            &mut [io::IoSliceMut::new(&mut bytes)],
            &mut control,
            rustix::net::RecvFlags::CMSG_CLOEXEC,
        )
        .unwrap();
        assert_eq!(&bytes[..got.bytes], b"take");
        let files: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                rustix::net::RecvAncillaryMessage::ScmRights(files) => Some(files.collect::<Vec<_>>()),
                _ => None,
            })
            .flatten()
            .collect();
        let mut text = String::new();
        let mut received = std::fs::File::from(files.into_iter().next().unwrap());
        received.rewind().unwrap();
        received.read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
    }

    #[test]
    fn sockets_work_in_directories_with_long_names() {
        let top = tempfile::tempdir().unwrap();
        let deep = top.path().join("d".repeat(120)).join("e".repeat(120));
        std::fs::create_dir_all(&deep).unwrap();
        assert!(UnixListener::bind(deep.join("s")).is_err());
        let short = ProcFdPath::open(&deep).unwrap();
        let listener = UnixListener::bind(short.path_of("s")).unwrap();
        UnixStream::connect(short.path_of("s")).unwrap();
        drop(listener);
        assert!(deep.join("s").exists());
    }
}
