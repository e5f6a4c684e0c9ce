//! How a filesystem lays a file out: `FS_IOC_FIEMAP` (`linux/fiemap.h`, Documentation/filesystems/fiemap.rst).

use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// `struct fiemap` without its extents.
#[repr(C)]
#[derive(Default)]
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
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

const EXTENTS: usize = 32;

#[repr(C)]
#[derive(Default)]
struct Map {
    request: Request,
    extents: [Extent; EXTENTS],
}

/// `FS_IOC_FIEMAP`: the number is made of the request without its extents.
const FS_IOC_FIEMAP: Opcode = opcode::read_write::<Request>(b'f', 11);
const _: () = assert!(FS_IOC_FIEMAP == 0xc020_660b);
const _: () = assert!(size_of::<Request>() == 32 && size_of::<Extent>() == 56);

/// `FIEMAP_FLAG_SYNC`: write the file out first.
const FLAG_SYNC: u32 = 0x1;
/// `FIEMAP_EXTENT_ENCODED`: what is on disk is not what is read: compressed or encrypted.
const EXTENT_ENCODED: u32 = 0x8;

/// Whether one of the first extents of the file is stored in another form than it is read.
///
/// # Errors
/// `EOPNOTSUPP` where the filesystem does not tell.
pub fn has_encoded_extent(file: impl AsFd) -> io::Result<bool> {
    let mut map = Map::default();
    map.request.length = u64::MAX;
    map.request.flags = FLAG_SYNC;
    map.request.extent_count = u32::try_from(EXTENTS).unwrap_or(0);
    // SAFETY: the number belongs to FIEMAP, which reads a `struct fiemap` and writes at most `extent_count` extents
    // behind it; `Map` is exactly that with room for as many, and any bytes are valid in all of its fields.
    unsafe { ioctl(file, Updater::<FS_IOC_FIEMAP, Map>::new(&mut map)) }?;
    let mapped = usize::try_from(map.request.mapped_extents).unwrap_or(0).min(EXTENTS);
    Ok(map.extents[..mapped].iter().any(|extent| extent.flags & EXTENT_ENCODED != 0))
}
