//! The measured tables: each figure beside its reference, taken in the same run, in turn, on the same host.
//!
//! The machine may be shared and noisy, so nothing here passes or fails by a clock: a row gives medians with minimum
//! and maximum, and the ratio of the medians beside the target.

mod daemon;
mod density;
mod error;
mod exec;
mod life;
mod reference;
mod sample;
mod table;

use std::path::PathBuf;

pub use error::{Error, Result};
pub use sample::Sample;
pub use table::{Report, Row, Target};

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
}

/// A group of figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suite {
    /// Create, stop and wake, against a cold boot and against QEMU's own migration to a file.
    Life,
    /// A command on a hot sandbox, against the same inside the guest.
    Exec,
    /// Bytes on disk and in the page cache.
    Density,
}

/// Runs the suites; `progress` is told each step before it begins.
///
/// # Errors
/// When the host is not set up, or anything that is measured fails: there are no figures of failed runs.
pub fn run(options: &Options, progress: &dyn Fn(&str)) -> Result<Report> {
    let daemon = daemon::Daemon::start(options, progress)?;
    let mut rows = Vec::new();
    for suite in &options.suites {
        rows.extend(match suite {
            Suite::Life => life::measure(&daemon, options, progress)?,
            Suite::Exec => exec::measure(&daemon, options, progress)?,
            Suite::Density => density::measure(&daemon, options, progress)?,
        });
    }
    let host = daemon.describe()?;
    Ok(Report { host, runs: options.runs, rows })
}
