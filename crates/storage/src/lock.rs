//! Locks that end with the process that holds them: `flock` on a file, by open file description.
//!
//! # Invariants
//! The lock of a machine is held by the VMM itself, which inherits the open file; the daemon closes its own copy. A VMM
//! that outlives its daemon therefore still counts as the disk's one writer. It lies on the sandbox's directory, since a
//! root disk that is frozen gets another file; a template's, which never is, on its root disk.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::durable;
use crate::error::{Error, ErrorKind, Result};

/// How long a lock is tried for. It is held for moments by those who only look, and by children of this
/// process between fork and exec, which on a host with more to do than processors may be for a good part of a second.
const PATIENCE: Duration = Duration::from_secs(2);

/// Held by the one daemon of a data root, until dropped.
#[derive(Debug)]
pub struct DaemonLock {
    _file: File,
}

/// Held by the one `setup` at a time, until dropped.
#[derive(Debug)]
pub struct SetupLock {
    _file: File,
}

fn open_lock_file(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| Error::io("open", path, error))
}

pub(crate) fn daemon(root: &Path) -> Result<DaemonLock> {
    let path = root.join("daemon.lock");
    let mut file = open_lock_file(&path)?;
    if let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        let error = Error::io("lock", &path, error);
        if error.kind() != ErrorKind::Busy {
            return Err(error);
        }
        let mut pid = String::new();
        let _ = file.read_to_string(&mut pid);
        let who = match pid.trim() {
            "" => "another daemon".to_owned(),
            pid => format!("another daemon (pid {pid})"),
        };
        return Err(Error::new(ErrorKind::Busy, "serve", root)
            .because(format!("{who} serves this data directory"))
            .hint_to("stop it first, or give another --data-dir"));
    }
    let pid = format!("{}\n", std::process::id());
    file.set_len(0).map_err(|error| Error::io("write", &path, error))?;
    durable::write_at(&file, &path, 0, pid.as_bytes())?;
    Ok(DaemonLock { _file: file })
}

pub(crate) fn setup(root: &Path) -> Result<SetupLock> {
    let path = root.join("setup.lock");
    let file = open_lock_file(&path)?;
    loop {
        match flock(&file, FlockOperation::LockExclusive) {
            Ok(()) => return Ok(SetupLock { _file: file }),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::io("lock", &path, error)),
        }
    }
}

/// As [`daemon`], for one that is none and only keeps daemons out: nothing is written, for the disk may be full.
pub(crate) fn no_daemon(root: &Path) -> Result<DaemonLock> {
    let path = root.join("daemon.lock");
    let file = open_lock_file(&path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|error| Error::io("lock", &path, error))?;
    Ok(DaemonLock { _file: file })
}

/// As [`setup`], but does not wait: `Busy` while another works.
pub(crate) fn try_setup(root: &Path) -> Result<SetupLock> {
    let path = root.join("setup.lock");
    let file = open_lock_file(&path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|error| Error::io("lock", &path, error))?;
    Ok(SetupLock { _file: file })
}

/// Opens a root disk and locks it.
pub(crate) fn root_disk(path: &Path) -> Result<File> {
    exclusive(path).map_err(|error| match error.kind() {
        ErrorKind::Busy => error
            .because("a virtual machine has this disk open")
            .hint_to("stop that machine first; `bhatti doctor` lists those left over"),
        _ => error,
    })
}

/// Opens a directory and locks it: a sandbox's for the machine in it, a snapshot's for its removal.
pub(crate) fn directory(path: &Path) -> Result<File> {
    exclusive(path).map_err(|error| match error.kind() {
        ErrorKind::Busy => error.because("it is in use"),
        _ => error,
    })
}

/// Opens a directory and keeps others from locking it.
pub(crate) fn share_directory(path: &Path) -> Result<File> {
    let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
    flock(&file, FlockOperation::NonBlockingLockShared).map_err(|error| {
        let error = Error::io("lock", path, error);
        if error.kind() == ErrorKind::Busy { error.because("it is being removed") } else { error }
    })?;
    Ok(file)
}

fn exclusive(path: &Path) -> Result<File> {
    let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
    let give_up = Instant::now() + PATIENCE;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < give_up => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(Error::io("lock", path, error)),
        }
    }
}

/// Whether a living process holds the lock of this file or directory; one that is not there is held by nobody.
///
/// # Errors
/// It cannot be opened.
pub fn is_held(path: &Path) -> Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::io("open", path, error)),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(Error::io("lock", path, error)),
    }
}

/// Whether a living process uses a disk image, by QEMU's own locks; one that is not there is used by nobody.
pub(crate) fn is_image_used(path: &Path) -> Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::io("open", path, error)),
    };
    sys::host_image_lock::is_used(&file).map_err(|error| Error::io("lock", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let first = daemon(dir.path()).unwrap();
        let refused = daemon(dir.path()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Busy);
        assert!(refused.to_string().contains(&format!("pid {}", std::process::id())), "{refused}");
        drop(first);
        assert!(daemon(dir.path()).is_ok());
    }

    #[test]
    fn setups_wait_for_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let first = setup(dir.path()).unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| setup(dir.path()).unwrap());
            std::thread::sleep(Duration::from_millis(20));
            assert!(!second.is_finished());
            drop(first);
            second.join().unwrap();
        });
    }

    #[test]
    fn a_root_disk_has_one_holder_and_looking_does_not_take_it() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("rootfs.ext4");
        std::fs::write(&disk, "x").unwrap();
        assert!(!is_held(&disk).unwrap());
        let held = root_disk(&disk).unwrap();
        assert!(is_held(&disk).unwrap());
        assert_eq!(root_disk(&disk).unwrap_err().kind(), ErrorKind::Busy);
        drop(held);
        assert!(root_disk(&disk).is_ok());
        assert!(!is_held(&dir.path().join("missing")).unwrap());
    }
}
