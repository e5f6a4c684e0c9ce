//! How long work is watched and stopped.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use types::Bytes;

use crate::{Error, ErrorKind, Result};

/// How far the work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// How much of the volume has been looked at.
    pub done: Bytes,
    /// The volume's size.
    pub total: Bytes,
    /// What was read or compressed for the store so far; nothing for what it has already.
    pub moved: Bytes,
}

/// A wish to stop, shared between the one who waits and the one who works.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks the work to stop; it does so at the next chunk and removes its lock.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody has asked.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The surroundings of one long work.
#[derive(Clone)]
pub struct Watch {
    progress: Arc<dyn Fn(Progress) + Send + Sync>,
    cancel: Cancel,
}

impl Watch {
    /// Tells `progress` of each chunk and stops when `cancel` says so.
    pub fn new(progress: impl Fn(Progress) + Send + Sync + 'static, cancel: Cancel) -> Self {
        Self { progress: Arc::new(progress), cancel }
    }

    /// Nobody looks and nobody stops it.
    #[must_use]
    pub fn nobody() -> Self {
        Self::new(|_| {}, Cancel::default())
    }

    pub(crate) fn at(&self, op: &'static str, object: &str, progress: Progress) -> Result<()> {
        (self.progress)(progress);
        if self.cancel.is_cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, op, object).because("stopped on request"));
        }
        Ok(())
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("cancel", &self.cancel).finish_non_exhaustive()
    }
}
