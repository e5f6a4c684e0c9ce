//! Prometheus' text format, read as strictly as its specification allows.

use std::collections::{BTreeMap, BTreeSet};

/// What a scrape gave. Reading it panics on whatever a scraper could stumble over.
#[derive(Debug)]
pub struct Exposition {
    samples: BTreeMap<String, f64>,
    names: BTreeSet<String>,
}

type Labels = Vec<(String, String)>;

struct Family {
    name: String,
    kind: String,
    samples: Vec<(String, Labels, f64)>,
}

impl Exposition {
    /// Reads it.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line has no end");
        let mut families: Vec<Family> = Vec::new();
        let mut helped: Option<String> = None;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                assert!(helped.is_none(), "two HELP in a row: {line}");
                let (name, help) = rest.split_once(' ').expect("a help text");
                assert!(is_name(name, true) && !help.is_empty(), "{line}");
                helped = Some(name.to_owned());
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type");
                assert_eq!(helped.take().as_deref(), Some(name), "{line}");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(families.iter().all(|family| family.name != name), "twice: {line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                families.push(Family { name: name.to_owned(), kind: kind.to_owned(), samples: Vec::new() });
            } else {
                assert!(helped.is_none(), "a sample before its type: {line}");
                let family = families.last_mut().expect("a type before the first sample");
                family.samples.push(sample(line));
            }
        }
        assert!(helped.is_none());
        let mut samples = BTreeMap::new();
        for family in &families {
            family.check();
            for (name, labels, value) in &family.samples {
                let series = series(name, labels);
                assert!(samples.insert(series.clone(), *value).is_none(), "{series} is there twice");
            }
        }
        Self { samples, names: families.into_iter().map(|family| family.name).collect() }
    }

    /// The value of a series such as `a_total{b="c",d="e"}`, its labels in order; 0 where there is none.
    #[must_use]
    pub fn value(&self, series: &str) -> f64 {
        self.samples.get(series).copied().unwrap_or_default()
    }

    /// The values of all series that begin so.
    #[must_use]
    pub fn beginning(&self, with: &str) -> Vec<f64> {
        self.samples.iter().filter(|(series, _)| series.starts_with(with)).map(|(_, value)| *value).collect()
    }

    /// The names of its families.
    #[must_use]
    pub fn names(&self) -> &BTreeSet<String> {
        &self.names
    }
}

impl Family {
    fn check(&self) {
        let Self { name, kind, samples } = self;
        assert!(!samples.is_empty(), "{name} has no samples");
        if kind != "histogram" {
            for (of, _, value) in samples {
                assert_eq!(of, name);
                assert!(value.is_finite() && (kind == "gauge" || *value >= 0.0), "{name} {value}");
            }
            return;
        }
        let mut series: BTreeMap<Labels, Vec<(&str, f64)>> = BTreeMap::new();
        let mut buckets: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
        for (of, labels, value) in samples {
            let part = of.strip_prefix(name.as_str()).expect("the histogram's name");
            let (le, own): (Labels, Labels) = labels.iter().cloned().partition(|(label, _)| label == "le");
            assert_eq!(le.len(), usize::from(part == "_bucket"), "{of} {labels:?}");
            match le.first() {
                Some((_, le)) => {
                    let le = if le == "+Inf" { f64::INFINITY } else { le.parse().expect("a bound") };
                    buckets.entry(own).or_default().push((le, *value));
                }
                None => series.entry(own).or_default().push((part, *value)),
            }
        }
        assert!(buckets.keys().eq(series.keys()), "{name}");
        for (labels, buckets) in buckets {
            assert!(buckets.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 <= two[1].1), "{buckets:?}");
            let last = buckets.last().expect("a bucket");
            let parts = &series[&labels];
            assert_eq!(parts.iter().map(|(part, _)| *part).collect::<Vec<_>>(), ["_sum", "_count"], "{name}");
            assert_eq!((last.0, last.1), (f64::INFINITY, parts[1].1), "{name} {labels:?}");
        }
    }
}

fn is_name(text: &str, colons: bool) -> bool {
    let mut chars = text.chars();
    let begins = |c: char| c.is_ascii_alphabetic() || c == '_' || colons && c == ':';
    chars.next().is_some_and(begins) && chars.all(|c| begins(c) || c.is_ascii_digit())
}

fn series(name: &str, labels: &Labels) -> String {
    let mut labels = labels.clone();
    labels.sort();
    let labels: Vec<_> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
    if labels.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", labels.join(",")) }
}

fn sample(line: &str) -> (String, Labels, f64) {
    let end = line.find(['{', ' ']).expect("a value");
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name, true), "{line}");
    let mut labels = Labels::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"").expect("a label");
            assert!(is_name(label, false) && !label.starts_with("__"), "{line}");
            assert!(labels.iter().all(|(other, _)| other != label), "{label} twice: {line}");
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next().expect("the label's end") {
                    (at, '"') => break at + 1,
                    (_, '\\') => match chars.next().expect("what is escaped").1 {
                        'n' => value.push('\n'),
                        c @ ('\\' | '"') => value.push(c),
                        c => panic!("\\{c} is no escape: {line}"),
                    },
                    (_, c) => value.push(c),
                }
            };
            labels.push((label.to_owned(), value));
            rest = &after[end..];
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break,
            }
        }
        rest = rest.strip_prefix('}').expect("the labels' end");
    }
    let value = rest.strip_prefix(' ').expect("one space before the value");
    assert!(!value.is_empty() && !value.contains(' '), "{line}");
    (name.to_owned(), labels, value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
}

#[cfg(test)]
mod tests {
    use super::Exposition;

    const GOOD: &str = "# HELP a_total A.\n# TYPE a_total counter\na_total{x=\"1\",y=\"q\\\"\"} 3\na_total{x=\"2\"} 1\n\
                        # HELP h_seconds H.\n# TYPE h_seconds histogram\nh_seconds_bucket{le=\"0.5\"} 1\n\
                        h_seconds_bucket{le=\"+Inf\"} 2\nh_seconds_sum 2.5\nh_seconds_count 2\n";

    #[test]
    fn what_is_right_is_read() {
        let read = Exposition::parse(GOOD);
        assert_eq!((read.value("a_total{x=\"2\"}"), read.value("h_seconds_count")), (1.0, 2.0));
        assert_eq!(read.names().len(), 2);
    }

    #[test]
    fn what_a_scraper_would_stumble_over_is_not() {
        for (good, bad) in [
            ("x=\"2\"", "x=\"1\",y=\"q\\\"\""),
            ("x=\"2\"", "2=\"2\""),
            ("a_total{x=\"2\"} 1", "a_total{x=\"2\"} 1 "),
            ("a_total{x=\"2\"} 1", "b_total{x=\"2\"} 1"),
            ("+Inf\"} 2", "+Inf\"} 3"),
            ("le=\"0.5\"} 1", "le=\"0.5\"} 7"),
            ("h_seconds_sum 2.5\n", ""),
            ("# TYPE h_seconds histogram\n", ""),
            ("# HELP h_seconds H.", "# HELP a_total H."),
            ("q\\\"", "q\\x"),
        ] {
            assert!(GOOD.contains(good), "{good}");
            let text = GOOD.replacen(good, bad, 1);
            assert!(std::panic::catch_unwind(|| Exposition::parse(&text)).is_err(), "{bad}");
        }
    }
}
