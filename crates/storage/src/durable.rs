//! The only place that makes things last: stage, write, fsync, rename, fsync the directory.

use std::fs::File;
use std::path::PathBuf;

/// A file under a staging name.
#[derive(Debug)]
pub(crate) struct Staged {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
}
/// A directory under a staging name.
#[derive(Debug)]
pub(crate) struct StagedDir {
    pub(crate) path: PathBuf,
}
