//! How fast somebody may ask: a token bucket.

use std::time::{Duration, Instant};

/// So many requests a second in the long run, and so many at once after a quiet time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Requests a second; 0 is no limit.
    pub rate: u32,
    /// Requests at once.
    pub burst: u32,
}

/// What is left of a [`Pace`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    full: f64,
    at: Option<Instant>,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub fn new(pace: Pace) -> Self {
        Self { full: f64::from(pace.burst), at: None }
    }

    /// Takes one request out; whether there was one left. When not, there is one a second later at the latest.
    pub fn take(&mut self, pace: Pace, now: Instant) -> bool {
        if pace.rate == 0 {
            return true;
        }
        let passed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.at = Some(now);
        self.full = (self.full + passed.as_secs_f64() * f64::from(pace.rate)).min(f64::from(pace.burst));
        let left = self.full >= 1.0;
        if left {
            self.full -= 1.0;
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_let_through_and_then_only_the_rate() {
        let pace = Pace { rate: 10, burst: 3 };
        let (mut bucket, now) = (Bucket::new(pace), Instant::now());
        let taken: Vec<bool> = (0..4).map(|_| bucket.take(pace, now)).collect();
        assert_eq!(taken, [true, true, true, false]);
        assert!(!bucket.take(pace, now + Duration::from_millis(99)));
        assert!(bucket.take(pace, now + Duration::from_millis(200)));
        // What is not used does not grow past the burst.
        let later = now + Duration::from_secs(3600);
        let taken: Vec<bool> = (0..4).map(|_| bucket.take(pace, later)).collect();
        assert_eq!(taken, [true, true, true, false]);
        let unlimited = Pace { rate: 0, ..pace };
        assert!((0..1000).all(|_| bucket.take(unlimited, later)));
    }
}
