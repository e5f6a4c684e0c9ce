//! Reading `mem.snap`: the header first and whole, then frame by frame, each verified before it is used.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use types::{Bytes, ContentId, RamOffset};

use super::format::{self, FIXED, Frame, Header, Refusal};
use super::write::PAGE;
use super::{LoadReport, MemoryStats, PageSink};
use crate::error::{Error, ErrorKind, Result};
use crate::sparse;

/// Pages written to the sink at once: 1 MiB.
const PIECE_PAGES: u64 = 256;

/// An opened memory image whose header was verified.
#[derive(Debug)]
pub struct MemoryImage {
    file: File,
    path: PathBuf,
    /// What is lost with it and the way out, for errors.
    owner: Option<(String, String)>,
    header: Header,
    header_blake3: ContentId,
}

impl MemoryImage {
    /// Opens a file and verifies its header. `owner` and the way out go into errors.
    pub(crate) fn open(path: &Path, owner: Option<(String, String)>) -> Result<Self> {
        let refuse = |refusal| refused(path, owner.as_ref(), &refusal);
        let fail = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => refuse(Refusal::Damaged("it is missing")),
            std::io::ErrorKind::UnexpectedEof => refuse(Refusal::Damaged("it is cut short")),
            _ => Error::io("read", path, error),
        };
        let file = File::open(path).map_err(fail)?;
        let file_len = file.metadata().map_err(fail)?.len();
        let mut bytes = vec![0; FIXED];
        file.read_exact_at(&mut bytes, 0).map_err(fail)?;
        let len = format::full_len(&bytes, file_len).map_err(refuse)?;
        bytes.resize(len, 0);
        file.read_exact_at(&mut bytes[FIXED..], sparse::bytes(FIXED)).map_err(fail)?;
        let (header, checksum) = format::decode(&bytes, file_len).map_err(refuse)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            owner,
            header,
            header_blake3: ContentId::from_hash(&checksum),
        })
    }

    /// Size of the guest's RAM.
    #[must_use]
    pub fn memory(&self) -> Bytes {
        self.header.memory
    }

    /// The generation of the manifest that it belongs to.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.header.generation
    }

    /// The RAM base it lies over.
    #[must_use]
    pub fn base(&self) -> ContentId {
        ContentId::from_hash(&self.header.base)
    }

    /// BLAKE3 of the header.
    #[must_use]
    pub fn header_blake3(&self) -> &ContentId {
        &self.header_blake3
    }

    /// How much it is.
    #[must_use]
    pub fn stats(&self) -> MemoryStats {
        let pages = |count: u64| Bytes(count * sparse::bytes(PAGE));
        MemoryStats {
            private: pages(self.header.private_pages),
            zero: pages(self.header.zero_pages),
            stored: Bytes(self.header.content_len()),
        }
    }

    /// Gives every private page to `sink`, zero pages included, each frame verified before any page of it is given.
    ///
    /// # Errors
    /// `Corrupt` for a damaged frame: pages before it were given already, so the machine must not run.
    pub fn load(&self, sink: &mut dyn PageSink) -> Result<LoadReport> {
        let mut frames = Frames::new(self)?;
        let mut piece = Vec::new();
        let mut private = 0usize;
        for run in &self.header.runs {
            let (mut at, end) = (run.start.0, run.start.0 + run.len.0);
            while at < end {
                let len = (end - at).min(PIECE_PAGES * sparse::bytes(PAGE));
                piece.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
                for page in piece.chunks_exact_mut(PAGE) {
                    if self.header.zero_map[private / 8] >> (private % 8) & 1 == 1 {
                        page.fill(0);
                    } else {
                        page.copy_from_slice(frames.next_page()?);
                    }
                    private += 1;
                }
                sink.write(RamOffset(at), &piece)
                    .map_err(|error| Error::io("write guest memory from", &self.path, error))?;
                at += len;
            }
        }
        Ok(LoadReport { written: self.stats().private, read: Bytes(self.header.content_len()) })
    }
}

fn refused(path: &Path, owner: Option<&(String, String)>, refusal: &Refusal) -> Error {
    let whose = owner
        .map_or_else(|| "the memory image".to_owned(), |(name, _)| format!("the memory image of {name}"));
    let error = match refusal {
        Refusal::Damaged(what) => {
            Error::new(ErrorKind::Corrupt, "read", path).because(format!("{whose} is damaged: {what}"))
        }
        Refusal::TooNew(version) => Error::new(ErrorKind::TooNew, "read", path).because(format!(
            "{whose} has version {version}, and this bhatti reads up to {}",
            format::VERSION
        )),
    };
    match owner {
        Some((_, way_out)) => error.hint_to(way_out),
        None => error,
    }
}

/// The pages of the body, one after the other.
struct Frames<'a> {
    image: &'a MemoryImage,
    left: std::slice::Iter<'a, Frame>,
    at: u64,
    stored: Vec<u8>,
    pages: Vec<u8>,
    used: usize,
    unpacker: zstd::bulk::Decompressor<'static>,
}

impl<'a> Frames<'a> {
    fn new(image: &'a MemoryImage) -> Result<Self> {
        let unpacker =
            zstd::bulk::Decompressor::new().map_err(|error| Error::io("read", &image.path, error))?;
        let (left, at) = (image.header.frames.iter(), image.header.body_offset);
        Ok(Self { image, left, at, stored: Vec::new(), pages: Vec::new(), used: 0, unpacker })
    }

    fn next_page(&mut self) -> Result<&[u8]> {
        if self.used == self.pages.len() {
            self.next_frame()?;
        }
        let page = &self.pages[self.used..self.used + PAGE];
        self.used += PAGE;
        Ok(page)
    }

    fn next_frame(&mut self) -> Result<()> {
        let image = self.image;
        let damaged = |what| refused(&image.path, image.owner.as_ref(), &Refusal::Damaged(what));
        // The header's counts agree, or it would have been refused.
        let frame = self.left.next().ok_or_else(|| damaged("a frame is missing"))?;
        let too_big = |_| damaged("a frame of it has an impossible size");
        self.stored.resize(usize::try_from(frame.stored).map_err(too_big)?, 0);
        image.file.read_exact_at(&mut self.stored, self.at).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => damaged("it is cut short"),
            _ => Error::io("read", &image.path, error),
        })?;
        if format::frame_checksum(&self.stored) != frame.checksum {
            return Err(damaged("the checksum of a frame does not match"));
        }
        let len = usize::try_from(frame.pages).map_err(too_big)? * PAGE;
        self.pages.resize(len, 0);
        self.used = 0;
        if self.stored.len() == len {
            self.pages.copy_from_slice(&self.stored);
        } else {
            let unpacked = self.unpacker.decompress_to_buffer(&self.stored, &mut self.pages[..]);
            if !matches!(unpacked, Ok(unpacked) if unpacked == len) {
                return Err(damaged("a frame of it cannot be decompressed"));
            }
        }
        self.at += u64::from(frame.stored);
        Ok(())
    }
}
