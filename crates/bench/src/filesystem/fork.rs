//! A live copy of a running sandbox, against a machine that boots.

use std::time::Instant;

use serde_json::json;

use super::{Across, Bed, Found};
use crate::error::Result;
use crate::phases::Phases;
use crate::reference::Reference;
use crate::sample::{Sample, ms};
use crate::table::{Row, Target};

const BOOTS: usize = 3;

pub(super) fn measure(bed: &Bed<'_>, _across: &mut Across) -> Result<Found> {
    let reference = Reference::new(bed.daemon.data_dir())?;
    bed.create("source")?;
    let (mut fork, mut boot, mut phases) = (Sample::default(), Sample::default(), Phases::default());
    for _ in 0..BOOTS.min(bed.options.runs) {
        bed.progress.go_on()?;
        // Two for each boot, which takes longer than both.
        for _ in 0..2 {
            let began = Instant::now();
            let reply = bed.daemon.post("/sandboxes/source/fork", &json!({ "name": "copy" }))?;
            bed.daemon.exec("copy", &["true"])?;
            fork.push(ms(began.elapsed()));
            phases.add(&reply);
            bed.daemon.delete("copy")?;
        }
        boot.push(ms(reference.boot()?));
    }
    let row = Row::new(bed.step("fork of a running sandbox to first exec in the copy"), "ms", fork);
    Ok(Found {
        rows: vec![row.against("cold boot to first exec", boot).target(Target::TimesBetter(6.0))],
        notes: vec![format!("fork: {phases}")],
    })
}
