//! Random choices of tests that can be had again.

/// Where a test's choices come from, printed: what the variable says, so that a run can be had again, or the time.
#[must_use]
pub fn seed(variable: &str) -> u64 {
    let seed = std::env::var(variable).ok().map(|text| text.parse().expect("a number"));
    let seed = seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        u64::try_from(now.expect("a time after 1970").as_nanos() & 0xffff_ffff).expect("32 bits")
    });
    println!("{variable}={seed}");
    seed
}

/// xorshift64*: the same choices for the same seed.
#[derive(Debug, Clone)]
pub struct Choices(u64);

impl Choices {
    /// Those of a seed; each `stream` has its own.
    #[must_use]
    pub fn new(seed: u64, stream: u64) -> Self {
        Self((seed ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1)
    }

    /// Less than `limit`, or 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % limit.max(1)
    }
}
