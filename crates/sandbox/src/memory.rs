//! How much memory the machines of one host have been promised together, and who gives it up first.
//!
//! What counts is what a guest may use, not what it uses now: a promise that was kept yesterday must not fail because a
//! neighbour grew.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use types::{Mebibytes, SandboxId, Thermal};
use vm::HostPressure;

use crate::quota::Taken;

/// Share of time that some process waits for memory, in percent over ten seconds, from which on the host is short.
const STALLED_PERCENT: f64 = 10.0;

/// What has been promised.
#[derive(Debug)]
pub(crate) struct Ledger {
    most: Option<Mebibytes>,
    promised: Mutex<u64>,
}

/// The memory of one machine; returned when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    ledger: Arc<Ledger>,
    size: Mebibytes,
    /// What it takes of its owner's quota.
    charge: Vec<Taken>,
}

impl Share {
    /// The same, charged to an owner.
    pub(crate) fn charged(mut self, charge: Vec<Taken>) -> Self {
        self.charge = charge;
        self
    }
}

impl Ledger {
    pub(crate) fn new(most: Option<Mebibytes>) -> Arc<Self> {
        Arc::new(Self { most, promised: Mutex::new(0) })
    }

    /// The most that may be promised.
    pub(crate) const fn most(&self) -> Option<Mebibytes> {
        self.most
    }

    /// What is promised now.
    pub(crate) fn promised(&self) -> Mebibytes {
        Mebibytes(*self.promised.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether so much more could be promised.
    pub(crate) fn fits(&self, size: Mebibytes) -> bool {
        self.most.is_none_or(|most| self.promised().0.saturating_add(size.0) <= most.0)
    }

    /// Promises memory if there is enough.
    pub(crate) fn take(self: &Arc<Self>, size: Mebibytes) -> Option<Share> {
        let mut promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        let after = promised.saturating_add(size.0);
        if self.most.is_some_and(|most| after > most.0) {
            return None;
        }
        *promised = after;
        Some(Share { ledger: Arc::clone(self), size, charge: Vec::new() })
    }

    /// Notes the memory of a machine that is there already, whether it fits or not.
    pub(crate) fn note(self: &Arc<Self>, size: Mebibytes) -> Share {
        let mut promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        *promised = promised.saturating_add(size.0);
        Share { ledger: Arc::clone(self), size, charge: Vec::new() }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut promised = self.ledger.promised.lock().unwrap_or_else(PoisonError::into_inner);
        *promised = promised.saturating_sub(self.size.0);
        self.charge.clear();
    }
}

/// Whether the host is short of memory: little is left, or processes wait for it while not much is left.
pub(crate) fn is_short(pressure: HostPressure) -> bool {
    let HostPressure { total, available, stalled_percent } = pressure;
    let little = available.0 < total.0 / 16;
    let not_much = available.0 < total.0 / 4;
    little || (not_much && stalled_percent >= STALLED_PERCENT)
}

/// A sandbox that could give up its memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) id: SandboxId,
    pub(crate) thermal: Thermal,
    pub(crate) keep_hot: bool,
    pub(crate) leases: usize,
    pub(crate) idle_since: Instant,
}

/// Who is to give up memory, the first one first: paused ones before those that run, and of each the one that has been
/// idle for longest. Who works, or is to stay hot, is not among them.
pub(crate) fn in_order(candidates: Vec<Candidate>) -> Vec<Candidate> {
    let mut order: Vec<_> = candidates
        .into_iter()
        .filter(|it| it.thermal != Thermal::Cold && !it.keep_hot && it.leases == 0)
        .collect();
    order.sort_by(|a, b| {
        let running = |it: &Candidate| it.thermal == Thermal::Hot;
        (running(a), a.idle_since, &a.id).cmp(&(running(b), b.idle_since, &b.id))
    });
    order
}

/// How often the host's memory is looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use types::Bytes;

    use super::*;

    #[test]
    fn no_more_is_promised_than_there_is_and_what_is_dropped_is_returned() {
        let ledger = Ledger::new(Some(Mebibytes(1024)));
        let first = ledger.take(Mebibytes(512)).unwrap();
        let second = ledger.take(Mebibytes(512)).unwrap();
        assert!(ledger.take(Mebibytes(1)).is_none() && !ledger.fits(Mebibytes(1)));
        drop(first);
        assert!(ledger.fits(Mebibytes(512)) && !ledger.fits(Mebibytes(513)));
        // What runs already counts even where it is too much.
        let found = ledger.note(Mebibytes(4096));
        assert_eq!(ledger.promised(), Mebibytes(4608));
        assert!(ledger.take(Mebibytes(1)).is_none());
        drop((second, found));
        assert_eq!(ledger.promised(), Mebibytes(0));
        let unlimited = Ledger::new(None);
        assert!(unlimited.take(Mebibytes(u64::MAX)).is_some() && unlimited.fits(Mebibytes(u64::MAX)));
    }

    #[test]
    fn the_coldest_warm_one_goes_first_and_who_works_never() {
        let now = Instant::now();
        let candidate = |id: u8, thermal, idle: u64| Candidate {
            id: format!("{id:016x}").parse().unwrap(),
            thermal,
            keep_hot: false,
            leases: 0,
            idle_since: now + Duration::from_secs(100 - idle),
        };
        let works = Candidate { leases: 1, ..candidate(1, Thermal::Hot, 90) };
        let kept = Candidate { keep_hot: true, ..candidate(2, Thermal::Warm, 90) };
        let all = vec![
            candidate(3, Thermal::Hot, 80),
            works,
            candidate(4, Thermal::Warm, 5),
            candidate(5, Thermal::Cold, 99),
            kept,
            candidate(6, Thermal::Warm, 50),
            candidate(7, Thermal::Hot, 70),
        ];
        let order: Vec<_> = in_order(all).into_iter().map(|it| it.id.to_string()).collect();
        let expected: Vec<_> = [6, 4, 3, 7].map(|id: u8| format!("{id:016x}")).into();
        assert_eq!(order, expected);
    }

    #[test]
    fn a_host_is_short_when_little_is_left_or_processes_wait_for_memory() {
        let of = |available, stalled_percent| HostPressure {
            total: Bytes(16 << 30),
            available: Bytes(available),
            stalled_percent,
        };
        for (pressure, short) in [
            (of(8 << 30, 0.0), false),
            (of(8 << 30, 50.0), false),
            (of(3 << 30, 0.0), false),
            (of(3 << 30, 10.0), true),
            ((of((1 << 30) - 1, 0.0)), true),
            (of(1 << 30, 0.0), false),
        ] {
            assert_eq!(is_short(pressure), short, "{pressure:?}");
        }
    }
}
