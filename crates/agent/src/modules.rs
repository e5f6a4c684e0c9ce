//! Loading the kernel modules that came with the initramfs.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::io::Errno;

use crate::console::say;

/// Loads every file of `directory` in the order of their names. A module that cannot be loaded is told and skipped:
/// it may be built into this kernel, and what really lacks shows up as a missing device.
pub fn load_all(directory: &Path) {
    let mut paths: Vec<_> = match fs::read_dir(directory) {
        Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
        Err(error) => return say(format_args!("{}: {error}", directory.display())),
    };
    paths.sort();
    for path in paths {
        if let Err(error) = load(&path) {
            say(format_args!("module {}: {error}", path.display()));
        }
    }
}

fn load(path: &Path) -> io::Result<()> {
    match rustix::system::finit_module(File::open(path)?, c"", 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
