//! Replacing a file as a whole: readers see the old content or the new, never a part.
//!
//! # Crash order
//! Write to a file without a name, sync it, give it a name of its own beside the target, rename it over the target, sync
//! the directory. Before the naming nothing can be left behind. A name of its own that is found later means that
//! the guest ended between naming and renaming: `.bhatti-write-<pid>`, safe to delete.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use wire::{ErrorCode, Failure};

use crate::failure::{failure, failure_io};

/// Permission bits of a new file.
const NEW_FILE_MODE: u32 = 0o644;

/// Writes all of `content` to `path`. An existing file keeps its owner, and its mode unless one is given; a new
/// one belongs to the owner of its directory. A symbolic link is followed.
pub fn replace(
    path: &str,
    mode: Option<u32>,
    mkdirs: bool,
    content: &mut impl Read,
) -> Result<PathBuf, Failure> {
    let target = resolve(path)?;
    let directory = target.parent().ok_or_else(|| failure(ErrorCode::IsDirectory, path, "is a directory"))?;
    if mkdirs {
        make_directories(directory).map_err(|error| failure_io(directory.display(), &error))?;
    }
    let existing = match fs::metadata(&target) {
        Ok(metadata) if metadata.is_dir() => {
            return Err(failure(ErrorCode::IsDirectory, path, "is a directory"));
        }
        Ok(metadata) if !metadata.is_file() => {
            return Err(failure(ErrorCode::BadRequest, path, "is not a regular file"));
        }
        Ok(metadata) => Some(metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failure_io(path, &error)),
    };
    let parent = fs::metadata(directory).map_err(|error| failure_io(path, &error))?;
    if !parent.is_dir() {
        return Err(failure(ErrorCode::NotDirectory, directory.display(), "is not a directory"));
    }
    let (owner, default_mode) = match &existing {
        Some(old) => (old, old.permissions().mode() & 0o7777),
        None => (&parent, NEW_FILE_MODE),
    };
    let attributes =
        Attributes { uid: owner.uid(), gid: owner.gid(), mode: mode.unwrap_or(default_mode) & 0o7777 };
    write_and_rename(directory, &target, &attributes, content).map_err(|error| failure_io(path, &error))?;
    Ok(target)
}

struct Attributes {
    uid: u32,
    gid: u32,
    mode: u32,
}

/// An absolute path whose existing target's links are followed, so that a rename replaces the file and not the link.
fn resolve(path: &str) -> Result<PathBuf, Failure> {
    if !path.starts_with('/') {
        return Err(failure(ErrorCode::BadRequest, path, "is not an absolute path"));
    }
    if path.ends_with('/') {
        return Err(failure(ErrorCode::IsDirectory, path, "names a directory"));
    }
    Ok(fs::canonicalize(path).unwrap_or_else(|_| PathBuf::from(path)))
}

/// Makes what is missing of `directory`, each level owned as the one above it.
fn make_directories(directory: &Path) -> io::Result<()> {
    if directory.exists() {
        return Ok(());
    }
    let Some(above) = directory.parent() else { return Ok(()) };
    make_directories(above)?;
    let owner = fs::metadata(above)?;
    match fs::create_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    }
    chown(directory, Some(owner.uid()), Some(owner.gid()))
}

fn write_and_rename(
    directory: &Path,
    target: &Path,
    attributes: &Attributes,
    content: &mut impl Read,
) -> io::Result<()> {
    let folder = File::open(directory)?;
    let staged_name = OsString::from(format!(".bhatti-write-{}", std::process::id()));
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::openat(&folder, ".", flags, Mode::RUSR | Mode::WUSR) {
        Ok(unnamed) => {
            let unnamed = File::from(unnamed);
            fill(&unnamed, attributes, content)?;
            rustix::fs::linkat(&unnamed, "", &folder, &staged_name, AtFlags::EMPTY_PATH)?;
        }
        // A file system that has no files without a name.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            let named = rustix::fs::openat(&folder, &staged_name, flags, Mode::RUSR | Mode::WUSR)?;
            if let Err(error) = fill(&File::from(named), attributes, content) {
                let _ = rustix::fs::unlinkat(&folder, &staged_name, AtFlags::empty());
                return Err(error);
            }
        }
        Err(error) => return Err(error.into()),
    }
    if let Err(error) = rustix::fs::renameat(&folder, &staged_name, CWD, target) {
        let _ = rustix::fs::unlinkat(&folder, &staged_name, AtFlags::empty());
        return Err(error.into());
    }
    folder.sync_all()
}

fn fill(mut file: &File, attributes: &Attributes, content: &mut impl Read) -> io::Result<()> {
    io::copy(content, &mut file)?;
    // The mode after the owner: changing the owner clears set-user-id bits.
    let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
    rustix::fs::fchown(file.as_fd(), Some(uid), Some(gid))?;
    rustix::fs::fchmod(file.as_fd(), Mode::from_raw_mode(attributes.mode))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<OsString> {
        let entries = fs::read_dir(directory).expect("lists");
        entries.map(|entry| entry.expect("an entry").file_name()).collect()
    }

    #[test]
    fn a_new_file_gets_its_content_and_mode_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a/b/new");
        let path_text = path.to_str().expect("text");
        replace(path_text, Some(0o600), true, &mut &b"hello"[..]).expect("writes");
        assert_eq!(fs::read(&path).expect("reads"), b"hello");
        assert_eq!(fs::metadata(&path).expect("is there").permissions().mode() & 0o7777, 0o600);
        assert_eq!(names(path.parent().expect("has one")), ["new"]);
    }

    #[test]
    fn an_existing_file_keeps_its_mode_and_a_link_to_it_stays_a_link() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, link) = (directory.path().join("old"), directory.path().join("link"));
        fs::write(&path, "old").expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).expect("changes");
        std::os::unix::fs::symlink("old", &link).expect("links");
        replace(link.to_str().expect("text"), None, false, &mut &b"new"[..]).expect("writes");
        assert_eq!(fs::read(&path).expect("reads"), b"new");
        assert_eq!(fs::metadata(&path).expect("is there").permissions().mode() & 0o7777, 0o750);
        assert!(fs::symlink_metadata(&link).expect("is there").is_symlink());
    }

    #[test]
    fn what_cannot_be_written_says_why_and_changes_nothing() {
        struct Breaks;
        impl Read for Breaks {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(Errno::NOSPC.into())
            }
        }
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        fs::write(&path, "old").expect("writes");
        let text = |path: &Path| path.to_str().expect("text").to_string();
        let code = |path: &str, mkdirs| replace(path, None, mkdirs, &mut Breaks).expect_err("refused").code;
        assert_eq!(code(&text(&path), false), ErrorCode::NoSpace);
        assert_eq!(fs::read(&path).expect("reads"), b"old");
        assert_eq!(code(&text(directory.path()), false), ErrorCode::IsDirectory);
        assert_eq!(code(&text(&path.join("below")), false), ErrorCode::NotDirectory);
        assert_eq!(code(&text(&path.join("below")), true), ErrorCode::NotDirectory);
        assert_eq!(code(&text(&directory.path().join("no/where")), false), ErrorCode::NotFound);
        assert_eq!(code("relative", false), ErrorCode::BadRequest);
        assert_eq!(code("/dev/null", false), ErrorCode::BadRequest);
        assert_eq!(names(directory.path()), ["file"]);
    }
}
