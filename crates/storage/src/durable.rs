//! The only place that makes things last: stage, write, fsync, rename, fsync the directory.
//!
//! # Crash order
//! A file: 1. `<name>.new` is made beside `<name>` and written; 2. fsync of it; 3. rename over `<name>`; 4. fsync of the
//! directory. A directory: 1. `.new-<name>` is made and filled; 2. fsync of its files, then of itself; 3. rename;
//! 4. fsync of the parent. Removing a directory: 1. rename to `.gone-<name>`; 2. fsync of the parent; 3. removal. So what
//! a crash leaves has one meaning each when a store is opened:
//!
//! | left over | means | then |
//! |---|---|---|
//! | `<name>.new` | a commit that did not happen | removed; `<name>` is still the old one |
//! | `.new-<name>`, nobody holds its lock | something that never came to be | removed |
//! | `.new-<name>`, locked | another process is making it, or its VMM runs | left alone |
//! | `.gone-<name>` | something that is gone, whether or not anybody was told | removed; a sandbox's VMM is ended before |
//!
//! A stop commits three files as one. 1. `mem.snap`, `vm.snap` and `manifest.json.new` are written; the first two may
//! have their names at once, since a manifest that says `running` or `off` names neither. 2. fsync of all three and of
//! the directory, together. 3. The manifest is renamed over the old one. 4. fsync of the directory. A crash before 3
//! leaves memory files that no manifest names: they are removed, and the next start boots from the disk.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::crash;
use crate::error::{Error, ErrorKind, Result};
use crate::layout;

/// A file under a staging name, locked for as long as this value lives; removed when dropped.
#[derive(Debug)]
pub(crate) struct Staged {
    path: PathBuf,
    file: File,
    armed: bool,
}

impl Staged {
    /// A new file at `path`, in place of what an earlier attempt left there.
    pub(crate) fn create(path: PathBuf, mode: u32) -> Result<Self> {
        remove_if_there(&path)?;
        crash::step();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .map_err(|error| Error::io("create", &path, error))?;
        let staged = Self { path, file, armed: true };
        hold(&staged.file, &staged.path)?;
        Ok(staged)
    }

    /// Takes charge of a file that somebody else wrote under a staging name.
    pub(crate) fn adopt(path: PathBuf) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|error| Error::io("open", &path, error))?;
        Ok(Self { path, file, armed: true })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Gives it its name, in place of what had that. Neither the file nor the directory is synced here; what the
    /// name stands for must be synced before if it already counts.
    pub(crate) fn rename(mut self, target: &Path) -> Result<()> {
        self.put(target)
    }

    /// Gives it a name that nothing durable knows yet. The file stays open to be synced; dropping it removes it still.
    pub(crate) fn name_uncounted(&mut self, target: &Path) -> Result<()> {
        self.put(target)?;
        self.path = target.to_owned();
        self.armed = true;
        Ok(())
    }

    /// It counts now: dropping it removes it no more.
    pub(crate) fn keep(mut self) {
        self.armed = false;
    }

    /// Gives it its name and keeps it; when that fails it may be tried again.
    pub(crate) fn put(&mut self, target: &Path) -> Result<()> {
        rename(&self.path, target)?;
        self.armed = false;
        Ok(())
    }

    /// Gives it its name unless that is taken already; tells whether it did. It must have been synced.
    pub(crate) fn rename_if_new(mut self, target: &Path) -> Result<bool> {
        match rename_new(&self.path, target) {
            Ok(()) => {
                self.armed = false;
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::Exists => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes it last under its name.
    pub(crate) fn commit(self, target: &Path) -> Result<()> {
        sync(&self.file, &self.path)?;
        self.rename(target)?;
        sync_parent(target)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.armed {
            // What cannot be removed now is a leftover with a meaning; see the table above.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A directory under a staging name, locked for as long as this value lives; removed when dropped.
#[derive(Debug)]
pub(crate) struct StagedDir {
    path: PathBuf,
    lock: File,
    armed: bool,
}

impl StagedDir {
    /// A new directory at `path`. `Busy` when a living process has one there; a dead one's is replaced.
    pub(crate) fn create(path: PathBuf) -> Result<Self> {
        match make_dir(&path) {
            Err(error) if error.kind() == ErrorKind::Exists => {
                let left = open_dir(&path)?;
                take(&left, &path)?;
                remove_tree(&path)?;
                make_dir(&path)?;
            }
            made => made?,
        }
        let lock = open_dir(&path)?;
        let staged = Self { path, lock, armed: true };
        hold(&staged.lock, &staged.path)?;
        Ok(staged)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The lock on it, for somebody who is to hold it, too.
    pub(crate) fn lock(&self) -> Result<File> {
        self.lock.try_clone().map_err(|error| Error::io("lock", &self.path, error))
    }

    /// Makes it last as `target`: the given files and the directory itself, then the name. `Exists` when `target` is
    /// there already. When the name cannot be made to last it is taken back: what was refused is not there.
    pub(crate) fn commit(mut self, files: &[&File], target: &Path) -> Result<()> {
        // The directory's entries are all made, so it need not wait for its files.
        let all: Vec<&File> = files.iter().copied().chain([&self.lock]).collect();
        sync_all(&all, &self.path)?;
        rename_new(&self.path, target)?;
        let lasting = sync_parent(target);
        // Where it cannot be taken back either, it stays as it is: whole.
        self.armed = lasting.is_err() && fs::rename(target, &self.path).is_ok();
        lasting
    }
}

impl Drop for StagedDir {
    fn drop(&mut self) {
        if self.armed {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Renames without replacing.
fn rename_new(from: &Path, target: &Path) -> Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    crash::step();
    match renameat_with(CWD, from, CWD, target, RenameFlags::NOREPLACE) {
        // A filesystem without the flag (renameat2(2)): whoever uses this gives content-addressed names or holds a
        // lock, so looking first is as good.
        Err(Errno::INVAL | Errno::NOSYS) if !target.exists() => fs::rename(from, target),
        Err(Errno::INVAL | Errno::NOSYS) => Err(io::ErrorKind::AlreadyExists.into()),
        renamed => renamed.map_err(io::Error::from),
    }
    .map_err(|error| Error::io("rename to", target, error))
}

/// Renames, in one step even where both are directories, so that `one` is always there; lasting when it returns.
pub(crate) fn exchange(one: &Path, other: &Path) -> Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    crash::step();
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)
        .map_err(|error| Error::io("exchange", one, error))?;
    sync_parent(one)
}

/// Gives everything in `from` but what `leave` names a second name in `to`. Directories have no second name: an error, as
/// for a filesystem without hard links. The caller syncs `to`.
pub(crate) fn link_all(from: &Path, to: &Path, leave: &[&str]) -> Result<()> {
    let entries = fs::read_dir(from).map_err(|error| Error::io("read", from, error))?;
    for entry in entries {
        let name = entry.map_err(|error| Error::io("read", from, error))?.file_name();
        if leave.iter().any(|left| name == *left) {
            continue;
        }
        let target = to.join(&name);
        hard_link(&from.join(&name), &target)?;
    }
    Ok(())
}

/// Renames, in place of what has the name. Nothing is synced.
pub(crate) fn rename(from: &Path, target: &Path) -> Result<()> {
    crash::step();
    fs::rename(from, target).map_err(|error| Error::io("rename to", target, error))
}

/// Gives a file a second name. Nothing is synced.
pub(crate) fn hard_link(file: &Path, name: &Path) -> Result<()> {
    crash::step();
    fs::hard_link(file, name).map_err(|error| Error::io("link", name, error))
}

/// Renames without replacing; lasting when it returns.
pub(crate) fn rename_lasting(from: &Path, target: &Path) -> Result<()> {
    rename_new(from, target)?;
    sync_parent(target)
}

/// Makes `name` a second name of `object`, in place of what it named; a symbolic link where the filesystem has no
/// hard ones. The caller syncs the directory.
pub(crate) fn link(object: &Path, relative: &Path, name: &Path) -> Result<()> {
    use rustix::io::Errno;
    let staged = new_name(name);
    remove_if_there(&staged)?;
    let refusal =
        [Errno::PERM, Errno::OPNOTSUPP, Errno::XDEV, Errno::MLINK, Errno::NOSYS].map(Errno::raw_os_error);
    crash::step();
    match fs::hard_link(object, &staged) {
        Err(error) if error.raw_os_error().is_some_and(|number| refusal.contains(&number)) => {
            std::os::unix::fs::symlink(relative, &staged)
        }
        linked => linked,
    }
    .and_then(|()| {
        crash::step();
        fs::rename(&staged, name)
    })
    .map_err(|error| Error::io("link", name, error))?;
    // Renaming one name of a file over another of the same does nothing at all (rename(2)).
    remove_if_there(&staged).map(drop)
}

/// Takes the lock that tells a staging name in use from a leftover, of what was just made: nobody but those who look for
/// leftovers has it, and only for a moment.
fn hold(file: &File, path: &Path) -> Result<()> {
    loop {
        match flock(file, FlockOperation::LockExclusive) {
            Err(rustix::io::Errno::INTR) => {}
            locked => return locked.map_err(|error| Error::io("lock", path, error)),
        }
    }
}

/// As [`hold`], of what was there before.
fn take(file: &File, path: &Path) -> Result<()> {
    flock(file, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
        let error = Error::io("lock", path, error);
        match error.kind() {
            ErrorKind::Busy => {
                error.because("another process is working on it").hint_to("try again when it is done")
            }
            _ => error,
        }
    })
}

/// Replaces `target` by `bytes`, durably.
pub(crate) fn replace(target: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let staged = Staged::create(new_name(target), mode)?;
    write_at(staged.file(), staged.path(), 0, bytes)?;
    staged.commit(target)
}

/// Writes a file inside a directory that has only a staging name yet. Not synced: the directory's commit does it.
pub(crate) fn new_file(path: &Path, bytes: &[u8], mode: u32) -> Result<File> {
    crash::step();
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(|error| Error::io("create", path, error))?;
    write_at(&file, path, 0, bytes)?;
    Ok(file)
}

/// The staging name of a file that has one place only.
pub(crate) fn new_name(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

pub(crate) fn write_at(file: &File, path: &Path, at: u64, bytes: &[u8]) -> Result<()> {
    use std::os::unix::fs::FileExt;
    crash::step();
    file.write_all_at(bytes, at).map_err(|error| Error::io("write", path, error))
}

pub(crate) fn set_mode(file: &File, path: &Path, mode: u32) -> Result<()> {
    crash::step();
    file.set_permissions(fs::Permissions::from_mode(mode))
        .map_err(|error| Error::io("set mode of", path, error))
}

/// fsync.
pub(crate) fn sync(file: &File, path: &Path) -> Result<()> {
    crash::step();
    file.sync_all().map_err(|error| Error::io("sync", path, error))
}

/// fsync of several files at once: one journal commit serves those that arrive together, and the caller waits once.
fn sync_all(files: &[&File], path: &Path) -> Result<()> {
    let Some((last, others)) = files.split_last() else { return Ok(()) };
    std::thread::scope(|scope| {
        let waiting: Vec<_> = others.iter().map(|file| scope.spawn(move || sync(file, path))).collect();
        let first = sync(last, path);
        waiting.into_iter().fold(first, |result, thread| {
            let joined = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            result.and(joined)
        })
    })
}

/// Writes out all that the filesystem under `dir` has not written yet.
pub(crate) fn sync_filesystem(dir: &Path) -> Result<()> {
    crash::step();
    rustix::fs::syncfs(open_dir(dir)?).map_err(|error| Error::io("sync the filesystem of", dir, error))
}

pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    sync(&open_dir(dir)?, dir)
}

/// fsync of files and of the directory that they are in, whose entries are all made.
pub(crate) fn sync_with_dir(files: &[&File], dir: &Path) -> Result<()> {
    let opened = open_dir(dir)?;
    let all: Vec<&File> = files.iter().copied().chain([&opened]).collect();
    sync_all(&all, dir)
}

pub(crate) fn sync_parent(of: &Path) -> Result<()> {
    match of.parent() {
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}

fn open_dir(dir: &Path) -> Result<File> {
    File::open(dir).map_err(|error| Error::io("open", dir, error))
}

/// A directory of mode 0700. The caller syncs the parent where it matters.
pub(crate) fn make_dir(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    crash::step();
    fs::DirBuilder::new().mode(0o700).create(path).map_err(|error| Error::io("create", path, error))
}

/// Removes a directory that has a durable name, as [`take_away_lasting`]; what cannot be removed of it then is a leftover
/// with a meaning.
pub(crate) fn remove_named_dir(path: &Path) -> Result<()> {
    let gone = take_away_lasting(path)?;
    let _ = remove_tree(&gone);
    Ok(())
}

/// [`take_away`], lasting when it returns. When that cannot be made so it is taken back.
pub(crate) fn take_away_lasting(path: &Path) -> Result<PathBuf> {
    let gone = take_away(path)?;
    if let Err(error) = sync_parent(path) {
        let _ = fs::rename(&gone, path);
        return Err(error);
    }
    Ok(gone)
}

/// The quick half of removing a file or a directory: from here on it is gone, whatever happens then. The slow half is
/// `remove_any` of the path that this gives. Nothing is synced.
pub(crate) fn take_away(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let gone = path.with_file_name(format!("{}{name}", layout::GONE));
    remove_any(&gone)?;
    crash::step();
    fs::rename(path, &gone).map_err(|error| Error::io("remove", path, error))?;
    Ok(gone)
}

/// Moves a file or a directory to another directory of the data root, durably.
pub(crate) fn move_to(path: &Path, target: &Path) -> Result<()> {
    rename_new(path, target)?;
    sync_parent(target)?;
    sync_parent(path)
}

/// Whether there is a directory, and not a link to one: what lies behind a link is somebody else's.
pub(crate) fn is_dir_itself(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
}

/// Removes whatever has that name, if anything has. A symbolic link is removed as itself.
pub(crate) fn remove_any(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => remove_tree(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) | Err(_) => remove_if_there(path).map(drop),
    }
}

/// Removes a directory and all in it, if it is there. For names that mean nothing any more.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    crash::step();
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(|error| Error::io("remove", path, error)),
    }
}

/// Removes a file; tells whether there was one.
pub(crate) fn remove_if_there(path: &Path) -> Result<bool> {
    crash::step();
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("remove", path, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_dropped_before_its_commit_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        drop(Staged::create(dir.path().join("a.new"), 0o600).unwrap());
        let staged = StagedDir::create(dir.path().join(".new-b")).unwrap();
        fs::write(staged.path().join("x"), "x").unwrap();
        drop(staged);
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn a_replaced_file_has_the_new_content_and_mode_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "old").unwrap();
        replace(&path, b"new", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn a_dead_makers_directory_is_replaced_and_a_living_ones_is_busy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".new-a");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("left"), "x").unwrap();
        let first = StagedDir::create(path.clone()).unwrap();
        assert!(names(first.path()).is_empty());
        assert_eq!(StagedDir::create(path).unwrap_err().kind(), ErrorKind::Busy);
    }

    #[test]
    fn a_directory_never_replaces_another() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        let staged = StagedDir::create(dir.path().join(".new-a")).unwrap();
        assert_eq!(staged.commit(&[], &dir.path().join("a")).unwrap_err().kind(), ErrorKind::Exists);
        assert_eq!(names(dir.path()), ["a"], "the loser removed itself");
    }

    #[test]
    fn a_removed_directory_is_gone_even_if_an_earlier_removal_was_cut_short() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", ".gone-a"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("x"), "x").unwrap();
        }
        remove_named_dir(&dir.path().join("a")).unwrap();
        assert!(names(dir.path()).is_empty());
    }
}
