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
