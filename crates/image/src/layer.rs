//! One layer, read as a stream and laid over a tree: whiteouts, links, attributes, limits.
//!
//! # Limits
//! The archive is somebody else's. Bytes and names are counted against what the caller allows; what stands between two
//! entries (long names, PAX records) is bounded by [`HEADERS_MAX`], because the parser keeps it in memory.

use std::cell::Cell;
use std::ffi::{CString, OsStr};
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::rc::Rc;

use flate2::read::MultiGzDecoder;
use rustix::fs::Timespec;
use sha2::{Digest as _, Sha256};
use tar::{Archive, Entry, EntryType};
use types::Bytes;

use crate::digest::Sha256Digest;
use crate::tree::{Attributes, Special, Tree};
use crate::tree_path::TreePath;
use crate::{Build, Error, Result};

const OP: &str = "unpack";
const HEADERS_MAX: u64 = 2 << 20;
const PIECE: usize = 256 << 10;
/// A hole is left where this much is zero, at such an offset.
const HOLE: usize = 64 << 10;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The private names of AUFS.
const AUFS: &[u8] = b".wh..wh.";

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip(1).
    Gzip,
    /// zstd(1).
    Zstd,
}

impl Compression {
    /// What the first bytes of a file say; `None` for a compression that is not read here.
    pub(crate) fn sniff(start: &[u8]) -> Option<Self> {
        const OTHERS: [&[u8]; 4] = [b"\xfd7zXZ\0", b"BZh", b"\x04\x22\x4d\x18", b"PK\x03\x04"];
        match start {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            other if OTHERS.iter().any(|magic| other.starts_with(magic)) => None,
            _ => Some(Self::None),
        }
    }

    pub(crate) fn reader<'a>(self, from: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        let buffered = BufReader::with_capacity(PIECE, from);
        Ok(match self {
            Self::None => Box::new(buffered),
            Self::Gzip => Box::new(BufReader::with_capacity(PIECE, MultiGzDecoder::new(buffered))),
            Self::Zstd => Box::new(zstd::Decoder::with_buffer(buffered)?),
        })
    }
}

/// What all layers of an image together may unpack to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Content of files.
    pub bytes: Bytes,
    /// Names.
    pub names: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: Bytes(64 << 30), names: 4_000_000 }
    }
}

/// What was unpacked so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    pub(crate) bytes: u64,
    pub(crate) names: u64,
    /// Compressed bytes read, for the progress.
    pub(crate) read: u64,
}

/// Counts what goes through, hashes it, and refuses more than is allowed until the next entry.
struct Guarded<R> {
    from: R,
    allowed: Rc<Cell<u64>>,
    hash: Sha256,
}

impl<R: Read> Read for Guarded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let allowed = self.allowed.get();
        if allowed == 0 && !buffer.is_empty() {
            return Err(io::Error::other("what stands before an entry is longer than 2 MiB"));
        }
        let most = usize::try_from(allowed).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.from.read(&mut buffer[..most])?;
        self.allowed.set(allowed - u64::try_from(read).unwrap_or(allowed));
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

/// Counts compressed bytes for the progress, and ends when somebody asks.
struct Watched<'a, R> {
    from: R,
    read: Rc<Cell<u64>>,
    told: u64,
    total: u64,
    what: &'a str,
    build: &'a Build<'a>,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        const STEP: u64 = 4 << 20;
        if self.build.cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        let read = self.from.read(buffer)?;
        let now = self.read.get() + u64::try_from(read).unwrap_or(0);
        self.read.set(now);
        if now >= self.told + STEP {
            self.told = now;
            self.build.at(self.what, now, self.total);
        }
        Ok(read)
    }
}

/// Where a layer's bytes are in the progress of all of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share<'a> {
    pub(crate) what: &'a str,
    pub(crate) total: u64,
}

/// Lays a layer over the tree and gives the digest of its uncompressed bytes.
pub(crate) fn apply(
    build: &Build<'_>,
    tree: &mut Tree,
    from: impl Read,
    compression: Compression,
    limits: &Limits,
    done: &mut Unpacked,
    share: Share<'_>,
) -> Result<Sha256Digest> {
    let broken = |error: io::Error| damaged(build, error);
    let read = Rc::new(Cell::new(done.read));
    let watched = Watched {
        from,
        read: Rc::clone(&read),
        told: done.read,
        total: share.total,
        what: share.what,
        build,
    };
    let allowed = Rc::new(Cell::new(HEADERS_MAX));
    let guarded = Guarded {
        from: compression.reader(watched).map_err(broken)?,
        allowed: Rc::clone(&allowed),
        hash: Sha256::new(),
    };
    tree.next_layer();
    let mut archive = Archive::new(guarded);
    let mut entries = archive.entries().map_err(broken)?;
    let mut buffer = vec![0; PIECE];
    loop {
        allowed.set(HEADERS_MAX);
        let Some(entry) = entries.next() else { break };
        allowed.set(u64::MAX);
        let mut entry = entry.map_err(broken)?;
        done.names += 1;
        if done.names > limits.names {
            return Err(too_much(format!("it has more than {} names", limits.names)));
        }
        one(build, tree, &mut entry, limits, done, &mut buffer)?;
        // What an entry has beyond its meaning must not count as a header.
        io::copy(&mut entry, &mut io::sink()).map_err(broken)?;
    }
    // The rest belongs to the digest.
    let mut guarded = archive.into_inner();
    guarded.allowed.set(u64::MAX);
    while guarded.read(&mut buffer).map_err(broken)? > 0 {}
    done.read = read.get();
    Ok(Sha256Digest::from_bytes(&guarded.hash.finalize()))
}

fn damaged(build: &Build<'_>, error: io::Error) -> Error {
    if build.cancel.is_cancelled() {
        return Error::cancelled(OP);
    }
    Error::input(OP, Path::new("layer"), format!("it is cut short or damaged: {error}"))
}

fn too_much(why: String) -> Error {
    Error::too_large(OP, Path::new("layer"), format!("the image is too large: {why}"))
}

fn one<R: Read>(
    build: &Build<'_>,
    tree: &mut Tree,
    entry: &mut Entry<'_, R>,
    limits: &Limits,
    done: &mut Unpacked,
    buffer: &mut [u8],
) -> Result<()> {
    let kind = entry.header().entry_type();
    if kind == EntryType::XGlobalHeader {
        return Ok(());
    }
    let path = TreePath::parse(&entry.path_bytes())?;
    if path.names().any(|name| name.starts_with(AUFS) && name != OPAQUE) {
        return Ok(());
    }
    if let Some(hidden) = path.name().and_then(|name| name.as_bytes().strip_prefix(WHITEOUT)) {
        return whiteout(tree, &path, hidden);
    }
    let invalid = |what: &str| Error::input(OP, &path.shown(), format!("the layer cannot be used: {what}"));
    let link = || -> Result<Vec<u8>> {
        let target = entry.link_name_bytes().unwrap_or_default().into_owned();
        match target.is_empty() || target.contains(&0) || target.len() > 4095 {
            true => Err(invalid("a link without a target")),
            false => Ok(target),
        }
    };
    let device = || {
        let header = entry.header();
        match (header.device_major(), header.device_minor()) {
            (Ok(Some(major)), Ok(Some(minor))) => Ok((major, minor)),
            _ => Err(invalid("a device without a number")),
        }
    };
    let special = match kind {
        EntryType::Symlink => Special::Symlink(link()?),
        EntryType::Fifo => Special::Fifo,
        EntryType::Char => {
            let (major, minor) = device()?;
            Special::CharDevice(major, minor)
        }
        EntryType::Block => {
            let (major, minor) = device()?;
            Special::BlockDevice(major, minor)
        }
        EntryType::Link => return tree.hard_link(&path, &TreePath::parse(&link()?)?),
        EntryType::Directory => {
            let attributes = attributes(entry, &path)?;
            return tree.directory(&path, &attributes);
        }
        EntryType::Regular if entry.path_bytes().ends_with(b"/") => {
            let attributes = attributes(entry, &path)?;
            return tree.directory(&path, &attributes);
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let attributes = attributes(entry, &path)?;
            return file(build, tree, entry, &path, &attributes, limits, done, buffer);
        }
        other => {
            return Err(invalid(&format!("an entry of kind {:?}", char::from(other.as_byte()))));
        }
    };
    let attributes = attributes(entry, &path)?;
    tree.special(&path, &special, &attributes)
}

fn whiteout(tree: &mut Tree, path: &TreePath, hidden: &[u8]) -> Result<()> {
    let opaque = hidden == &OPAQUE[WHITEOUT.len()..];
    if !opaque && matches!(hidden, b"" | b"." | b"..") {
        return Err(Error::input(OP, &path.shown(), "the layer cannot be used: it removes no name"));
    }
    let Some(parent) = tree.parent(path, false)? else { return Ok(()) };
    if opaque { tree.whiteout_all(&parent) } else { tree.whiteout(&parent, OsStr::from_bytes(hidden)) }
}

#[expect(clippy::too_many_arguments, reason = "all of it is the state of one loop")]
fn file<R: Read>(
    build: &Build<'_>,
    tree: &mut Tree,
    entry: &mut Entry<'_, R>,
    path: &TreePath,
    attributes: &Attributes,
    limits: &Limits,
    done: &mut Unpacked,
    buffer: &mut [u8],
) -> Result<()> {
    let size = entry.size();
    // Before anything is written: a sparse file costs its maker nothing.
    done.bytes = done.bytes.saturating_add(size);
    if done.bytes > limits.bytes.0 {
        return Err(too_much(format!("its files have more than {}", limits.bytes)));
    }
    let (parent, file) = tree.file(path)?;
    let io = |error| Error::io(OP, &path.shown(), error);
    let mut at = 0u64;
    loop {
        let filled = fill(entry, buffer).map_err(|error| damaged(build, error))?;
        if filled == 0 {
            break;
        }
        for piece in buffer[..filled].chunks(HOLE) {
            if piece.len() < HOLE || piece.iter().any(|byte| *byte != 0) {
                file.write_all_at(piece, at).map_err(io)?;
            }
            at += u64::try_from(piece.len()).unwrap_or(0);
        }
    }
    if at != size {
        return Err(damaged(build, io::Error::other(format!("{} ends early", path.shown().display()))));
    }
    file.set_len(size).map_err(io)?;
    drop(file);
    tree.dress_file(&parent, path, attributes)
}

/// Reads until the buffer is full or the entry is over, so that holes begin at multiples of their size.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn attributes<R: Read>(entry: &mut Entry<'_, R>, path: &TreePath) -> Result<Attributes> {
    let invalid = |what: &str| Error::input(OP, &path.shown(), format!("the layer cannot be used: {what}"));
    let (mut mtime, mut xattrs) = (None, Vec::new());
    if let Some(records) = entry.pax_extensions().map_err(|_| invalid("a bad PAX record"))? {
        for record in records {
            let record = record.map_err(|_| invalid("a bad PAX record"))?;
            let (key, value) = (record.key_bytes(), record.value_bytes());
            if key == b"mtime" {
                mtime = Some(pax_time(value).ok_or_else(|| invalid("a time that is none"))?);
            } else if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                let name = CString::new(name).map_err(|_| invalid("an attribute with a zero in its name"))?;
                xattrs.push((name, value.to_vec()));
            } else if key.starts_with(b"GNU.sparse.") {
                return Err(invalid("it has a sparse file in the PAX form, which is not read here"));
            }
        }
    }
    let header = entry.header();
    let number = |read: io::Result<u64>, what: &str| {
        let number = read.ok().and_then(|number| u32::try_from(number).ok());
        // chown(2) takes the last number for "leave it".
        number.filter(|number| *number != u32::MAX).ok_or_else(|| invalid(what))
    };
    let uid = number(header.uid(), "an owner that is no number")?;
    let gid = number(header.gid(), "a group that is no number")?;
    let mode = header.mode().map_err(|_| invalid("a mode that is no number"))? & 0o7777;
    let mtime = match mtime {
        Some(time) => time,
        None => {
            let seconds = header.mtime().map_err(|_| invalid("a time that is none"))?;
            Timespec {
                tv_sec: i64::try_from(seconds).map_err(|_| invalid("a time too far off"))?,
                tv_nsec: 0,
            }
        }
    };
    Ok(Attributes { mode, uid, gid, mtime, xattrs })
}

/// `1700000000.123456789`, perhaps with a sign (pax(1)).
fn pax_time(text: &[u8]) -> Option<Timespec> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: i64 = digits.parse().ok()?;
    match whole.starts_with('-') && nanoseconds > 0 {
        true => Some(Timespec { tv_sec: seconds.checked_sub(1)?, tv_nsec: 1_000_000_000 - nanoseconds }),
        false => Some(Timespec { tv_sec: seconds, tv_nsec: nanoseconds }),
    }
}

#[cfg(test)]
#[path = "layer_tests.rs"]
mod tests;
