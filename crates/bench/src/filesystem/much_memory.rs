//! Stop and wake of a sandbox with much private memory that has slept once, against one without.

use std::time::Instant;

use serde_json::json;

use super::{Across, Bed, Found};
use crate::error::Result;
use crate::phases::Phases;
use crate::random;
use crate::sample::{Sample, ms};
use crate::table::{Row, Target};

const PRIVATE_MIB: u64 = 256;
const CHANGE_MIB: u64 = 16;

/// What one sandbox's stops and wakes took.
struct Sleeper {
    name: &'static str,
    change: bool,
    stop: Sample,
    wake: Sample,
    stops: Phases,
    wakes: Phases,
    stored: Sample,
}

impl Sleeper {
    fn new(bed: &Bed<'_>, name: &'static str, private_mib: u64, change: bool) -> Result<Self> {
        bed.create(name)?;
        // Files in memory: the guest keeps every byte of them and nothing can be dropped.
        let mount = "mkdir -p /run/data; mount -t tmpfs -o size=400m tmpfs /run/data";
        bed.sh(name, mount)?;
        bed.sh(name, &random::fill("/run/data/private", private_mib))?;
        let mut sleeper = Self::unmeasured(name, change);
        if change {
            // The first sleep writes a base of its own; what changes later is written anew at the same place, so that
            // it does not add up.
            sleeper.sleep(bed)?;
            sleeper.wake(bed)?;
        }
        Ok(Self::unmeasured(name, change))
    }

    fn unmeasured(name: &'static str, change: bool) -> Self {
        Self {
            name,
            change,
            stop: Sample::default(),
            wake: Sample::default(),
            stops: Phases::default(),
            wakes: Phases::default(),
            stored: Sample::default(),
        }
    }

    fn sleep(&mut self, bed: &Bed<'_>) -> Result<()> {
        bed.progress.go_on()?;
        if self.change {
            let change = format!(
                "dd if=/dev/urandom of=/run/data/change bs=1M count={CHANGE_MIB} conv=notrunc status=none"
            );
            bed.sh(self.name, &change)?;
        }
        let began = Instant::now();
        let reply = bed.daemon.post(&format!("/sandboxes/{}/stop", self.name), &json!({}))?;
        self.stop.push(ms(began.elapsed()));
        self.stops.add(&reply);
        if let Some(stored) = reply["last_transition"]["bytes"]["stored"].as_u64() {
            self.stored.push(crate::sample::mib(stored));
        }
        Ok(())
    }

    fn wake(&mut self, bed: &Bed<'_>) -> Result<()> {
        let began = Instant::now();
        bed.daemon.exec(self.name, &["true"])?;
        self.wake.push(ms(began.elapsed()));
        let view = bed.daemon.get(&format!("/sandboxes/{}", self.name))?;
        self.wakes.add(&view["last_transition"]);
        Ok(())
    }
}

pub(super) fn measure(bed: &Bed<'_>, _across: &mut Across) -> Result<Found> {
    let mut much = Sleeper::new(bed, "much", PRIVATE_MIB, true)?;
    let mut none = Sleeper::new(bed, "none", 0, true)?;
    let mut idle = Sleeper::new(bed, "idle", 0, false)?;
    for _ in 0..bed.options.runs {
        for sleeper in [&mut much, &mut none, &mut idle] {
            sleeper.sleep(bed)?;
        }
        for sleeper in [&mut much, &mut none, &mut idle] {
            sleeper.wake(bed)?;
        }
    }
    let what = format!("with {PRIVATE_MIB} MiB private memory, {CHANGE_MIB} MiB changed since it slept last");
    let notes = [&much, &none, &idle].map(|sleeper| {
        format!(
            "stop of the sandbox {:?} ({}): {:.1} MiB stored; {}; its wake: {}",
            sleeper.name,
            match sleeper.name {
                "much" => &what,
                "none" => "16 MiB changed",
                _ => "nothing changed",
            },
            sleeper.stored.median(),
            sleeper.stops,
            sleeper.wakes,
        )
    });
    let stop = Row::new(bed.step(&format!("stop {what}")), "ms", much.stop)
        .against(format!("without that memory, {CHANGE_MIB} MiB changed"), none.stop)
        .target(Target::AtMostTimes(2.0));
    let wake = Row::new(bed.step("wake of that sandbox to first exec"), "ms", much.wake)
        .against("an idle one", idle.wake)
        .target(Target::AtMostTimes(1.5));
    Ok(Found { rows: vec![stop, wake], notes: notes.to_vec() })
}
