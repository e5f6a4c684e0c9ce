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

/// By how much two figures differ, of the second, in percent.
fn off_by(told: u64, truth: u64) -> f64 {
    100.0 * mib(told.abs_diff(truth)) / mib(truth)
}

/// What `du` says was added between two moments, against what free space says.
pub(super) fn against_statfs(bed: &Bed<'_>, before: &Standing, after: &Standing) -> Row {
    let told = after.usage.total.physical.0.saturating_sub(before.usage.total.physical.0);
    let truth = before.free.saturating_sub(after.free);
    let step = format!(
        "physical bytes by `du` ({:.1} MiB more) differ from statfs before and after ({:.1} MiB less free)",
        mib(told),
        mib(truth)
    );
    Row::new(bed.step(&step), "%", Sample { values: vec![off_by(told, truth)] }).target(Target::AtMost(1.0))
}

/// Everything that is there, against compsize where the filesystem is its own.
pub(super) fn compsize(bed: &Bed<'_>, _across: &mut Across) -> Result<Found> {
    let what = bed.step("physical bytes by `du` differ from compsize");
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
    let (disk, referenced) = totals(&run(&mut command)?)?;
    let told = standing.usage.total;
    let row = |what: &str, told: u64, truth: u64| {
        let step = format!(
            "{what} bytes by `du` ({:.1} MiB) differ from compsize ({:.1} MiB)",
            mib(told),
            mib(truth)
        );
        Row::new(bed.step(&step), "%", Sample { values: vec![off_by(told, truth)] })
            .target(Target::AtMost(1.0))
    };
    Ok(Found {
        rows: vec![row("physical", told.physical.0, disk), row("referenced", told.referenced.0, referenced)],
        notes: Vec::new(),
    })
}

/// Disk usage and referenced bytes of compsize's line of totals.
fn totals(text: &str) -> Result<(u64, u64)> {
    let during = "reading what compsize says";
    let line = text.lines().find(|line| line.starts_with("TOTAL")).ok_or_else(|| Error::new(during, text))?;
    // Type, percentage, disk usage, uncompressed, referenced.
    let column =
        |number: usize| line.split_whitespace().nth(number).unwrap_or_default().parse::<u64>().during(during);
    Ok((column(2)?, column(4)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_totals_of_compsize_are_read() {
        let text = "Processed 7 files.\nType       Perc     Disk Usage   Uncompressed Referenced  \n\
                    TOTAL       35%       1024         3000         4000     \n\
                    none       100%         24           24           24     \n";
        assert_eq!(totals(text).unwrap(), (1024, 4000));
        assert!(totals("nothing").is_err());
    }

    #[test]
    fn a_difference_is_told_in_percent_of_the_truth() {
        assert!((off_by(101, 100) - 1.0).abs() < 1e-9);
        assert!((off_by(98, 100) - 2.0).abs() < 1e-9);
    }
}
