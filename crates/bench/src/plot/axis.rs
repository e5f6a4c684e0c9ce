//! Logarithmic axes and their ticks.

/// From a range of values to a range of pixels.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogAxis {
    least: f64,
    most: f64,
    from: f64,
    to: f64,
}

impl LogAxis {
    /// An axis that holds all these values with a little room; those that are not above zero have no place on it.
    pub(super) fn over(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (least, most) = values
            .filter(|value| *value > 0.0 && value.is_finite())
            .fold((f64::INFINITY, 0.0_f64), |(least, most), value| (least.min(value), most.max(value)));
        let (least, most) = if least.is_finite() { (least / 1.25, most * 1.25) } else { (0.1, 10.0) };
        // A flat curve shall look flat: noise is not spread over the whole picture.
        let middle = (least * most).sqrt();
        Self { least: least.min(middle / 3.0), most: most.max(middle * 3.0), from, to }
    }

    /// Where a value is, in pixels.
    pub(super) fn place(&self, value: f64) -> f64 {
        let value = value.clamp(self.least, self.most);
        let share = (value / self.least).ln() / (self.most / self.least).ln();
        self.from + share * (self.to - self.from)
    }

    /// Round numbers, so many that their names do not touch.
    pub(super) fn ticks(&self) -> Vec<f64> {
        let steps: &[f64] = match (self.most / self.least).log10() {
            decades if decades < 2.5 => &[1.0, 2.0, 5.0],
            decades if decades < 4.0 => &[1.0, 3.0],
            _ => &[1.0],
        };
        let mut decade = 1e-6;
        let mut ticks = Vec::new();
        while decade <= self.most {
            ticks.extend(steps.iter().map(|step| step * decade));
            decade *= 10.0;
        }
        ticks.retain(|tick| (self.least..=self.most).contains(tick));
        ticks
    }
}

/// A tick's name.
pub(super) fn name(value: f64) -> String {
    if value >= 10_000.0 {
        return format!("{:.0}k", value / 1000.0);
    }
    let digits = if value >= 0.95 {
        0
    } else if value >= 0.095 {
        1
    } else if value >= 0.0095 {
        2
    } else {
        3
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_holds_its_values_in_order_and_its_ticks_apart() {
        for (least, most) in [(0.2, 0.3), (1.0, 900.0), (0.01, 30_000.0)] {
            let axis = LogAxis::over([least, most].into_iter(), 100.0, 500.0);
            assert!(100.0 <= axis.place(least) && axis.place(least) < axis.place(most));
            assert!(axis.place(most) <= 500.0);
            let ticks = axis.ticks();
            assert!(ticks.len() >= 2, "{ticks:?} of {least} to {most}");
            for pair in ticks.windows(2) {
                assert!(axis.place(pair[1]) - axis.place(pair[0]) > 24.0, "{ticks:?} of {least} to {most}");
                assert_ne!(name(pair[0]), name(pair[1]));
            }
        }
    }

    #[test]
    fn an_axis_goes_down_as_well_and_nothing_leaves_it() {
        let axis = LogAxis::over([1.0, 10.0].into_iter(), 300.0, 20.0);
        assert!(axis.place(10.0) < axis.place(1.0));
        assert_eq!(axis.place(1e9), 20.0);
        assert_eq!(axis.place(0.0), 300.0);
    }
}
