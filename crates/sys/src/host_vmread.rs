//! Reading and writing the memory of another process: `process_vm_readv(2)` and `process_vm_writev(2)`.

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::{Mutex, PoisonError};

use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;

use crate::host_pagemap::AddressRange;

/// `UIO_MAXIOV` (`linux/uio.h`): ranges that one call takes.
const MAX_RANGES: usize = 1024;

/// Reads the ranges one after the other into `buffer`, whose length is theirs together.
///
/// # Errors
/// The process is gone (`ESRCH`), this user may not (`EPERM`), a range is not mapped (`EFAULT`), or the lengths differ.
pub fn read_memory(pid: u32, ranges: &[AddressRange], buffer: &mut [u8]) -> io::Result<()> {
    let pid = checked(pid, ranges, buffer.len())?;
    let mut done = 0;
    transfer(ranges, |remote| {
        let moved = process_vm_readv(pid, &mut [IoSliceMut::new(&mut buffer[done..])], remote)?;
        done += moved;
        Ok(moved)
    })
}

/// Less than this is read by one thread: about what is copied while a second one starts, a few times over.
const WORTH_TWO_THREADS: usize = 4 << 20;

/// What a thread takes at a time: the two are never apart by more, however much else the machine has to do.
const PIECE: usize = 1 << 20;

/// Reads as [`read_memory`] does, by two threads when there is much.
///
/// # Errors
/// As [`read_memory`], or no thread could be made.
pub fn read_memory_parallel(pid: u32, ranges: &[AddressRange], buffer: &mut [u8]) -> io::Result<()> {
    if buffer.len() < WORTH_TWO_THREADS {
        return read_memory(pid, ranges, buffer);
    }
    checked(pid, ranges, buffer.len())?;
    let pieces = Mutex::new(pieces(ranges, buffer).into_iter());
    let work = || {
        loop {
            let next = pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((ranges, buffer)) = next else { return Ok(()) };
            read_memory(pid, &ranges, buffer)?;
        }
    };
    std::thread::scope(|scope| {
        let other = std::thread::Builder::new().name("ram-copy".to_owned()).spawn_scoped(scope, work)?;
        let here = work();
        let there = other.join().unwrap_or_else(|_panic| Err(io::Error::other("the second copier panicked")));
        here.and(there)
    })
}

/// The buffer in pieces, each with the ranges that it is for, which may begin and end within those given.
fn pieces<'a>(ranges: &[AddressRange], buffer: &'a mut [u8]) -> Vec<(Vec<AddressRange>, &'a mut [u8])> {
    let mut rest = ranges.iter().copied().filter(|range| range.start < range.end);
    let mut current = rest.next();
    let take = |piece: &'a mut [u8]| {
        let (mut mine, mut left) = (Vec::new(), piece.len() as u64);
        while let Some(range) = current.as_mut().filter(|_| left > 0) {
            let cut = range.start + left.min(range.end - range.start);
            left -= cut - range.start;
            mine.push(AddressRange { start: range.start, end: cut });
            range.start = cut;
            if cut == range.end {
                current = rest.next();
            }
        }
        (mine, piece)
    };
    buffer.chunks_mut(PIECE).map(take).collect()
}

/// Writes `data` over the ranges one after the other; its length is theirs together.
///
/// # Errors
/// The process is gone (`ESRCH`), this user may not (`EPERM`), a range is not mapped writable (`EFAULT`), or the
/// lengths differ.
pub fn write_memory(pid: u32, ranges: &[AddressRange], data: &[u8]) -> io::Result<()> {
    let pid = checked(pid, ranges, data.len())?;
    let mut done = 0;
    transfer(ranges, |remote| {
        let moved = process_vm_writev(pid, &[IoSlice::new(&data[done..])], remote)?;
        done += moved;
        Ok(moved)
    })
}

fn checked(pid: u32, ranges: &[AddressRange], bytes: usize) -> io::Result<Pid> {
    let pid = i32::try_from(pid).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let total =
        ranges.iter().try_fold(0u64, |sum, range| sum.checked_add(range.end.checked_sub(range.start)?));
    if total != Some(bytes as u64) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "ranges and buffer differ in length"));
    }
    Ok(Pid::from_raw(pid))
}

/// Calls `step` with the next ranges until all are done. The kernel may stop anywhere in them: after about 2 GiB, and
/// before the first byte of a page that it cannot reach, which the next call then reports.
fn transfer(
    ranges: &[AddressRange],
    mut step: impl FnMut(&[RemoteIoVec]) -> nix::Result<usize>,
) -> io::Result<()> {
    let address =
        |value: u64| usize::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let mut rest = ranges.to_vec();
    rest.retain(|range| range.start < range.end);
    let mut first = 0;
    while first < rest.len() {
        let mut remote = Vec::with_capacity(MAX_RANGES.min(rest.len() - first));
        for range in rest[first..].iter().take(MAX_RANGES) {
            remote.push(RemoteIoVec { base: address(range.start)?, len: address(range.end - range.start)? });
        }
        let mut moved = step(&remote)? as u64;
        if moved == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while moved > 0 && first < rest.len() {
            let here = moved.min(rest[first].end - rest[first].start);
            rest[first].start += here;
            moved -= here;
            if rest[first].start == rest[first].end {
                first += 1;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: u64, len: u64) -> AddressRange {
        AddressRange { start: address, end: address + len }
    }

    #[test]
    fn scattered_ranges_arrive_in_order_also_past_the_limit_of_one_call() {
        let source: Vec<u8> = (0..3000u32 * 8).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let base = source.as_ptr().addr() as u64;
        // Every other four bytes, last ones first.
        let ranges: Vec<_> = (0..3000u64).rev().map(|i| at(base + i * 8, 4)).collect();
        let mut out = vec![0u8; 3000 * 4];
        read_memory(std::process::id(), &ranges, &mut out).unwrap();
        for (chunk, i) in out.chunks(4).zip((0..3000usize).rev()) {
            assert_eq!(chunk, &source[i * 8..i * 8 + 4]);
        }
    }

    #[test]
    fn two_threads_read_what_one_reads() {
        let pages = WORTH_TWO_THREADS / 4096 * 3 + 1;
        let source: Vec<u8> = (0..pages * 4096).map(|i| u8::try_from(i / 5 % 251).unwrap()).collect();
        let base = source.as_ptr().addr() as u64;
        let page = |i: usize, pages: u64| at(base + i as u64 * 4096, pages * 4096);
        let scattered: Vec<_> = (0..pages).step_by(2).map(|i| page(i, 1)).collect();
        let whole = vec![page(0, pages as u64)];
        let ends = vec![page(0, 0), page(1, 2), page(9, pages as u64 - 9)];
        let few = vec![page(3, 1)];
        for ranges in [scattered, whole, ends, few, Vec::new()] {
            let len = ranges.iter().map(|range| usize::try_from(range.end - range.start).unwrap()).sum();
            let (mut one, mut two) = (vec![0u8; len], vec![1u8; len]);
            read_memory(std::process::id(), &ranges, &mut one).unwrap();
            read_memory_parallel(std::process::id(), &ranges, &mut two).unwrap();
            assert!(one == two);
        }
        let mut out = vec![0u8; WORTH_TWO_THREADS];
        let len = WORTH_TWO_THREADS as u64;
        // The first page of a process is never mapped; nor is what lies above it here.
        let (all, first, last) = (
            vec![at(4096, len)],
            vec![at(8192, 4096), at(base, len - 4096)],
            vec![at(base, len - 4096), at(8192, 4096)],
        );
        for unreachable in [all, first, last, vec![at(4096, 1)]] {
            assert!(read_memory_parallel(std::process::id(), &unreachable, &mut out).is_err());
        }
    }

    #[test]
    fn what_cannot_be_reached_is_an_error() {
        let mut out = [0u8; 8];
        assert!(read_memory(std::process::id(), &[at(8, 8)], &mut out).is_err());
        assert!(write_memory(std::process::id(), &[at(8, 8)], &out).is_err());
        assert!(read_memory(std::process::id(), &[at(4096, 9)], &mut out).is_err());
        assert!(read_memory(u32::MAX, &[at(4096, 8)], &mut out).is_err());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        let gone = read_memory(pid, &[at(4096, 8)], &mut out).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(rustix::io::Errno::SRCH.raw_os_error()));
    }
}
