//! Create against how much its image holds.

use std::time::Instant;

use serde_json::{Value, json};

use super::{Growing, RUNS, figure};
use crate::Options;
use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::images::bhatti;
use crate::plot::Figure;
use crate::progress::Progress;
use crate::random;
use crate::sample::{Sample, ms};

/// MiB that do not compress, beside the files of the default image.
const MORE: [u64; 3] = [0, 128, 512];

pub(super) fn measure(daemon: &Daemon, options: &Options, progress: Progress<'_>) -> Result<Vec<Figure>> {
    let mut create = Growing::new("create to first exec");
    let mut disk = Growing::new("its disk step");
    for more in MORE {
        progress.step(&format!("scaling: an image with {more} MiB more"))?;
        let image = format!("law-{more}");
        daemon.post("/sandboxes", &json!({ "name": "source" }))?;
        daemon.root_script("source", &format!("{}; sync", random::fill("/root/more", more)))?;
        // A task: the command line waits for it.
        bhatti(daemon, options, &["image", "save", "source", "--name", &image])?;
        daemon.delete("source")?;
        let (mut took, mut step) = (Sample::default(), Sample::default());
        // The first create boots the template.
        for run in 0..=options.runs.min(RUNS) {
            progress.go_on()?;
            let began = Instant::now();
            let reply = daemon.post("/sandboxes", &json!({ "name": "made", "image": image }))?;
            daemon.exec("made", &["true"])?;
            if run > 0 {
                took.push(ms(began.elapsed()));
                step.push(number(&reply["timings_ms"]["disk"], "the time of the disk")?);
            }
            daemon.delete("made")?;
        }
        let told = daemon.get(&format!("/images/{image}"))?;
        let x = number(&told["allocated_bytes"], "the size of an image")? / f64::from(1 << 20);
        create.push(x, took);
        disk.push(x, step);
        daemon.remove(&format!("/images/{image}"))?;
        daemon.post("/gc", &json!({}))?;
    }
    let x = "MiB that the image takes";
    Ok(vec![figure("create-image", "Create against the size of its image", x, "ms", [create, disk])])
}

fn number(told: &Value, what: &'static str) -> Result<f64> {
    told.as_f64().ok_or_else(|| Error::new(what, "the daemon does not tell it"))
}
