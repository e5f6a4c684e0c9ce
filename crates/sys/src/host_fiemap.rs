//! How a filesystem lays a file out: `FS_IOC_FIEMAP` (`linux/fiemap.h`, Documentation/filesystems/fiemap.rst).

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// `struct fiemap` without its extents.
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Request {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Raw {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// Extents asked for at once: 28 KiB of them.
const EXTENTS: usize = 512;

#[repr(C)]
struct Map {
    request: Request,
    extents: [Raw; EXTENTS],
}

/// `FS_IOC_FIEMAP`: the number is made of the request without its extents.
const FS_IOC_FIEMAP: Opcode = opcode::read_write::<Request>(b'f', 11);
const _: () = assert!(FS_IOC_FIEMAP == 0xc020_660b);
const _: () = assert!(size_of::<Request>() == 32 && size_of::<Raw>() == 56);
const _: () = assert!(size_of::<Map>() == 32 + 56 * EXTENTS);

/// `FIEMAP_FLAG_SYNC`: write the file out first.
const FLAG_SYNC: u32 = 0x1;

const EXTENT_LAST: u32 = 0x1;
const EXTENT_UNKNOWN: u32 = 0x2;
const EXTENT_DELALLOC: u32 = 0x4;
const EXTENT_ENCODED: u32 = 0x8;
const EXTENT_DATA_INLINE: u32 = 0x200;
const EXTENT_DATA_TAIL: u32 = 0x400;
const EXTENT_SHARED: u32 = 0x2000;

/// A stretch of a file and where it is on the disk. Lengths are those of the file: an encoded extent takes fewer bytes
/// than it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins in the file, in bytes.
    pub logical: u64,
    /// Where it begins on the disk, in bytes; means nothing unless [`Extent::has_place`].
    pub physical: u64,
    /// Its bytes in the file.
    pub length: u64,
    flags: u32,
}

impl Extent {
    /// Whether it has blocks of its own at a known place: it is neither inside the filesystem's own blocks nor still to
    /// be placed.
    #[must_use]
    pub const fn has_place(&self) -> bool {
        let none = EXTENT_UNKNOWN | EXTENT_DELALLOC | EXTENT_DATA_INLINE | EXTENT_DATA_TAIL;
        self.flags & none == 0
    }

    /// Whether its bytes lie inside the filesystem's own blocks.
    #[must_use]
    pub const fn is_inline(&self) -> bool {
        self.flags & (EXTENT_DATA_INLINE | EXTENT_DATA_TAIL) != 0
    }

    /// Whether it is stored in another form than it is read: compressed or encrypted.
    #[must_use]
    pub const fn is_encoded(&self) -> bool {
        self.flags & EXTENT_ENCODED != 0
    }

    /// Whether something else refers to the same bytes on the disk.
    #[must_use]
    pub const fn is_shared(&self) -> bool {
        self.flags & EXTENT_SHARED != 0
    }
}

/// Reads maps of files; its buffer serves one after the other.
pub struct Mapper {
    map: Box<Map>,
}

impl fmt::Debug for Mapper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapper").finish_non_exhaustive()
    }
}

impl Default for Mapper {
    fn default() -> Self {
        Self::new()
    }
}

impl Mapper {
    /// A reader with its buffer.
    #[must_use]
    pub fn new() -> Self {
        Self { map: Box::new(Map { request: Request::default(), extents: [Raw::default(); EXTENTS] }) }
    }

    /// Writes the file out, then gives its extents in the order of the file. One that is written meanwhile gives some
    /// of before and some of after; no byte of it is given twice.
    ///
    /// # Errors
    /// `EOPNOTSUPP` or `ENOTTY` where the filesystem does not tell, and what writing the file out gives.
    pub fn extents(&mut self, file: impl AsFd, mut each: impl FnMut(Extent)) -> io::Result<()> {
        let mut start = 0;
        let mut flags = FLAG_SYNC;
        loop {
            let found = self.ask(&file, start, flags)?;
            let Some(last) = found.last().copied() else { return Ok(()) };
            for raw in found {
                each(Extent {
                    logical: raw.logical,
                    physical: raw.physical,
                    length: raw.length,
                    flags: raw.flags,
                });
            }
            let next = last.logical.saturating_add(last.length);
            if last.flags & EXTENT_LAST != 0 || next <= start {
                return Ok(());
            }
            start = next;
            flags = 0;
        }
    }

    /// The extents from `start` on, as many as there is room for.
    fn ask(&mut self, file: impl AsFd, start: u64, flags: u32) -> io::Result<&[Raw]> {
        self.map.request = Request {
            start,
            length: u64::MAX - start,
            flags,
            extent_count: u32::try_from(EXTENTS).unwrap_or(0),
            ..Request::default()
        };
        // SAFETY: the number belongs to FIEMAP, which reads a `struct fiemap` and writes at most `extent_count` extents
        // behind it; `Map` is exactly that with room for as many, and any bytes are valid in all of its fields.
        unsafe { ioctl(file, Updater::<FS_IOC_FIEMAP, Map>::new(&mut self.map)) }?;
        let mapped = usize::try_from(self.map.request.mapped_extents).unwrap_or(0).min(EXTENTS);
        Ok(&self.map.extents[..mapped])
    }
}

/// Whether one of the first extents of the file is stored in another form than it is read.
///
/// # Errors
/// `EOPNOTSUPP` where the filesystem does not tell.
pub fn has_encoded_extent(file: impl AsFd) -> io::Result<bool> {
    Ok(Mapper::new().ask(file, 0, FLAG_SYNC)?.iter().any(|raw| raw.flags & EXTENT_ENCODED != 0))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    /// Wherever temporary files are: a filesystem that tells must tell this.
    #[test]
    fn a_file_with_more_pieces_than_fit_at_once_is_told_whole_and_once() {
        let file = tempfile::tempfile().unwrap();
        let pieces = 2 * EXTENTS as u64 + 3;
        for piece in 0..pieces {
            file.write_all_at(&[1; 4096], piece * (1 << 16)).unwrap();
        }
        let mut found = Vec::new();
        match Mapper::new().extents(&file, |extent| found.push(extent)) {
            Err(error) if matches!(error.raw_os_error(), Some(95 | 25)) => return,
            told => told.unwrap(),
        }
        assert!(found.windows(2).all(|pair| pair[0].logical + pair[0].length <= pair[1].logical));
        let covered: u64 = found.iter().map(|extent| extent.length).sum();
        // Some filesystems give more than was written, even behind the end.
        assert!(covered >= pieces * 4096, "{covered}");
        assert!(found.iter().all(|extent| !extent.is_shared()), "nobody else has it");
        assert!(found.iter().all(|extent| extent.has_place() || extent.is_inline()));
    }
}
