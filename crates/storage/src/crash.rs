//! Numbered crash points: a process that ends itself right before the Nth step that a crash could fall on.
//!
//! Each creation, sync, rename, link and removal of `durable` passes [`step`], so a test that runs a verb again and again with
//! `BHATTI_CRASH_AT` at 1, 2, 3 and so on, each time on a copy of the same data root, sees every state that a dying
//! process can leave, until the verb runs through. Unset, a step costs one atomic load.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Steps left until the crash; `None` when there is to be none.
static LEFT: OnceLock<Option<AtomicU64>> = OnceLock::new();

fn asked() -> Option<AtomicU64> {
    let text = std::env::var("BHATTI_CRASH_AT").ok()?;
    text.parse().ok().map(AtomicU64::new)
}

/// Passes one step; at the one that was asked for the process ends as SIGKILL would end it: nothing is dropped or flushed.
pub(crate) fn step() {
    if let Some(left) = LEFT.get_or_init(asked)
        && left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        std::process::abort();
    }
}
