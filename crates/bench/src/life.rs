//! Create, stop and wake, in turn with a cold boot and QEMU's own migration to and from a file.

use std::time::Instant;

use serde_json::json;

use crate::daemon::Daemon;
use crate::error::Result;
use crate::reference::Reference;
use crate::sample::{Sample, mib, ms};
use crate::table::{Row, Target};
use crate::{Error, Options};

#[derive(Default)]
struct Ours {
    create: Sample,
    stop: Sample,
    stored: Sample,
    wake: Sample,
}

#[derive(Default)]
struct Theirs {
    boot: Sample,
    save: Sample,
    save_uncapped: Sample,
    saved: Sample,
    load: Sample,
}

pub(crate) fn measure(daemon: &Daemon, options: &Options, progress: &dyn Fn(&str)) -> Result<Vec<Row>> {
    let (mut ours, mut theirs) = (Ours::default(), Theirs::default());
    let reference = Reference::new(daemon.data_dir())?;
    for run in 1..=options.runs {
        progress(&format!("create, stop, wake: run {run} of {}", options.runs));
        let name = format!("life-{run}");
        let began = Instant::now();
        daemon.post("/sandboxes", &json!({ "name": name }))?;
        daemon.exec(&name, &["true"])?;
        ours.create.push(ms(began.elapsed()));
        // Idle as the reference's guest is: it has run one command and nothing else.
        let began = Instant::now();
        daemon.post(&format!("/sandboxes/{name}/stop"), &json!({}))?;
        ours.stop.push(ms(began.elapsed()));
        let view = daemon.get(&format!("/sandboxes/{name}"))?;
        let stored = view["last_transition"]["bytes"]["stored"].as_u64();
        let stored = stored.ok_or_else(|| Error::new("the bytes of a stop", &view))?;
        ours.stored.push(mib(stored));
        let began = Instant::now();
        daemon.exec(&name, &["true"])?;
        ours.wake.push(ms(began.elapsed()));
        daemon.delete(&name)?;

        let life = reference.live()?;
        theirs.boot.push(ms(life.boot));
        theirs.save.push(ms(life.save));
        theirs.save_uncapped.push(ms(life.save_uncapped));
        theirs.saved.push(mib(life.saved_bytes));
        theirs.load.push(ms(life.load));
    }
    let row = |step, unit, ours: &Sample, reference, theirs: Sample, target| Row {
        step,
        unit,
        ours: ours.clone(),
        reference,
        theirs,
        target,
    };
    Ok(vec![
        row(
            "create to first exec",
            "ms",
            &ours.create,
            "cold boot to first exec",
            theirs.boot,
            Target::TimesBetter(8.0),
        ),
        row(
            "stop, idle 512 MiB",
            "ms",
            &ours.stop,
            "QEMU migrate to file",
            theirs.save,
            Target::TimesBetter(15.0),
        ),
        row(
            "stop, idle 512 MiB",
            "ms",
            &ours.stop,
            "the same, bandwidth uncapped",
            theirs.save_uncapped,
            Target::None,
        ),
        row(
            "bytes of that stop",
            "MiB",
            &ours.stored,
            "QEMU migrate to file",
            theirs.saved,
            Target::TimesBetter(30.0),
        ),
        row(
            "wake to first exec",
            "ms",
            &ours.wake,
            "QEMU load to first exec",
            theirs.load,
            Target::TimesBetter(1.8),
        ),
    ])
}
