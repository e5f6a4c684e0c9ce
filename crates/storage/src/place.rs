//! A sandbox's directory changes places with one in which a VMM waits already.
//!
//! A VMM cannot be told to work in another directory, nor to hold the lock of one. So the directory that it was started
//! in becomes the sandbox's: same files, another inode.
//!
//! # Crash order
//! The sandbox has no machine and stays in the state that its manifest names, all along. 1. Every file gets a second
//! name in the new directory; 2. fsync of that; 3. the two directories change their names in one step; 4. fsync of their
//! parent; 5. the old one, which has the staging name now, is removed. Whichever of the two has the sandbox's name after
//! a crash, it is whole; the other is a staging directory that nobody holds. Nothing may write a file of the
//! sandbox between 1 and 5; the caller holds the lock of its machine, and the VMM that of the new directory.

use crate::durable;
use crate::error::Result;
use crate::layout;
use crate::sandbox_dir::{SandboxDir, StagedSandbox};

/// What a VMM makes for itself.
const OF_A_VMM: [&str; 4] = [layout::QMP_SOCKET, layout::AGENT_SOCKET, layout::VMM_LOG, layout::VMM_ROOM];

impl StagedSandbox {
    /// Step 1. When it fails (not every filesystem has second names), this directory is only good to be dropped, and the
    /// sandbox's is as it was.
    ///
    /// # Errors
    /// What the system says.
    pub fn link_files_of(&self, sandbox: &SandboxDir) -> Result<()> {
        durable::link_all(&sandbox.path, self.dir(), &OF_A_VMM)
    }

    /// Steps 2 to 5. When it fails (not every filesystem exchanges names), the sandbox has either directory, and both are
    /// good.
    ///
    /// # Errors
    /// What the system says.
    pub fn take_place_of(self, sandbox: &SandboxDir) -> Result<()> {
        durable::sync_dir(self.dir())?;
        durable::exchange(&sandbox.path, self.dir())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    use types::SandboxId;

    use crate::{ErrorKind, Store};

    #[test]
    fn a_sandbox_keeps_all_its_files_and_the_lock_goes_with_the_new_directory() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        let sandbox = store.sandbox(&SandboxId::random());
        fs::create_dir(sandbox.path()).unwrap();
        for name in ["rootfs.qcow2", "mem.snap", "manifest.json", "qmp.sock", "vmm.log"] {
            fs::write(sandbox.path().join(name), name).unwrap();
        }
        let disk = fs::metadata(sandbox.path().join("rootfs.qcow2")).unwrap().ino();
        let before = fs::metadata(sandbox.path()).unwrap().ino();

        let place = store.stage_sandbox(&SandboxId::random()).unwrap();
        for name in ["qmp.sock", "agent.sock", "vmm.log"] {
            fs::write(place.dir().join(name), "its own").unwrap();
        }
        // As the VMM would: the file is kept open by another process.
        let held_by_vmm = place.lock_machine().unwrap();
        let lock = sandbox.lock_machine().unwrap();
        place.link_files_of(&sandbox).unwrap();
        place.take_place_of(&sandbox).unwrap();
        drop(lock);

        assert_ne!(fs::metadata(sandbox.path()).unwrap().ino(), before);
        assert_eq!(fs::metadata(sandbox.path().join("rootfs.qcow2")).unwrap().ino(), disk);
        for (name, content) in [
            ("mem.snap", "mem.snap"),
            ("manifest.json", "manifest.json"),
            ("qmp.sock", "its own"),
            ("vmm.log", "its own"),
        ] {
            assert_eq!(fs::read_to_string(sandbox.path().join(name)).unwrap(), content);
        }
        let left: Vec<_> = fs::read_dir(root.path().join("sandboxes")).unwrap().collect();
        assert_eq!(left.len(), 1, "the old directory is gone");
        assert_eq!(sandbox.lock_machine().unwrap_err().kind(), ErrorKind::Busy);
        drop(held_by_vmm);
        assert!(sandbox.lock_machine().is_ok());
    }

    #[test]
    fn where_files_have_no_second_name_the_sandbox_stays_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        let sandbox = store.sandbox(&SandboxId::random());
        // A directory stands for a file that cannot have one.
        fs::create_dir_all(sandbox.path().join("rootfs.qcow2")).unwrap();
        let place = store.stage_sandbox(&SandboxId::random()).unwrap();
        let staged = place.dir().to_owned();
        assert!(place.link_files_of(&sandbox).is_err());
        drop(place);
        assert!(!staged.exists() && sandbox.path().join("rootfs.qcow2").is_dir());
    }

    #[test]
    fn what_a_crash_leaves_between_the_steps_is_a_whole_sandbox_and_a_leftover() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        let sandbox = store.sandbox(&SandboxId::random());
        fs::create_dir(sandbox.path()).unwrap();
        fs::write(sandbox.path().join("rootfs.qcow2"), "disk").unwrap();
        let place = store.stage_sandbox(&SandboxId::random()).unwrap();
        place.link_files_of(&sandbox).unwrap();
        // Nobody lives on who would remove it.
        let staged = place.dir().to_owned();
        let copy = root.path().join("sandboxes/.new-0123456789abcdef");
        fs::rename(&staged, &copy).unwrap();
        drop(place);
        let plan = store.reconcile_plan().unwrap();
        assert!(plan.iter().any(|left| left.path == copy && left.will_be_removed()), "{plan:?}");
        assert!(store.execute(&plan).failed.is_empty());
        assert!(!copy.exists());
        assert_eq!(fs::read_to_string(sandbox.path().join("rootfs.qcow2")).unwrap(), "disk");
    }
}
