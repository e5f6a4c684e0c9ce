//! How long a running guest stands still for a named snapshot.

use serde_json::json;

use super::{Across, Bed, Found};
use crate::error::{Error, Result};
use crate::phases::Phases;
use crate::random;
use crate::sample::{Sample, mib};
use crate::table::{Row, Target};

/// The root disk has room for what is written.
const DISK_MIB: u64 = 4096;
/// Of the guest.
const MEMORY_MIB: u64 = 512;
/// Written in pieces, so that a wish to stop need not wait for all of it.
const PIECES: u64 = 16;
const PIECE_MIB: u64 = 128;
/// In the guest's memory, and so much of it; pieces are whole copies. No filesystem looks so far back for the same data.
const RANDOM: &str = "/dev/shm/random";
const RANDOM_MIB: u64 = 16;
/// Between snapshots of the full disk.
const MORE_MIB: u64 = 64;
const SNAPSHOTS: usize = 4;

#[derive(Default)]
struct Taken {
    pause: Sample,
    private: Sample,
    stored: Sample,
    phases: Phases,
}

pub(super) fn measure(bed: &Bed<'_>, _across: &mut Across) -> Result<Found> {
    let create = json!({ "name": "still", "disk_size_mb": DISK_MIB, "keep_hot": true });
    bed.daemon.post("/sandboxes", &create)?;
    let count = SNAPSHOTS.min(bed.options.runs);
    let mut fresh = Taken::default();
    for number in 0..count {
        take(bed, &format!("fresh-{number}"), &mut fresh)?;
    }
    bed.sh("still", &random::fill(RANDOM, RANDOM_MIB))?;
    bed.progress.step(&format!("{}: writing {} MiB in a guest", bed.fs, PIECES * PIECE_MIB))?;
    for piece in 0..PIECES {
        bed.progress.go_on()?;
        // All that the guest's cache could have of it goes through there.
        let past_the_cache = (piece + 1) * PIECE_MIB <= PIECES * PIECE_MIB - MEMORY_MIB;
        write(bed, piece * PIECE_MIB, PIECE_MIB, if past_the_cache { "oflag=direct" } else { "" })?;
    }
    bed.progress.step(&format!("{}: named snapshots after that", bed.fs))?;
    let mut first = Taken::default();
    take(bed, "full", &mut first)?;
    let mut later = Taken::default();
    for number in 1..count {
        write(bed, 0, MORE_MIB, "")?;
        take(bed, &format!("full-{number}"), &mut later)?;
    }
    let cases = [
        ("with a fresh disk", fresh),
        ("with 2 GiB just written", first),
        ("with 64 MiB more, each time", later),
    ];
    let mut found = Found::default();
    for (what, taken) in cases {
        if taken.pause.values.is_empty() {
            continue;
        }
        found.notes.push(format!(
            "snapshot of a running guest {what}: {:.1} MiB of private memory copied, {:.1} MiB stored; {}",
            taken.private.median(),
            taken.stored.median(),
            taken.phases,
        ));
        let step = bed.step(&format!("pause of a 512 MiB guest for a snapshot, {what}"));
        found.rows.push(Row::new(step, "ms", taken.pause).target(Target::AtMost(60.0)));
    }
    Ok(found)
}

/// Copies of random data. The guest's own cache takes part of it, as it would.
fn write(bed: &Bed<'_>, at_mib: u64, mib: u64, how: &str) -> Result<()> {
    let copies = format!(
        "at={at_mib}; for copy in $(seq {}); do \
         dd if={RANDOM} of=/root/data bs=1M seek=$at conv=notrunc {how} status=none; at=$((at + {RANDOM_MIB})); done",
        mib / RANDOM_MIB
    );
    bed.sh("still", &copies)
}

fn take(bed: &Bed<'_>, name: &str, taken: &mut Taken) -> Result<()> {
    // A guest that was just asked something runs.
    bed.daemon.exec("still", &["true"])?;
    let reply = bed.daemon.post("/sandboxes/still/snapshots", &json!({ "name": name }))?;
    let number = |key: &str| reply[key].as_f64().ok_or_else(|| Error::new("reading a snapshot", &reply));
    let bytes = |key: &str| reply[key].as_u64().ok_or_else(|| Error::new("reading a snapshot", &reply));
    taken.pause.push(number("pause_ms")?);
    taken.private.push(mib(bytes("private_bytes")?));
    taken.stored.push(mib(bytes("stored_bytes")?));
    taken.phases.add(&reply);
    Ok(())
}
