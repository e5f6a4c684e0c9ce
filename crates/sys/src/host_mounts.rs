//! Mounts that one thread sees and nobody else, gone with it.

use std::io;

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Gives the calling thread, and the programs that it starts from here on, a copy of the host's mounts. What is mounted
/// in the copy is seen nowhere else and is unmounted by the kernel when the thread and those programs have ended,
/// however they ended. The thread cannot go back: use one that ends with the work.
///
/// # Errors
/// `PermissionDenied` without CAP_SYS_ADMIN.
pub fn mounts_of_own() -> io::Result<()> {
    // SAFETY: without FILES the thread's table of file descriptors stays the process's own, so no descriptor comes to
    // mean another file; NEWNS changes only what paths mean to this thread.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    // Where mounts are shared, as systemd makes them, the copy would tell the host of what is mounted in it. The other
    // way stays open, so that what the host unmounts is not kept by the copy.
    Ok(mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_mounts_is_its_own() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().to_owned();
        std::thread::spawn(move || {
            mounts_of_own().unwrap();
            rustix::mount::mount("none", &at, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
            std::fs::write(at.join("here"), "x").unwrap();
            let seen = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            assert!(seen.contains(at.to_str().unwrap()));
        })
        .join()
        .unwrap();
        assert!(!dir.path().join("here").exists());
        let seen = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!seen.contains(dir.path().to_str().unwrap()));
    }
}
