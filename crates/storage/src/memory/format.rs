//! The header of `mem.snap`, as `docs/formats/mem-snap.md` draws it. Any bytes may come in; nothing here panics.

use types::{Bytes, ContentId, PAGE_SIZE, RamOffset, RamRun};

pub(crate) const MAGIC: [u8; 8] = *b"bhattMEM";
pub(crate) const VERSION: u32 = 1;
/// Length of the fixed part.
pub(crate) const FIXED: usize = 128;
/// Pages in a frame at most: 256 KiB.
pub(crate) const FRAME_PAGES: u32 = 64;
const RUN: usize = 8;
const FRAME: usize = 24;
const CHECKSUM: usize = 32;

/// Why bytes are no memory image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    Damaged(&'static str),
    TooNew(u32),
}

/// One compressed piece of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Bytes in the file; as many as the pages have if it is not compressed.
    pub(crate) stored: u32,
    /// Pages in it, 1 to [`FRAME_PAGES`].
    pub(crate) pages: u32,
    /// The first 16 bytes of BLAKE3 of the stored bytes.
    pub(crate) checksum: [u8; 16],
}

/// The first 16 bytes of BLAKE3.
pub(crate) fn frame_checksum(stored: &[u8]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(stored).as_bytes()[..16]);
    short
}

/// Everything before the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) memory: Bytes,
    pub(crate) generation: u64,
    pub(crate) base: [u8; 32],
    /// Ascending, not touching each other.
    pub(crate) runs: Vec<RamRun>,
    /// A bit for each private page in order, lowest first: it is all zeros and in no frame.
    pub(crate) zero_map: Vec<u8>,
    pub(crate) frames: Vec<Frame>,
    pub(crate) private_pages: u64,
    pub(crate) zero_pages: u64,
    pub(crate) body_offset: u64,
    pub(crate) body_len: u64,
}

/// The raw bytes of an id.
pub(crate) fn id_bytes(id: &ContentId) -> [u8; 32] {
    let hash = blake3::Hash::from_hex(id.as_str()).expect("a ContentId is 64 hex digits");
    *hash.as_bytes()
}

/// What the tables may need at most, as the fixed part says it: its own checksum's end.
fn header_len(runs: u64, private_pages: u64, frames: u64) -> Option<u64> {
    let runs = runs.checked_mul(RUN as u64)?;
    let frames = frames.checked_mul(FRAME as u64)?;
    (FIXED as u64 + CHECKSUM as u64)
        .checked_add(runs)?
        .checked_add(private_pages.div_ceil(8))?
        .checked_add(frames)
}

/// Where the body may begin when no page turns out to be zero: the tables come before it and are written last.
pub(crate) fn body_offset(runs: usize, private_pages: u64, frames: u64) -> Option<u64> {
    header_len(u64::try_from(runs).ok()?, private_pages, frames)?.checked_next_multiple_of(PAGE_SIZE)
}

impl Header {
    /// The bytes and their checksum, which are their last 32. `None` when a count does not fit the format.
    pub(crate) fn encode(&self) -> Option<(Vec<u8>, [u8; 32])> {
        let mut out = Vec::with_capacity(usize::try_from(self.body_offset).ok()?);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend(u32::try_from(PAGE_SIZE).ok()?.to_le_bytes());
        out.extend(self.memory.0.to_le_bytes());
        out.extend(self.generation.to_le_bytes());
        out.extend(self.base);
        out.extend(u32::try_from(self.runs.len()).ok()?.to_le_bytes());
        out.extend(u32::try_from(self.frames.len()).ok()?.to_le_bytes());
        for number in [self.private_pages, self.zero_pages, self.body_offset, self.body_len] {
            out.extend(number.to_le_bytes());
        }
        out.resize(FIXED, 0);
        for run in &self.runs {
            out.extend(u32::try_from(run.start.0 / PAGE_SIZE).ok()?.to_le_bytes());
            out.extend(u32::try_from(run.len.0 / PAGE_SIZE).ok()?.to_le_bytes());
        }
        out.extend(&self.zero_map);
        for frame in &self.frames {
            out.extend(frame.stored.to_le_bytes());
            out.extend(frame.pages.to_le_bytes());
            out.extend(frame.checksum);
        }
        let checksum = *blake3::hash(&out).as_bytes();
        out.extend(checksum);
        Some((out, checksum))
    }

    /// Size that the file must have.
    pub(crate) fn file_len(&self) -> u64 {
        self.memory.0.max(self.content_len())
    }

    /// Bytes up to the end of the last frame.
    pub(crate) fn content_len(&self) -> u64 {
        self.body_offset.saturating_add(self.body_len)
    }
}

/// Reads little-endian numbers off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Refusal> {
        let (front, rest) = self.0.split_at_checked(len).ok_or(Refusal::Damaged("it is cut short"))?;
        self.0 = rest;
        Ok(front)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, Refusal> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Refusal> {
        self.array().map(u64::from_le_bytes)
    }
}

/// The length of the whole header, from its fixed part. Only what is needed to read the rest is judged here; nothing
/// larger than the file is ever allocated.
pub(crate) fn full_len(fixed: &[u8], file_len: u64) -> Result<usize, Refusal> {
    let mut reader = Reader(fixed);
    if reader.array()? != MAGIC {
        return Err(Refusal::Damaged("it does not begin as a memory image does"));
    }
    let version = reader.u32()?;
    if version > VERSION {
        return Err(Refusal::TooNew(version));
    }
    if version == 0 {
        return Err(Refusal::Damaged("no version 0 was ever written"));
    }
    reader.take(52)?;
    let (runs, frames, private_pages) = (reader.u32()?, reader.u32()?, reader.u64()?);
    let len = header_len(runs.into(), private_pages, frames.into()).filter(|&len| len <= file_len);
    len.and_then(|len| usize::try_from(len).ok()).ok_or(Refusal::Damaged("it is cut short"))
}

/// Reads a whole header, as long as [`full_len`] says. Returns its checksum too.
pub(crate) fn decode(bytes: &[u8], file_len: u64) -> Result<(Header, [u8; 32]), Refusal> {
    let damaged = |what| Err(Refusal::Damaged(what));
    if bytes.len() != full_len(bytes, file_len)? {
        return damaged("it is cut short");
    }
    let (content, stored) = bytes.split_at(bytes.len() - CHECKSUM);
    let checksum = *blake3::hash(content).as_bytes();
    if checksum != stored {
        return damaged("the checksum of its header does not match");
    }
    let mut reader = Reader(content);
    reader.take(12)?;
    if u64::from(reader.u32()?) != PAGE_SIZE {
        return damaged("it has pages of another size");
    }
    let (memory, generation, base) = (reader.u64()?, reader.u64()?, reader.array()?);
    let (run_count, frame_count) = (reader.u32()?, reader.u32()?);
    let (private_pages, zero_pages, body_offset, body_len) =
        (reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?);
    if reader.array()? != [0u8; 24] {
        return damaged("its reserved bytes are used");
    }
    let pages = memory / PAGE_SIZE;
    if memory == 0 || !memory.is_multiple_of(PAGE_SIZE) || pages > u64::from(u32::MAX) {
        return damaged("its memory size is impossible");
    }
    let (mut runs, mut end, mut counted) = (Vec::new(), None, 0u64);
    for _ in 0..run_count {
        let (start, len) = (u64::from(reader.u32()?), u64::from(reader.u32()?));
        if len == 0 || start + len > pages || end.is_some_and(|end| start <= end) {
            return damaged("its runs are not in order");
        }
        end = Some(start + len);
        counted += len;
        runs.push(RamRun { start: RamOffset(start * PAGE_SIZE), len: Bytes(len * PAGE_SIZE) });
    }
    if counted != private_pages {
        return damaged("its runs do not add up");
    }
    let map_len =
        usize::try_from(private_pages.div_ceil(8)).map_err(|_| Refusal::Damaged("it is cut short"))?;
    let zero_map = reader.take(map_len)?.to_vec();
    let ones = zero_map.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
    let unused = zero_map.last().map_or(0, |last| match private_pages % 8 {
        0 => 0,
        used => last >> used,
    });
    if ones != zero_pages || unused != 0 {
        return damaged("its zero pages do not add up");
    }
    let (mut frames, mut in_frames, mut in_body) = (Vec::new(), 0u64, 0u64);
    for _ in 0..frame_count {
        let frame = Frame { stored: reader.u32()?, pages: reader.u32()?, checksum: reader.array()? };
        let raw = u64::from(frame.pages) * PAGE_SIZE;
        if frame.pages == 0 || frame.pages > FRAME_PAGES || frame.stored == 0 || u64::from(frame.stored) > raw
        {
            return damaged("a frame of it has an impossible size");
        }
        in_frames += u64::from(frame.pages);
        in_body += u64::from(frame.stored);
        frames.push(frame);
    }
    let header_len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if in_frames != private_pages - zero_pages || in_body != body_len || body_offset < header_len {
        return damaged("its frames do not add up");
    }
    let header = Header {
        memory: Bytes(memory),
        generation,
        base,
        runs,
        zero_map,
        frames,
        private_pages,
        zero_pages,
        body_offset,
        body_len,
    };
    if body_offset.checked_add(body_len).is_none() || header.file_len() != file_len {
        return damaged("its size is not the one it was written with");
    }
    Ok((header, checksum))
}

/// Makes the checksums right in place, as far as the tables can be found.
#[cfg(fuzzing)]
pub(crate) fn seal(bytes: &mut [u8]) -> Option<()> {
    let len = full_len(bytes.get(..FIXED)?, u64::try_from(bytes.len()).ok()?).ok()?;
    let number = |bytes: &[u8], at: usize, len: usize| -> usize {
        bytes[at..at + len].iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
    };
    let (frames, mut at) = (number(bytes, 68, 4), number(bytes, 88, 8));
    for frame in 0..frames {
        let entry = (len - CHECKSUM).checked_sub((frames - frame) * FRAME)?;
        let stored = number(bytes, entry, 4);
        let Some(content) = at.checked_add(stored).and_then(|end| bytes.get(at..end)) else { break };
        let checksum = frame_checksum(content);
        bytes[entry + 8..entry + FRAME].copy_from_slice(&checksum);
        at += stored;
    }
    let checksum = *blake3::hash(&bytes[..len - CHECKSUM]).as_bytes();
    bytes[len - CHECKSUM..len].copy_from_slice(&checksum);
    Some(())
}
