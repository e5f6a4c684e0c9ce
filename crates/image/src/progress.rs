//! How a long build is watched and stopped.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One report: what is being done, and how far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// A short sentence for people, such as "unpacking 71 packages".
    pub step: String,
    /// How much of `total` is done; both in the same unit within a step.
    pub done: u64,
    /// 0 when it is not known.
    pub total: u64,
}

/// A wish to stop, shared between the one who waits and the one who works.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A wish that nobody has uttered yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the work to stop; programs it has started are killed within a tenth of a second.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody has asked.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The surroundings of one long build.
#[derive(Clone, Copy)]
pub struct Build<'a> {
    /// A directory for scratch files, on a filesystem with a few GiB to spare. It may hold package lists and
    /// downloaded packages between builds; what is temporary in it is gone when the call returns.
    pub work_dir: &'a Path,
    /// Called from the building thread with each report.
    pub progress: &'a dyn Fn(Progress),
    /// Stops the build.
    pub cancel: &'a Cancel,
}

impl Build<'_> {
    pub(crate) fn at(&self, step: impl Into<String>, done: u64, total: u64) {
        (self.progress)(Progress { step: step.into(), done, total });
    }
}
