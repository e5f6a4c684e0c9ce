//! What one file takes on the disk, from the best source that answers.
//!
//! | source | tells | asked by |
//! |---|---|---|
//! | file extent items of btrfs | every extent with its size on the disk and in memory | TREE_SEARCH_V2, needs CAP_SYS_ADMIN |
//! | extent maps | where bytes are and whether they are shared; of compressed ones only where they begin | FIEMAP |
//! | counted blocks | how many, and not which | stat |
//!
//! A source is chosen by asking: what does not answer on one filesystem is not asked there again.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;
use sys::host_btrfs::{self, ExtentReader, FileExtent};
use sys::host_fiemap::{Extent, Mapper};

use crate::usage::ledger::{InodeBytes, Stretch};

/// `st_blocks` counts these, whatever the filesystem's block is (stat(2)).
const SECTOR: u64 = 512;

/// Where figures come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    Extents,
    Maps,
    Blocks,
}

/// One mounted filesystem.
#[derive(Debug, Clone, Copy)]
struct Filesystem {
    /// The address space of its stretches; subvolumes of one btrfs have one.
    space: u16,
    source: Source,
    /// Whether it has extent items that may not be read.
    locked: bool,
}

/// A file's bytes and where they are.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) bytes: InodeBytes,
    pub(crate) stretches: Vec<Stretch>,
}

/// Measures files, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    mapper: Mapper,
    reader: ExtentReader,
    filesystems: HashMap<u64, Filesystem>,
    spaces: HashMap<[u8; 16], u16>,
    next_space: u16,
}

impl Gauge {
    /// The sources that were used.
    pub(crate) fn sources(&self) -> impl Iterator<Item = Source> {
        self.filesystems.values().map(|filesystem| filesystem.source)
    }

    /// Whether a filesystem has more exact figures than may be read.
    pub(crate) fn is_locked_out(&self) -> bool {
        self.filesystems.values().any(|filesystem| filesystem.locked)
    }

    /// What something without data of its own takes: a directory, a socket, a symbolic link.
    pub(crate) fn measure_other(meta: &Metadata) -> Measured {
        let apparent = if meta.is_symlink() { meta.len() } else { 0 };
        let blocks = meta.blocks().saturating_mul(SECTOR);
        Measured {
            bytes: InodeBytes {
                apparent,
                referenced: blocks,
                own_stored: blocks,
                own_plain: blocks,
                named_elsewhere: false,
            },
            stretches: Vec::new(),
        }
    }

    /// Opens a file for [`Gauge::measure`] without following a link that took its place.
    pub(crate) fn open(path: &Path) -> io::Result<File> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)
    }

    /// Writes the file out and measures it.
    pub(crate) fn measure(&mut self, file: &File, meta: &Metadata) -> io::Result<Measured> {
        let filesystem = match self.filesystems.get(&meta.dev()) {
            Some(known) => *known,
            None => self.choose(file, meta)?,
        };
        let mut measured = match filesystem.source {
            Source::Extents => self.by_extents(file, meta, filesystem.space)?,
            Source::Maps => match self.by_map(file, filesystem.space) {
                // A file of another kind than the first one there.
                Err(error) if is_refusal(&error) => by_blocks(meta),
                measured => measured?,
            },
            Source::Blocks => by_blocks(meta),
        };
        measured.bytes.apparent = meta.len();
        Ok(measured)
    }

    fn choose(&mut self, file: &File, meta: &Metadata) -> io::Result<Filesystem> {
        let id = host_btrfs::filesystem_id(file).ok();
        let known = id.and_then(|id| self.spaces.get(&id).copied());
        let space = known.unwrap_or(self.next_space);
        if known.is_none() {
            self.next_space = self.next_space.saturating_add(1);
        }
        if let Some(id) = id {
            self.spaces.insert(id, space);
        }
        let items = match id {
            Some(_) => self.reader.extents(file, meta.ino(), |_| ()),
            None => Err(Errno::NOTTY.into()),
        };
        let locked =
            items.as_ref().is_err_and(|error| error.raw_os_error() == Some(Errno::PERM.raw_os_error()));
        let source = match items {
            Ok(()) => Source::Extents,
            Err(_) => match self.mapper.extents(file, |_| ()) {
                Ok(()) => Source::Maps,
                Err(error) if is_refusal(&error) => Source::Blocks,
                Err(error) => return Err(error),
            },
        };
        let filesystem = Filesystem { space, source, locked };
        self.filesystems.insert(meta.dev(), filesystem);
        Ok(filesystem)
    }

    fn by_extents(&mut self, file: &File, meta: &Metadata, space: u16) -> io::Result<Measured> {
        // The map has two uses: reading it writes the file out, and it tells what is shared.
        let mut shared = Vec::new();
        self.mapper.extents(file, |extent| {
            if extent.is_shared() {
                // Of an encoded extent only its beginning is a place on the disk.
                let length = if extent.is_encoded() { 1 } else { extent.length };
                shared.push((extent.physical, extent.physical.saturating_add(length)));
            }
        })?;
        shared.sort_unstable();
        let mut measured = Measured::default();
        let (bytes, stretches) = (&mut measured.bytes, &mut measured.stretches);
        self.reader.extents(file, meta.ino(), |extent| match extent {
            FileExtent::Inline { stored, plain } => {
                bytes.own_stored += stored;
                bytes.own_plain += plain;
                bytes.referenced += plain;
            }
            FileExtent::Extent { address, stored, plain, used } => {
                bytes.referenced += used;
                stretches.push(Stretch {
                    space,
                    start: address,
                    stored,
                    plain,
                    shared: false,
                    at_most: false,
                });
            }
        })?;
        // Several parts of a file may be parts of one extent, which it has once.
        stretches.sort_unstable_by_key(|stretch| stretch.start);
        stretches.dedup_by_key(|stretch| stretch.start);
        let mut shared = shared.into_iter().peekable();
        for stretch in stretches {
            while shared.next_if(|(_, end)| *end <= stretch.start).is_some() {}
            stretch.shared =
                shared.peek().is_some_and(|(start, _)| *start < stretch.start.saturating_add(stretch.stored));
        }
        Ok(measured)
    }

    fn by_map(&mut self, file: &File, space: u16) -> io::Result<Measured> {
        let mut measured = Measured::default();
        let (bytes, stretches) = (&mut measured.bytes, &mut measured.stretches);
        let mut encoded = false;
        self.mapper.extents(file, |extent| {
            bytes.referenced += extent.length;
            encoded |= extent.is_encoded();
            if extent.has_place() {
                push(stretches, space, &extent);
            } else {
                bytes.own_stored += extent.length;
                bytes.own_plain += extent.length;
            }
        })?;
        // What is counted beside the data: the blocks of the map itself, of attributes. Where data is encoded the
        // number counts something else on every filesystem.
        // Asked again, for the number changes when the file is written out.
        let blocks = file.metadata()?.blocks().saturating_mul(SECTOR);
        if !encoded && blocks > bytes.referenced {
            let more = blocks - bytes.referenced;
            bytes.referenced += more;
            bytes.own_stored += more;
            bytes.own_plain += more;
        }
        Ok(measured)
    }
}

/// Adds an extent, as one with that before it where both are of a kind and touch on the disk.
fn push(stretches: &mut Vec<Stretch>, space: u16, extent: &Extent) {
    let (shared, at_most) = (extent.is_shared(), extent.is_encoded());
    if let Some(last) = stretches.last_mut()
        && (last.shared, last.at_most, at_most) == (shared, false, false)
        && last.start.checked_add(last.stored) == Some(extent.physical)
    {
        last.stored += extent.length;
        last.plain += extent.length;
        return;
    }
    let (start, length) = (extent.physical, extent.length);
    stretches.push(Stretch { space, start, stored: length, plain: length, shared, at_most });
}

fn by_blocks(meta: &Metadata) -> Measured {
    let blocks = meta.blocks().saturating_mul(SECTOR);
    let bytes =
        InodeBytes { referenced: blocks, own_stored: blocks, own_plain: blocks, ..InodeBytes::default() };
    Measured { bytes, stretches: Vec::new() }
}

/// Whether the filesystem says that it does not tell this of its files, or a sandbox of the kernel that nobody may ask.
fn is_refusal(error: &io::Error) -> bool {
    let refusals = [Errno::OPNOTSUPP, Errno::NOTTY, Errno::NOSYS, Errno::INVAL, Errno::PERM, Errno::BADR];
    error.raw_os_error().is_some_and(|number| refusals.map(Errno::raw_os_error).contains(&number))
}
