//! The table: ours, the reference, the ratio, the target.

use std::fmt;

use serde::Serialize;

use crate::sample::Sample;

/// What a ratio should be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The reference's median over ours: so many times as fast or as small.
    TimesBetter(f64),
    /// Ours over the reference's: at most so many times as much.
    AtMostTimes(f64),
    /// Ours alone, in its unit.
    AtMost(f64),
    /// None: for comparison.
    None,
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub step: &'static str,
    /// The unit of both samples.
    pub unit: &'static str,
    /// Ours.
    pub ours: Sample,
    /// What ours is compared with; empty when with nothing.
    pub reference: &'static str,
    /// The reference's figures.
    pub theirs: Sample,
    /// What the ratio should be.
    pub target: Target,
}

impl Row {
    /// The figure that the target speaks of.
    #[must_use]
    pub fn figure(&self) -> f64 {
        let (ours, theirs) = (self.ours.median(), self.theirs.median());
        match self.target {
            Target::TimesBetter(_) | Target::None => theirs / ours,
            Target::AtMostTimes(_) => ours / theirs,
            Target::AtMost(_) => ours,
        }
    }

    /// Whether the target was reached in this run; `None` without a target.
    #[must_use]
    pub fn reached(&self) -> Option<bool> {
        match self.target {
            Target::TimesBetter(least) => Some(self.figure() >= least),
            Target::AtMostTimes(most) | Target::AtMost(most) => Some(self.figure() <= most),
            Target::None => None,
        }
    }
}

/// All rows of one run on one host.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Host, kernel, VMM, accelerator, filesystem, and when.
    pub host: Vec<(String, String)>,
    /// How often each figure was taken.
    pub runs: usize,
    /// The rows.
    pub rows: Vec<Row>,
}

fn cell(sample: &Sample, unit: &str) -> String {
    if sample.values.is_empty() {
        return String::new();
    }
    if sample.values.len() == 1 {
        return format!("{:.2} {unit}", sample.median());
    }
    format!("{:.2} {unit} ({:.2} to {:.2})", sample.median(), sample.min(), sample.max())
}

impl Row {
    fn cells(&self) -> [String; 5] {
        let figure = self.figure();
        let (ratio, target) = match self.target {
            Target::TimesBetter(least) => (format!("{figure:.1}x better"), format!("at least {least}x")),
            Target::AtMostTimes(most) => (format!("{figure:.2}x"), format!("at most {most}x")),
            Target::AtMost(most) => (String::new(), format!("at most {most} {}", self.unit)),
            Target::None => (format!("{figure:.1}x better"), String::new()),
        };
        let verdict = match self.reached() {
            Some(true) => format!("{target}: reached"),
            Some(false) => format!("{target}: MISSED"),
            None => target,
        };
        let theirs = if self.reference.is_empty() {
            String::new()
        } else {
            format!("{}: {}", self.reference, cell(&self.theirs, self.unit))
        };
        [self.step.to_owned(), cell(&self.ours, self.unit), theirs, ratio, verdict]
    }
}

impl fmt::Display for Report {
    /// A Markdown table under the lines that say where it was taken.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, value) in &self.host {
            writeln!(f, "{what}: {value}")?;
        }
        writeln!(f, "figures: median of {} (minimum to maximum)\n", self.runs)?;
        let head = ["step", "bhatti", "reference, same run", "ratio", "target"].map(str::to_owned);
        let rows: Vec<[String; 5]> = std::iter::once(head).chain(self.rows.iter().map(Row::cells)).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 5] = std::array::from_fn(width);
        for (at, row) in rows.iter().enumerate() {
            let cells: Vec<String> =
                row.iter().zip(widths).map(|(text, width)| format!("{text:<width$}")).collect();
            writeln!(f, "| {} |", cells.join(" | "))?;
            if at == 0 {
                let dashes: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
                writeln!(f, "| {} |", dashes.join(" | "))?;
            }
        }
        Ok(())
    }
}
