//! Holding a stream of frames to a rate.

use std::time::{Duration, Instant};

use types::Rate;

/// How much of a quiet time may be made up for.
const BURST: Duration = Duration::from_millis(100);
/// Milliseconds that a frame waits at most behind others that were read with it.
const BATCH_MS: u64 = 50;

/// When the next frame may pass.
#[derive(Debug)]
pub(crate) struct Pacer {
    rate: Rate,
    /// When all bytes, and all packets, that have passed are paid for.
    paid: [Option<Instant>; 2],
}

impl Pacer {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, paid: [None; 2] }
    }

    /// How many bytes should be read at once, `most` where there is no limit.
    pub(crate) fn at_once(&self, most: usize) -> usize {
        let bytes = self.rate.bytes().map(|rate| rate.saturating_mul(BATCH_MS) / 1000);
        bytes.map_or(most, |bytes| usize::try_from(bytes).unwrap_or(most).clamp(1, most))
    }

    /// Waits until so much more may pass.
    pub(crate) fn wait(&mut self, bytes: usize, packets: u64) {
        let wait = self.spend(bytes as u64, packets, Instant::now());
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
    }

    fn spend(&mut self, bytes: u64, packets: u64, now: Instant) -> Duration {
        let costs = [(bytes, self.rate.bytes()), (packets, self.rate.operations())];
        let mut wait = Duration::ZERO;
        for (paid, (amount, rate)) in self.paid.iter_mut().zip(costs) {
            let Some(rate) = rate else { continue };
            let earliest = now.checked_sub(BURST).unwrap_or(now);
            let begin = paid.map_or(earliest, |paid| paid.max(earliest));
            let end = begin + Duration::from_secs_f64(amount as f64 / rate as f64);
            *paid = Some(end);
            wait = wait.max(end.saturating_duration_since(now));
        }
        wait
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_second_lets_through_what_the_rate_says_and_a_quiet_hour_no_more_than_a_burst() {
        let begin = Instant::now();
        for (rate, frame) in [("1M", 1000), ("64K:100000", 60_000), ("1G:500", 60), (":20", 1500)] {
            let rate: Rate = rate.parse().unwrap();
            let mut pacer = Pacer::new(rate);
            let (mut now, mut bytes, mut packets) = (begin, 0, 0);
            while now < begin + Duration::from_secs(10) {
                now += pacer.spend(frame, 1, now);
                (bytes, packets) = (bytes + frame, packets + 1);
            }
            let most =
                |rate: Option<u64>, unit: u64| rate.map_or(u64::MAX, |rate| rate * 102 / 10 + 2 * unit);
            assert!(
                bytes <= most(rate.bytes(), frame) && packets <= most(rate.operations(), 1),
                "{rate}: {bytes} {packets}"
            );
            let share = |rate: Option<u64>, got: u64| rate.is_some_and(|rate| got >= rate * 10);
            assert!(
                share(rate.bytes(), bytes) || share(rate.operations(), packets),
                "{rate}: {bytes} {packets}"
            );
            let later = now + Duration::from_secs(3600);
            let many = (0..).take_while(|_| pacer.spend(frame, 1, later).is_zero()).count() as u64;
            let burst = rate.bytes().map_or(u64::MAX, |rate| rate / 10 / frame);
            assert!(
                many <= burst.min(rate.operations().map_or(u64::MAX, |rate| rate / 10)) + 1,
                "{rate}: {many}"
            );
        }
        let mut free = Pacer::new(Rate::UNLIMITED);
        assert!((0..1000).all(|_| free.spend(1 << 30, 1, begin).is_zero()));
        assert_eq!(free.at_once(4096), 4096);
        assert_eq!(Pacer::new("1M".parse().unwrap()).at_once(1 << 20), (1 << 20) / 20);
    }
}
