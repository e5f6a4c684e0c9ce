//! `setup --storage`: where the data directory lies, before anything is put into it.

use std::path::Path;

use sandbox::{Cancel, LoopConfig, LoopReport, LoopWish};
use serde_json::{Value, json};

use super::prepare::Shown;
use crate::args::{Setup, Storage};
use crate::failure::{Failure, Result, USAGE};
use crate::output;

/// What was done about the storage.
pub(super) enum Prepared {
    /// Nothing: it is where it is.
    Here,
    /// It is in a btrfs in a file, or no longer is.
    Loop { report: LoopReport, dry_run: bool },
}

/// Does what `--storage` asks for.
pub(super) async fn prepare(
    data_dir: &Path,
    asked: &Setup,
    cancel: Cancel,
    shown: Shown,
) -> Result<Prepared> {
    if asked.storage != Storage::BtrfsLoop {
        let given = [
            ("--size", asked.size.is_some()),
            ("--undo", asked.undo),
            ("--dry-run", asked.dry_run),
            ("--only-storage", asked.only_storage),
        ];
        return match given.iter().find(|(_, given)| *given) {
            None => Ok(Prepared::Here),
            Some((flag, _)) => Err(Failure {
                exit: USAGE,
                ..Failure::new("usage", format!("{flag}: belongs to `--storage btrfs-loop`"))
                    .hint("give both, or neither")
            }),
        };
    }
    let wish = match asked.size {
        _ if asked.undo => LoopWish::Undo,
        size => LoopWish::Make { size: size.map(|size| size.0) },
    };
    let config = LoopConfig { data_dir: data_dir.to_owned(), wish, dry_run: asked.dry_run };
    let report = sandbox::loop_storage(config, cancel, move |step| shown.step(step)).await?;
    Ok(Prepared::Loop { report, dry_run: asked.dry_run })
}

impl Prepared {
    /// Whether nothing else was asked for.
    pub(super) const fn is_all(&self, asked: &Setup) -> bool {
        matches!(self, Self::Loop { .. }) && (asked.undo || asked.dry_run || asked.only_storage)
    }

    /// Says it to people.
    pub(super) fn tell(&self) {
        let Self::Loop { report, dry_run } = self else { return };
        for warning in &report.warnings {
            eprintln!("warning: {warning}");
        }
        if *dry_run {
            for step in &report.steps {
                output::line(format!("would {step}"));
            }
        }
        let already = if report.steps.is_empty() { " already" } else { "" };
        match (&report.backing, dry_run) {
            _ if *dry_run && !report.steps.is_empty() => {}
            (Some((_, size)), _) => output::line(format!("storage:{already} {}, {size}", report.outcome)),
            (None, _) => output::line(format!("storage:{already} {}", report.outcome)),
        }
        if let Some(fstab) = &report.fstab {
            output::line("nothing mounts it when this host boots; have it done by a line in /etc/fstab:");
            output::line(format!("  {fstab}"));
        }
    }

    /// Says it to programs.
    pub(super) fn document(&self) -> Value {
        match self {
            Self::Here => json!({ "kind": "here" }),
            Self::Loop { report, dry_run } => json!({
                "kind": if report.backing.is_some() { "btrfs-loop" } else { "here" },
                "backing_file": report.backing.as_ref().map(|(path, _)| path),
                "backing_bytes": report.backing.as_ref().map(|(_, size)| size),
                "dry_run": dry_run,
                "steps": report.steps,
                "outcome": report.outcome,
                "warnings": report.warnings,
                "fstab": report.fstab,
            }),
        }
    }
}
