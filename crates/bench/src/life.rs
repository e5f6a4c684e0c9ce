//! Create, stop and wake, in turn with a cold boot, QEMU's own migration to and from a file, its snapshots inside a disk,
//! and libvirt's managed save.

use std::time::Instant;

use serde_json::json;

use crate::daemon::Daemon;
use crate::data;
use crate::error::Result;
use crate::libvirt::Libvirt;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::sample::{Sample, mib, ms};
use crate::table::{Row, Section, Target};
use crate::{Error, Options};

/// Each takes as long as all others of a run together.
const VIRSH_RUNS: usize = 3;

#[derive(Default)]
struct Ours {
    create: Sample,
    stop: Sample,
    stored: Sample,
    wake: Sample,
    create_ahead: Sample,
    wake_ahead: Sample,
}

#[derive(Default)]
struct Theirs {
    boot: Sample,
    save: Sample,
    save_uncapped: Sample,
    saved: Sample,
    load: Sample,
    savevm: Sample,
    loadvm: Sample,
}

#[derive(Default)]
struct Virsh {
    save: Sample,
    saved: Sample,
    load: Sample,
}

pub(crate) fn measure(daemon: &Daemon, options: &Options, progress: Progress<'_>) -> Result<Section> {
    let (mut ours, mut theirs) = (Ours::default(), Theirs::default());
    let reference = Reference::new(daemon.data_dir())?;
    let ahead = Daemon::start_with(options, data::linked(options)?, &["--spare-vmms", "1"], progress)?;
    let (mut virsh, mut managed) = (Libvirt::start(daemon.data_dir()), Virsh::default());
    for run in 1..=options.runs {
        progress.step(&format!("create, stop, wake: run {run} of {}", options.runs))?;
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

        ahead.until_spare()?;
        let began = Instant::now();
        ahead.post("/sandboxes", &json!({ "name": name }))?;
        ahead.exec(&name, &["true"])?;
        ours.create_ahead.push(ms(began.elapsed()));
        ahead.post(&format!("/sandboxes/{name}/stop"), &json!({}))?;
        ahead.until_spare()?;
        let began = Instant::now();
        ahead.exec(&name, &["true"])?;
        ours.wake_ahead.push(ms(began.elapsed()));
        ahead.delete(&name)?;

        let life = reference.live()?;
        theirs.boot.push(ms(life.boot));
        theirs.save.push(ms(life.save));
        theirs.save_uncapped.push(ms(life.save_uncapped));
        theirs.saved.push(mib(life.saved_bytes));
        theirs.load.push(ms(life.load));
        theirs.savevm.push(ms(life.savevm));
        theirs.loadvm.push(ms(life.loadvm));

        if run > VIRSH_RUNS {
            continue;
        }
        match virsh.as_mut().map(|virsh| virsh.live(&reference)) {
            Ok(Ok(life)) => {
                managed.save.push(ms(life.save));
                managed.saved.push(mib(life.saved_bytes));
                managed.load.push(ms(life.load));
            }
            Ok(Err(error)) => virsh = Err(error),
            Err(_told_later) => {}
        }
    }
    let mut rows = vec![
        Row::new("create to first exec", "ms", ours.create)
            .against("cold boot to first exec", theirs.boot.clone())
            .target(Target::TimesBetter(8.0)),
        Row::new("the same, VMM started ahead", "ms", ours.create_ahead)
            .against("cold boot to first exec", theirs.boot)
            .target(Target::TimesBetter(8.0)),
        Row::new("stop, idle 512 MiB", "ms", ours.stop.clone())
            .against("QEMU migrate to file", theirs.save)
            .target(Target::TimesBetter(15.0)),
        Row::new("stop, idle 512 MiB", "ms", ours.stop.clone())
            .against("the same, bandwidth uncapped", theirs.save_uncapped),
        Row::new("stop, idle 512 MiB", "ms", ours.stop.clone())
            .against("QEMU savevm into the disk", theirs.savevm),
        Row::new("bytes of that stop", "MiB", ours.stored.clone())
            .against("QEMU migrate to file", theirs.saved)
            .target(Target::TimesBetter(30.0)),
        Row::new("wake to first exec", "ms", ours.wake.clone())
            .against("QEMU load to first exec", theirs.load.clone())
            .target(Target::TimesBetter(1.8)),
        Row::new("the same, VMM started ahead", "ms", ours.wake_ahead)
            .against("QEMU load to first exec", theirs.load)
            .target(Target::TimesBetter(1.8)),
        Row::new("wake to first exec", "ms", ours.wake.clone())
            .against("QEMU loadvm to first exec", theirs.loadvm),
    ];
    match virsh {
        Ok(_) => rows.extend([
            Row::new("stop, idle 512 MiB", "ms", ours.stop).against("virsh managedsave", managed.save),
            Row::new("bytes of that stop", "MiB", ours.stored).against("virsh managedsave", managed.saved),
            Row::new("wake to first exec", "ms", ours.wake)
                .against("virsh start to first exec", managed.load),
        ]),
        Err(error) => rows.push(Row::missing("beside virsh managedsave and start", error)),
    }
    Ok(Section { rows, ..Section::default() })
}
