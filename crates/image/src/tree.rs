//! The directory in which layers are laid over each other, without a way out of it.
//!
//! # Invariants
//! - A name is resolved by openat2(2) with `RESOLVE_IN_ROOT` against the directory's own descriptor, one component at a
//!   time, and what is done to it is done relative to the descriptor of its parent and without following it. No path of
//!   a layer is ever joined to a path of the host: links, `..` and absolute names mean what they mean inside.
//! - What replaces something removes it first. Nothing is written into a file that was there: it may have other names.
//! - Device nodes are made as they are. Nobody but root can come to them: the directory lies below one of mode 0700.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::hash::BuildHasher as _;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags, chmodat, chownat, linkat, lsetxattr, mkdirat, mknodat, openat, openat2, statat, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::tree_path::TreePath;
use crate::{Error, Result};

const OP: &str = "unpack";
/// How deep directories may lie: whoever walks them holds a descriptor for each level.
const DEEPEST: u32 = 255;
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// What every name has.
#[derive(Debug, Clone)]
pub(crate) struct Attributes {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timespec,
    pub(crate) xattrs: Vec<(CString, Vec<u8>)>,
}

/// What stands behind a name, but for regular files.
#[derive(Debug, Clone)]
pub(crate) enum Special {
    Symlink(Vec<u8>),
    Fifo,
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
}

/// A directory and what is remembered of it.
#[derive(Debug, Clone, Copy)]
struct Known {
    mtime: Timespec,
    depth: u32,
}

/// An opened directory.
#[derive(Debug)]
pub(crate) struct Parent {
    fd: OwnedFd,
    inode: u64,
}

/// A tree under construction.
#[derive(Debug)]
pub(crate) struct Tree {
    path: PathBuf,
    root: OwnedFd,
    dirs: HashMap<u64, Known>,
    /// Names that the present layer made or went through, as their directory's inode and a hash of the name.
    touched: HashSet<(u64, u64)>,
    hash: RandomState,
    /// The directory of the last name; most names follow another of the same directory.
    last: Option<(Vec<u8>, Rc<Parent>)>,
}

impl Tree {
    /// An empty tree in the directory `path`, which exists and is empty.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root =
            openat(CWD, path, flags, Mode::empty()).map_err(|error| Error::io(OP, path, error.into()))?;
        let mut tree = Self {
            path: path.to_owned(),
            root,
            dirs: HashMap::new(),
            touched: HashSet::new(),
            hash: RandomState::new(),
            last: None,
        };
        tree.io(".", chmodat(&tree.root, ".", Mode::from_raw_mode(0o755), AtFlags::empty()))?;
        let inode = tree.io(".", statat(&tree.root, ".", AtFlags::empty()))?.st_ino;
        tree.dirs.insert(inode, Known { mtime: epoch(), depth: 0 });
        Ok(tree)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What is there from now on belongs to a lower layer.
    pub(crate) fn next_layer(&mut self) {
        self.touched.clear();
        self.last = None;
    }

    fn io<T, E: Into<io::Error>>(
        &self,
        name: impl AsRef<OsStr>,
        result: std::result::Result<T, E>,
    ) -> Result<T> {
        result.map_err(|error| Error::io(OP, Path::new(name.as_ref()), error.into()))
    }

    fn key(&self, parent: u64, name: &OsStr) -> (u64, u64) {
        (parent, self.hash.hash_one(name.as_bytes()))
    }

    /// The directory that `path`'s last name is in. Missing ones are made when `make` says so; `None` when one is missing.
    pub(crate) fn parent(&mut self, path: &TreePath, make: bool) -> Result<Option<Rc<Parent>>> {
        let key = path.parent_bytes();
        if let Some((last, parent)) = &self.last
            && last == key
        {
            return Ok(Some(Rc::clone(parent)));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |root: &OwnedFd, prefix: &Path| openat2(root, prefix, flags, Mode::empty(), INSIDE);
        let fd = self.io(".", open(&self.root, Path::new(".")))?;
        let inode = self.io(".", statat(&fd, "", AtFlags::EMPTY_PATH))?.st_ino;
        let mut at = Parent { fd, inode };
        for (prefix, name) in path.directories() {
            let fd = match open(&self.root, prefix) {
                Ok(fd) => fd,
                Err(Errno::NOENT) if make => {
                    self.make_implied(&at, name, prefix)?;
                    self.io(prefix, open(&self.root, prefix))?
                }
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::NOTDIR) if !make => return Ok(None),
                Err(Errno::NOTDIR) => {
                    return Err(Error::input(OP, prefix, "it is no directory, and a layer has a name in it"));
                }
                Err(Errno::LOOP) => return Err(Error::input(OP, prefix, "its links lead in a circle")),
                Err(error) => return Err(Error::io(OP, prefix, error.into())),
            };
            if make {
                self.touched.insert(self.key(at.inode, name));
            }
            let inode = self.io(prefix, statat(&fd, "", AtFlags::EMPTY_PATH))?.st_ino;
            at = Parent { fd, inode };
        }
        let parent = Rc::new(at);
        if make {
            self.last = Some((key.to_vec(), Rc::clone(&parent)));
        }
        Ok(Some(parent))
    }

    fn make_implied(&mut self, parent: &Parent, name: &OsStr, prefix: &Path) -> Result<()> {
        match mkdirat(&parent.fd, name, Mode::from_raw_mode(0o755)) {
            Err(Errno::EXIST) => {
                return Err(Error::input(
                    OP,
                    prefix,
                    "it is a link to nothing, and a layer has a name in it",
                ));
            }
            made => self.io(prefix, made)?,
        }
        self.io(prefix, chmodat(&parent.fd, name, Mode::from_raw_mode(0o755), AtFlags::empty()))?;
        self.remember(parent, name, epoch())
    }

    /// Notes a directory's time, which is set last: every name made in it would change it.
    fn remember(&mut self, parent: &Parent, name: &OsStr, mtime: Timespec) -> Result<()> {
        let inode = self.io(name, statat(&parent.fd, name, AtFlags::SYMLINK_NOFOLLOW))?.st_ino;
        let above = self.dirs.get(&parent.inode).map_or(0, |known| known.depth);
        // The root is its own parent here.
        let depth = if inode == parent.inode { above } else { above + 1 };
        if depth > DEEPEST {
            return Err(Error::input(OP, Path::new(name), format!("directories lie deeper than {DEEPEST}")));
        }
        self.dirs.insert(inode, Known { mtime, depth });
        Ok(())
    }

    fn stat(&self, parent: &Parent, name: &OsStr) -> Result<Option<Stat>> {
        match statat(&parent.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            found => self.io(name, found).map(Some),
        }
    }

    /// Makes the name free and this layer's own.
    fn make_way(&mut self, parent: &Parent, name: &OsStr) -> Result<()> {
        self.touched.insert(self.key(parent.inode, name));
        if self.stat(parent, name)?.is_some() {
            self.remove(parent.fd.as_fd(), name)?;
        }
        Ok(())
    }

    /// A directory, or new attributes of one that is there.
    pub(crate) fn directory(&mut self, path: &TreePath, attributes: &Attributes) -> Result<()> {
        let Some(parent) = self.parent(path, true)? else { return Ok(()) };
        let name = path.name().unwrap_or(OsStr::new("."));
        let there = self.stat(&parent, name)?.is_some_and(|stat| is_dir(&stat));
        if there {
            self.touched.insert(self.key(parent.inode, name));
            self.forget_xattrs(&parent, name)?;
        } else {
            self.make_way(&parent, name)?;
            self.io(name, mkdirat(&parent.fd, name, Mode::from_raw_mode(0o700)))?;
        }
        self.remember(&parent, name, attributes.mtime)?;
        self.dress(&parent, name, attributes)
    }

    /// A new regular file to be written; [`Tree::dress_file`] gives it its attributes afterwards.
    pub(crate) fn file(&mut self, path: &TreePath) -> Result<(Rc<Parent>, File)> {
        let (parent, name) = self.place(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = self.io(name, openat(&parent.fd, name, flags, Mode::from_raw_mode(0o600)))?;
        Ok((parent, File::from(file)))
    }

    fn place<'a>(&mut self, path: &'a TreePath) -> Result<(Rc<Parent>, &'a OsStr)> {
        let none = || Error::input(OP, Path::new("/"), "a layer has something else than a directory there");
        let name = path.name().ok_or_else(none)?;
        let parent = self.parent(path, true)?.ok_or_else(none)?;
        self.make_way(&parent, name)?;
        Ok((parent, name))
    }

    /// Owners, extended attributes, mode and time, in the order in which none undoes another.
    pub(crate) fn dress_file(&self, parent: &Parent, path: &TreePath, attributes: &Attributes) -> Result<()> {
        self.dress(parent, path.name().unwrap_or(OsStr::new(".")), attributes)
    }

    /// Anything that is neither directory nor regular file.
    pub(crate) fn special(
        &mut self,
        path: &TreePath,
        special: &Special,
        attributes: &Attributes,
    ) -> Result<()> {
        let (parent, name) = self.place(path)?;
        let mode = Mode::from_raw_mode(0o600);
        let node =
            |kind, major, minor| mknodat(&parent.fd, name, kind, mode, rustix::fs::makedev(major, minor));
        let made = match special {
            Special::Symlink(target) => symlinkat(OsStr::from_bytes(target), &parent.fd, name),
            Special::Fifo => node(FileType::Fifo, 0, 0),
            Special::CharDevice(major, minor) => node(FileType::CharacterDevice, *major, *minor),
            Special::BlockDevice(major, minor) => node(FileType::BlockDevice, *major, *minor),
        };
        self.io(name, made)?;
        self.dress(&parent, name, attributes)
    }

    /// Another name of a file that is there.
    pub(crate) fn hard_link(&mut self, path: &TreePath, target: &TreePath) -> Result<()> {
        let shown = target.shown();
        let missing = || {
            Error::input(
                OP,
                &path.shown(),
                format!("it is a link to {}, which is not there", shown.display()),
            )
        };
        let to = target.name().ok_or_else(missing)?;
        let from = self.parent(target, false)?.ok_or_else(missing)?;
        let stat = self.stat(&from, to)?.ok_or_else(missing)?;
        if is_dir(&stat) {
            return Err(Error::input(OP, &path.shown(), "it is a hard link to a directory"));
        }
        let Some(name) = path.name() else { return Err(missing()) };
        let parent = self.parent(path, true)?.ok_or_else(missing)?;
        if parent.inode == from.inode && name == to {
            self.touched.insert(self.key(parent.inode, name));
            return Ok(());
        }
        let shares_a_file = self.stat(&parent, name)?.is_some_and(|old| old.st_ino == stat.st_ino);
        if shares_a_file {
            self.touched.insert(self.key(parent.inode, name));
            return Ok(());
        }
        self.make_way(&parent, name)?;
        match linkat(&from.fd, to, &parent.fd, name, AtFlags::empty()) {
            // The name that was in the way was the directory of the target.
            Err(Errno::NOENT) => Err(missing()),
            linked => self.io(name, linked),
        }
    }

    /// A lower layer's name is not seen any more.
    pub(crate) fn whiteout(&mut self, parent: &Parent, name: &OsStr) -> Result<()> {
        let Some(stat) = self.stat(parent, name)? else { return Ok(()) };
        if !self.touched.contains(&self.key(parent.inode, name)) {
            return self.remove(parent.fd.as_fd(), name);
        }
        if is_dir(&stat) {
            let inside = Parent { fd: self.open_dir(parent.fd.as_fd(), name)?, inode: stat.st_ino };
            self.whiteout_all(&inside)?;
        }
        Ok(())
    }

    /// Nothing of lower layers is seen in the directory any more.
    pub(crate) fn whiteout_all(&mut self, parent: &Parent) -> Result<()> {
        for name in self.names(parent.fd.as_fd())? {
            self.whiteout(parent, OsStr::from_bytes(name.as_bytes()))?;
        }
        Ok(())
    }

    fn open_dir(&self, parent: impl AsFd, name: &OsStr) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.io(name, openat(parent, name, flags, Mode::empty()))
    }

    fn names(&self, dir: impl AsFd) -> Result<Vec<CString>> {
        let readable = self.open_dir(dir, OsStr::new("."))?;
        let mut names = Vec::new();
        for entry in self.io(".", Dir::new(readable))? {
            let name = self.io(".", entry)?.file_name().to_owned();
            if name.as_bytes() != b"." && name.as_bytes() != b".." {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn remove(&mut self, parent: impl AsFd + Copy, name: &OsStr) -> Result<()> {
        self.last = None;
        match unlinkat(parent, name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => {}
            done => return self.io(name, done),
        }
        let dir = self.open_dir(parent, name)?;
        for child in self.names(&dir)? {
            self.remove(dir.as_fd(), OsStr::from_bytes(child.as_bytes()))?;
        }
        self.io(name, unlinkat(parent, name, AtFlags::REMOVEDIR))
    }

    /// The name by way of its parent's descriptor, for the calls that take paths only. The last part is not followed.
    fn by_descriptor(parent: &Parent, name: &OsStr) -> PathBuf {
        Path::new("/proc/self/fd").join(parent.fd.as_raw_fd().to_string()).join(name)
    }

    fn forget_xattrs(&self, parent: &Parent, name: &OsStr) -> Result<()> {
        let path = Self::by_descriptor(parent, name);
        let mut list = vec![0u8; 64 << 10];
        let length = match rustix::fs::llistxattr(&path, &mut list[..]) {
            Err(Errno::OPNOTSUPP) => return Ok(()),
            listed => self.io(name, listed)?,
        };
        for attribute in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            self.io(name, rustix::fs::lremovexattr(&path, attribute))?;
        }
        Ok(())
    }

    fn dress(&self, parent: &Parent, name: &OsStr, attributes: &Attributes) -> Result<()> {
        let stat = self.io(name, statat(&parent.fd, name, AtFlags::SYMLINK_NOFOLLOW))?;
        let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
        let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
        self.io(name, chownat(&parent.fd, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW))?;
        if !attributes.xattrs.is_empty() {
            let path = Self::by_descriptor(parent, name);
            for (key, value) in &attributes.xattrs {
                match lsetxattr(&path, key.as_c_str(), value, XattrFlags::empty()) {
                    // user(5) attributes belong to files and directories only; an archive may say otherwise.
                    Err(Errno::PERM) if is_link || key.as_bytes().starts_with(b"user.") => {}
                    set => self.io(name, set)?,
                }
            }
        }
        if !is_link {
            let mode = Mode::from_raw_mode(attributes.mode & 0o7777);
            self.io(name, chmodat(&parent.fd, name, mode, AtFlags::empty()))?;
        }
        self.set_time(parent.fd.as_fd(), name, attributes.mtime)
    }

    fn set_time(&self, parent: impl AsFd, name: &OsStr, time: Timespec) -> Result<()> {
        let times = Timestamps { last_access: time, last_modification: time };
        self.io(name, utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW))
    }

    /// Makes a directory, owned by root, if there is nothing of that name.
    pub(crate) fn ensure_directory(&mut self, path: &TreePath) -> Result<()> {
        let Some(name) = path.name() else { return Ok(()) };
        let Some(parent) = self.parent(path, true)? else { return Ok(()) };
        if self.stat(&parent, name)?.is_none() {
            self.make_implied(&parent, name, &path.shown())?;
        }
        Ok(())
    }

    /// Whether a program can be run by that name, in the root of the tree.
    pub(crate) fn has_program(&self, path: &Path) -> bool {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let Ok(file) = openat2(&self.root, path, flags, Mode::empty(), INSIDE) else { return false };
        statat(&file, "", AtFlags::EMPTY_PATH).is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_mode & 0o111 != 0
        })
    }

    /// Gives every directory its time.
    pub(crate) fn finish(&mut self) -> Result<RootAttributes> {
        self.last = None;
        let root = self.open_dir(self.root.as_fd(), OsStr::new("."))?;
        self.set_times_below(root.as_fd())?;
        let stat = self.io(".", statat(&root, "", AtFlags::EMPTY_PATH))?;
        let known = self.dirs.get(&stat.st_ino).copied().unwrap_or(Known { mtime: epoch(), depth: 0 });
        self.set_time(self.root.as_fd(), OsStr::new("."), known.mtime)?;
        Ok(RootAttributes {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime_sec: known.mtime.tv_sec,
        })
    }

    fn set_times_below(&self, dir: impl AsFd + Copy) -> Result<()> {
        for child in self.names(dir)? {
            let name = OsStr::from_bytes(child.as_bytes());
            let stat = self.io(name, statat(dir, name, AtFlags::SYMLINK_NOFOLLOW))?;
            if is_dir(&stat) {
                let inside = self.open_dir(dir, name)?;
                self.set_times_below(inside.as_fd())?;
                let known = self.dirs.get(&stat.st_ino).map_or(epoch(), |known| known.mtime);
                self.set_time(dir, name, known)?;
            }
        }
        Ok(())
    }
}

/// What `mke2fs -d` does not take over from the root of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RootAttributes {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime_sec: i64,
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

const fn epoch() -> Timespec {
    Timespec { tv_sec: 0, tv_nsec: 0 }
}
