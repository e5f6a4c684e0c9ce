//! What `du` tells, against what the filesystem and compsize(8) tell.

use std::process::Command;

use storage::Usage;

use super::{Across, Bed, Found};
use crate::error::{During as _, Error, Result};
use crate::place::run;
use crate::sample::{Sample, mib};
use crate::table::{Row, Target};

/// The books at one moment.
pub(super) struct Standing {
    /// Bytes free on the filesystem.
    pub(super) free: u64,
    pub(super) usage: Usage,
}

impl Standing {
    pub(super) fn of(bed: &Bed<'_>) -> Result<Self> {
        let usage = bed.store.usage().during("measuring usage")?;
        Ok(Self { free: bed.store.free_after_sync().during("asking for free space")?.0, usage })
    }
}

/// What `du` says was added between two moments, against what free space says.
pub(super) fn against_statfs(bed: &Bed<'_>, before: &Standing, after: &Standing) -> Row {
    let told = after.usage.total.physical.0.saturating_sub(before.usage.total.physical.0);
    let truth = before.free.saturating_sub(after.free);
    the_same(bed.step("what they added, physical bytes by `du`"), told, "free space before and after", truth)
}

fn the_same(step: String, told: u64, reference: &str, truth: u64) -> Row {
    let alone = |bytes| Sample { values: vec![mib(bytes)] };
    Row::new(step, "MiB", alone(told)).against(reference, alone(truth)).target(Target::Within(1.0))
}

/// Everything that is there, against compsize where the filesystem is its own.
pub(super) fn compsize(bed: &Bed<'_>, _across: &mut Across) -> Result<Found> {
    let what = bed.step("all physical bytes by `du`");
    let alone = |row| Ok(Found { rows: vec![row], notes: Vec::new() });
    if bed.fs != "btrfs" {
        // It knows no other filesystem, and there is nothing to say of that.
        return Ok(Found::default());
    }
    let standing = Standing::of(bed)?;
    let mut command = Command::new("compsize");
    command.arg("-b").arg(bed.daemon.data_dir());
    match command.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return alone(Row::missing(what, "compsize is not installed"));
        }
        _ => {}
    }
    let truth = disk_usage(&run(&mut command)?)?;
    alone(the_same(what, standing.usage.total.physical.0, "compsize", truth))
}

/// Disk usage of compsize's line of totals. What it calls referenced counts a file once for each of its names.
fn disk_usage(text: &str) -> Result<u64> {
    let during = "reading what compsize says";
    let line = text.lines().find(|line| line.starts_with("TOTAL")).ok_or_else(|| Error::new(during, text))?;
    // Type, percentage, disk usage, uncompressed, referenced.
    line.split_whitespace().nth(2).unwrap_or_default().parse().during(during)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_totals_of_compsize_are_read() {
        let text = "Processed 7 files.\nType       Perc     Disk Usage   Uncompressed Referenced  \n\
                    TOTAL       35%       1024         3000         4000     \n\
                    none       100%         24           24           24     \n";
        assert_eq!(disk_usage(text).unwrap(), 1024);
        assert!(disk_usage("nothing").is_err());
    }
}
