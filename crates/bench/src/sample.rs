//! Repeated figures and what is said of them.

use serde::Serialize;

/// Figures of one kind, in one unit.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Sample {
    /// Every figure, in the order it was taken.
    pub values: Vec<f64>,
}

impl Sample {
    pub(crate) fn push(&mut self, value: f64) {
        self.values.push(value);
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// The middle one (the mean of the two middle ones); NaN without figures.
    #[must_use]
    pub fn median(&self) -> f64 {
        let sorted = self.sorted();
        let half = sorted.len() / 2;
        match (sorted.len() % 2, sorted.get(half)) {
            (_, None) => f64::NAN,
            (1, Some(middle)) => *middle,
            (_, Some(upper)) => (sorted[half - 1] + upper) / 2.0,
        }
    }

    /// The least one.
    #[must_use]
    pub fn min(&self) -> f64 {
        self.values.iter().copied().fold(f64::NAN, f64::min)
    }

    /// The greatest one.
    #[must_use]
    pub fn max(&self) -> f64 {
        self.values.iter().copied().fold(f64::NAN, f64::max)
    }
}

/// Bytes as mebibytes, for tables.
#[expect(clippy::cast_precision_loss, reason = "shown with two decimals")]
pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// A duration in milliseconds.
pub(crate) fn ms(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let sample = |values: &[f64]| Sample { values: values.to_vec() };
        assert_eq!(sample(&[3.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(sample(&[4.0, 1.0, 2.0, 3.0]).median(), 2.5);
        assert!(sample(&[]).median().is_nan());
        assert_eq!((sample(&[2.0, 5.0]).min(), sample(&[2.0, 5.0]).max()), (2.0, 5.0));
    }
}
