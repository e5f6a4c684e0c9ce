//! Pictures of what was measured: SVG written by hand, and PNG where `rsvg-convert` is installed.
//!
//! Colours are those of Okabe and Ito, which people with any kind of colour vision tell apart; each series has a shape of
//! its own besides.

mod axis;
mod curves;
mod stacks;
mod strips;
mod svg;

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

use crate::error::{During as _, Result};
use crate::place::run;
use crate::sample::Sample;
use crate::table::{Report, Section};

/// Okabe and Ito's colours, without yellow, which is too light on white.
const COLOURS: [&str; 7] = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"];

/// One picture.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// The file's name, without its ending.
    pub file: String,
    /// What stands above it.
    pub title: String,
    /// What it shows.
    pub shows: Shows,
}

/// The kinds of pictures.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Shows {
    /// One quantity against another, both on logarithmic axes.
    Curves {
        /// What goes to the right.
        x: String,
        /// What goes up.
        y: String,
        /// What is compared.
        curves: Vec<Curve>,
    },
    /// What a whole is made of.
    Stacks {
        /// The unit of all parts.
        unit: String,
        /// The wholes.
        bars: Vec<Bar>,
    },
    /// Every figure of every row, ours above the reference's, on a logarithmic axis.
    Strips {
        /// The unit of all of them.
        unit: String,
        /// The rows.
        strips: Vec<Strip>,
    },
}

/// One line through the medians of samples.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Curve {
    /// What the legend says.
    pub name: String,
    /// Where, and what was seen there.
    pub points: Vec<(f64, Sample)>,
}

/// A whole and its parts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bar {
    /// What it is.
    pub name: String,
    /// Its parts, in order.
    pub parts: Vec<(String, f64)>,
}

/// The figures of one row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Strip {
    /// What was measured.
    pub name: String,
    /// Ours.
    pub ours: Sample,
    /// What it is compared with; empty when with nothing.
    pub reference: String,
    /// The reference's.
    pub theirs: Sample,
}

/// Fewer figures are no distribution.
const DISTRIBUTION: usize = 3;

/// The distributions behind the rows of a suite, which is called `suite`: a picture for each filesystem.
pub(crate) fn distributions(suite: &str, section: &Section) -> Vec<Figure> {
    let mut found: Vec<(&str, Vec<Strip>)> = Vec::new();
    for row in section.rows.iter().filter(|row| row.unit == "ms" && row.ours.values.len() >= DISTRIBUTION) {
        let place = ["ext4", "btrfs", "xfs"]
            .into_iter()
            .find(|name| row.step.ends_with(&format!(", {name}")))
            .unwrap_or("here");
        let strip = Strip {
            name: row.step.clone(),
            ours: row.ours.clone(),
            reference: row.reference.clone(),
            theirs: row.theirs.clone(),
        };
        match found.iter_mut().find(|(name, _)| *name == place) {
            Some((_, strips)) => strips.push(strip),
            None => found.push((place, vec![strip])),
        }
    }
    let figure = |(place, strips): (&str, Vec<Strip>)| Figure {
        file: match place {
            "here" => format!("times-{suite}"),
            _ => format!("times-{suite}-{place}"),
        },
        title: match place {
            "here" => "Every time that was taken".to_owned(),
            _ => format!("Every time that was taken on {place}"),
        },
        shows: Shows::Strips { unit: "ms".to_owned(), strips },
    };
    found.into_iter().map(figure).collect()
}

impl Figure {
    /// The picture.
    #[must_use]
    pub fn svg(&self) -> String {
        match &self.shows {
            Shows::Curves { x, y, curves } => curves::draw(&self.title, x, y, curves),
            Shows::Stacks { unit, bars } => stacks::draw(&self.title, unit, bars),
            Shows::Strips { unit, strips } => strips::draw(&self.title, unit, strips),
        }
    }
}

/// Writes every picture of a report into a directory.
///
/// # Errors
/// When a file cannot be written, or `rsvg-convert` is there and fails.
pub fn write_all(report: &Report, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).during("making a directory for plots")?;
    let can_png = Command::new("rsvg-convert").arg("--version").output().is_ok();
    for figure in report.sections.iter().flat_map(|section| &section.figures) {
        let svg = dir.join(format!("{}.svg", figure.file));
        fs::write(&svg, figure.svg()).during("writing a plot")?;
        if can_png {
            run(Command::new("rsvg-convert").arg("-o").arg(svg.with_extension("png")).arg(&svg))?;
        }
    }
    Ok(())
}
