//! A copy of a whole directory: content, holes, hard links, modes, owners, times; and the proof that it is one.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, File, FileTimes, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::buffer::spare_capacity;
use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
use types::Bytes;

use crate::clone::{self, CloneOptions, CloneProgress};
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::{settle, sparse};

/// How much there is in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TreeSize {
    /// Files, each counted once however many names it has.
    pub files: u64,
    /// What they occupy, holes not counted. What the filesystem compresses or shares counts in full.
    pub data: Bytes,
}

/// The device and the number of a file: two names with the same are one file.
type Inode = (u64, u64);

fn inode(meta: &Metadata) -> Inode {
    (meta.dev(), meta.ino())
}

/// What an entry of a directory is to a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Dir,
    File,
    Link,
    /// Means something only while a process listens: not copied.
    Passing,
}

fn kind(path: &Path, meta: &Metadata) -> Result<Kind> {
    let kind = meta.file_type();
    match () {
        () if kind.is_dir() => Ok(Kind::Dir),
        () if kind.is_file() => Ok(Kind::File),
        () if kind.is_symlink() => Ok(Kind::Link),
        () if kind.is_socket() || kind.is_fifo() => Ok(Kind::Passing),
        () => Err(Error::new(ErrorKind::Invalid, "copy", path).because("it is a device")),
    }
}

/// The entries of a directory that a copy has too, by name.
fn entries(dir: &Path) -> Result<BTreeMap<OsString, (Kind, Metadata)>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(|error| Error::io("list", dir, error))? {
        let entry = entry.map_err(|error| Error::io("list", dir, error))?;
        let path = entry.path();
        let meta = fs::symlink_metadata(&path).map_err(|error| Error::io("stat", &path, error))?;
        let kind = kind(&path, &meta)?;
        if kind != Kind::Passing {
            found.insert(entry.file_name(), (kind, meta));
        }
    }
    Ok(found)
}

/// Counts what is in a directory.
pub(crate) fn measure(dir: &Path) -> Result<TreeSize> {
    fn add(dir: &Path, seen: &mut HashMap<Inode, ()>, size: &mut TreeSize) -> Result<()> {
        for (name, (kind, meta)) in entries(dir)? {
            if kind == Kind::Dir {
                add(&dir.join(name), seen, size)?;
            } else if seen.insert(inode(&meta), ()).is_none() {
                size.files += 1;
                size.data.0 += meta.blocks().saturating_mul(512);
            }
        }
        Ok(())
    }
    let mut size = TreeSize::default();
    add(dir, &mut HashMap::new(), &mut size)?;
    Ok(size)
}

/// Copies what is in `from` into the empty directory `to`, which gets the mode of `from` too, and syncs the filesystem.
/// What lies under `plainly`, as seen from `from`, is stored uncompressed.
pub(crate) fn copy(from: &Path, to: &Path, plainly: &Path, options: &CloneOptions<'_>) -> Result<TreeSize> {
    let total = measure(from)?;
    let mut copier = Copier {
        options,
        plainly: from.join(plainly),
        total: total.data,
        done: Bytes(0),
        first: HashMap::new(),
    };
    let meta = fs::metadata(from).map_err(|error| Error::io("stat", from, error))?;
    copier.fill(from, to, &meta)?;
    durable::sync_filesystem(to)?;
    Ok(total)
}

struct Copier<'a> {
    options: &'a CloneOptions<'a>,
    plainly: PathBuf,
    total: Bytes,
    done: Bytes,
    /// The first copy of each file that has more than one name.
    first: HashMap<Inode, PathBuf>,
}

impl Copier<'_> {
    fn fill(&mut self, from: &Path, to: &Path, meta: &Metadata) -> Result<()> {
        for (name, (kind, meta)) in entries(from)? {
            let (from, to) = (from.join(&name), to.join(&name));
            match kind {
                Kind::Dir => {
                    durable::make_dir(&to)?;
                    self.fill(&from, &to, &meta)?;
                }
                Kind::File => self.file(&from, &to, &meta)?,
                Kind::Link => link(&from, &to, &meta)?,
                Kind::Passing => {}
            }
        }
        // Last, since every new entry changes the time of its directory.
        let open = |path: &Path| File::open(path).map_err(|error| Error::io("open", path, error));
        attributes(&open(from)?, &open(to)?, to, meta)
    }

    fn file(&mut self, from: &Path, to: &Path, meta: &Metadata) -> Result<()> {
        if meta.nlink() > 1 {
            if let Some(first) = self.first.get(&inode(meta)) {
                return fs::hard_link(first, to).map_err(|error| Error::io("link", to, error));
            }
            self.first.insert(inode(meta), to.to_owned());
        }
        let source = File::open(from).map_err(|error| Error::io("open", from, error))?;
        let target = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(to);
        let target = target.map_err(|error| Error::io("create", to, error))?;
        if from.starts_with(&self.plainly) {
            settle::store_plainly(&target);
        }
        let before = self.done.0;
        let tell = |now: CloneProgress| {
            if let Some(progress) = self.options.progress {
                let done = Bytes(self.total.0.min(before + now.done.0));
                progress(CloneProgress { done, total: self.total });
            }
        };
        let options = CloneOptions { sync: false, progress: Some(&tell), cancel: self.options.cancel };
        let copied = clone::copy_into(&source, &target, to, &options)?;
        self.done.0 += copied.0;
        attributes(&source, &target, to, meta)
    }
}

/// Owner, mode, extended attributes and times.
fn attributes(from: &File, to: &File, path: &Path, meta: &Metadata) -> Result<()> {
    let fail = |error| Error::io("set attributes of", path, error);
    std::os::unix::fs::fchown(to, Some(meta.uid()), Some(meta.gid())).map_err(fail)?;
    // After the owner, whose change clears set-user-id.
    to.set_permissions(Permissions::from_mode(meta.mode() & 0o7777)).map_err(fail)?;
    extended_attributes(from, to).map_err(fail)?;
    let time = |found: io::Result<std::time::SystemTime>| found.map_err(fail);
    let times = FileTimes::new().set_accessed(time(meta.accessed())?).set_modified(time(meta.modified())?);
    to.set_times(times).map_err(fail)
}

/// Those that the other filesystem takes.
fn extended_attributes(from: &File, to: &File) -> io::Result<()> {
    let mut names = Vec::with_capacity(64 << 10);
    match flistxattr(from, spare_capacity(&mut names)) {
        Ok(_) => {}
        Err(error) if clone::is_refusal(error) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = Vec::with_capacity(64 << 10);
        match fgetxattr(from, name, spare_capacity(&mut value))
            .and_then(|_| fsetxattr(to, name, &value, XattrFlags::empty()))
        {
            Err(error) if !clone::is_refusal(error) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

fn link(from: &Path, to: &Path, meta: &Metadata) -> Result<()> {
    let target = fs::read_link(from).map_err(|error| Error::io("read", from, error))?;
    std::os::unix::fs::symlink(target, to)
        .and_then(|()| std::os::unix::fs::lchown(to, Some(meta.uid()), Some(meta.gid())))
        .map_err(|error| Error::io("link", to, error))
}

/// Proves that `copy` holds what `of` holds: the same names, kinds, modes, owners, links and bytes.
///
/// # Errors
/// `Corrupt`, naming the first difference; `Cancelled`.
pub(crate) fn compare(of: &Path, copy: &Path, options: &CloneOptions<'_>) -> Result<()> {
    let mut comparer = Comparer {
        options,
        total: measure(of)?.data,
        done: Bytes(0),
        pairs: HashMap::new(),
        back: HashMap::new(),
    };
    let stat = |path: &Path| fs::metadata(path).map_err(|error| Error::io("stat", path, error));
    same_attributes(copy, &stat(of)?, &stat(copy)?)?;
    comparer.dirs(of, copy)
}

struct Comparer<'a> {
    options: &'a CloneOptions<'a>,
    total: Bytes,
    done: Bytes,
    /// Each file met, and the one that was met under the same name in the copy.
    pairs: HashMap<Inode, Inode>,
    back: HashMap<Inode, Inode>,
}

fn differs(path: &Path, what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, "compare with the original", path)
        .because(format!("{what} differs: it was changed meanwhile, or the disk is failing"))
        .hint_to("nothing was changed; try again while nobody uses the data directory")
}

fn same_attributes(path: &Path, one: &Metadata, two: &Metadata) -> Result<()> {
    let of = |meta: &Metadata| (meta.mode(), meta.uid(), meta.gid());
    if of(one) == of(two) { Ok(()) } else { Err(differs(path, "its mode or owner")) }
}

impl Comparer<'_> {
    fn dirs(&mut self, of: &Path, copy: &Path) -> Result<()> {
        let (ours, theirs) = (entries(of)?, entries(copy)?);
        if !ours.keys().eq(theirs.keys()) {
            return Err(differs(copy, "the list of what is in it"));
        }
        for ((name, (kind, one)), (copied, two)) in ours.into_iter().zip(theirs.into_values()) {
            let (of, copy) = (of.join(&name), copy.join(&name));
            if kind != copied {
                return Err(differs(&copy, "what it is"));
            }
            match kind {
                Kind::Dir => self.dirs(&of, &copy)?,
                Kind::File => self.files(&of, &copy, &one, &two)?,
                Kind::Link => {
                    let read =
                        |path: &Path| fs::read_link(path).map_err(|error| Error::io("read", path, error));
                    if read(&of)? != read(&copy)? {
                        return Err(differs(&copy, "where it points to"));
                    }
                    continue;
                }
                Kind::Passing => {}
            }
            same_attributes(&copy, &one, &two)?;
        }
        Ok(())
    }

    fn files(&mut self, of: &Path, copy: &Path, one: &Metadata, two: &Metadata) -> Result<()> {
        let (here, there) = (inode(one), inode(two));
        match (self.pairs.insert(here, there), self.back.insert(there, here)) {
            (None, None) => {}
            // Another name of a pair that was read already.
            (Some(known), Some(back)) if known == there && back == here => return Ok(()),
            _ => return Err(differs(copy, "which names are of one file")),
        }
        let open = |path: &Path| File::open(path).map_err(|error| Error::io("open", path, error));
        let same = one.len() == two.len() && self.same_content(&open(of)?, &open(copy)?, copy, one.len())?;
        if same { Ok(()) } else { Err(differs(copy, "its content")) }
    }

    /// Reads only where one of the two has data.
    fn same_content(&mut self, one: &File, two: &File, path: &Path, len: u64) -> Result<bool> {
        let fail = |error| Error::io("read", path, error);
        let (mut left, mut right) = (Vec::new(), Vec::new());
        let mut at = 0;
        loop {
            let next = [one, two].map(|file| sparse::next_data(file, at, len));
            let [ours, theirs] = next.map(|found| found.map_err(fail));
            let Some((start, end)) = [ours?, theirs?].into_iter().flatten().min() else { return Ok(true) };
            let piece = sparse::piece(end - start);
            for (file, buffer) in [(one, &mut left), (two, &mut right)] {
                buffer.resize(piece, 0);
                file.read_exact_at(buffer, start).map_err(fail)?;
            }
            if left != right {
                return Ok(false);
            }
            at = start + sparse::bytes(piece);
            self.tell(sparse::bytes(piece), path)?;
        }
    }

    fn tell(&mut self, read: u64, path: &Path) -> Result<()> {
        if self.options.cancel.is_some_and(|cancel| cancel.load(std::sync::atomic::Ordering::Relaxed)) {
            return Err(
                Error::new(ErrorKind::Cancelled, "compare", path).because("it was cancelled half-way")
            );
        }
        self.done.0 += read;
        if let Some(progress) = self.options.progress {
            progress(CloneProgress { done: Bytes(self.done.0.min(self.total.0)), total: self.total });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn tree(at: &Path) {
        fs::create_dir_all(at.join("images/objects")).unwrap();
        let object = at.join("images/objects/a.ext4");
        let file = File::create(&object).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[7; 300_000], 5 << 20).unwrap();
        file.write_all_at(b"end", (64 << 20) - 3).unwrap();
        file.set_permissions(Permissions::from_mode(0o444)).unwrap();
        fs::hard_link(&object, at.join("images/rootfs-a.ext4")).unwrap();
        fs::write(at.join("key"), "secret").unwrap();
        fs::set_permissions(at.join("key"), Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink("key", at.join("link")).unwrap();
        fs::create_dir(at.join("empty")).unwrap();
        drop(UnixListener::bind(at.join("s.sock")).unwrap());
        fs::set_permissions(at, Permissions::from_mode(0o700)).unwrap();
    }

    fn copied(dir: &Path) -> (PathBuf, PathBuf) {
        let (from, to) = (dir.join("from"), dir.join("to"));
        fs::create_dir(&from).unwrap();
        tree(&from);
        fs::create_dir(&to).unwrap();
        copy(&from, &to, Path::new("images/objects"), &CloneOptions::default()).unwrap();
        (from, to)
    }

    #[test]
    fn a_copy_keeps_holes_links_modes_and_times_and_leaves_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = copied(dir.path());
        compare(&from, &to, &CloneOptions::default()).unwrap();
        let object = fs::metadata(to.join("images/objects/a.ext4")).unwrap();
        assert_eq!(object.ino(), fs::metadata(to.join("images/rootfs-a.ext4")).unwrap().ino());
        assert!(object.blocks() * 512 < 1 << 20, "{} blocks", object.blocks());
        assert_eq!(object.mode() & 0o777, 0o444);
        assert_eq!(
            object.modified().unwrap(),
            fs::metadata(from.join("images/rootfs-a.ext4")).unwrap().modified().unwrap()
        );
        assert_eq!(fs::metadata(&to).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("key"));
        assert!(!to.join("s.sock").exists());
        assert_eq!(measure(&from).unwrap().files, 3);
        assert_eq!(measure(&to).unwrap(), measure(&from).unwrap());
    }

    #[test]
    fn every_difference_is_found_and_named() {
        type Change = fn(&Path);
        let changes: [(&str, Change); 7] = [
            ("key", |to| fs::write(to.join("key"), "secreT").unwrap()),
            ("key", |to| fs::set_permissions(to.join("key"), Permissions::from_mode(0o644)).unwrap()),
            ("to", |to| fs::write(to.join("more"), "").unwrap()),
            ("to", |to| fs::remove_dir(to.join("empty")).unwrap()),
            ("link", |to| {
                fs::remove_file(to.join("link")).unwrap();
                std::os::unix::fs::symlink("other", to.join("link")).unwrap();
            }),
            ("rootfs-a.ext4", |to| {
                fs::copy(to.join("images/objects/a.ext4"), to.join("b")).unwrap();
                fs::rename(to.join("b"), to.join("images/rootfs-a.ext4")).unwrap();
            }),
            ("a.ext4", |to| {
                let path = to.join("images/objects/a.ext4");
                fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
                let file = OpenOptions::new().write(true).open(&path).unwrap();
                // In a hole of the original.
                file.write_all_at(b"x", 40 << 20).unwrap();
                file.set_permissions(Permissions::from_mode(0o444)).unwrap();
            }),
        ];
        for (at, (name, change)) in changes.into_iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            let (from, to) = copied(dir.path());
            change(&to);
            let error = compare(&from, &to, &CloneOptions::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "change {at}");
            assert!(error.path().ends_with(name), "change {at}: {error}");
        }
    }

    #[test]
    fn a_cancelled_copy_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).unwrap();
        tree(&from);
        fs::create_dir(&to).unwrap();
        let cancel = std::sync::atomic::AtomicBool::new(true);
        let options = CloneOptions { cancel: Some(&cancel), ..CloneOptions::default() };
        let error = copy(&from, &to, Path::new("images/objects"), &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
    }
}
