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

    /// The phases and the whole. What came after the last lap belongs to the last phase, so that they add up.
    pub(crate) fn finish(mut self) -> Timings {
        let total = self.began.elapsed();
        let named: std::time::Duration = self.phases.iter().map(|(_, took)| *took).sum();
        match self.phases.last_mut() {
            Some((_, took)) => *took += total.saturating_sub(named),
            None => self.phases.push(("all", total)),
        }
        Timings { phases: self.phases, total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_add_up_to_the_whole_with_and_without_laps() {
        let mut watch = Stopwatch::start();
        watch.lap("one");
        watch.lap("two");
        for (timings, names) in
            [(watch.finish(), &["one", "two"][..]), (Stopwatch::start().finish(), &["all"])]
        {
            assert_eq!(
                timings.phases.iter().map(|(_, took)| *took).sum::<std::time::Duration>(),
                timings.total
            );
            assert_eq!(timings.phases.iter().map(|(name, _)| *name).collect::<Vec<_>>(), names);
        }
    }
}
