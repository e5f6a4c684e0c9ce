//! A run beside an earlier one of the same host.

use serde_json::Value;

use crate::Options;
use crate::error::{During as _, Error, Result};
use crate::sample::Sample;
use crate::table::{Report, Section, Table};

/// What must be the same, or figures say nothing about each other.
const SAME: [&str; 4] = ["host", "kernel", "vmm", "filesystem"];

fn earlier(options: &Options) -> Result<Option<Value>> {
    let Some(path) = &options.against else { return Ok(None) };
    let during = format!("reading the earlier run {}", path.display());
    let text = std::fs::read(path).during(&during)?;
    serde_json::from_slice(&text).during(&during).map(Some)
}

/// Refuses to go on when the earlier run was taken elsewhere than this one, on `host`.
pub(crate) fn same_host(options: &Options, host: &[(String, String)]) -> Result<()> {
    earlier(options)?.map_or(Ok(()), |then| same(&then, host))
}

fn same(then: &Value, now: &[(String, String)]) -> Result<()> {
    for what in SAME {
        let was = then["host"].as_array().into_iter().flatten().find(|line| line[0] == what);
        let was = was.and_then(|line| line[1].as_str()).unwrap_or("nothing");
        let is = now.iter().find(|(name, _)| name == what).map_or("nothing", |(_, value)| value);
        if was != is {
            let why = format!(
                "{what} was {was:?} and is {is:?}: runs of different hosts are not compared; take the earlier one here, \
                 or leave out --against"
            );
            return Err(Error::new("comparing", why));
        }
    }
    Ok(())
}

/// Adds the table of both, if there is an earlier one.
pub(crate) fn with_earlier(options: &Options, report: &mut Report) -> Result<()> {
    let Some(then) = earlier(options)? else { return Ok(()) };
    let mut lines = Vec::new();
    for row in report.rows() {
        let sections = then["sections"].as_array().into_iter().flatten();
        let mut rows = sections.flat_map(|section| section["rows"].as_array()).flatten();
        let Some(was) =
            rows.find(|was| was["step"] == row.step.as_str() && was["reference"] == row.reference.as_str())
        else {
            continue;
        };
        let values = was["ours"]["values"].as_array().into_iter().flatten().filter_map(Value::as_f64);
        let (was, is) = (Sample { values: values.collect() }.median(), row.ours.median());
        if was.is_finite() && is.is_finite() {
            let word = |figure: f64| format!("{figure:.2} {}", row.unit);
            lines.push(vec![row.step.clone(), word(was), word(is), format!("{:.2}x", is / was)]);
        }
    }
    let mut when = then["host"].as_array().into_iter().flatten();
    let when = when.find(|line| line[0] == "when").and_then(|line| line[1].as_str());
    let table = Table {
        title: format!("Now, and in the run of {}", when.unwrap_or("an unknown time")),
        head: ["step", "then", "now", "now over then"].map(str::to_owned).to_vec(),
        lines,
    };
    let title = "Against an earlier run".to_owned();
    report.sections.push(Section { title, tables: vec![table], ..Section::default() });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_different_hosts_are_not_compared() {
        let lines = |kernel: &str| {
            [("host", "2 x A"), ("kernel", kernel), ("vmm", "Q"), ("filesystem", "ext4"), ("when", kernel)]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
        };
        let then = serde_json::json!({ "host": lines("6.1") });
        same(&then, &lines("6.1")).unwrap();
        let refused = same(&then, &lines("6.2")).unwrap_err().to_string();
        assert!(refused.contains("kernel was \"6.1\" and is \"6.2\""), "{refused}");
        same(&serde_json::json!({}), &lines("6.1")).unwrap_err();
    }
}
