//! A stopwatch that cuts a verb into phases which add up.

use std::time::Instant;

use crate::view::Timings;

/// Measures consecutive phases: each ends where the next begins, so nothing is counted twice or left out.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    began: Instant,
    lap: Instant,
    phases: Vec<(&'static str, std::time::Duration)>,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        let now = Instant::now();
        Self { began: now, lap: now, phases: Vec::with_capacity(8) }
    }

    /// Ends the phase that began with the last call and gives it its name.
    pub(crate) fn lap(&mut self, phase: &'static str) {
        let now = Instant::now();
        self.phases.push((phase, now - self.lap));
        self.lap = now;
    }

    pub(crate) fn finish(self) -> Timings {
        Timings { phases: self.phases, total: self.began.elapsed() }
    }
}
