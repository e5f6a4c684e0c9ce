//! What a second backup of a volume moves: of one that has not changed, and of one with 50 MiB of changes.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;

use serde_json::{Value, json};

use super::{Across, Bed, Found};
use crate::error::{During as _, Error, Result};
use crate::sample::{Sample, mib};
use crate::table::{Row, Target};

/// The volume, and what is in it.
const VOLUME_MIB: u64 = 1024;
const DATA_MIB: u64 = 512;
/// What is changed between backups.
const CHANGED_MIB: u64 = 50;
const MIB: u64 = 1 << 20;

pub(super) fn measure(bed: &Bed<'_>, _across: &mut Across) -> Result<Found> {
    bed.daemon.post("/volumes", &json!({ "name": "bench", "size_mb": VOLUME_MIB }))?;
    let path = bed.daemon.data_dir().join("volumes/admin/bench.ext4");
    let volume = File::options().write(true).open(path).during("opening a volume")?;
    write(bed, &volume, 256, DATA_MIB)?;
    let first = back_up(bed)?;
    let unchanged = back_up(bed)?;
    write(bed, &volume, 300, CHANGED_MIB)?;
    let changed = back_up(bed)?;

    let one = |value| Sample { values: vec![value] };
    let percent = one(100.0 * moved(&unchanged)? / mib(VOLUME_MIB * MIB));
    let took = |reply: &Value| reply["timings_ms"]["upload"].as_f64().unwrap_or_default() / 1e3;
    let rows = vec![
        Row::new(bed.step("backup of an unchanged 1 GiB volume: moved"), "% of it", percent)
            .target(Target::AtMost(1.0)),
        Row::new(bed.step("backup after 50 MiB of changes: moved"), "MiB", one(moved(&changed)?))
            .target(Target::AtMost(60.0)),
    ];
    let note = format!(
        "backups of a volume of 1 GiB with {DATA_MIB} MiB of random data, to a directory on the same filesystem: the first \
         moved {:.1} MiB in {:.1} s, the unchanged one took {:.2} s, the one with {CHANGED_MIB} MiB of changes {:.2} s",
        moved(&first)?,
        took(&first),
        took(&unchanged),
        took(&changed),
    );
    drop(volume);
    bed.daemon.remove("/volumes/bench")?;
    bed.drop_backups()?;
    Ok(Found { rows, notes: vec![note] })
}

/// Random data, as a guest's writes would leave it.
fn write(bed: &Bed<'_>, volume: &File, at_mib: u64, count_mib: u64) -> Result<()> {
    let mut random = File::open("/dev/urandom").during("opening /dev/urandom")?;
    let mut buffer = vec![0; 1 << 20];
    for number in 0..count_mib {
        bed.progress.go_on()?;
        random.read_exact(&mut buffer).during("reading /dev/urandom")?;
        volume.write_all_at(&buffer, (at_mib + number) * MIB).during("writing a volume")?;
    }
    Ok(())
}

fn back_up(bed: &Bed<'_>) -> Result<Value> {
    bed.progress.go_on()?;
    bed.daemon.post("/volumes/bench/backups", &json!({}))
}

fn moved(reply: &Value) -> Result<f64> {
    let bytes = reply["moved_bytes"].as_u64();
    Ok(mib(bytes.ok_or_else(|| Error::new("reading a backup", reply))?))
}
