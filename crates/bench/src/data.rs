//! A data directory for the bench alone, with what was set up in it.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use storage::Store;
use tempfile::TempDir;

use crate::Options;
use crate::error::{During as _, Result};

/// Beside what was set up, over hard links to it.
pub(crate) fn linked(options: &Options) -> Result<TempDir> {
    let prepared = open(&options.data_dir)?;
    let dir = new_dir(prepared.root())?;
    prepared.link_into(dir.path()).during("linking what was set up; run `bhatti setup` first")?;
    Ok(dir)
}

/// The same, with all templates that were made for a daemon in `from` since.
pub(crate) fn linked_with(options: &Options, from: &Path) -> Result<TempDir> {
    let prepared = open(&options.data_dir)?;
    let dir = new_dir(prepared.root())?;
    open(from)?.link_into(dir.path()).during("linking what another daemon has")?;
    // That daemon writes to its own.
    fs::copy(prepared.db_path(), dir.path().join("bhatti.db")).during("copying the index")?;
    Ok(dir)
}

/// On another filesystem: a copy with the same holes, its images stored there as `setup` would store them.
pub(crate) fn copied(options: &Options, at: &Path) -> Result<TempDir> {
    let prepared = open(&options.data_dir)?;
    let dir = new_dir(at)?;
    let mut names = HashMap::new();
    for part in ["images", "kernel", "templates"] {
        copy(&prepared.root().join(part), &dir.path().join(part), &mut names)?;
    }
    let index = prepared.db_path();
    if index.exists() {
        fs::copy(&index, dir.path().join("bhatti.db")).during("copying the index")?;
    }
    let store = open(dir.path())?;
    for image in store.images().list().during("looking for images; run `bhatti setup` first")? {
        store.images().settle(&image).during("storing an image")?;
    }
    Ok(dir)
}

fn open(root: &Path) -> Result<Store> {
    Store::open(root).during("opening the data directory")
}

fn new_dir(at: &Path) -> Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".bench-").tempdir_in(at).during("making a data directory for the bench")
}

/// Copies what is immutable; `names` are the first copies of files that have several names.
fn copy(from: &Path, to: &Path, names: &mut HashMap<(u64, u64), PathBuf>) -> Result<()> {
    let during = "copying what was set up";
    fs::create_dir_all(to).during(during)?;
    for entry in fs::read_dir(from).during(during)? {
        let entry = entry.during(during)?;
        // What is being made has a name that begins so.
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let meta = fs::symlink_metadata(&from).during(during)?;
        if meta.is_dir() {
            copy(&from, &to, names)?;
        } else if meta.is_symlink() {
            let target = fs::read_link(&from).during(during)?;
            std::os::unix::fs::symlink(target, &to).during(during)?;
        } else if let Some(first) = names.get(&(meta.dev(), meta.ino())) {
            fs::hard_link(first, &to).during(during)?;
        } else {
            storage::clone_file(&from, &to).during(during)?;
            fs::set_permissions(&to, meta.permissions()).during(during)?;
            names.insert((meta.dev(), meta.ino()), to);
        }
    }
    Ok(())
}
