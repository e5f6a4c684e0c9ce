//! Locks that end with the process that holds them.

use std::fs::File;

/// Held by the one daemon of a data root.
#[derive(Debug)]
pub struct DaemonLock {
    pub(crate) _file: File,
}

/// Held by the one `setup` at a time.
#[derive(Debug)]
pub struct SetupLock {
    pub(crate) _file: File,
}
