//! How long a guest that writes to a volume is held while the volume is cloned or backed up.

use serde_json::json;

use super::{Across, Bed, Found};
use crate::error::{Error, Result};
use crate::random;
use crate::sample::Sample;
use crate::table::{Row, Target};

const VOLUME_MIB: u64 = 1024;
/// What is in the volume before.
const DATA_MIB: u64 = 256;
/// Of each kind, at most.
const COPIES: usize = 6;

pub(super) fn measure(bed: &Bed<'_>, _across: &mut Across) -> Result<Found> {
    bed.daemon.post("/volumes", &json!({ "name": "written", "size_mb": VOLUME_MIB }))?;
    let volumes = json!([{ "name": "written", "mount": "/data" }]);
    bed.daemon.post("/sandboxes", &json!({ "name": "writer", "keep_hot": true, "volumes": volumes }))?;
    bed.sh("writer", &format!("{}; sync", random::fill("/data/old", DATA_MIB)))?;
    // Some MiB a second that never cease: each round is written through to the disk.
    let writer = "while :; do head -c 1M /dev/urandom > /data/new; sync /data/new; done";
    let detached = json!({ "cmd": ["sh", "-c", writer], "user": "root", "detach": true });
    bed.daemon.post("/sandboxes/writer/exec", &detached)?;

    let (mut cloned, mut backed_up) = (Sample::default(), Sample::default());
    for _ in 0..COPIES.min(bed.options.runs) {
        cloned.push(stall(bed, "/volumes/written/clone", &json!({ "name": "copy" }))?);
        bed.daemon.remove("/volumes/copy")?;
        backed_up.push(stall(bed, "/volumes/written/backups", &json!({}))?);
    }
    bed.daemon.delete("writer")?;
    bed.daemon.remove("/volumes/written")?;
    bed.drop_backups()?;
    let row = |what: &str, sample| {
        Row::new(bed.step(&format!("guest's writes held for a {what} of an attached volume")), "ms", sample)
            .target(Target::AtMost(60.0))
    };
    Ok(Found { rows: vec![row("clone", cloned), row("backup", backed_up)], notes: Vec::new() })
}

fn stall(bed: &Bed<'_>, path: &str, body: &serde_json::Value) -> Result<f64> {
    bed.progress.go_on()?;
    let reply = bed.daemon.post(path, body)?;
    reply["stall_ms"].as_f64().ok_or_else(|| Error::new("reading how long writes were held", &reply))
}
