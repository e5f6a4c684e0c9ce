//! A command on a hot sandbox over HTTP, against the same fork and exec timed inside the guest.

use serde_json::json;

use crate::Options;
use crate::daemon::Daemon;
use crate::error::{During as _, Result};
use crate::progress::Progress;
use crate::sample::{Sample, ms};
use crate::table::{Row, Target};

/// Commands a figure: single ones are shorter than the noise.
const BATCH: u32 = 40;

/// Runs `true` in a loop of the smallest shell and prints the microseconds of the whole loop.
const INSIDE: &str = "t0=${EPOCHREALTIME/./}; dash -c 'i=0; while [ $i -lt 40 ]; do /bin/true; i=$((i+1)); done'; \
                      echo $(( ${EPOCHREALTIME/./} - t0 ))";

pub(crate) fn measure(daemon: &Daemon, options: &Options, progress: Progress<'_>) -> Result<Vec<Row>> {
    daemon.post("/sandboxes", &json!({ "name": "exec" }))?;
    let (mut over_http, mut inside) = (Sample::default(), Sample::default());
    for run in 0..=options.runs {
        progress.step(&format!("exec of true: run {run} of {}", options.runs))?;
        let mut total = std::time::Duration::ZERO;
        for _ in 0..BATCH {
            total += daemon.exec("exec", &["/bin/true"])?.0;
        }
        let (_, micros) = daemon.exec("exec", &["bash", "-c", INSIDE])?;
        let micros: f64 = micros.trim().parse().during("reading the guest's figure")?;
        // The first round warms both up.
        if run > 0 {
            over_http.push(ms(total) / f64::from(BATCH));
            inside.push(micros / 1e3 / f64::from(BATCH));
        }
    }
    daemon.delete("exec")?;
    Ok(vec![
        Row::new("exec of true over HTTP, hot", "ms", over_http)
            .against("fork+exec inside the guest", inside)
            .target(Target::AtMostTimes(2.0)),
    ])
}
