//! What many cold sandboxes take on the disk, and whether `usage` tells the same as the filesystem.

use serde_json::json;

use super::accounts::{self, Standing};
use super::artefacts;
use super::{Across, Bed, Found};
use crate::crowd;
use crate::error::{Error, Result};
use crate::sample::{Sample, mib};
use crate::table::{Row, Target};

/// Sandboxes for each run asked for.
const A_RUN: usize = 15;
/// Whose they are, in turn.
const USERS: usize = 6;

pub(super) fn measure(bed: &Bed<'_>, across: &mut Across) -> Result<Found> {
    let count = bed.options.runs * A_RUN;
    let before = Standing::of(bed)?;
    for user in 0..USERS {
        bed.daemon.post("/users", &json!({ "name": format!("user-{user}") }))?;
    }
    fill(bed, count)?;
    let after = Standing::of(bed)?;
    let n = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    let taken = mib(before.free.saturating_sub(after.free)) / n;
    let told = Sample {
        values: after.usage.sandboxes.iter().map(|sandbox| mib(sandbox.figures.exclusive.0)).collect(),
    };
    across.cold_mib.push((bed.fs.clone(), taken));
    let all = format!("all that there is, {count} stopped sandboxes of {USERS} users");
    across.artefacts.push(artefacts::line(bed, &all, &after.usage.total));
    let step = bed.step(&format!("{count} cold sandboxes, 1 MiB written in each: free space each took"));
    let one = after.usage.sandboxes.first();
    let files = one.map(|sandbox| {
        let word = |file: &storage::FileUsage| {
            format!("{} {:.2}", file.kind.as_str(), mib(file.figures.exclusive.0))
        };
        sandbox.files.iter().map(word).collect::<Vec<_>>().join(", ")
    });
    Ok(Found {
        rows: vec![
            Row::new(step, "MiB", Sample { values: vec![taken] }).target(Target::AtMost(4.0)),
            Row::new(bed.step("the same, exclusive bytes of each by `du`"), "MiB", told)
                .target(Target::AtMost(4.0)),
            accounts::against_statfs(bed, &before, &after),
        ],
        notes: vec![format!("exclusive MiB of one such sandbox by file: {}", files.unwrap_or_default())],
    })
}

fn fill(bed: &Bed<'_>, count: usize) -> Result<()> {
    crowd::each(0..count, |number| {
        if number.is_multiple_of(50) {
            bed.progress.step(&format!("{}: cold sandboxes: {number} of {count}", bed.fs))?;
        }
        bed.progress.go_on()?;
        let name = format!("cold-{number}");
        let owner = format!("owner=user-{}", number % USERS);
        let post = |verb: &str, body| bed.daemon.post(&format!("/sandboxes{verb}?{owner}"), &body);
        post("", json!({ "name": name }))?;
        let write = "dd if=/dev/urandom of=/root/data bs=1M count=1 conv=fsync status=none";
        let cmd = ["sh", "-ec", write];
        let wrote = post(&format!("/{name}/exec"), json!({ "cmd": cmd, "user": "root" }))?;
        if wrote["exit_code"] != 0 {
            return Err(Error::new(write, wrote));
        }
        post(&format!("/{name}/stop"), json!({})).map(drop)
    })
}
