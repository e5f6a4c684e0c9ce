//! Many resumes of one snapshot at once: what is read from the disk is read once.

use serde_json::json;

use super::{Across, Bed, Found};
use crate::error::{During as _, Error, Result};
use crate::random;
use crate::sample::{Sample, mib};
use crate::table::{Row, Target};

const MANY: usize = 25;
/// Random data in the snapshot's memory, so that there is something to read.
const MEMORY_MIB: u64 = 32;

pub(super) fn measure(bed: &Bed<'_>, _across: &mut Across) -> Result<Found> {
    let step = bed.step(&format!("bytes read for {MANY} resumes of a snapshot at once"));
    if !rustix::process::geteuid().is_root() {
        let why = "only root can drop the caches that would answer instead of the disk";
        return Ok(Found { rows: vec![Row::missing(step, why)], notes: Vec::new() });
    }
    bed.create("seed")?;
    bed.sh("seed", &random::fill("/dev/shm/data", MEMORY_MIB))?;
    bed.daemon.post("/sandboxes/seed/snapshots", &json!({ "name": "seed" }))?;
    bed.daemon.delete("seed")?;
    let (mut one, mut many) = (Sample::default(), Sample::default());
    for _ in 0..(bed.options.runs / 4).clamp(1, 3) {
        one.push(mib(read_by(bed, 1)?));
        many.push(mib(read_by(bed, MANY)?));
    }
    let row = Row::new(step, "MiB", many).against("one resume", one);
    Ok(Found { rows: vec![row.target(Target::AtMostTimes(1.2))], notes: Vec::new() })
}

/// Bytes that so many resumes read from the device, each to its first command.
fn read_by(bed: &Bed<'_>, count: usize) -> Result<u64> {
    bed.progress.go_on()?;
    bed.store.free_after_sync().during("syncing the filesystem")?;
    std::fs::write("/proc/sys/vm/drop_caches", "3").during("dropping caches")?;
    let before = bed.bytes_read()?;
    let resume = |number: usize| {
        let name = format!("resumed-{number}");
        bed.daemon.post("/snapshots/seed/resume", &json!({ "name": name, "keep_hot": true }))?;
        bed.daemon.exec(&name, &["true"]).map(drop)
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..count).map(|number| scope.spawn(move || resume(number))).collect();
        all.into_iter()
            .map(|one| one.join().map_err(|_| Error::new("resuming", "a thread panicked"))?)
            .collect::<Result<Vec<()>>>()
    })?;
    let read = bed.bytes_read()?.saturating_sub(before);
    for number in 0..count {
        bed.daemon.delete(&format!("resumed-{number}"))?;
    }
    Ok(read)
}
