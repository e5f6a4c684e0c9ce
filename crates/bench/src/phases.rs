//! Where the time of a verb went: its own phases, over several calls.

use std::fmt;

use serde_json::Value;

use crate::plot::{Bar, Figure, Shows};
use crate::sample::Sample;

/// The phases of one verb in the order of their names, each with what it took every time.
#[derive(Debug, Default)]
pub(crate) struct Phases(Vec<(String, Sample)>);

impl Phases {
    /// Adds the `timings_ms` of one reply.
    pub(crate) fn add(&mut self, reply: &Value) {
        let Some(timings) = reply["timings_ms"].as_object() else { return };
        for (phase, took) in timings {
            let Some(took) = took.as_f64() else { continue };
            match self.0.iter_mut().find(|(name, _)| name == phase) {
                Some((_, sample)) => sample.push(took),
                None => self.0.push((phase.clone(), Sample { values: vec![took] })),
            }
        }
    }
}

impl Phases {
    /// Medians of all phases, and what is left of the total.
    pub(crate) fn bar(&self, name: &str) -> Bar {
        let total = self.0.iter().find(|(name, _)| name == "total").map_or(0.0, |(_, all)| all.median());
        let phases = self.0.iter().filter(|(name, _)| name != "total");
        let mut parts: Vec<(String, f64)> =
            phases.map(|(name, sample)| (name.clone(), sample.median())).collect();
        let rest = total - parts.iter().map(|(_, took)| took).sum::<f64>();
        if rest > 0.0 {
            parts.push(("rest".to_owned(), rest));
        }
        Bar { name: name.to_owned(), parts }
    }
}

/// Wakes and creates, phase by phase.
pub(crate) fn figure(bars: Vec<Bar>) -> Figure {
    Figure {
        file: "phases".to_owned(),
        title: "Where the time of wakes and creates goes, until the guest answers (medians)".to_owned(),
        shows: Shows::Stacks { unit: "ms".to_owned(), bars },
    }
}

impl fmt::Display for Phases {
    /// Medians, the longest first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut medians: Vec<(&str, f64)> =
            self.0.iter().map(|(name, sample)| (name.as_str(), sample.median())).collect();
        medians.sort_by(|a, b| b.1.total_cmp(&a.1));
        let words: Vec<String> = medians.iter().map(|(name, median)| format!("{name} {median:.1}")).collect();
        write!(f, "{} ms", words.join(", "))
    }
}
