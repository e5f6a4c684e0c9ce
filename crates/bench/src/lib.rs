//! The measured tables: each figure beside its reference, taken in the same run, in turn, on the same host.
//!
//! The machine may be shared and noisy, so nothing here passes or fails by a clock: a row gives medians with minimum
//! and maximum, and the ratio of the medians beside the target.

mod compare;
mod crowd;
mod daemon;
mod data;
mod density;
mod error;
mod exec;
mod filesystem;
mod images;
mod libvirt;
mod life;
mod pages;
mod phases;
mod place;
mod plot;
mod progress;
mod random;
mod reference;
mod resident;
mod sample;
mod scaling;
mod table;
mod wake;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

pub use error::{Error, Result};
pub use place::Filesystem;
pub use plot::write_all as write_plots;
pub use sample::Sample;
pub use table::{Report, Row, Section, Table, Target};

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
    /// The command that asked for it, for the report.
    pub command: String,
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

impl Suite {
    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Life => "create",
            Self::Exec => "exec",
            Self::Wake => "wake",
            Self::Density => "density",
            Self::Snapshot => "snapshot",
            Self::Storage => "storage",
            Self::Scaling => "scaling",
            Self::Images => "images",
        }
    }

    /// What stands above its figures, and what is said of them.
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Life => ("Create, stop and wake", include_str!("about/create.txt")),
            Self::Exec => ("Commands", include_str!("about/exec.txt")),
            Self::Wake => ("Wakes", include_str!("about/wake.txt")),
            Self::Density => ("Density", include_str!("about/density.txt")),
            Self::Snapshot => ("Named snapshots, forks and resumes", ""),
            Self::Storage => ("Storage", include_str!("about/storage.txt")),
            Self::Scaling => ("Scaling laws", include_str!("about/scaling.txt")),
            Self::Images => ("Images", include_str!("about/images.txt")),
        }
    }
}

/// Runs the suites; `tell` is told each step before it begins.
///
/// # Errors
/// When the host is not set up, or anything that is measured fails: there are no figures of failed runs. Of the suite
/// `storage` what fails is told in its row.
pub fn run(options: &Options, tell: &(dyn Fn(&str) + Sync)) -> Result<Report> {
    let began = Instant::now();
    let progress = Progress { tell, cancel: &options.cancel };
    let mut host = Vec::new();
    let mut sections = Vec::new();
    let on_several = |suite: Suite| matches!(suite, Suite::Storage | Suite::Snapshot);
    // One daemon for all that need no filesystem of their own.
    let mut daemon = None;
    for &suite in &options.suites {
        let mut section = if on_several(suite) {
            filesystem::measure(options, progress, suite == Suite::Storage, &mut host)?
        } else {
            let daemon = match &daemon {
                Some(daemon) => daemon,
                None => daemon.insert(Daemon::start(options, data::linked(options)?, progress)?),
            };
            if host.is_empty() {
                host = daemon.describe()?;
                compare::same_host(options, &host)?;
            }
            let only = |rows| Section { rows, ..Section::default() };
            match suite {
                Suite::Life => life::measure(daemon, options, progress)?,
                Suite::Wake => wake::measure(daemon, options, progress)?,
                Suite::Exec => only(exec::measure(daemon, options, progress)?),
                Suite::Density => only(density::measure(daemon, options, progress)?),
                Suite::Scaling => scaling::measure(daemon, options, progress)?,
                Suite::Images => only(images::measure(daemon, options, progress)?),
                Suite::Snapshot | Suite::Storage => Section::default(),
            }
        };
        section.figures.extend(plot::distributions(suite.name(), &section));
        let (title, about) = suite.words();
        sections.push(Section { title: title.to_owned(), about, ..section });
    }
    drop(daemon);
    let mut report = Report {
        command: options.command.clone(),
        host,
        runs: options.runs,
        took_s: began.elapsed().as_secs_f64(),
        sections,
    };
    compare::with_earlier(options, &mut report)?;
    Ok(report)
}
