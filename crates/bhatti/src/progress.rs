//! What is shown on a terminal while the daemon works on something that takes a while.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::terminal;

/// How often what is drawn moves.
const TICK: Duration = Duration::from_millis(120);

/// A line on stderr with the time it takes, gone when this is dropped. Nothing where stderr is no terminal.
#[derive(Debug)]
pub struct Waiting(Option<ProgressBar>);

impl Waiting {
    /// Begins to show that `what` is being done.
    pub fn begin(what: String) -> Self {
        if !terminal::can_draw() {
            return Self(None);
        }
        let bar = ProgressBar::new_spinner().with_message(what);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        Self(Some(bar))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// How much of something has been read, as a bar on stderr that is gone when this is dropped. Nothing where stderr is no
/// terminal.
#[derive(Debug)]
pub struct Reading(Option<ProgressBar>);

impl Reading {
    /// Begins to show it.
    pub fn begin() -> Self {
        if !terminal::can_draw() {
            return Self(None);
        }
        let bar = ProgressBar::new(0);
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} {bytes} of {total_bytes} {elapsed} {wide_msg}")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        Self(Some(bar))
    }

    /// So far it is, and this is being read.
    pub fn at(&self, what: &str, done: u64, total: u64) {
        if let Some(bar) = &self.0 {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(what.to_owned());
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
