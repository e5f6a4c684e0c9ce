//! The measured tables: each figure beside its reference, taken in the same run, in turn, on the same host.
//!
//! The machine may be shared and noisy, so nothing here passes or fails by a clock: a row gives medians with minimum
//! and maximum, and the ratio of the medians beside the target.

mod compare;
mod daemon;
mod data;
mod density;
mod error;
mod exec;
mod filesystem;
mod images;
mod life;
mod pages;
mod phases;
mod place;
mod plot;
mod progress;
mod reference;
mod resident;
mod sample;
mod scaling;
mod table;
mod wake;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

pub use error::{Error, Result};
pub use place::Filesystem;
pub use plot::write_all as write_plots;
pub use sample::Sample;
pub use table::{Report, Row, Table, Target};

use daemon::Daemon;
use progress::Progress;

/// What to measure, and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// The program that serves: `bhatti` itself.
    pub program: PathBuf,
    /// A data directory that was set up; it is not changed, the bench works in one of its own beside it.
    pub data_dir: PathBuf,
    /// Which tables.
    pub suites: Vec<Suite>,
    /// How often each figure is taken.
    pub runs: usize,
    /// Where the filesystems of [`Suite::Storage`] have their files.
    pub scratch: PathBuf,
    /// Which filesystems; empty for all that can be made here.
    pub on: Vec<Filesystem>,
    /// `performance.json` of an earlier run on this host, which this one is compared with.
    pub against: Option<PathBuf>,
    /// Once it is true the bench ends with an error, after it has removed what it made.
    pub cancel: Arc<AtomicBool>,
}

/// A group of figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suite {
    /// Create, stop and wake, against a cold boot and against QEMU's own migration to a file.
    Life,
    /// A command on a hot sandbox, against the same inside the guest.
    Exec,
    /// Wakes with hot and cold page cache and under traffic, against the least a wake can be.
    Wake,
    /// Bytes on disk and in the page cache.
    Density,
    /// Named snapshots, forks and resumes, on several filesystems: a part of the next one.
    Snapshot,
    /// Clones, snapshots, forks, and where the bytes are, on several filesystems.
    Storage,
    /// Where costs stop being flat.
    Scaling,
    /// Pulls that share layers, and an import beside the host's own tools.
    Images,
}

/// Runs the suites; `tell` is told each step before it begins.
///
/// # Errors
/// When the host is not set up, or anything that is measured fails: there are no figures of failed runs. Of the suite
/// `storage` what fails is told in its row.
pub fn run(options: &Options, tell: &(dyn Fn(&str) + Sync)) -> Result<Report> {
    let progress = Progress { tell, cancel: &options.cancel };
    let mut report = Report {
        host: Vec::new(),
        runs: options.runs,
        rows: Vec::new(),
        tables: Vec::new(),
        figures: Vec::new(),
        notes: Vec::new(),
    };
    let (on_several, on_one): (Vec<Suite>, Vec<Suite>) =
        options.suites.iter().partition(|suite| matches!(suite, Suite::Storage | Suite::Snapshot));
    if !on_one.is_empty() {
        let daemon = Daemon::start(options, data::linked(options)?, progress)?;
        report.host = daemon.describe()?;
        compare::same_host(options, &report)?;
        for suite in on_one {
            report.rows.extend(match suite {
                Suite::Life => life::measure(&daemon, options, progress)?,
                Suite::Wake => {
                    let wake::Found { rows, notes, bars } = wake::measure(&daemon, options, progress)?;
                    report.notes.extend(notes);
                    report.figures.push(phases::figure(bars));
                    rows
                }
                Suite::Exec => exec::measure(&daemon, options, progress)?,
                Suite::Density => density::measure(&daemon, options, progress)?,
                Suite::Scaling => {
                    let (figures, rows) = scaling::measure(&daemon, options, progress)?;
                    report.tables.extend(figures.iter().filter_map(Table::of_curves));
                    report.figures.extend(figures);
                    rows
                }
                Suite::Images => images::measure(&daemon, options, progress)?,
                Suite::Snapshot | Suite::Storage => Vec::new(),
            });
        }
    }
    if !on_several.is_empty() {
        let all = on_several.contains(&Suite::Storage);
        filesystem::measure(options, progress, all, &mut report)?;
    }
    report.figures.extend(plot::distributions(&report));
    compare::with_earlier(options, &mut report)?;
    Ok(report)
}
