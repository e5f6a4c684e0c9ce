//! Which layout of root disks is the cheaper one here: found out by making a few of each, never by the filesystem's name.
//!
//! Three things are measured for both layouts, in a scratch directory under the data root: how long a root disk takes to
//! make, how many bytes of the disk it occupies alone, and whether what one sandbox reads of its image is in memory
//! for the next one too.

use std::cmp::Ordering;
use std::fmt;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use serde::{Deserialize, Serialize};
use sys::host_fiemap::Mapper;
use types::{Bytes, CloneMethod, PAGE_SIZE, StorageLayout};

use crate::clone::{CloneOptions, clone_file_with};
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::image::ImageRecord;
use crate::sparse;
use crate::store::Store;

/// Root disks made of each layout.
const ROUNDS: usize = 5;
/// As long as a booted template's overlay is.
const OVERLAY_BYTES: usize = 448 << 10;
/// What is read through two root disks.
const STRETCH_BYTES: usize = 4 << 20;
/// Copying root disks for longer than this has told enough.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a root disk costs in one layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayoutCost {
    /// Time to make one, in microseconds: the median of a few.
    pub create_us: u64,
    /// Whether even one was made. If not, making it took too long or did not fit.
    pub made: bool,
    /// Bytes of the disk that it occupies alone, before its guest has written anything.
    pub own_bytes: Bytes,
    /// Of what was read through another root disk of the same image, how much is in memory for this one. `None` where
    /// the kernel does not tell.
    pub cached_percent: Option<u8>,
}

/// Both layouts on one filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayoutMeasurement {
    /// Small overlays over the one image.
    pub overlay: LayoutCost,
    /// Clones of the image.
    pub reflink: LayoutCost,
}

/// The layout that measured better, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutChoice {
    /// The layout.
    pub layout: StorageLayout,
    /// Why, in words.
    pub reason: String,
}

impl fmt::Display for LayoutCost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.made {
            write!(f, "{} a root disk", millis(self.create_us))?;
        } else {
            write!(f, "given up after {}", millis(self.create_us))?;
        }
        write!(f, ", {} of its own", self.own_bytes)?;
        match self.cached_percent {
            Some(percent) => write!(f, ", {percent}% of the page cache shared"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for LayoutMeasurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "overlay: {}; reflink: {}", self.overlay, self.reflink)
    }
}

fn millis(micros: u64) -> String {
    let tenths = micros.div_ceil(100);
    format!("{}.{} ms", tenths / 10, tenths % 10)
}

/// One of the three questions.
struct Question {
    what: &'static str,
    /// Which layout wins it by enough to matter.
    winner: Option<StorageLayout>,
}

impl LayoutMeasurement {
    /// The layout that wins more of the three questions. A difference counts if somebody could notice it. Memory decides
    /// when the others contradict each other, since a host runs out of it first; where nothing differs, overlays have
    /// the image's pages in memory once for certain.
    #[must_use]
    pub fn choose(&self) -> LayoutChoice {
        use StorageLayout::{Overlay, Reflink};
        let (overlay, reflink) = (&self.overlay, &self.reflink);
        // Twice as long and by more than a millisecond; twice as much and by more than a mebibyte.
        let less = |one: u64, other: u64, least: u64| {
            other > one.saturating_mul(2) && other.saturating_sub(one) > least
        };
        let winner = |one: u64, other: u64, least: u64| {
            if less(one, other, least) { Some(Overlay) } else { less(other, one, least).then_some(Reflink) }
        };
        let memory = match (overlay.cached_percent, reflink.cached_percent) {
            (Some(one), Some(other)) if one >= other.saturating_add(25) => Some(Overlay),
            (Some(one), Some(other)) if other >= one.saturating_add(25) => Some(Reflink),
            _ => None,
        };
        let questions = [
            Question { what: "page cache", winner: memory },
            Question { what: "create", winner: winner(overlay.create_us, reflink.create_us, 1000) },
            Question { what: "bytes", winner: winner(overlay.own_bytes.0, reflink.own_bytes.0, 1 << 20) },
        ];
        let won = |layout| questions.iter().filter(|question| question.winner == Some(layout)).count();
        let layout = match won(Overlay).cmp(&won(Reflink)) {
            Ordering::Greater => Overlay,
            Ordering::Less => Reflink,
            Ordering::Equal => memory.unwrap_or(Overlay),
        };
        LayoutChoice { layout, reason: reason(layout, &questions) }
    }
}

fn reason(layout: StorageLayout, questions: &[Question]) -> String {
    let told = |wanted: &dyn Fn(StorageLayout) -> bool| {
        let of = questions.iter().filter(|question| question.winner.is_some_and(wanted));
        of.map(|question| question.what).collect::<Vec<_>>().join(", ")
    };
    let (better, worse) = (told(&|winner| winner == layout), told(&|winner| winner != layout));
    match (better.as_str(), worse.as_str()) {
        ("", _) => "neither layout measured better".to_owned(),
        (_, "") => format!("better in {better}"),
        _ => format!("better in {better}, though worse in {worse}"),
    }
}

impl Store {
    /// Tells this filesystem from another that may be mounted here some day (`f_fsid` of statfs(2)).
    ///
    /// # Errors
    /// What the system says.
    pub fn filesystem_id(&self) -> Result<u64> {
        let space = rustix::fs::statvfs(self.root());
        Ok(space.map_err(|error| Error::io("ask the filesystem of", self.root(), error))?.f_fsid)
    }

    /// Makes a few root disks of both layouts from the image and throws them away. Takes well under a second where
    /// extents can be shared, at most a few seconds elsewhere.
    ///
    /// # Errors
    /// `NoSpace` when there is not even room for overlays, or what the system says.
    pub fn measure_layouts(&self, image: &ImageRecord) -> Result<LayoutMeasurement> {
        let scratch = self.scratch()?;
        let dir = scratch.path();
        let base = dir.join("base");
        write_synced(&base, STRETCH_BYTES)?;
        let overlay = dir.join("overlay");
        write_synced(&overlay, OVERLAY_BYTES)?;
        let shared = cached(&base, &base);
        let overlay = LayoutCost { cached_percent: shared?, ..cost(&overlay, None, dir)? };

        let (one, other) = (dir.join("one"), dir.join("other"));
        for to in [&one, &other] {
            clone_file_with(&base, to, &CloneOptions { sync: true, ..CloneOptions::default() })?;
        }
        let object = self.images().object_path(&image.id);
        let reflink = LayoutCost {
            cached_percent: cached(&one, &other)?,
            ..cost(&object, Some(image.allocated), dir)?
        };
        Ok(LayoutMeasurement { overlay, reflink })
    }
}

/// What a clone of `source` costs. With `size`, which one takes if nothing is shared, it may be given up.
fn cost(source: &Path, size: Option<Bytes>, dir: &Path) -> Result<LayoutCost> {
    let to = dir.join("clone");
    let begun = Instant::now();
    let mut took = Vec::new();
    let mut own = Bytes(0);
    while took.len() < ROUNDS && (took.is_empty() || begun.elapsed() < PATIENCE) {
        let cancel = AtomicBool::new(false);
        let progress = |_| cancel.store(begun.elapsed() > PATIENCE, Relaxed);
        let options = CloneOptions { progress: Some(&progress), cancel: Some(&cancel), sync: false };
        let start = Instant::now();
        let report = match clone_file_with(source, &to, &options) {
            Ok(report) => report,
            Err(error) if matches!(error.kind(), ErrorKind::Cancelled | ErrorKind::NoSpace) => match size {
                // The first one told it already, or nothing ever will.
                Some(_) if !took.is_empty() => break,
                Some(size) => {
                    let create_us = micros(start.elapsed());
                    return Ok(LayoutCost { create_us, made: false, own_bytes: size, cached_percent: None });
                }
                None => return Err(error),
            },
            Err(error) => return Err(error),
        };
        took.push(micros(start.elapsed()));
        own = own_bytes(&to, report.method)?;
        durable::remove_if_there(&to)?;
    }
    took.sort_unstable();
    let create_us = took.get(took.len() / 2).copied().unwrap_or_default();
    Ok(LayoutCost { create_us, made: true, own_bytes: own, cached_percent: None })
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// What of a new clone nothing else refers to.
fn own_bytes(path: &Path, method: CloneMethod) -> Result<Bytes> {
    let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
    let all = sparse::allocated(&file, path)?;
    if method != CloneMethod::Reflink {
        return Ok(all);
    }
    let mut own = 0;
    let told = Mapper::new().extents(&file, |extent| {
        if !extent.is_shared() {
            own += extent.length;
        }
    });
    Ok(if told.is_ok() { Bytes(own) } else { all })
}

fn write_synced(path: &Path, len: usize) -> Result<()> {
    let mut bytes = vec![0; len];
    // Neither zeros nor anything that a filesystem could make smaller.
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    let file = durable::new_file(path, &bytes, 0o600)?;
    durable::sync(&file, path)
}

/// Reads all of `one`, then counts what of `other` is in memory.
fn cached(one: &Path, other: &Path) -> Result<Option<u8>> {
    let fail = |error: io::Error| Error::io("read", other, error);
    let (one, other) = (File::open(one).map_err(fail)?, File::open(other).map_err(fail)?);
    forget(&one).and_then(|()| forget(&other)).map_err(fail)?;
    match resident_percent(&other).map_err(fail)? {
        Some(0) => {}
        // What does not leave memory tells nothing.
        _ => return Ok(None),
    }
    // Asking may have begun to read what it asked for; wait for that, then forget again.
    read_all(&other).and_then(|()| forget(&other)).map_err(fail)?;
    read_all(&one).map_err(fail)?;
    resident_percent(&other).map_err(fail)
}

fn forget(file: &File) -> io::Result<()> {
    Ok(fadvise(file, 0, None, Advice::DontNeed)?)
}

fn read_all(file: &File) -> io::Result<()> {
    let mut buffer = vec![0; sparse::piece(u64::MAX)];
    let len = file.metadata()?.len();
    let mut at = 0;
    while at < len {
        let part = &mut buffer[..sparse::piece(len - at)];
        file.read_exact_at(part, at)?;
        at += sparse::bytes(part.len());
    }
    Ok(())
}

/// How much of a file is in memory: every page is asked for without waiting (`RWF_NOWAIT` of preadv2(2)).
fn resident_percent(file: &File) -> io::Result<Option<u8>> {
    // Without read-ahead: asking for one page must not bring in the next.
    fadvise(file, 0, None, Advice::Random)?;
    let pages = file.metadata()?.len() / PAGE_SIZE;
    let mut resident = 0;
    for page in 0..pages {
        let mut byte = [0];
        let asked =
            preadv2(file, &mut [IoSliceMut::new(&mut byte)], page * PAGE_SIZE, ReadWriteFlags::NOWAIT);
        match asked {
            Ok(_) => resident += 1,
            Err(Errno::AGAIN) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
    fadvise(file, 0, None, Advice::Normal)?;
    Ok(u8::try_from((resident * 100u64).checked_div(pages).unwrap_or(0)).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(create_us: u64, own_bytes: u64, cached: Option<u8>) -> LayoutCost {
        LayoutCost { create_us, made: true, own_bytes: Bytes(own_bytes), cached_percent: cached }
    }

    fn chosen(overlay: LayoutCost, reflink: LayoutCost) -> (StorageLayout, String) {
        let choice = LayoutMeasurement { overlay, reflink }.choose();
        (choice.layout, choice.reason)
    }

    #[test]
    fn what_differs_by_enough_decides_and_the_reason_names_it() {
        use StorageLayout::{Overlay, Reflink};
        const MIB: u64 = 1 << 20;
        // A filesystem that cannot share extents.
        let (layout, reason) = chosen(cost(400, MIB / 2, Some(100)), cost(105_000, 107 * MIB, Some(0)));
        assert_eq!(layout, Overlay);
        assert_eq!(reason, "better in page cache, create, bytes");
        // One that can: only memory differs.
        let (layout, reason) = chosen(cost(60, 0, Some(100)), cost(90, 0, Some(0)));
        assert_eq!((layout, reason.as_str()), (Overlay, "better in page cache"));
        // One whose clones share pages and are cheaper.
        assert_eq!(chosen(cost(9000, 4 * MIB, Some(100)), cost(90, 0, Some(100))).0, Reflink);
        // Contradictions are decided by memory.
        let (layout, reason) = chosen(cost(9000, 0, Some(100)), cost(90, 0, Some(0)));
        assert_eq!(layout, Overlay);
        assert_eq!(reason, "better in page cache, though worse in create");
        assert_eq!(chosen(cost(90, 0, Some(0)), cost(9000, 0, Some(100))).0, Reflink);
        // Neither little nor unknown differences count.
        let even = chosen(cost(600, 0, None), cost(100, MIB / 2, Some(0)));
        assert_eq!(even, (Overlay, "neither layout measured better".to_owned()));
    }

    #[test]
    fn a_measurement_can_be_written_down_and_told() {
        let measured = LayoutMeasurement {
            overlay: cost(380, 0, Some(100)),
            reflink: LayoutCost { made: false, ..cost(3_000_000, 5 << 30, None) },
        };
        let text = serde_json::to_string(&measured).unwrap();
        assert_eq!(serde_json::from_str::<LayoutMeasurement>(&text).unwrap(), measured);
        assert_eq!(
            measured.to_string(),
            "overlay: 0.4 ms a root disk, 0 B of its own, 100% of the page cache shared; \
             reflink: given up after 3000.0 ms, 5.0 GiB of its own"
        );
    }
}
