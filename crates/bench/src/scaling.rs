//! Where costs stop being flat: each against what it might grow with.

mod clones;
mod images;
mod many;
mod memory;

use crate::Options;
use crate::daemon::Daemon;
use crate::error::Result;
use crate::plot::{Curve, Figure, Shows};
use crate::progress::Progress;
use crate::sample::Sample;
use crate::table::{Row, Section, Table};

/// Figures of one law are taken so often at most: there are many of them.
const RUNS: usize = 3;

/// The pictures and the tables behind them, and a row for each law that could not be measured.
pub(crate) fn measure(daemon: &Daemon, options: &Options, progress: Progress<'_>) -> Result<Section> {
    type Law = fn(&Daemon, &Options, Progress<'_>) -> Result<Vec<Figure>>;
    let laws: [(&str, Law); 4] = [
        ("stop and wake against memory", memory::measure),
        ("create against the size of its image", images::measure),
        ("the daemon against the number of sandboxes", many::measure),
        ("disk and page cache against clones", clones::measure),
    ];
    let mut found = Section::default();
    for (what, law) in laws {
        progress.step(&format!("scaling: {what}"))?;
        match law(daemon, options, progress) {
            Ok(figures) => found.figures.extend(figures),
            Err(error) if error.is_interrupted() => return Err(error),
            Err(error) => found.rows.push(Row::missing(what, error)),
        }
        daemon.clear()?;
    }
    found.tables = found.figures.iter().filter_map(Table::of_curves).collect();
    Ok(found)
}

/// A curve that grows point by point.
struct Growing {
    name: &'static str,
    points: Vec<(f64, Sample)>,
}

impl Growing {
    const fn new(name: &'static str) -> Self {
        Self { name, points: Vec::new() }
    }

    fn push(&mut self, x: f64, sample: Sample) {
        if !sample.values.is_empty() {
            self.points.push((x, sample));
        }
    }
}

fn figure<const N: usize>(file: &str, title: &str, x: &str, y: &str, curves: [Growing; N]) -> Figure {
    let curves = curves.into_iter().filter(|curve| !curve.points.is_empty());
    let curves = curves.map(|curve| Curve { name: curve.name.to_owned(), points: curve.points }).collect();
    Figure {
        file: file.to_owned(),
        title: title.to_owned(),
        shows: Shows::Curves { x: x.to_owned(), y: y.to_owned(), curves },
    }
}

fn alone(value: f64) -> Sample {
    Sample { values: vec![value] }
}

/// A number of things, as a place on an axis.
fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}
