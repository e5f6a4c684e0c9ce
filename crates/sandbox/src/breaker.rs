//! What keeps a sandbox that does not start from being tried for ever: each try costs its client a long wait and the
//! host a VMM.
//!
//! ```text
//!            failed, less than 3 times in a row          failed the 3rd time
//!   Closed ───────────────────────────────────► Closed ──────────────────────► Open: what was said last, at once
//!     ▲ started, or its memory discarded                                        │ 30 s later: one try
//!     └──────────────────────────────────────────────────────────────────────── ┴──► failed: Open again
//! ```

use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, ErrorKind};

/// After how many failures in a row nothing is tried for a while.
const FAILURES: u32 = 3;
/// How long.
const PAUSE: Duration = Duration::from_secs(30);

/// The failed starts of one sandbox since the last that did not.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    failures: u32,
    last: Option<Failure>,
}

#[derive(Debug)]
struct Failure {
    kind: ErrorKind,
    why: String,
    at: Instant,
}

impl Breaker {
    /// Whether a start is to be tried at `now`; if not, why not.
    pub(crate) fn check(&self, name: &str, now: Instant) -> Result<(), Error> {
        let Some(last) = self.last.as_ref().filter(|_| self.failures >= FAILURES) else { return Ok(()) };
        let left = (last.at + PAUSE).saturating_duration_since(now);
        if left.is_zero() {
            return Ok(());
        }
        let (failures, seconds) = (self.failures, left.as_secs() + 1);
        let text = format!(
            "{name} did not start {failures} times in a row and is not tried again for {seconds} s; the last time: {}",
            last.why
        );
        Err(Error::new(last.kind, text).hint(format!(
            "see `bhatti doctor`; `bhatti start {name} --discard-memory` boots it from its disk at once"
        )))
    }

    /// A start ended. What the host or the request is to blame for says nothing about the sandbox.
    pub(crate) fn note<T>(&mut self, outcome: &Result<T, Error>, now: Instant) {
        match outcome {
            Ok(_) => self.reset(),
            Err(error) if blames_sandbox(error.kind()) => {
                self.failures = self.failures.saturating_add(1);
                self.last = Some(Failure { kind: error.kind(), why: error.with_causes(), at: now });
            }
            Err(_) => {}
        }
    }

    /// Forgets what was.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// Whether it failed by what the sandbox is, so that it will again. A damaged file is not among these: that is
/// remembered as a state of its own.
const fn blames_sandbox(kind: ErrorKind) -> bool {
    match kind {
        ErrorKind::GuestTimeout
        | ErrorKind::GuestRefused
        | ErrorKind::StreamBroken
        | ErrorKind::Vmm
        | ErrorKind::Conflict
        | ErrorKind::NotFound
        | ErrorKind::Timeout
        | ErrorKind::Internal => true,
        ErrorKind::BadRequest
        | ErrorKind::GuestNotFound
        | ErrorKind::CommandNotFound
        | ErrorKind::NotExecutable
        | ErrorKind::SlowPath
        | ErrorKind::Busy
        | ErrorKind::VolumeBusy
        | ErrorKind::TooLarge
        | ErrorKind::NoSpace
        | ErrorKind::NoMemory
        | ErrorKind::GuestNoSpace
        | ErrorKind::NotReady
        | ErrorKind::Corrupt
        | ErrorKind::NotListening
        | ErrorKind::TooManyRequests
        | ErrorKind::QuotaExceeded
        | ErrorKind::Forbidden
        | ErrorKind::InUse
        | ErrorKind::Cancelled
        | ErrorKind::RegistryDenied
        | ErrorKind::Registry
        | ErrorKind::ShuttingDown => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(kind: ErrorKind) -> Result<(), Error> {
        Err(Error::new(kind, "the VMM ended").source("because"))
    }

    #[test]
    fn the_third_failure_in_a_row_is_the_last_for_a_while() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..FAILURES {
            breaker.check("box", now).unwrap();
            breaker.note(&failed(ErrorKind::Vmm), now);
        }
        let error = breaker.check("box", now + Duration::from_secs(10)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Vmm);
        for part in ["box did not start 3 times", "for 21 s", "the VMM ended: because"] {
            assert!(error.to_string().contains(part), "{error}");
        }
        assert!(error.way_out().contains("--discard-memory"));
        // One try, and then none again.
        breaker.check("box", now + PAUSE).unwrap();
        breaker.note(&failed(ErrorKind::GuestTimeout), now + PAUSE);
        let error = breaker.check("box", now + PAUSE).unwrap_err();
        assert!(error.to_string().contains("4 times"), "{error}");
        breaker.reset();
        breaker.check("box", now + PAUSE).unwrap();
    }

    #[test]
    fn a_start_that_works_and_troubles_of_the_host_count_for_nothing() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..FAILURES {
            breaker.note(&failed(ErrorKind::Vmm), now);
            breaker.note(&failed(ErrorKind::NoMemory), now);
            breaker.note(&failed(ErrorKind::Busy), now);
            breaker.note(&failed(ErrorKind::Vmm), now);
            breaker.check("box", now).unwrap();
            breaker.note(&Ok(()), now);
        }
    }
}
