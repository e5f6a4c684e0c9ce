//! Which pages of another process are its own: `/proc/PID/pagemap` and the `PAGEMAP_SCAN` ioctl.
//!
//! A page of a private file mapping is the process's own when it is present and not file-backed, or swapped out. The
//! ioctl (Linux 6.7, `linux/fs.h`) answers that in the kernel; before it each page's 64-bit entry is read
//! (`Documentation/admin-guide/mm/pagemap.rst`: bit 63 present, bit 62 swapped, bit 61 file page or shared anonymous).

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};

const PAGE: u64 = 4096;

/// A half-open range of addresses in another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    /// The first address.
    pub start: u64,
    /// The address after the last one.
    pub end: u64,
}

/// The open page map of one process. It stays with the process it was opened for, also when the pid is given again.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    no_scan: AtomicBool,
}

impl Pagemap {
    /// Opens the page map of `pid`.
    ///
    /// # Errors
    /// There is no such process, or it belongs to somebody else.
    pub fn open(pid: u32) -> io::Result<Self> {
        Ok(Self { file: File::open(format!("/proc/{pid}/pagemap"))?, no_scan: AtomicBool::new(false) })
    }

    /// The process's own pages within `range` (page-aligned), ascending, neighbours merged.
    ///
    /// # Errors
    /// The process is gone, or the page map cannot be read.
    pub fn private_ranges(&self, range: AddressRange) -> io::Result<Vec<AddressRange>> {
        if !self.no_scan.load(Ordering::Relaxed) {
            match self.by_scan(range) {
                // ENOTTY: before Linux 6.7. EINVAL: flags that this kernel does not know.
                Err(error)
                    if matches!(errno(&error), Some(rustix::io::Errno::NOTTY | rustix::io::Errno::INVAL)) =>
                {
                    self.no_scan.store(true, Ordering::Relaxed);
                }
                other => return other,
            }
        }
        self.by_entries(range, is_private)
    }

    fn by_scan(&self, range: AddressRange) -> io::Result<Vec<AddressRange>> {
        let mut runs = Runs::default();
        let mut regions = vec![PageRegion::default(); 1024];
        let mut at = range.start;
        while at < range.end {
            let scan = Scan::new(AddressRange { start: at, end: range.end }, &mut regions);
            // SAFETY: `Scan` describes PAGEMAP_SCAN's argument exactly (sizes asserted below), and its pointer is to
            // `regions`, which is borrowed until the call returns and as long as `vec_len` says.
            let (found, walk_end) = unsafe { rustix::ioctl::ioctl(self.file.as_fd(), scan)? };
            // The kernel fills its own buffer of 512 regions several times in one call, and reports as `walk_end` the
            // end of the last time that it was full, not of the last region given (seen on 6.18). Going on from
            // there alone would return regions twice.
            let mut next = walk_end;
            for region in regions.iter().take(found) {
                runs.push(region.start, region.end);
                next = next.max(region.end);
            }
            if next <= at {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the page map scan does not advance"));
            }
            at = next;
        }
        Ok(runs.0)
    }

    /// The pages of files within `range` (page-aligned) that are present and not the process's own, ascending, neighbours
    /// merged.
    ///
    /// # Errors
    /// The process is gone, or the page map cannot be read.
    pub fn file_ranges(&self, range: AddressRange) -> io::Result<Vec<AddressRange>> {
        self.by_entries(range, is_of_file)
    }

    fn by_entries(&self, range: AddressRange, wanted: fn(u64) -> bool) -> io::Result<Vec<AddressRange>> {
        let mut runs = Runs::default();
        let mut buffer = vec![0u8; 64 * 1024];
        let mut at = range.start;
        while at < range.end {
            let pages = (range.end - at).div_ceil(PAGE).min(8 * 1024);
            let bytes = usize::try_from(pages * 8).unwrap_or(buffer.len());
            let chunk = &mut buffer[..bytes];
            self.file.read_exact_at(chunk, at / PAGE * 8)?;
            for (entry, page) in chunk.chunks_exact(8).zip(0u64..) {
                let entry = u64::from_le_bytes(entry.try_into().unwrap_or_default());
                if wanted(entry) {
                    runs.push(at + page * PAGE, at + (page + 1) * PAGE);
                }
            }
            at += pages * PAGE;
        }
        Ok(runs.0)
    }
}

fn errno(error: &io::Error) -> Option<rustix::io::Errno> {
    rustix::io::Errno::from_io_error(error)
}

/// Whether a page map entry is of a page that belongs to this process alone.
const fn is_private(entry: u64) -> bool {
    let (present, swapped, file) = (entry >> 63 & 1, entry >> 62 & 1, entry >> 61 & 1);
    file == 0 && (present | swapped) == 1
}

/// Whether a page map entry is of a present page of a file.
const fn is_of_file(entry: u64) -> bool {
    let (present, file) = (entry >> 63 & 1, entry >> 61 & 1);
    present == 1 && file == 1
}

#[derive(Default)]
struct Runs(Vec<AddressRange>);

impl Runs {
    fn push(&mut self, start: u64, end: u64) {
        match self.0.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => self.0.push(AddressRange { start, end }),
        }
    }
}

/// `struct page_region`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Debug)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGEMAP_SCAN: Opcode = rustix::ioctl::opcode::read_write::<ScanArg>(b'f', 16);

// linux/fs.h: `_IOWR('f', 16, struct pm_scan_arg)`, a structure of twelve __u64; page_region has three.
const _: () = assert!(size_of::<ScanArg>() == 96 && size_of::<PageRegion>() == 24);
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const _: () = assert!(PAGEMAP_SCAN == 0xC060_6610);

struct Scan<'a> {
    arg: ScanArg,
    _regions: &'a mut [PageRegion],
}

impl<'a> Scan<'a> {
    fn new(range: AddressRange, regions: &'a mut [PageRegion]) -> Self {
        let arg = ScanArg {
            size: size_of::<ScanArg>() as u64,
            flags: 0,
            start: range.start,
            end: range.end,
            walk_end: 0,
            vec: regions.as_mut_ptr().expose_provenance() as u64,
            vec_len: regions.len() as u64,
            max_pages: 0,
            category_inverted: PAGE_IS_FILE,
            category_mask: PAGE_IS_FILE,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        };
        Self { arg, _regions: regions }
    }
}

// SAFETY: the opcode belongs to the structure that `as_ptr` points to, the kernel writes to it (`IS_MUTATING`), and
// the output is read from that same, still living structure.
unsafe impl Ioctl for Scan<'_> {
    type Output = (usize, u64);
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        PAGEMAP_SCAN
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        (&raw mut self.arg).cast()
    }

    unsafe fn output_from_ptr(
        out: IoctlOutput,
        extract_output: *mut std::ffi::c_void,
    ) -> rustix::io::Result<Self::Output> {
        // SAFETY: the caller passes back the pointer from `as_ptr`, which is to a `ScanArg`.
        let arg = unsafe { &*extract_output.cast::<ScanArg>() };
        let found = usize::try_from(out).map_err(|_| rustix::io::Errno::INVAL)?;
        Ok((found, arg.walk_end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_means_present_or_swapped_and_not_of_a_file() {
        assert!(is_private(1 << 63) && is_private(1 << 62));
        assert!(!is_private(0) && !is_private(1 << 61));
        assert!(!is_private(1 << 63 | 1 << 61) && !is_private(1 << 62 | 1 << 61));
        assert!(!is_private((1 << 55) - 1));
    }

    #[test]
    fn both_ways_of_asking_agree_about_this_process() {
        // Anonymous pages, every third one touched: present and not of a file, or nothing at all.
        let pages = 3000usize;
        let mut memory = vec![0u8; (pages + 2) * 4096];
        let address = memory.as_ptr().addr() as u64;
        for page in (0..pages).step_by(3) {
            memory[page * 4096 + 4096] = 1;
        }
        let map = Pagemap::open(std::process::id()).unwrap();
        let start = address.div_ceil(PAGE) * PAGE;
        let range = AddressRange { start, end: start + pages as u64 * PAGE };
        let entries = map.by_entries(range, is_private).unwrap();
        assert!(entries.iter().map(|run| (run.end - run.start) / PAGE).sum::<u64>() >= 1000);
        match map.by_scan(range) {
            Ok(scanned) => {
                let first = scanned.iter().zip(&entries).position(|(one, other)| one != other);
                assert_eq!((scanned.len(), first), (entries.len(), None));
            }
            Err(error) => assert_eq!(errno(&error), Some(rustix::io::Errno::NOTTY)),
        }
        assert!(map.private_ranges(range).unwrap() == entries);
        drop(memory);
    }
}
