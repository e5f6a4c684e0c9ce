//! Writing `mem.snap`: private pages are read, zero pages counted, the rest compressed, on two threads if it is much.
//!
//! # Layout
//! The tables stand before the body and are known after it, so the body begins where the tables end if no page is zero,
//! and the header is the last write. Segments of 1 MiB of private pages are worked on independently; the lock below
//! gives each its place in the file in order, so that the body is one stretch.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use types::{Bytes, ContentId, PAGE_SIZE, RamOffset, RamRun};

use super::format::{self, FRAME_PAGES, Frame, Header};
use super::{MemoryHeader, MemoryStats, PageSource, StagedMemory};
use crate::durable::{self, Staged};
use crate::error::{Error, ErrorKind, Result};
use crate::sparse;

/// Private pages in a segment: a multiple of 8, so that segments' zero maps join on whole bytes.
const SEGMENT_PAGES: u64 = 256;
const THREADS: usize = 2;

/// A page's length as a buffer counts it.
pub(super) const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == PAGE_SIZE);

/// Writes the private pages of `source` into `staged`. Nothing is synced.
pub(crate) fn write(
    staged: Staged,
    source: &dyn PageSource,
    wanted: MemoryHeader,
    level: i32,
) -> Result<StagedMemory> {
    let path = staged.path();
    let memory = source.len();
    let runs = private_runs(source, path)?;
    let private_pages = runs.iter().map(|run| run.len.0 / PAGE_SIZE).sum::<u64>();
    let segments = segments(&runs);
    // A segment's last frame may be a short one.
    let frames_per_segment = SEGMENT_PAGES.div_ceil(FRAME_PAGES.into());
    let most_frames = sparse::bytes(segments.len()).saturating_mul(frames_per_segment);
    let too_big =
        || Error::new(ErrorKind::Invalid, "write", path).because("the memory is too big for the format");
    let body_offset = format::body_offset(runs.len(), private_pages, most_frames).ok_or_else(too_big)?;

    let body = Body {
        source,
        file: staged.file(),
        path,
        level,
        segments: &segments,
        next: AtomicUsize::new(0),
        order: Mutex::new(Order {
            turn: 0,
            end: body_offset,
            zero_map: Vec::new(),
            frames: Vec::new(),
            failed: None,
        }),
        moved: Condvar::new(),
    };
    let threads =
        std::thread::available_parallelism().map_or(1, |n| n.get().min(THREADS)).min(segments.len());
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| body.work());
        }
        body.work();
    });
    let done = body.order.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = done.failed {
        return Err(error);
    }

    let zero_pages = done.zero_map.iter().map(|byte| u64::from(byte.count_ones())).sum();
    let header = Header {
        memory,
        generation: wanted.generation,
        base: format::id_bytes(&wanted.base),
        runs,
        zero_map: done.zero_map,
        frames: done.frames,
        private_pages,
        zero_pages,
        body_offset,
        body_len: done.end - body_offset,
    };
    let (bytes, checksum) = header.encode().ok_or_else(too_big)?;
    durable::write_at(staged.file(), path, 0, &bytes)?;
    // First to its data's end: what xfs allocated ahead of the writes is freed, and does not become part of the file.
    for len in [done.end, header.file_len()] {
        staged.file().set_len(len).map_err(|error| Error::io("write", path, error))?;
    }
    let stats = MemoryStats {
        private: Bytes(private_pages * PAGE_SIZE),
        zero: Bytes(zero_pages * PAGE_SIZE),
        stored: Bytes(sparse::bytes(bytes.len()) + header.body_len),
    };
    let content = Bytes(header.content_len());
    Ok(StagedMemory {
        staged,
        header: wanted,
        header_blake3: ContentId::from_hash(&checksum),
        content,
        stats,
    })
}

/// The source's runs, checked, those that touch made one.
pub(crate) fn private_runs(source: &dyn PageSource, path: &Path) -> Result<Vec<RamRun>> {
    let invalid = |what: &str| Err(Error::new(ErrorKind::Invalid, "write", path).because(what));
    let memory = source.len().0;
    if memory == 0 || !memory.is_multiple_of(PAGE_SIZE) {
        return invalid("the memory is not a number of pages");
    }
    let found = source.private_runs().map_err(|error| Error::io("read guest memory for", path, error))?;
    let mut runs: Vec<RamRun> = Vec::with_capacity(found.len());
    for run in found {
        let (start, end) = (run.start.0, run.start.0.saturating_add(run.len.0));
        if !start.is_multiple_of(PAGE_SIZE) || !end.is_multiple_of(PAGE_SIZE) || end > memory {
            return invalid("a private run is not made of the memory's pages");
        }
        if run.len.0 == 0 {
            continue;
        }
        match runs.last_mut().map(|last| (last.start.0 + last.len.0, last)) {
            Some((before, _)) if start < before => return invalid("the private runs are not in order"),
            Some((before, last)) if start == before => last.len.0 += run.len.0,
            _ => runs.push(run),
        }
    }
    Ok(runs)
}

/// The runs cut into pieces of [`SEGMENT_PAGES`] private pages each, but the last.
fn segments(runs: &[RamRun]) -> Vec<Vec<RamRun>> {
    let mut segments = Vec::new();
    let (mut segment, mut room) = (Vec::new(), SEGMENT_PAGES * PAGE_SIZE);
    for run in runs {
        let (mut start, mut left) = (run.start.0, run.len.0);
        while left > 0 {
            let len = left.min(room);
            segment.push(RamRun { start: RamOffset(start), len: Bytes(len) });
            start += len;
            left -= len;
            room -= len;
            if room == 0 {
                segments.push(std::mem::take(&mut segment));
                room = SEGMENT_PAGES * PAGE_SIZE;
            }
        }
    }
    if !segment.is_empty() {
        segments.push(segment);
    }
    segments
}

/// What has been given its place so far.
struct Order {
    /// The segment that comes next.
    turn: usize,
    /// Where it begins in the file.
    end: u64,
    zero_map: Vec<u8>,
    frames: Vec<Frame>,
    failed: Option<Error>,
}

struct Body<'a> {
    source: &'a dyn PageSource,
    file: &'a File,
    path: &'a Path,
    level: i32,
    segments: &'a [Vec<RamRun>],
    next: AtomicUsize,
    /// Locked for moments only: places are given under it, bytes are written outside of it.
    order: Mutex<Order>,
    moved: Condvar,
}

/// One segment, ready to be written.
#[derive(Default)]
struct Packed {
    zero_map: Vec<u8>,
    frames: Vec<Frame>,
    bytes: Vec<u8>,
}

impl Body<'_> {
    fn work(&self) {
        if let Err(error) = self.work_until_done() {
            let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
            order.failed.get_or_insert(error);
            self.moved.notify_all();
        }
    }

    fn work_until_done(&self) -> Result<()> {
        let mut packer = zstd::bulk::Compressor::new(self.level)
            .map_err(|error| Error::io("compress guest memory for", self.path, error))?;
        let mut raw = Vec::new();
        loop {
            let mine = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(segment) = self.segments.get(mine) else { return Ok(()) };
            let mut packed = self.pack(&mut packer, segment, &mut raw)?;

            let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
            while order.turn != mine && order.failed.is_none() {
                order = self.moved.wait(order).unwrap_or_else(PoisonError::into_inner);
            }
            if order.failed.is_some() {
                return Ok(());
            }
            let at = order.end;
            order.end += sparse::bytes(packed.bytes.len());
            order.zero_map.append(&mut packed.zero_map);
            order.frames.append(&mut packed.frames);
            order.turn += 1;
            drop(order);
            self.moved.notify_all();
            durable::write_at(self.file, self.path, at, &packed.bytes)?;
        }
    }

    fn pack(
        &self,
        packer: &mut zstd::bulk::Compressor<'_>,
        segment: &[RamRun],
        raw: &mut Vec<u8>,
    ) -> Result<Packed> {
        let len = segment.iter().map(|run| run.len.0).sum::<u64>();
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        raw.resize(len, 0);
        self.source
            .read_runs(segment, raw)
            .map_err(|error| Error::io("read guest memory for", self.path, error))?;

        let mut packed = Packed { zero_map: vec![0; (len / PAGE).div_ceil(8)], ..Packed::default() };
        let mut kept = 0;
        for page in 0..len / PAGE {
            let at = page * PAGE;
            if sparse::is_zero(&raw[at..at + PAGE]) {
                packed.zero_map[page / 8] |= 1 << (page % 8);
            } else {
                if kept != at {
                    raw.copy_within(at..at + PAGE, kept);
                }
                kept += PAGE;
            }
        }
        let mut compressed = vec![0; PAGE * 64];
        for pages in raw[..kept].chunks(PAGE * 64) {
            // A frame that does not get smaller is stored as it is; its length says so.
            let stored = match packer.compress_to_buffer(pages, &mut compressed[..]) {
                Ok(len) if len < pages.len() => &compressed[..len],
                _ => pages,
            };
            packed.frames.push(Frame {
                stored: u32::try_from(stored.len()).unwrap_or(u32::MAX),
                pages: u32::try_from(pages.len() / PAGE).unwrap_or(u32::MAX),
                checksum: format::frame_checksum(stored),
            });
            packed.bytes.extend_from_slice(stored);
        }
        Ok(packed)
    }
}
