//! The rate of the host's time-stamp counter, which an emulated guest's counter has too.

use std::time::{Duration, Instant};

/// Ticks of the time-stamp counter in a millisecond, measured against the monotonic clock for about a tenth of a second;
/// `None` on processors without such a counter.
///
/// QEMU's emulation hands the host's counter through (`cpu_get_ticks` of system/cpu-timers.c), so this is what a guest
/// sees, to within some tens of parts in a million.
#[must_use]
pub fn tsc_khz() -> Option<u32> {
    const SAMPLES: usize = 3;
    const EACH: Duration = Duration::from_millis(30);
    let mut rates: Vec<u128> = (0..SAMPLES)
        .map(|_| {
            let (began, first) = (Instant::now(), ticks()?);
            std::thread::sleep(EACH);
            let (last, took) = (ticks()?, began.elapsed());
            Some(u128::from(last.wrapping_sub(first)) * 1_000_000 / took.as_nanos().max(1))
        })
        .collect::<Option<_>>()?;
    // Whoever was interrupted between the two clocks is off; the middle one is not.
    rates.sort_unstable();
    u32::try_from(rates[SAMPLES / 2]).ok()
}

#[cfg(target_arch = "x86_64")]
fn ticks() -> Option<u64> {
    // SAFETY: RDTSC reads a counter and touches no memory; Linux leaves it enabled for user space (CR4.TSD clear).
    Some(unsafe { std::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn two_measurements_agree_to_one_part_in_a_hundred() {
        let (one, two) = (tsc_khz().unwrap(), tsc_khz().unwrap());
        assert!(one.abs_diff(two) <= one / 100, "{one} and {two}");
        assert!(one > 100_000, "{one} kHz");
    }
}
