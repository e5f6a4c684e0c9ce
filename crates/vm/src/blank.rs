//! A machine without disks that waits for a state: started before it is known whose disks and whose state it will get.
//!
//! ```text
//!  launch_blank ──► Incoming, nobody's ── insert_disks ──► Incoming, as after `launch` of the whole spec
//! ```
//! Its disk devices sit where they always sit, over nodes that hold nothing. A device's `drive` may be set while a
//! machine waits for its state (QEMU 5.0 and newer): the size, the read-only flag and all else that the guest is told of
//! a disk come from the node that is there when it asks.
//!
//! # Invariants
//! - A blank machine has no file open but its RAM base, read-only or privately.
//! - After `insert_disks` nodes and devices have the names and options of a whole command line, so whatever is asked of
//!   the machine later finds them.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use serde_json::{Value, json};

use crate::argv::CONFIG_NODE;
use crate::error::{Error, ErrorKind, Result};
use crate::nodes::ROOT_NODE;
use crate::qmp::Command;
use crate::{Machine, MachineSpec, Nic, Qemu};

/// What stands in for the root disk.
const NO_ROOT: &str = "no-root";
/// What stands in for the config drive.
const NO_CONFIG: &str = "no-config";

/// What of a machine must be known before its VMM starts. One that is blank can become any machine whose
/// [`MachineSpec::blank`] is equal to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blank(MachineSpec);

impl MachineSpec {
    /// The machine without its disks. `None` where a blank one would not do: it boots, has volumes, or lacks a disk.
    #[must_use]
    pub fn blank(&self) -> Option<Blank> {
        let whole = self.incoming && self.root.is_some() && self.config.is_some() && self.volumes.is_empty();
        whole.then(|| Blank(Self { root: None, config: None, ..self.clone() }))
    }
}

impl Blank {
    /// Whether its network card is plugged into a line, which it is then launched with.
    #[must_use]
    pub fn has_line(&self) -> bool {
        self.0.nic == Some(Nic::Line)
    }

    /// The arguments for the program, without its name.
    ///
    /// # Errors
    /// `Refused`: a path that is not UTF-8, which QEMU's JSON cannot carry.
    pub fn argv(&self) -> Result<Vec<OsString>> {
        let nothing = |name: &str, read_only: bool| json!({"driver": "null-co", "node-name": name, "size": 1 << 20, "read-only": read_only});
        let nodes = [nothing(NO_ROOT, false), nothing(NO_CONFIG, true)];
        self.0.argv_over(&nodes, Some(NO_ROOT), Some(NO_CONFIG))
    }
}

impl Machine {
    /// Starts a VMM that is nobody's yet in `dir`; otherwise as [`launch_on_line`](Self::launch_on_line).
    ///
    /// # Errors
    /// As [`launch`](Self::launch).
    pub async fn launch_blank(
        qemu: &Qemu,
        blank: &Blank,
        dir: &Path,
        lock: File,
        line: Option<OwnedFd>,
    ) -> Result<Self> {
        Self::start(qemu, &blank.0, blank.argv()?, dir, lock, line).await
    }

    /// Gives a blank machine the disks of `spec`, whose paths are as seen from the directory that the VMM runs in.
    /// When this fails, the machine is good for nothing but [`kill`](Self::kill).
    ///
    /// # Errors
    /// `Refused`: with what the VMM said, or the spec has no disks. The VMM is gone.
    pub async fn insert_disks(&self, spec: &MachineSpec) -> Result<()> {
        const OP: &str = "giving a machine its disks";
        if spec.blank().is_none() {
            return Err(Error::new(ErrorKind::Refused, OP, "it is not the spec of one that was blank"));
        }
        let _lent = self.inner.lend_disks(OP, spec)?;
        let drive = |name: &str| -> Value {
            json!({"path": format!("/machine/peripheral/{name}"), "property": "drive", "value": name})
        };
        let mut commands: Vec<_> =
            spec.block_nodes()?.into_iter().map(|node| Command::with("blockdev-add", node)).collect();
        for (name, nothing) in [(ROOT_NODE, NO_ROOT), (CONFIG_NODE, NO_CONFIG)] {
            commands.push(Command::with("qom-set", drive(name)));
            commands.push(Command::with("blockdev-del", json!({"node-name": nothing})));
        }
        self.inner.call_all(OP, commands).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use types::{Accel, Arch, Mebibytes};

    use crate::spec::{DiskFile, RootDisk, VolumeDisk, testing};

    #[test]
    fn machines_that_differ_in_their_disks_alone_are_the_same_while_blank() {
        let mut one = testing::spec(Arch::Amd64, Accel::Tcg);
        assert_eq!(one.blank(), None, "it boots, and its firmware would read the disks");
        one.incoming = true;
        let mut other = one.clone();
        other.root = Some(RootDisk { top: DiskFile::raw("rootfs.ext4"), below: Vec::new() });
        other.config = Some(PathBuf::from("other.ext4"));
        assert!(one.blank().is_some());
        assert_eq!(one.blank(), other.blank());
        other.memory = Mebibytes(1024);
        assert_ne!(one.blank(), other.blank());
        other = one.clone();
        other.ram_base = "../../bases/other.ram".into();
        assert_ne!(one.blank(), other.blank());
        other.volumes = vec![VolumeDisk { port: 0, path: "v".into(), read_only: false }];
        assert_eq!(other.blank(), None);
    }
}
