//! Stop against what a guest has changed, and wake against what it keeps, with and without a base of its own.

use std::time::Instant;

use serde_json::{Value, json};
use storage::{RamBase, Store};
use types::SandboxId;

use super::{Growing, RUNS, figure};
use crate::Options;
use crate::daemon::Daemon;
use crate::error::{During as _, Error, Result};
use crate::plot::Figure;
use crate::progress::Progress;
use crate::random;
use crate::sample::{Sample, mib, ms};

/// MiB that the guest writes, none of which compress. From 64 MiB on a sleep makes a base.
const WRITTEN: [u64; 7] = [0, 1, 4, 16, 56, 128, 256];

#[derive(Default)]
struct At {
    private: Sample,
    first_stop: Sample,
    next_stop: Sample,
    from_delta: Sample,
    from_base: Sample,
}

pub(super) fn measure(daemon: &Daemon, options: &Options, progress: Progress<'_>) -> Result<Vec<Figure>> {
    let mut first = Growing::new("first sleep");
    let mut next = Growing::new("sleep again, nothing written since");
    let mut delta = Growing::new("memory in mem.snap");
    let mut base = Growing::new("over a base of its own");
    for written in WRITTEN {
        let mut at = At::default();
        for run in 1..=options.runs.min(RUNS) {
            progress.step(&format!("scaling: {written} MiB written, run {run}"))?;
            once(daemon, written, &mut at)?;
        }
        let x = at.private.median();
        first.push(x, at.first_stop);
        next.push(x, at.next_stop);
        delta.push(x, at.from_delta);
        base.push(x, at.from_base);
    }
    let x = "MiB of memory that the guest has changed since it was cloned";
    Ok(vec![
        figure("stop-dirty", "Stop against changed memory (1024 MiB guest)", x, "ms", [first, next]),
        figure(
            "wake-private",
            "Wake to first exec against changed memory (1024 MiB guest)",
            x,
            "ms",
            [delta, base],
        ),
    ])
}

fn once(daemon: &Daemon, written: u64, at: &mut At) -> Result<()> {
    const NAME: &str = "law";
    let id = daemon.post("/sandboxes", &json!({ "name": NAME, "memory_mb": 1024, "keep_hot": true }))?;
    let id: SandboxId = id["id"].as_str().unwrap_or_default().parse().during("reading a sandbox's id")?;
    daemon.exec(NAME, &["true"])?;
    if written > 0 {
        daemon.root_script(
            NAME,
            &format!(
                "mkdir -p /run/data; mount -t tmpfs -o size=600m tmpfs /run/data; {}",
                random::fill("/run/data/private", written)
            ),
        )?;
    }
    let (took, reply) = stop(daemon, NAME)?;
    at.first_stop.push(took);
    let private = reply["last_transition"]["bytes"]["private"].as_u64();
    at.private.push(mib(private.ok_or_else(|| Error::new("the bytes of a stop", &reply))?));
    let store = Store::open(daemon.data_dir()).during("opening the data directory")?;
    let manifest = store.sandbox(&id).manifest().during("reading a manifest")?;
    let own = matches!(manifest.ram_base, RamBase::Own { .. });
    for again in [true, false] {
        let began = Instant::now();
        daemon.exec(NAME, &["true"])?;
        let wake = if own { &mut at.from_base } else { &mut at.from_delta };
        wake.push(ms(began.elapsed()));
        if again {
            at.next_stop.push(stop(daemon, NAME)?.0);
        }
    }
    daemon.delete(NAME)?;
    // A base goes when nothing names it any more.
    daemon.post("/gc", &json!({})).map(drop)
}

fn stop(daemon: &Daemon, name: &str) -> Result<(f64, Value)> {
    let began = Instant::now();
    let path = format!("/sandboxes/{name}");
    daemon.post(&format!("{path}/stop"), &json!({}))?;
    let took = ms(began.elapsed());
    Ok((took, daemon.get(&path)?))
}
