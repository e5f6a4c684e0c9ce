//! The initramfs: the agent as `/init` and the few modules a guest needs, the same bytes from the same inputs.

use std::path::Path;

use crate::{Error, Result};

/// What went into an initramfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initramfs {
    /// Modules in load order, such as `virtio_ring`; those built into the kernel are not among them.
    pub modules: Vec<String>,
    /// Length of the archive in bytes.
    pub len: types::Bytes,
}

/// Writes the initramfs for `agent` (a static executable) and the modules of one kernel to `out`.
///
/// # Errors
/// [`ErrorKind::Input`](crate::ErrorKind::Input) when a module is neither built in nor in `modules_dir`, or when
/// `agent` is no static executable.
pub fn build_initramfs(agent: &[u8], modules_dir: &Path, out: &Path) -> Result<Initramfs> {
    let _ = (agent, modules_dir);
    Err(Error::input("build the initramfs", out, "not built yet"))
}
