//! What btrfs keeps of a file: the file extent items in its tree (`linux/btrfs.h`, `linux/btrfs_tree.h`).
//!
//! An extent is the unit of allocation there: it stays whole on the disk for as long as one file refers to one byte of it.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// `struct btrfs_ioctl_search_key`.
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Key {
    tree_id: u64,
    min_objectid: u64,
    max_objectid: u64,
    min_offset: u64,
    max_offset: u64,
    min_transid: u64,
    max_transid: u64,
    min_type: u32,
    max_type: u32,
    nr_items: u32,
    unused: u32,
    unused_more: [u64; 4],
}

/// `struct btrfs_ioctl_search_args_v2` without what it finds.
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Request {
    key: Key,
    buf_size: u64,
}

const BUFFER: usize = 64 << 10;

#[repr(C)]
struct Search {
    request: Request,
    found: [u8; BUFFER],
}

/// `struct btrfs_ioctl_fs_info_args`, whose later fields nobody here reads.
#[repr(C)]
struct FsInfo {
    max_id: u64,
    num_devices: u64,
    fsid: [u8; 16],
    rest: [u64; 124],
}

/// The number is made of the request without what it finds.
const BTRFS_IOC_TREE_SEARCH_V2: Opcode = opcode::read_write::<Request>(0x94, 17);
const BTRFS_IOC_FS_INFO: Opcode = opcode::read::<FsInfo>(0x94, 31);
const _: () = assert!(BTRFS_IOC_TREE_SEARCH_V2 == 0xc070_9411);
const _: () = assert!(BTRFS_IOC_FS_INFO == 0x8400_941f);
const _: () = assert!(size_of::<Key>() == 104 && size_of::<Request>() == 112);
const _: () = assert!(size_of::<Search>() == 112 + BUFFER && size_of::<FsInfo>() == 1024);

/// `BTRFS_EXTENT_DATA_KEY`.
const EXTENT_DATA: u32 = 108;
/// `struct btrfs_ioctl_search_header`: transid, objectid and offset of 8 bytes, type and length of 4.
const HEADER: usize = 32;
/// `struct btrfs_file_extent_item` up to where inline data begins, and all of it.
const ITEM_HEAD: usize = 21;
const ITEM: usize = 53;
const TYPE_INLINE: u8 = 0;

/// What a file says of one stretch of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileExtent {
    /// The data lies in the tree itself.
    Inline {
        /// Bytes there.
        stored: u64,
        /// Bytes as read.
        plain: u64,
    },
    /// A part of an extent, or all of it.
    Extent {
        /// Where the extent is, in the filesystem's one address space for all devices.
        address: u64,
        /// What it takes there.
        stored: u64,
        /// What all of it is when read.
        plain: u64,
        /// How much of that this stretch of the file is.
        used: u64,
    },
}

/// The id of the btrfs that the file is on. Every user may ask.
///
/// # Errors
/// `ENOTTY` and others where it is no btrfs.
pub fn filesystem_id(file: impl AsFd) -> io::Result<[u8; 16]> {
    // The flags among the rest ask for no more than every kernel tells.
    let mut info = FsInfo { max_id: 0, num_devices: 0, fsid: [0; 16], rest: [0; 124] };
    // SAFETY: the number belongs to FS_INFO, which reads and fills a `struct btrfs_ioctl_fs_info_args`; `FsInfo` is as
    // long, and any bytes are valid in it.
    unsafe { ioctl(file, Updater::<BTRFS_IOC_FS_INFO, FsInfo>::new(&mut info)) }?;
    Ok(info.fsid)
}

/// Reads file extent items; its buffer serves one file after the other.
pub struct ExtentReader {
    search: Box<Search>,
}

impl fmt::Debug for ExtentReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExtentReader").finish_non_exhaustive()
    }
}

impl Default for ExtentReader {
    fn default() -> Self {
        Self::new()
    }
}

impl ExtentReader {
    /// A reader with its buffer.
    #[must_use]
    pub fn new() -> Self {
        Self { search: Box::new(Search { request: Request::default(), found: [0; BUFFER] }) }
    }

    /// Gives the extents of the file of that inode number, in the order of the file, holes left out. What was not
    /// written out yet has none.
    ///
    /// # Errors
    /// `EPERM` without CAP_SYS_ADMIN, `ENOTTY` where it is no btrfs, `EIO` for an answer that makes no sense.
    pub fn extents(
        &mut self,
        file: impl AsFd,
        inode: u64,
        mut each: impl FnMut(FileExtent),
    ) -> io::Result<()> {
        let mut from = 0;
        loop {
            self.search.request = Request {
                key: Key {
                    // The tree of the file's own subvolume.
                    tree_id: 0,
                    min_objectid: inode,
                    max_objectid: inode,
                    min_type: EXTENT_DATA,
                    max_type: EXTENT_DATA,
                    min_offset: from,
                    max_offset: u64::MAX,
                    max_transid: u64::MAX,
                    nr_items: u32::MAX,
                    ..Key::default()
                },
                buf_size: BUFFER as u64,
            };
            // SAFETY: the number belongs to TREE_SEARCH_V2, which reads the request and writes at most `buf_size` bytes
            // behind it; `Search` is exactly that with room for as many, and any bytes are valid in all of its fields.
            unsafe {
                ioctl(&file, Updater::<BTRFS_IOC_TREE_SEARCH_V2, Search>::new(&mut self.search))?;
            }
            let items = self.search.request.key.nr_items;
            let Some(last) = read_items(&self.search.found, items, &mut each)? else { return Ok(()) };
            let Some(next) = last.checked_add(1) else { return Ok(()) };
            from = next;
        }
    }
}

/// Reads what a search found; gives the key offset of the last item, which is where it begins in the file.
fn read_items(found: &[u8], items: u32, each: &mut impl FnMut(FileExtent)) -> io::Result<Option<u64>> {
    let mut rest = found;
    let mut last = None;
    for _ in 0..items {
        let (header, behind) = split(rest, HEADER)?;
        let length = usize::try_from(u32_at(header, 28)?).map_err(|_| nonsense())?;
        let (item, behind) = split(behind, length)?;
        last = Some(u64_at(header, 16)?);
        rest = behind;
        if u32_at(header, 24)? != EXTENT_DATA {
            continue;
        }
        let (head, data) = split(item, ITEM_HEAD)?;
        let plain = u64_at(head, 8)?;
        if head[20] == TYPE_INLINE {
            each(FileExtent::Inline { stored: data.len() as u64, plain });
            continue;
        }
        let (item, _) = split(item, ITEM)?;
        let address = u64_at(item, 21)?;
        // A hole, from before filesystems left them out.
        if address != 0 {
            each(FileExtent::Extent { address, stored: u64_at(item, 29)?, plain, used: u64_at(item, 45)? });
        }
    }
    Ok(last)
}

fn split(bytes: &[u8], at: usize) -> io::Result<(&[u8], &[u8])> {
    bytes.split_at_checked(at).ok_or_else(nonsense)
}

fn u64_at(bytes: &[u8], at: usize) -> io::Result<u64> {
    let bytes = bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).ok_or_else(nonsense)?;
    Ok(u64::from_le_bytes(bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> io::Result<u32> {
    let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).ok_or_else(nonsense)?;
    Ok(u32::from_le_bytes(bytes))
}

fn nonsense() -> io::Error {
    rustix::io::Errno::IO.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(offset: u64, kind: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [7, 257, offset] {
            bytes.extend(u64::to_le_bytes(word));
        }
        bytes.extend(kind.to_le_bytes());
        bytes.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        bytes.extend(data);
        bytes
    }

    fn extent(kind: u8, plain: u64, tail: &[u64]) -> Vec<u8> {
        let mut bytes = [9u64.to_le_bytes(), plain.to_le_bytes()].concat();
        bytes.extend([3, 0, 0, 0, kind]);
        bytes.extend(tail.iter().flat_map(|word| word.to_le_bytes()));
        bytes
    }

    fn read(bytes: &[u8], items: u32) -> io::Result<(Vec<FileExtent>, Option<u64>)> {
        let mut found = Vec::new();
        let last = read_items(bytes, items, &mut |extent| found.push(extent))?;
        Ok((found, last))
    }

    #[test]
    fn inline_whole_part_and_hole_are_told_apart() {
        let mut inline = extent(TYPE_INLINE, 40, &[]);
        inline.extend([1; 11]);
        let bytes = [
            item(0, EXTENT_DATA, &inline),
            item(4096, EXTENT_DATA, &extent(1, 131_072, &[1 << 30, 8192, 4096, 65_536])),
            item(200_000, EXTENT_DATA, &extent(1, 4096, &[0, 0, 0, 4096])),
            item(5, 1, b"of another kind"),
            item(400_000, EXTENT_DATA, &extent(2, 8192, &[1 << 31, 8192, 0, 8192])),
        ]
        .concat();
        let (found, last) = read(&bytes, 5).unwrap();
        assert_eq!(
            found,
            [
                FileExtent::Inline { stored: 11, plain: 40 },
                FileExtent::Extent { address: 1 << 30, stored: 8192, plain: 131_072, used: 65_536 },
                FileExtent::Extent { address: 1 << 31, stored: 8192, plain: 8192, used: 8192 },
            ]
        );
        assert_eq!(last, Some(400_000));
        assert_eq!(read(&bytes, 0).unwrap(), (Vec::new(), None));
    }

    #[test]
    fn an_answer_cut_short_is_an_error_and_no_panic() {
        let bytes = item(0, EXTENT_DATA, &extent(1, 1, &[1 << 30, 1, 0, 1]));
        for cut in 0..bytes.len() {
            assert!(read(&bytes[..cut], 1).is_err(), "{cut}");
        }
        assert!(read(&item(0, EXTENT_DATA, &[0; 20]), 1).is_err());
        assert!(read(&item(0, EXTENT_DATA, &[1; 52]), 1).is_err());
    }
}
