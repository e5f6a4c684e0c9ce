//! The table: ours, the reference, the ratio, the target.

use std::fmt;

use serde::Serialize;

use crate::plot::{Figure, Shows};
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
    /// Both figures are to be the same: ours differs by at most so many percent of the reference's.
    Within(f64),
    /// None: for comparison.
    None,
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub step: String,
    /// The unit of both samples.
    pub unit: &'static str,
    /// Ours.
    pub ours: Sample,
    /// What ours is compared with; empty when with nothing.
    pub reference: String,
    /// The reference's figures.
    pub theirs: Sample,
    /// What the ratio should be.
    pub target: Target,
    /// Why there are no figures, where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

impl Row {
    pub(crate) fn new(step: impl Into<String>, unit: &'static str, ours: Sample) -> Self {
        Self {
            step: step.into(),
            unit,
            ours,
            reference: String::new(),
            theirs: Sample::default(),
            target: Target::None,
            missing: None,
        }
    }

    /// A row that says why it has no figures.
    pub(crate) fn missing(step: impl Into<String>, why: impl fmt::Display) -> Self {
        Self { missing: Some(why.to_string()), ..Self::new(step, "", Sample::default()) }
    }

    pub(crate) fn against(self, reference: impl Into<String>, theirs: Sample) -> Self {
        Self { reference: reference.into(), theirs, ..self }
    }

    pub(crate) fn target(self, target: Target) -> Self {
        Self { target, ..self }
    }

    /// The figure that the target speaks of.
    #[must_use]
    pub fn figure(&self) -> f64 {
        let (ours, theirs) = (self.ours.median(), self.theirs.median());
        match self.target {
            Target::TimesBetter(_) | Target::None => theirs / ours,
            Target::AtMostTimes(_) => ours / theirs,
            Target::AtMost(_) => ours,
            Target::Within(_) => 100.0 * (ours - theirs).abs() / theirs,
        }
    }

    /// Whether the target was reached in this run; `None` without a target or without figures.
    #[must_use]
    pub fn reached(&self) -> Option<bool> {
        match self.target {
            _ if self.missing.is_some() => None,
            Target::TimesBetter(least) => Some(self.figure() >= least),
            Target::AtMostTimes(most) | Target::AtMost(most) | Target::Within(most) => {
                Some(self.figure() <= most)
            }
            Target::None => None,
        }
    }

    /// Ours, in its unit.
    pub(crate) fn median(&self) -> String {
        cell(&Sample { values: vec![self.ours.median()] }, self.unit)
    }

    fn cells(&self) -> Vec<String> {
        if let Some(why) = &self.missing {
            let [ours, none] = [format!("not measured: {why}"), String::new()];
            return vec![self.step.clone(), ours, none.clone(), none.clone(), none];
        }
        let figure = self.figure();
        let (ratio, target) = match self.target {
            Target::TimesBetter(least) => (format!("{figure:.1}x better"), format!("at least {least}x")),
            Target::AtMostTimes(most) => (format!("{figure:.2}x"), format!("at most {most}x")),
            Target::AtMost(most) => (String::new(), format!("at most {most} {}", self.unit)),
            Target::Within(most) => (format!("{figure:.2}% off"), format!("at most {most}% off")),
            Target::None if self.reference.is_empty() => (String::new(), String::new()),
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
        vec![self.step.clone(), cell(&self.ours, self.unit), theirs, ratio, verdict]
    }
}

/// Figures that are compared with each other, not with a reference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// The columns' names.
    pub head: Vec<String>,
    /// The lines.
    pub lines: Vec<Vec<String>>,
}

impl Table {
    /// The medians behind the curves of a picture.
    pub(crate) fn of_curves(figure: &Figure) -> Option<Self> {
        let Shows::Curves { x, y, curves } = &figure.shows else { return None };
        let mut places: Vec<f64> =
            curves.iter().flat_map(|curve| &curve.points).map(|(place, _)| *place).collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        let head =
            std::iter::once(x.clone()).chain(curves.iter().map(|curve| format!("{}, {y}", curve.name)));
        let line = |place: &f64| {
            let at = |curve: &crate::plot::Curve| {
                let found = curve.points.iter().find(|(other, _)| other == place);
                found.map(|(_, sample)| cell(sample, y)).unwrap_or_default()
            };
            std::iter::once(format!("{place:.1}")).chain(curves.iter().map(at)).collect()
        };
        let lines = places.iter().map(line).collect();
        Some(Self { title: figure.title.clone(), head: head.collect(), lines })
    }
}

/// What one suite has found.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Section {
    /// The suite.
    pub title: String,
    /// What it measures and what one sees there, in words; Markdown.
    #[serde(skip)]
    pub about: &'static str,
    /// The rows.
    pub rows: Vec<Row>,
    /// Other tables.
    pub tables: Vec<Table>,
    /// Pictures.
    pub figures: Vec<Figure>,
    /// What else was seen: where the time went, how much was copied.
    pub notes: Vec<String>,
}

/// All that one run has found on one host.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The command that finds the same elsewhere.
    pub command: String,
    /// Host, kernel, VMM, accelerator, filesystem, and when.
    pub host: Vec<(String, String)>,
    /// How often each figure was taken, where it is not said otherwise.
    pub runs: usize,
    /// How long all of it took, in seconds.
    pub took_s: f64,
    /// By suite.
    pub sections: Vec<Section>,
}

impl Report {
    /// All rows of all suites.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.sections.iter().flat_map(|section| &section.rows)
    }

    /// The page of the documentation that this run makes; `plots` is where its pictures are, seen from there.
    #[must_use]
    pub fn page(&self, plots: &str) -> String {
        let mut page = format!("{}\n", ABOUT.replace("COMMAND", &self.command));
        // A string takes all that is written to it.
        let _all = self.write(&mut page, Some(plots));
        page
    }

    fn write(&self, to: &mut impl fmt::Write, page: Option<&str>) -> fmt::Result {
        let end = if page.is_some() { "  " } else { "" };
        for (what, value) in &self.host {
            writeln!(to, "{what}: {value}{end}")?;
        }
        let took = self.took_s / 60.0;
        writeln!(to, "figures: median of {} (minimum to maximum); {took:.1} minutes for all", self.runs)?;
        for section in &self.sections {
            section.write(to, page)?;
        }
        Ok(())
    }
}

/// What the page says before its figures.
const ABOUT: &str = include_str!("about/performance.txt");

impl Section {
    fn write(&self, to: &mut impl fmt::Write, page: Option<&str>) -> fmt::Result {
        writeln!(to, "\n## {}\n", self.title)?;
        if page.is_some() && !self.about.is_empty() {
            writeln!(to, "{}", self.about)?;
        }
        if !self.rows.is_empty() {
            let head = ["step", "bhatti", "reference, same run", "ratio", "target"].map(str::to_owned);
            let lines: Vec<Vec<String>> = self.rows.iter().map(Row::cells).collect();
            write_table(to, &head, &lines)?;
        }
        for table in &self.tables {
            writeln!(to, "\n{}\n", table.title)?;
            write_table(to, &table.head, &table.lines)?;
        }
        if !self.notes.is_empty() {
            writeln!(to)?;
        }
        for note in &self.notes {
            writeln!(to, "- {note}")?;
        }
        for figure in page.iter().flat_map(|_| &self.figures) {
            writeln!(to, "\n![{}]({}/{}.svg)", figure.title, page.unwrap_or_default(), figure.file)?;
        }
        Ok(())
    }
}

fn cell(sample: &Sample, unit: &str) -> String {
    if sample.values.is_empty() {
        return String::new();
    }
    // Fractions of a millisecond would all be 0.1 otherwise.
    let digits = if sample.median().abs() < 1.0 { 3 } else { 2 };
    let middle = format!("{:.digits$} {unit}", sample.median());
    if sample.values.len() == 1 {
        return middle;
    }
    format!("{middle} ({:.digits$} to {:.digits$})", sample.min(), sample.max())
}

fn write_table(to: &mut impl fmt::Write, head: &[String], lines: &[Vec<String>]) -> fmt::Result {
    let all: Vec<&[String]> = std::iter::once(head).chain(lines.iter().map(Vec::as_slice)).collect();
    let width = |column: usize| {
        all.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    for (at, line) in all.iter().enumerate() {
        let cells: Vec<String> =
            line.iter().zip(&widths).map(|(text, &width)| format!("{text:<width$}")).collect();
        writeln!(to, "| {} |", cells.join(" | "))?;
        if at == 0 {
            let dashes: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
            writeln!(to, "| {} |", dashes.join(" | "))?;
        }
    }
    Ok(())
}

impl fmt::Display for Report {
    /// Markdown tables under the lines that say where they were taken.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(values: &[f64]) -> Sample {
        Sample { values: values.to_vec() }
    }

    #[test]
    fn a_row_without_figures_says_why_and_reaches_nothing() {
        let row = Row::missing("clones", "mkfs.xfs is not there").target(Target::AtMost(1.0));
        assert_eq!(row.reached(), None);
        assert_eq!(row.cells()[1], "not measured: mkfs.xfs is not there");
    }

    #[test]
    fn a_target_is_judged_by_the_ratio_it_speaks_of() {
        let row = Row::new("a", "ms", sample(&[2.0])).against("b", sample(&[30.0]));
        assert_eq!(row.clone().target(Target::TimesBetter(10.0)).reached(), Some(true));
        assert_eq!(row.clone().target(Target::TimesBetter(20.0)).reached(), Some(false));
        assert_eq!(row.clone().target(Target::AtMost(1.5)).reached(), Some(false));
        assert_eq!(row.target(Target::AtMostTimes(1.0)).reached(), Some(true));
        let row = Row::new("a", "MiB", sample(&[98.0])).against("b", sample(&[100.0]));
        assert_eq!(row.clone().target(Target::Within(1.0)).reached(), Some(false));
        assert_eq!(row.target(Target::Within(2.0)).reached(), Some(true));
    }

    #[test]
    fn a_figure_alone_has_no_ratio() {
        assert_eq!(Row::new("a", "MiB", sample(&[0.25])).cells(), ["a", "0.250 MiB", "", "", ""]);
    }
}
