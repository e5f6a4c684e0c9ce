//! A buffer whose memory is there before it is written to.
//!
//! A fresh allocation costs a page fault for every 4 KiB when it is first written to, more than the copy into it. Where
//! every millisecond counts, the memory is asked for beforehand, in huge pages where the kernel has some.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// A huge page of amd64, and of arm64 with pages of 4 KiB.
const HUGE: usize = 2 << 20;
/// Less than this is made ready by one thread.
const WORTH_TWO_THREADS: usize = 16 << 20;

/// Zeroed memory, mapped for this buffer alone; given back when dropped.
#[derive(Debug)]
pub struct PageBuffer {
    // Page-aligned, `len` bytes mapped readable and writable; dangling when there are none.
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone, like a boxed slice's memory.
unsafe impl Send for PageBuffer {}
// SAFETY: through a shared reference it can only be read.
unsafe impl Sync for PageBuffer {}

impl PageBuffer {
    /// `bytes` of zeroed memory that exists: writing to it causes no page faults, unless the host is short of memory and
    /// takes it away again. Takes as long as the kernel takes to clear it.
    ///
    /// # Errors
    /// There is not enough memory or address space.
    pub fn prefaulted(bytes: usize) -> io::Result<Self> {
        let buffer = Self::mapped(bytes)?;
        // A huge page is made by one of the threads, never half by each.
        let half = if bytes < WORTH_TWO_THREADS { bytes } else { (bytes / 2).next_multiple_of(HUGE) };
        std::thread::scope(|scope| {
            let other = (half < bytes).then(|| {
                std::thread::Builder::new()
                    .name("ram-prefault".to_owned())
                    .spawn_scoped(scope, || buffer.populate(half, bytes - half))
            });
            let here = buffer.populate(0, half);
            let there = other.transpose()?.map(|it| it.join()).unwrap_or(Ok(Ok(())));
            here.and(there.unwrap_or_else(|_panic| Err(io::Error::other("the second thread panicked"))))
        })?;
        Ok(buffer)
    }

    fn mapped(len: usize) -> io::Result<Self> {
        if len == 0 {
            return Ok(Self { start: NonNull::dangling(), len });
        }
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no memory that is in use.
        let start = unsafe {
            mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)?
        };
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let buffer = Self { start, len };
        // SAFETY: the range is this buffer's own mapping, and the advice does not change its content. Kernels without
        // huge pages refuse it, which costs time and nothing else.
        let _ = unsafe { madvise(start.as_ptr().cast(), len, Advice::LinuxHugepage) };
        Ok(buffer)
    }

    /// Has the kernel put memory behind a part that nobody reads or writes meanwhile.
    fn populate(&self, offset: usize, len: usize) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        // SAFETY: `offset` lies within the mapping, or at its end.
        let part = unsafe { self.start.as_ptr().add(offset) };
        // SAFETY: the range is within this buffer's own mapping, and populating does not change what it contains.
        match unsafe { madvise(part.cast(), len, Advice::LinuxPopulateWrite) } {
            // Before Linux 5.14 each page is written to by hand.
            Err(rustix::io::Errno::INVAL) => {
                for page in (0..len).step_by(4096) {
                    // SAFETY: within the mapping, which is writable; the two threads have disjoint parts, and nobody
                    // else has the buffer yet. Zero is what is there already.
                    unsafe { part.add(page).write_volatile(0) };
                }
                Ok(())
            }
            other => other.map_err(io::Error::from),
        }
    }
}

impl Deref for PageBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes from `start` on are mapped, initialised (by the kernel, with zeroes) and this value's own
        // until it is dropped; a dangling pointer is fine for none.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for PageBuffer {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the whole of this value's own mapping, to which no reference can be left.
            let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
            debug_assert_eq!(unmapped, Ok(()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_of_any_size_is_zeroes_and_keeps_what_is_written() {
        for bytes in [0, 1, 4096, 5000, HUGE, WORTH_TWO_THREADS - 1, WORTH_TWO_THREADS + 4097] {
            let mut buffer = PageBuffer::prefaulted(bytes).unwrap();
            assert_eq!(buffer.len(), bytes);
            assert!(buffer.iter().all(|byte| *byte == 0));
            buffer.fill(7);
            let there = std::thread::spawn(move || buffer.iter().filter(|byte| **byte == 7).count());
            assert_eq!(there.join().unwrap(), bytes);
        }
    }

    #[test]
    fn its_memory_exists_before_it_is_written_to() {
        let resident = || -> u64 {
            let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
            let line = text.lines().find(|line| line.starts_with("Rss:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
        };
        let before = resident();
        let buffer = PageBuffer::prefaulted(64 << 20).unwrap();
        assert!(resident() - before >= buffer.len() as u64);
    }

    #[test]
    fn more_than_there_can_be_is_an_error() {
        assert!(PageBuffer::prefaulted(usize::MAX / 2).is_err());
    }
}
