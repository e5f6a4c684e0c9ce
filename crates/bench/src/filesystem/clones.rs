//! What a clone costs: the disk step of a create against `cp`, and the thousandth clone against the first.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use types::{CloneMethod, SandboxId};

use super::{Across, Bed, Found};
use crate::error::{During as _, Result};
use crate::place::run;
use crate::sample::{Sample, mib, ms};
use crate::table::{Row, Target};

/// Clones between two `cp`s, which would otherwise fill the page cache with copies.
const CLONES_A_ROUND: usize = 5;
/// Rounds for each run asked for.
const ROUNDS: usize = 4;
/// Clones of one file.
const MANY: usize = 1000;
/// Clones around the first and the last of them whose median stands for it.
const GROUP: usize = 20;

/// Columns of the table.
pub(super) const HEAD: [&str; 6] = [
    "filesystem",
    "how a disk is cloned",
    "disk step of create",
    "bytes it takes",
    "`cp` of the base image",
    "bytes that takes",
];

pub(super) fn measure(bed: &Bed<'_>, across: &mut Across) -> Result<Found> {
    let mut found = disk_step(bed, across)?;
    if bed.reflink {
        let image = bed.store.images().object_path(&bed.image.id);
        let disk = bed.store.templates().dir(&bed.template.key).join(bed.template.root_disk());
        for (what, file) in [("the base image", image), ("the template's disk", disk)] {
            found.rows.push(many(bed, what, &file)?);
        }
    }
    Ok(found)
}

fn disk_step(bed: &Bed<'_>, across: &mut Across) -> Result<Found> {
    let scratch = bed.store.scratch().during("making a scratch directory")?;
    let (copy, empty) = (scratch.path().join("copy"), scratch.path().join("empty"));
    std::fs::write(&empty, "").during("making an empty file")?;
    let image = bed.store.images().object_path(&bed.image.id);
    let (mut ours, mut cp, mut start) = (Sample::default(), Sample::default(), Sample::default());
    let mut method = None;
    for round in 0..=bed.options.runs * ROUNDS {
        bed.progress.go_on()?;
        // The first round warms the caches.
        let keep = |sample: &mut Sample, began: Instant| {
            let took = ms(began.elapsed());
            if round > 0 {
                sample.push(took);
            }
        };
        for _ in 0..CLONES_A_ROUND {
            let staged = bed.store.stage_sandbox(&SandboxId::random()).during("staging a sandbox")?;
            let began = Instant::now();
            let report = staged.clone_root_from_template(&bed.template).during("cloning a disk")?;
            keep(&mut ours, began);
            method = Some(report.method);
        }
        for (from, sample) in [(&image, &mut cp), (&empty, &mut start)] {
            let began = Instant::now();
            run(Command::new("cp").args(["--reflink=auto", "--sparse=always"]).args([from, &copy]))?;
            keep(sample, began);
            std::fs::remove_file(&copy).during("removing a copy")?;
        }
    }
    let least = if bed.reflink { 10.0 } else { 100.0 };
    let reference = "cp --reflink=auto --sparse=always of the base image";
    let step = bed.step("disk step of create");
    let rows = vec![
        Row::new(&step, "ms", ours.clone()).against(reference, cp.clone()).target(Target::TimesBetter(least)),
        Row::new(&step, "ms", ours.clone()).target(Target::AtMost(1.5)),
    ];
    let method = match method {
        Some(CloneMethod::Reflink) => "shared extents",
        _ => "a copy without holes",
    };
    let (whole, start) = (cp.median(), start.median());
    // Where `cp` shares extents too, its process is nearly all of it.
    let alone = match whole - start {
        alone if alone > start / 10.0 => {
            format!("so without that it is {alone:.2} ms, {:.1} times ours", alone / ours.median())
        }
        _ => "so without that too little is left to tell".to_owned(),
    };
    let [clone, copied] = taken(bed, scratch.path(), &image)?.map(|bytes| format!("{:.3} MiB", mib(bytes)));
    across.clones.push(vec![
        bed.fs.clone(),
        match (bed.reflink, bed.template.root_disk()) {
            (true, _) => "extents are shared (FICLONE)".to_owned(),
            (false, disk) => {
                format!("an empty overlay over the one image, a copy of the template's `{disk}`")
            }
        },
        format!("{:.3} ms", ours.median()),
        clone,
        format!("{:.2} ms", cp.median()),
        copied,
    ]);
    let note = format!(
        "the disk step clones {} ({method}); of `cp`'s {whole:.2} ms the start of its process is {start:.2} ms (a `cp` of \
         an empty file), {alone}",
        bed.template.root_disk(),
    );
    Ok(Found { rows, notes: vec![note] })
}

/// Free space that one clone of the template's disk takes, and one `cp` of the base image.
fn taken(bed: &Bed<'_>, scratch: &Path, image: &Path) -> Result<[u64; 2]> {
    const CLONES: usize = 20;
    let free = || bed.store.free_after_sync().during("asking for free space");
    let disk = bed.store.templates().dir(&bed.template.key).join(bed.template.root_disk());
    let mut before = free()?.0;
    for number in 0..CLONES {
        let to = scratch.join(format!("taken-{number}"));
        storage::clone_file(&disk, &to).during("cloning a file")?;
    }
    let mut after = free()?.0;
    let clone = before.saturating_sub(after) / CLONES as u64;
    before = after;
    let copy = scratch.join("taken");
    run(Command::new("cp").args(["--reflink=auto", "--sparse=always"]).args([image, &copy]))?;
    after = free()?.0;
    Ok([clone, before.saturating_sub(after)])
}

/// A thousand clones of one file, all kept.
fn many(bed: &Bed<'_>, what: &str, file: &Path) -> Result<Row> {
    let scratch = bed.store.scratch().during("making a scratch directory")?;
    bed.store.free_after_sync().during("syncing the filesystem")?;
    let mut took = Vec::with_capacity(MANY);
    for number in 0..MANY {
        bed.progress.go_on()?;
        let to = scratch.path().join(format!("clone-{number}"));
        let began = Instant::now();
        storage::clone_file(file, &to).during("cloning a file")?;
        took.push(ms(began.elapsed()));
    }
    let first = Sample { values: took[..GROUP].to_vec() };
    let last = Sample { values: took[MANY - GROUP..].to_vec() };
    let row = Row::new(bed.step(&format!("clone of {what}: the {MANY}th")), "ms", last);
    Ok(row.against("the 1st", first).target(Target::AtMostTimes(1.2)))
}
