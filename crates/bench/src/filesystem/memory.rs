//! Memory images: what the same pages take on each filesystem, and what levels of compression give and cost.

use std::time::Instant;

use storage::MemoryHeader;
use types::{Bytes, ContentId};

use super::{Across, Bed, Found};
use crate::error::{During as _, Error, Result};
use crate::pages::Pages;
use crate::reference::Reference;
use crate::sample::{Sample, mib};
use crate::table::Table;

/// Reads much of the system once, as a guest has that was worked in for a while.
const WORK: [&str; 3] = ["sh", "-c", "cat /usr/bin/* > /dev/null; true"];
const LEVELS: [i32; 3] = [1, 3, 5];

/// Writes the same memory here as on the other filesystems.
pub(super) fn measure(bed: &Bed<'_>, across: &mut Across) -> Result<Found> {
    if across.pages.is_none() {
        across.pages = Some(Reference::new(bed.daemon.data_dir())?.memory_after(&WORK)?);
    }
    let Some(pages) = &across.pages else { return Ok(Found::default()) };
    let staged = bed.store.snapshots().stage_fork().during("staging a memory image")?;
    let written = staged.write_memory(pages, header(), 1).during("writing a memory image")?;
    bed.store.free_after_sync().during("syncing the filesystem")?;
    let usage = bed.store.usage().during("measuring usage")?;
    let name = staged.dir().join(storage::layout::MEM_SNAP);
    let of_snapshots = usage.snapshots.iter().flat_map(|snapshot| &snapshot.files);
    let mut files = usage.objects.iter().flat_map(|object| &object.files).chain(of_snapshots);
    let file = files.find(|file| bed.store.root().join(&file.path) == name);
    let file = file.ok_or_else(|| Error::new("measuring a memory image", "usage does not tell of it"))?;
    across.image_mib.push((bed.fs.clone(), mib(file.figures.physical.0)));
    let stats = written.stats();
    let note = format!(
        "one memory image: {:.1} MiB private, {:.1} MiB of it zeros, {:.1} MiB stored, {:.1} MiB on the disk",
        mib(stats.private.0),
        mib(stats.zero.0),
        mib(stats.stored.0),
        mib(file.figures.physical.0),
    );
    Ok(Found { rows: Vec::new(), notes: vec![note] })
}

fn header() -> MemoryHeader {
    MemoryHeader { generation: 1, base: ContentId::from_hash(&[0; 32]) }
}

/// Speed and ratio of each level over the pages of a guest that has worked, by the store's own writer.
pub(super) fn levels(bed: &Bed<'_>, pages: &Pages) -> Result<Table> {
    let mut speeds: Vec<Sample> = LEVELS.iter().map(|_| Sample::default()).collect();
    let mut stored: Vec<Bytes> = vec![Bytes(0); LEVELS.len()];
    let mut zero = Bytes(0);
    for _ in 0..bed.options.runs.min(5) {
        for (at, &level) in LEVELS.iter().enumerate() {
            bed.progress.go_on()?;
            let staged = bed.store.snapshots().stage_fork().during("staging a memory image")?;
            let began = Instant::now();
            let written = staged.write_memory(pages, header(), level).during("writing a memory image")?;
            speeds[at].push(mib(pages.private().0) / began.elapsed().as_secs_f64());
            stored[at] = written.stats().stored;
            zero = written.stats().zero;
        }
    }
    let private = mib(pages.private().0);
    let lines = LEVELS.iter().zip(&speeds).zip(&stored).map(|((level, speed), stored)| {
        vec![
            level.to_string(),
            format!("{:.0} MiB/s ({:.0} to {:.0})", speed.median(), speed.min(), speed.max()),
            format!("{:.1} MiB", mib(stored.0)),
            format!("{:.2}", (private - mib(zero.0)) / mib(stored.0)),
        ]
    });
    Ok(Table {
        title: format!(
            "zstd levels over the memory of a guest that has booted and read its programs: {private:.0} MiB, {:.0} MiB \
             of it zeros, which are not compressed but left out",
            mib(zero.0)
        ),
        head: ["level", "speed, zeros included", "stored", "ratio, without zeros"]
            .map(str::to_owned)
            .to_vec(),
        lines: lines.collect(),
    })
}
