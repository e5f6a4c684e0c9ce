//! Moving a whole data root into a filesystem in a file, and back.
//!
//! # Layout
//! For the data root `D`, all beside it, so that renaming moves them:
//!
//! | name | what it is |
//! |---|---|
//! | `D.btrfs` | the backing file. It holds the data |
//! | `D.btrfs.moving` | the backing file during a move. It holds the data while `D`, unmounted, is a mount point, and nothing of worth otherwise |
//! | `D.moving` | a directory during a move: a copy of the data that does not count yet or does not count any more, or the mount point that is to be |
//! | `D.btrfs.mount` | the text of the mount unit, where no systemd takes it |
//!
//! A directory is a *mount point* if it has the file `NOT-MOUNTED.txt`, which tells what is to be done: whoever sees it
//! sees a directory on which nothing is mounted. No store is opened there.
//!
//! # Crash order
//! In: 1. `D.moving` is made a mount point; 2. `D.btrfs.moving` is made, filled, compared, synced; 3. `D` and `D.moving`
//! are exchanged, which is the commit: `D` is a mount point, `D.moving` the old data; 4. the backing file gets its name;
//! 5. it is mounted on `D`; 6. `D.moving` is removed.
//! Out: 1. `D.moving` is filled from the mounted `D`, compared, synced; 2. `D` is unmounted, and is a mount point; 3. the
//! backing file gets its moving name; 4. `D` and `D.moving` are exchanged, which is the commit; 5. the backing file and
//! `D.moving`, a mount point now, are removed.
//! So at any moment one rule tells where the data is: in `D`, if that is no mount point or if it is mounted; else in the
//! backing file, whichever of its two names it has.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::FdFlags;
use types::Bytes;

use crate::clone::CloneOptions;
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::Layout;
use crate::lock::{self, DaemonLock, SetupLock};
use crate::probe::{self, FsCapabilities};
use crate::store::Space;
use crate::tree_copy::{self, TreeSize};

/// The file that makes a directory a mount point.
pub const MOUNT_POINT_NOTE: &str = "NOT-MOUNTED.txt";
/// Two directories that are exchanged to see whether the filesystem does that.
const TRIALS: [&str; 2] = [".new-this", ".new-that"];

/// What the directory at the data root's place is, as it is seen now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootState {
    /// There is none.
    Missing,
    /// There is nothing in it.
    Empty,
    /// A mount point on which nothing is mounted. What is in it beside the note is hidden by a mount.
    MountPoint {
        /// Names of that.
        besides: Vec<String>,
    },
    /// A data root.
    Data,
    /// Somebody else's files.
    Foreign {
        /// The name of one.
        such_as: String,
    },
}

/// What a move in the making or an unfinished one has left at `D.moving`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MovingDir {
    /// Nothing.
    Missing,
    /// A mount point.
    MountPoint,
    /// An empty directory.
    Empty,
    /// A copy of the data.
    Data,
}

/// What there is at a data root and beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// At the place itself.
    pub root: RootState,
    /// At `D.moving`.
    pub moving_dir: MovingDir,
    /// The size of `D.btrfs`.
    pub backing: Option<Bytes>,
    /// Whether there is a `D.btrfs.moving`.
    pub moving_file: bool,
    /// Whether there is a `D.btrfs.mount`.
    pub unit_text: bool,
}

/// A data root, the names beside it, and what can be done with them. Nothing is done twice by repeating it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relocation {
    root: PathBuf,
}

/// Held by the one that moves data roots below one directory, until dropped.
#[derive(Debug)]
pub struct RelocationLock {
    _parent: File,
}

/// Keeps daemons and machines out of a data root, until dropped.
#[derive(Debug)]
pub struct HeldRoot {
    _daemon: DaemonLock,
    _setup: SetupLock,
}

impl Relocation {
    /// For a data directory, whose parent is made if it is missing.
    ///
    /// # Errors
    /// `Invalid` for `/`; what the system says.
    pub fn of(data_dir: &Path) -> Result<Self> {
        let fail = |error| Error::io("open", data_dir, error);
        let root = match data_dir.canonicalize() {
            Ok(root) => root,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let absolute = std::path::absolute(data_dir).map_err(fail)?;
                let (parent, name) = (absolute.parent(), absolute.file_name());
                let (Some(parent), Some(name)) = (parent, name) else { return Err(fail(error)) };
                fs::create_dir_all(parent).map_err(|error| Error::io("create", parent, error))?;
                parent.canonicalize().map_err(fail)?.join(name)
            }
            Err(error) => return Err(fail(error)),
        };
        if root.parent().is_none() {
            return Err(Error::new(ErrorKind::Invalid, "move", root).because("nothing is beside it"));
        }
        Ok(Self { root })
    }

    /// The data root.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory that it is in.
    #[must_use]
    pub fn parent(&self) -> &Path {
        self.root.parent().unwrap_or(&self.root)
    }

    fn beside(&self, ending: &str) -> PathBuf {
        let mut name = self.root.as_os_str().to_owned();
        name.push(ending);
        name.into()
    }

    /// `D.btrfs`.
    #[must_use]
    pub fn backing(&self) -> PathBuf {
        self.beside(".btrfs")
    }

    /// `D.btrfs.moving`.
    #[must_use]
    pub fn moving_file(&self) -> PathBuf {
        self.beside(".btrfs.moving")
    }

    /// `D.moving`.
    #[must_use]
    pub fn moving_dir(&self) -> PathBuf {
        self.beside(".moving")
    }

    /// `D.btrfs.mount`.
    #[must_use]
    pub fn unit_text(&self) -> PathBuf {
        self.beside(".btrfs.mount")
    }

    /// Waits until nobody else moves a data root in the same directory. Programs that are started while it is held hold
    /// it too: of a run that was killed, a mount or unmount under way is waited for.
    ///
    /// # Errors
    /// What the system says.
    pub fn lock(&self) -> Result<RelocationLock> {
        let fail = |error: io::Error| Error::io("lock", self.parent(), error);
        let parent = File::open(self.parent()).map_err(fail)?;
        rustix::io::fcntl_setfd(&parent, FdFlags::empty()).map_err(|error| fail(error.into()))?;
        loop {
            match flock(&parent, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(RelocationLock { _parent: parent }),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(fail(error.into())),
            }
        }
    }

    /// Keeps daemons, set-ups and machines out of the data root.
    ///
    /// # Errors
    /// `Busy`, naming who is in it.
    pub fn hold(&self) -> Result<HeldRoot> {
        let busy = |who: String| Error::new(ErrorKind::Busy, "move", &self.root).because(who);
        let daemon = lock::no_daemon(&self.root).map_err(|error| match error.kind() {
            ErrorKind::Busy => {
                let pid = fs::read_to_string(self.root.join("daemon.lock")).unwrap_or_default();
                busy(format!("a daemon serves it (pid {})", pid.trim()))
                    .hint_to("end it with its machines: `bhatti serve --stop-all` does that on SIGTERM")
            }
            _ => error,
        })?;
        let setup = lock::try_setup(&self.root).map_err(|error| match error.kind() {
            ErrorKind::Busy => busy("a `bhatti setup` works in it".to_owned()).hint_to("wait for its end"),
            _ => error,
        })?;
        let layout = Layout::new(&self.root);
        for machines in [layout.sandboxes(), layout.templates()] {
            for entry in fs::read_dir(&machines).into_iter().flatten().flatten() {
                let dir = entry.path();
                let locked = [&dir, &dir.join("rootfs.qcow2"), &dir.join("rootfs.ext4")];
                for path in locked {
                    if lock::is_held(path)? {
                        return Err(busy(format!("a machine runs in {}", dir.display()))
                            .hint_to("stop the sandboxes (`bhatti stop NAME`), then end the daemon"));
                    }
                }
            }
        }
        Ok(HeldRoot { _daemon: daemon, _setup: setup })
    }

    /// Looks.
    ///
    /// # Errors
    /// What the system says.
    pub fn look(&self) -> Result<Surroundings> {
        let there = |path: PathBuf| match fs::symlink_metadata(&path) {
            Ok(meta) => Ok(Some(meta)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("stat", path, error)),
        };
        Ok(Surroundings {
            root: root_state(&self.root)?,
            moving_dir: match root_state(&self.moving_dir())? {
                RootState::Missing => MovingDir::Missing,
                RootState::Empty => MovingDir::Empty,
                RootState::MountPoint { .. } => MovingDir::MountPoint,
                RootState::Data | RootState::Foreign { .. } => MovingDir::Data,
            },
            backing: there(self.backing())?.map(|meta| Bytes(meta.len())),
            moving_file: there(self.moving_file())?.is_some(),
            unit_text: there(self.unit_text())?.is_some(),
        })
    }

    /// The name of the filesystem beside the data root, for people, and its room.
    ///
    /// # Errors
    /// What the system says.
    pub fn room_beside(&self) -> Result<(String, Space)> {
        let parent = self.parent();
        let space =
            rustix::fs::statvfs(parent).map_err(|error| Error::io("ask the filesystem of", parent, error))?;
        let room = Space {
            free: Bytes(space.f_bavail.saturating_mul(space.f_frsize)),
            total: Bytes(space.f_blocks.saturating_mul(space.f_frsize)),
        };
        Ok((probe::fs_type(parent)?, room))
    }

    /// What the filesystem of the data root can do. A missing data root is made for the time of it, so that nothing is
    /// tried, and possibly left, where other things lie.
    ///
    /// # Errors
    /// As for [`Store::probe`](crate::Store::probe).
    pub fn probe(&self) -> Result<FsCapabilities> {
        let made = match durable::make_dir(&self.root) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::Exists => false,
            Err(error) => return Err(error),
        };
        let found = probe::probe(&self.root);
        if made {
            remove_empty_dir(&self.root)?;
        }
        found
    }

    /// How much is in the data root.
    ///
    /// # Errors
    /// What the system says.
    pub fn measure(&self) -> Result<TreeSize> {
        tree_copy::measure(&self.root)
    }

    /// Makes `D.moving` a mount point, and `D` an empty directory if it is missing. Finds out whether directories can be
    /// exchanged here.
    ///
    /// # Errors
    /// What the system says; `Io` also where directories cannot be exchanged.
    pub fn make_mount_point(&self) -> Result<()> {
        make_if_missing(&self.root)?;
        let dir = self.moving_dir();
        make_if_missing(&dir)?;
        self.write_note(&dir)?;
        let trials = TRIALS.map(|name| dir.join(name));
        trials.iter().try_for_each(|trial| make_if_missing(trial))?;
        durable::exchange(&trials[0], &trials[1]).map_err(|error| {
            error
                .because("this filesystem cannot exchange two directories in one step")
                .hint_to("put the data directory on ext4, xfs or btrfs with --data-dir")
        })?;
        trials.iter().try_for_each(|trial| remove_empty_dir(trial).map(drop))?;
        durable::sync_parent(&dir)
    }

    /// Makes the empty or missing `D` a mount point.
    ///
    /// # Errors
    /// What the system says.
    pub fn make_root_mount_point(&self) -> Result<()> {
        make_if_missing(&self.root)?;
        self.write_note(&self.root)?;
        durable::sync_parent(&self.root)
    }

    fn write_note(&self, dir: &Path) -> Result<()> {
        let (root, backing) = (self.root.display(), self.backing());
        let text = format!(
            "Whoever reads this sees the directory on which bhatti's data is to be mounted, and not the data.\n\
             The data is in {0} (or, if a move was cut off, in {0}.moving).\n\n\
             To mount it:     bhatti setup --storage btrfs-loop --data-dir {root}\n\
             By hand:         mount -t btrfs -o loop,noatime,compress=zstd:1 {0} {root}\n\
             To have it back in a plain directory:\n                 \
             bhatti setup --storage btrfs-loop --undo --data-dir {root}\n\n\
             Do not remove this file: by it a directory without data is told from one that has lost it.\n",
            backing.display(),
        );
        durable::replace(&dir.join(MOUNT_POINT_NOTE), text.as_bytes(), 0o644)
    }

    /// Copies the data root into the empty directory `to` and syncs it.
    ///
    /// # Errors
    /// `NoSpace`, `Cancelled`, or what the system says.
    pub fn copy_to(&self, to: &Path, options: &CloneOptions<'_>) -> Result<TreeSize> {
        tree_copy::copy(&self.root, to, Path::new("images/objects"), options)
    }

    /// Proves that `copy` holds what the data root holds.
    ///
    /// # Errors
    /// `Corrupt`, naming the first difference; `Cancelled`.
    pub fn compare_with(&self, copy: &Path, options: &CloneOptions<'_>) -> Result<()> {
        tree_copy::compare(&self.root, copy, options)
    }

    /// An empty `D.moving` for a copy that is on its way out of the backing file.
    ///
    /// # Errors
    /// What the system says.
    pub fn make_moving_dir(&self) -> Result<PathBuf> {
        let dir = self.moving_dir();
        durable::remove_tree(&dir)?;
        durable::make_dir(&dir)?;
        Ok(dir)
    }

    /// Makes the content of `D.btrfs.moving`, which was written through a mount, last.
    ///
    /// # Errors
    /// What the system says.
    pub fn sync_moving_file(&self) -> Result<()> {
        let path = self.moving_file();
        let file = File::open(&path).map_err(|error| Error::io("open", &path, error))?;
        durable::sync(&file, &path)?;
        durable::sync_parent(&path)
    }

    /// Exchanges `D` and `D.moving`: the commit of a move.
    ///
    /// # Errors
    /// What the system says.
    pub fn exchange(&self) -> Result<()> {
        durable::exchange(&self.root, &self.moving_dir())
    }

    /// Gives the backing file its name.
    ///
    /// # Errors
    /// `Exists`, or what the system says.
    pub fn settle_backing(&self) -> Result<()> {
        durable::rename_lasting(&self.moving_file(), &self.backing())
    }

    /// Gives the backing file its moving name.
    ///
    /// # Errors
    /// `Exists`, or what the system says.
    pub fn unsettle_backing(&self) -> Result<()> {
        durable::rename_lasting(&self.backing(), &self.moving_file())
    }

    /// Removes `D.btrfs.moving`, which holds nothing of worth.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove_moving_file(&self) -> Result<()> {
        if durable::remove_if_there(&self.moving_file())? { durable::sync_parent(&self.root) } else { Ok(()) }
    }

    /// Removes `D.moving`, which is a mount point or empty; tells whether something else in it has kept it.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove_moving_mount_point(&self) -> Result<bool> {
        let dir = self.moving_dir();
        for trial in TRIALS {
            remove_empty_dir(&dir.join(trial))?;
        }
        durable::remove_if_there(&durable::new_name(&dir.join(MOUNT_POINT_NOTE)))?;
        durable::remove_if_there(&dir.join(MOUNT_POINT_NOTE))?;
        let gone = remove_empty_dir(&dir)?;
        durable::sync_parent(&dir)?;
        Ok(!gone)
    }

    /// Removes `D.moving`, a copy of the data that does not count.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove_moving_copy(&self) -> Result<()> {
        durable::remove_tree(&self.moving_dir())?;
        durable::sync_parent(&self.root)
    }

    /// Keeps the text of the mount unit beside the backing file.
    ///
    /// # Errors
    /// What the system says.
    pub fn keep_unit_text(&self, text: &str) -> Result<()> {
        durable::replace(&self.unit_text(), text.as_bytes(), 0o644)
    }

    /// Removes the text of the mount unit.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove_unit_text(&self) -> Result<()> {
        durable::remove_if_there(&durable::new_name(&self.unit_text()))?;
        durable::remove_if_there(&self.unit_text()).map(drop)
    }
}

/// Refuses to open a store where its filesystem is not mounted.
///
/// # Errors
/// `Unwritable`, with the way to mount it.
pub(crate) fn refuse_mount_point(root: &Path) -> Result<()> {
    if root.join(MOUNT_POINT_NOTE).exists() {
        return Err(Error::new(ErrorKind::Unwritable, "open data directory", root)
            .because("its filesystem, a btrfs in a file beside it, is not mounted")
            .hint_to(format!(
                "mount it with `bhatti setup --storage btrfs-loop`; {MOUNT_POINT_NOTE} in it tells more"
            )));
    }
    Ok(())
}

fn root_state(root: &Path) -> Result<RootState> {
    let fail = |error| Error::io("list", root, error);
    let mut names = Vec::new();
    match fs::read_dir(root) {
        Ok(entries) => {
            for entry in entries {
                names.push(entry.map_err(fail)?.file_name().to_string_lossy().into_owned());
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(RootState::Missing),
        Err(error) => return Err(fail(error)),
    }
    // What a crash while the note was written can leave.
    names.retain(|name| {
        !TRIALS.contains(&name.as_str()) && name.strip_suffix(".new") != Some(MOUNT_POINT_NOTE)
    });
    names.sort();
    if names.iter().any(|name| name == MOUNT_POINT_NOTE) {
        names.retain(|name| name != MOUNT_POINT_NOTE);
        return Ok(RootState::MountPoint { besides: names });
    }
    // The directories that every store has.
    if ["images", "sandboxes"].iter().all(|part| root.join(part).is_dir()) {
        return Ok(RootState::Data);
    }
    Ok(match names.into_iter().next() {
        None => RootState::Empty,
        Some(such_as) => RootState::Foreign { such_as },
    })
}

fn make_if_missing(dir: &Path) -> Result<()> {
    match durable::make_dir(dir) {
        Err(error) if error.kind() == ErrorKind::Exists => Ok(()),
        made => made,
    }
}

/// Tells whether the directory is gone; one with something in it stays.
fn remove_empty_dir(dir: &Path) -> Result<bool> {
    match fs::remove_dir(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
        Err(error) => Err(Error::io("remove", dir, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;

    fn made() -> (tempfile::TempDir, Relocation) {
        let dir = tempfile::tempdir().unwrap();
        let place = Relocation::of(&dir.path().join("below/data")).unwrap();
        (dir, place)
    }

    #[test]
    fn the_place_is_told_by_what_is_there() {
        let (_dir, place) = made();
        let root = || place.look().unwrap().root;
        assert_eq!(root(), RootState::Missing);
        fs::create_dir(place.root()).unwrap();
        assert_eq!(root(), RootState::Empty);
        fs::write(place.root().join("thesis.pdf"), "x").unwrap();
        assert_eq!(root(), RootState::Foreign { such_as: "thesis.pdf".to_owned() });
        Store::open(place.root()).unwrap();
        assert_eq!(root(), RootState::Data);
    }

    #[test]
    fn no_store_is_opened_in_a_mount_point() {
        let (_dir, place) = made();
        place.make_root_mount_point().unwrap();
        assert_eq!(place.look().unwrap().root, RootState::MountPoint { besides: Vec::new() });
        let refused = Store::open(place.root()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unwritable);
        assert!(refused.to_string().contains("is not mounted; mount it with"), "{refused}");
        let note = fs::read_to_string(place.root().join(MOUNT_POINT_NOTE)).unwrap();
        assert!(note.contains(&place.backing().display().to_string()), "{note}");
        assert_eq!(fs::read_dir(place.root()).unwrap().count(), 1);
    }

    #[test]
    fn an_exchange_puts_the_mount_point_in_the_place_of_the_data() {
        let (_dir, place) = made();
        Store::open(place.root()).unwrap();
        for _again in 0..2 {
            place.make_mount_point().unwrap();
        }
        assert_eq!(place.look().unwrap().moving_dir, MovingDir::MountPoint);
        place.exchange().unwrap();
        let seen = place.look().unwrap();
        assert_eq!(
            (seen.root, seen.moving_dir),
            (RootState::MountPoint { besides: Vec::new() }, MovingDir::Data)
        );
        place.exchange().unwrap();
        assert!(!place.remove_moving_mount_point().unwrap());
        assert_eq!(place.look().unwrap().moving_dir, MovingDir::Missing);
        assert_eq!(place.look().unwrap().root, RootState::Data);
    }

    #[test]
    fn a_mount_point_with_something_else_in_it_is_kept() {
        let (_dir, place) = made();
        place.make_mount_point().unwrap();
        fs::write(place.moving_dir().join("mine"), "x").unwrap();
        assert!(place.remove_moving_mount_point().unwrap());
        assert_eq!(fs::read(place.moving_dir().join("mine")).unwrap(), b"x");
    }

    #[test]
    fn a_root_that_is_in_use_is_not_held() {
        let (_dir, place) = made();
        let store = Store::open(place.root()).unwrap();
        let refused = |part: &str| {
            let error = place.hold().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Busy);
            assert!(error.to_string().contains(part), "{error}");
        };
        let daemon = store.lock_daemon().unwrap();
        refused(&format!("a daemon serves it (pid {})", std::process::id()));
        drop(daemon);
        let setup = store.lock_setup().unwrap();
        refused("a `bhatti setup` works in it");
        drop(setup);
        let sandbox = place.root().join("sandboxes/abc");
        fs::create_dir(&sandbox).unwrap();
        let machine = lock::directory(&sandbox).unwrap();
        refused("a machine runs in ");
        drop(machine);
        drop(place.hold().unwrap());
        assert!(Relocation::of(Path::new("/")).is_err());
    }

    #[test]
    fn a_program_that_was_started_under_the_lock_holds_it() {
        let (_dir, place) = made();
        let lock = place.lock().unwrap();
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        drop(lock);
        std::thread::scope(|scope| {
            let second = scope.spawn(|| place.lock().unwrap());
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!second.is_finished());
            child.kill().unwrap();
            child.wait().unwrap();
            second.join().unwrap();
        });
    }
}
