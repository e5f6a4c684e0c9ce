//! When the host has a moment for what nobody waits for.
//!
//! Whoever works for somebody says so for as long as it lasts ([`Bustle::enter`]). What can wait comes when nobody has
//! worked for a little while, and within a few seconds in any case ([`Bustle::moment`]): a host that is never idle must
//! not put it off for ever.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// How long nobody must have worked. Between the reply to a create and its client's first command less passes.
const QUIET: Duration = Duration::from_millis(250);
/// How long at most what can wait is made to wait.
const LATEST: Duration = Duration::from_secs(3);

/// Who works now, and since when that is so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Scene {
    at_work: usize,
    since: Instant,
}

impl Scene {
    /// When what was wanted at `wanted` may begin if nothing changes before.
    fn opens(self, wanted: Instant) -> Instant {
        let latest = wanted + LATEST;
        match self.at_work {
            0 => (self.since.max(wanted) + QUIET).min(latest),
            _ => latest,
        }
    }
}

/// The work in flight on a host.
#[derive(Debug)]
pub(crate) struct Bustle {
    scene: watch::Sender<Scene>,
}

/// A piece of work for somebody; over when it is dropped.
#[derive(Debug)]
pub(crate) struct AtWork(Arc<Bustle>);

impl Bustle {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { scene: watch::Sender::new(Scene { at_work: 0, since: Instant::now() }) })
    }

    /// Work begins.
    pub(crate) fn enter(self: &Arc<Self>) -> AtWork {
        self.change(|at_work| at_work + 1);
        AtWork(Arc::clone(self))
    }

    fn change(&self, count: impl Fn(usize) -> usize) {
        self.scene.send_modify(|scene| {
            *scene = Scene { at_work: count(scene.at_work), since: Instant::now() };
        });
    }

    /// Waits for a good moment from now on.
    pub(crate) async fn moment(&self) {
        let wanted = Instant::now();
        let mut scenes = self.scene.subscribe();
        loop {
            let opens = scenes.borrow_and_update().opens(wanted);
            tokio::select! {
                () = tokio::time::sleep_until(opens) => return,
                // The sender is `self`.
                _changed = scenes.changed() => {}
            }
        }
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.change(|at_work| at_work.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_when_nobody_works_for_a_while_and_never_far_away() {
        let wanted = Instant::now();
        let after = |time: u64| wanted + Duration::from_millis(time);
        for (at_work, since, opens) in [
            (0, wanted - LATEST, QUIET),
            (0, after(100), QUIET + Duration::from_millis(100)),
            (0, after(2900), LATEST),
            (1, after(0), LATEST),
            (7, wanted - LATEST, LATEST),
        ] {
            assert_eq!(Scene { at_work, since }.opens(wanted), wanted + opens, "{at_work} at work");
        }
    }

    #[tokio::test]
    async fn what_can_wait_waits_for_work_that_began_meanwhile() {
        let bustle = Bustle::new();
        let work = bustle.enter();
        let working = async {
            // Long enough that a moment was there, had nobody worked.
            tokio::time::sleep(QUIET + QUIET).await;
            drop(work);
            Instant::now()
        };
        let waiting = async {
            bustle.moment().await;
            Instant::now()
        };
        let (over, came) = tokio::join!(working, waiting);
        assert!(came >= over + QUIET, "it came {:?} after the work", came.saturating_duration_since(over));
    }
}
