//! What a VMM sees of the data directory: nothing but the files that it is given, each for as long as it takes to open it.
//!
//! ```text
//!  DATA/sandboxes/<id>/                    where the machine is; not the VMM's to enter
//!  DATA/sandboxes/<id>/vmm/                its room: all that it may read
//!                      vmm/sandboxes/self/ where it works
//!                      vmm/images/..       a second name of a file that it is about to open
//! ```
//! The place where it works is as deep in the room as the machine's directory is in the data directory, so each file has
//! the same path from both: `../../images/objects/ID.ext4`, `rootfs.qcow2`.
//!
//! # Invariants
//! - No directory of the room is the VMM's to write once its guest runs, so what is there is what was put there.
//! - A file that several may read belongs to the daemon and is not to be written; one that it may write belongs to the
//!   VMM's user, which no other VMM has had.
//! - Second names are gone when the VMM has opened the files: nothing is kept by them.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown,
};
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::spec::MachineSpec;

/// The room, in the machine's directory.
const ROOM: &str = "vmm";
/// Where the VMM works, in the room.
const WORKS: &str = "sandboxes/self";
/// Where volumes are, in the room.
const VOLUMES: &str = "volumes";
/// Where RAM bases are, in the room.
const BASES: [&str; 2] = ["templates", "bases"];

/// Whose a file is while a VMM has it open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// This machine's alone.
    Its,
    /// Many may read it.
    All,
    /// Many may read it, and must open it for writing to do so (QEMU before 8.2).
    AllWriters,
}

/// A VMM's room.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    machine: PathBuf,
    user: Option<u32>,
}

/// Second names of files; gone when dropped.
#[derive(Debug, Default)]
#[must_use = "the VMM finds the files by these names, until they are dropped"]
pub(crate) struct Lent(Vec<PathBuf>);

impl Drop for Lent {
    fn drop(&mut self) {
        for name in &self.0 {
            // One that stays is removed with the room.
            let _ = fs::remove_file(name);
        }
    }
}

impl Lent {
    pub(crate) fn and(mut self, mut other: Self) -> Self {
        self.0.append(&mut other.0);
        self
    }
}

impl Room {
    /// A new one in the machine's directory, in place of an earlier VMM's. Its user may make sockets in it until
    /// [`close`](Self::close).
    pub(crate) fn make(machine: PathBuf, user: Option<u32>, bases_too: bool) -> io::Result<Self> {
        let room = Self { machine, user };
        room.remove()?;
        make_dir(&room.path())?;
        let bases = BASES.iter().filter(|_| bases_too);
        for dir in [WORKS, VOLUMES].iter().chain(bases) {
            room.make_dirs(Path::new(dir))?;
        }
        if user.is_some() {
            chown(room.works(), user, user)?;
        }
        Ok(room)
    }

    /// That of the VMM which runs in `machine` as process `pid`, if it has one.
    pub(crate) fn find(machine: PathBuf, pid: u32) -> io::Result<Option<Self>> {
        let mut room = Self { machine, user: None };
        let works = match fs::metadata(room.works()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            works => works?,
        };
        let process = format!("/proc/{pid}");
        let cwd = fs::metadata(format!("{process}/cwd"))?;
        if (cwd.dev(), cwd.ino()) != (works.dev(), works.ino()) {
            return Ok(None);
        }
        let user = fs::metadata(process)?.uid();
        room.user = (user != rustix::process::geteuid().as_raw()).then_some(user);
        Ok(Some(room))
    }

    fn path(&self) -> PathBuf {
        self.machine.join(ROOM)
    }

    pub(crate) fn user(&self) -> Option<u32> {
        self.user
    }

    /// Where the VMM works.
    pub(crate) fn works(&self) -> PathBuf {
        self.path().join(WORKS)
    }

    /// The room's own directory; and those in it in which the VMM may write files that are its.
    pub(crate) fn directories(&self, bases_too: bool) -> (PathBuf, Vec<PathBuf>) {
        let bases = BASES.iter().filter(|_| bases_too);
        let writable = [WORKS, VOLUMES].iter().chain(bases).map(|dir| self.path().join(dir)).collect();
        (self.path(), writable)
    }

    /// Takes what the VMM has made where it works to the machine's directory; from then on it makes nothing any more.
    pub(crate) fn close(&self, made: [&str; 2]) -> io::Result<()> {
        let works = self.works();
        if self.user.is_some() {
            // Before anything in it is believed.
            chown(
                &works,
                Some(rustix::process::geteuid().as_raw()),
                Some(rustix::process::getegid().as_raw()),
            )?;
        }
        made.into_iter().try_for_each(|name| fs::rename(works.join(name), self.machine.join(name)))
    }

    /// Removes it with all names in it.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(self.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Lends the file that has `path` from the machine's directory, under the path that comes back with it: the same
    /// unless it is absolute.
    ///
    /// # Errors
    /// `Refused`: the path leads elsewhere; what the system says.
    pub(crate) fn lend(&self, op: &'static str, path: &Path, whose: Whose) -> Result<(PathBuf, Lent)> {
        let refused =
            || Error::new(ErrorKind::Refused, op, format!("{}: not in the data directory", path.display()));
        let told = match path.file_name() {
            Some(name) if path.is_absolute() => PathBuf::from(name),
            _ => path.to_owned(),
        };
        let within = within_room(&told).ok_or_else(refused)?;
        let name = self.path().join(&within);
        let lend = || -> io::Result<()> {
            let file = self.machine.join(path);
            self.give(&file, whose)?;
            self.make_dirs(within.parent().unwrap_or(Path::new("")))?;
            match fs::hard_link(&file, &name) {
                // Lent before to a VMM that did not take it, by a daemon that died.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    fs::remove_file(&name)?;
                    fs::hard_link(&file, &name)
                }
                linked => linked,
            }
        };
        lend().map_err(|error| Error::io(op, path.display().to_string(), error))?;
        Ok((told, Lent(vec![name])))
    }

    /// An empty file in the machine's directory, unless there is one.
    pub(crate) fn make_file(&self, name: &str) -> io::Result<()> {
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.machine.join(name));
        match made {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made.map(drop),
        }
    }

    /// Lends all that a machine opens when it starts.
    pub(crate) fn lend_all(&self, op: &'static str, spec: &MachineSpec) -> Result<Lent> {
        let base = if spec.ram_base_writable { Whose::AllWriters } else { Whose::All };
        let mut files = vec![(spec.ram_base.as_path(), base)];
        if spec.reads_kernel() {
            files.extend([(spec.kernel.as_path(), Whose::All), (spec.initramfs.as_path(), Whose::All)]);
        }
        Ok(self.lend_each(op, files)?.and(self.lend_disks(op, spec)?))
    }

    /// Lends the files of its disks.
    pub(crate) fn lend_disks(&self, op: &'static str, spec: &MachineSpec) -> Result<Lent> {
        let mut files = Vec::new();
        if let Some(root) = &spec.root {
            files.push((root.top.path.as_path(), Whose::Its));
            files.extend(root.below.iter().map(|file| (file.path.as_path(), Whose::All)));
        }
        files.extend(spec.config.iter().map(|config| (config.as_path(), Whose::Its)));
        for volume in &spec.volumes {
            files.push((&volume.path, if volume.read_only { Whose::All } else { Whose::Its }));
        }
        self.lend_each(op, files)
    }

    fn lend_each(&self, op: &'static str, files: Vec<(&Path, Whose)>) -> Result<Lent> {
        files.into_iter().try_fold(Lent::default(), |lent, (path, whose)| {
            self.lend(op, path, whose).map(|(_same, more)| lent.and(more))
        })
    }

    /// Makes the file what whoever opens it needs, as far as it is not.
    fn give(&self, file: &Path, whose: Whose) -> io::Result<()> {
        // Without users of their own all have the daemon's, and its rules say who may write what.
        let Some(user) = self.user else { return Ok(()) };
        let meta = fs::symlink_metadata(file)?;
        let mode = meta.mode() & 0o777;
        let own = match whose {
            Whose::Its => user,
            Whose::All | Whose::AllWriters => rustix::process::geteuid().as_raw(),
        };
        let wanted = match whose {
            Whose::Its => 0o600,
            // What is only read may have been somebody's own before. Directories above keep all others out.
            Whose::All => 0o444,
            Whose::AllWriters => 0o666,
        };
        if meta.uid() != own {
            chown(file, Some(own), Some(own))?;
        }
        let enough = match whose {
            Whose::Its => mode == wanted,
            Whose::All => mode & 0o004 != 0,
            Whose::AllWriters => mode & 0o006 == 0o006,
        };
        if enough { Ok(()) } else { fs::set_permissions(file, Permissions::from_mode(wanted)) }
    }

    fn make_dirs(&self, within: &Path) -> io::Result<()> {
        let mut path = self.path();
        for part in within.components() {
            path.push(part);
            make_dir(&path)?;
        }
        Ok(())
    }
}

/// One that can be gone through, and not looked at.
fn make_dir(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o711).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // The umask takes bits away.
        made => made.and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o711))),
    }
}

/// Where a path from the place of work leads, from the room; `None` where it leads out of it.
fn within_room(path: &Path) -> Option<PathBuf> {
    let mut within = PathBuf::from(WORKS);
    for part in path.components() {
        match part {
            Component::Normal(name) => within.push(name),
            Component::ParentDir => within.pop().then_some(())?,
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    within.file_name().is_some().then_some(within)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_the_same_places_in_a_room_and_never_out_of_it() {
        for (path, leads) in [
            ("rootfs.qcow2", Some("sandboxes/self/rootfs.qcow2")),
            ("../../images/objects/1.ext4", Some("images/objects/1.ext4")),
            ("../../volumes/a/v.ext4", Some("volumes/a/v.ext4")),
            ("../../../etc/shadow", None),
            ("/etc/shadow", None),
            ("../..", None),
        ] {
            assert_eq!(within_room(Path::new(path)), leads.map(PathBuf::from), "{path}");
        }
    }

    #[test]
    fn a_file_is_lent_as_long_as_it_takes_and_keeps_its_path() {
        let data = tempfile::tempdir().unwrap();
        let machine = data.path().join("sandboxes/one");
        for dir in [&machine, &data.path().join("images"), &data.path().join("volumes/a")] {
            fs::create_dir_all(dir).unwrap();
        }
        for file in ["images/base", "volumes/a/.new-1", "sandboxes/one/top"] {
            fs::write(data.path().join(file), file).unwrap();
        }
        let is_root = rustix::process::geteuid().is_root();
        let user = is_root.then_some(1_900_000_000);
        let room = Room::make(machine.clone(), user, false).unwrap();
        fs::write(room.works().join("a.sock"), "a").unwrap();
        fs::write(room.works().join("b.sock"), "b").unwrap();
        room.close(["a.sock", "b.sock"]).unwrap();
        assert!(machine.join("a.sock").exists() && fs::read_dir(room.works()).unwrap().count() == 0);
        assert_eq!(fs::metadata(room.works()).unwrap().uid(), rustix::process::geteuid().as_raw());

        let (told, lent) = room.lend("lending", Path::new("../../images/base"), Whose::All).unwrap();
        assert_eq!(fs::read_to_string(room.works().join(&told)).unwrap(), "images/base");
        let (own, more) = room.lend("lending", Path::new("top"), Whose::Its).unwrap();
        let meta = fs::metadata(room.works().join(&own)).unwrap();
        if let Some(user) = user {
            assert_eq!((meta.uid(), meta.mode() & 0o777), (user, 0o600));
        }
        let absolute = data.path().join("volumes/a/.new-1");
        let (told, all) = room.lend("lending", &absolute, Whose::Its).unwrap();
        assert_eq!(told, Path::new(".new-1"));
        assert_eq!(fs::read_to_string(room.works().join(&told)).unwrap(), "volumes/a/.new-1");
        drop(lent.and(more).and(all));
        assert_eq!(fs::metadata(data.path().join("images/base")).unwrap().nlink(), 1);
        assert_eq!(fs::read_dir(room.works()).unwrap().count(), 0);
        let refused = room.lend("lending", Path::new("../../../x"), Whose::All).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Refused);
        room.remove().unwrap();
        room.remove().unwrap();
    }
}
