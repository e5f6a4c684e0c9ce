//! Leases: what keeps a sandbox hot while somebody works in it.
//!
//! # Invariants
//! - A lease is given only by the task that owns the sandbox, while it is hot, and that task alone pauses it: so
//!   nothing is paused between the check and the use.
//! - Dropping a lease is all that is needed to return it, on every path.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;
use types::Timestamp;

use crate::moment::{AtWork, Bustle};

/// Work in flight in one sandbox, and when there last was any.
#[derive(Debug)]
pub(crate) struct Activity {
    leases: AtomicUsize,
    last_active_ms: AtomicI64,
    /// The same by a clock that nobody sets: idleness is measured with it. The lock is held for a copy only.
    idle_since: Mutex<Instant>,
    /// The host's work, of which this is a part.
    host: Arc<Bustle>,
}

impl Activity {
    pub(crate) fn new(last_active: Timestamp, host: Arc<Bustle>) -> Arc<Self> {
        Arc::new(Self {
            leases: AtomicUsize::new(0),
            last_active_ms: AtomicI64::new(last_active.0),
            idle_since: Mutex::new(Instant::now()),
            host,
        })
    }

    /// How many leases are out.
    pub(crate) fn leases(&self) -> usize {
        self.leases.load(Ordering::Acquire)
    }

    pub(crate) fn last_active(&self) -> Timestamp {
        Timestamp(self.last_active_ms.load(Ordering::Relaxed))
    }

    /// The end of the last work; what was before this daemon counts as work at its start.
    pub(crate) fn idle_since(&self) -> Instant {
        *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn touch(&self) {
        self.last_active_ms.store(Timestamp::now().0, Ordering::Relaxed);
        *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Takes a lease; only the sandbox's own task calls this.
    pub(crate) fn lease(self: &Arc<Self>) -> Lease {
        self.leases.fetch_add(1, Ordering::AcqRel);
        self.touch();
        Lease { of: Arc::clone(self), _at_work: self.host.enter() }
    }
}

/// One piece of work in flight.
#[derive(Debug)]
pub(crate) struct Lease {
    of: Arc<Activity>,
    _at_work: AtWork,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.of.touch();
        self.of.leases.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A stream into a guest together with the lease that keeps the guest hot for as long as the stream lives.
#[derive(Debug)]
pub struct Leased<T> {
    // Dropped first: the stream tells the guest that nobody listens any more while it is still hot.
    value: T,
    _lease: Lease,
}

impl<T> Leased<T> {
    pub(crate) const fn new(value: T, lease: Lease) -> Self {
        Self { value, _lease: lease }
    }

    /// Ends the stream by `f`, which consumes it, and keeps the lease until `f`'s future is done.
    pub async fn consume<R, F: Future<Output = R>>(self, f: impl FnOnce(T) -> F) -> R {
        let Self { value, _lease } = self;
        f(value).await
    }
}

impl<T> Deref for Leased<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Leased<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_lease_is_a_returned_lease() {
        let activity = Activity::new(Timestamp(0), Bustle::new());
        let first = activity.lease();
        let second = Leased::new(1, activity.lease());
        assert_eq!(activity.leases(), 2);
        drop(first);
        drop(second);
        assert_eq!(activity.leases(), 0);
        assert!(activity.last_active() > Timestamp(0));
    }
}
