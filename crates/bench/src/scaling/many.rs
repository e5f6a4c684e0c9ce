//! What the daemon answers and keeps with up to ten thousand sandboxes.
//!
//! They were not all booted: one sandbox was put to sleep, and its files stand under as many names as there are to be,
//! each with a manifest of its own, as a daemon finds them when it starts.

use std::fs;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};
use types::SandboxId;

use super::{Growing, RUNS, alone, count, figure};
use crate::Options;
use crate::daemon::Daemon;
use crate::data;
use crate::error::{During as _, Error, Result};
use crate::plot::Figure;
use crate::progress::Progress;
use crate::sample::{Sample, ms};

const COUNTS: [usize; 4] = [10, 100, 1000, 10_000];
const MANIFEST: &str = "manifest.json";

pub(super) fn measure(daemon: &Daemon, options: &Options, progress: Progress<'_>) -> Result<Vec<Figure>> {
    daemon.post("/sandboxes", &json!({ "name": "model" }))?;
    daemon.exec("model", &["true"])?;
    daemon.post("/sandboxes/model/stop", &json!({}))?;
    let model = daemon.sandbox_dir("model")?;
    let mut list = Growing::new("list");
    let mut inspect = Growing::new("inspect of one");
    let mut usage = Growing::new("du");
    let mut create = Growing::new("create to first exec");
    let mut start = Growing::new("start of the daemon and a first create");
    let mut memory = Growing::new("resident memory of the daemon");
    for number in COUNTS {
        progress.step(&format!("scaling: a daemon with {number} sandboxes"))?;
        let dir = data::linked(options)?;
        fill(&model, dir.path(), number, progress)?;
        let began = Instant::now();
        let mut many = Daemon::start(options, dir, progress)?;
        // All of them sleep: there is nothing to end but the daemon, and their files go with the directory.
        many.leave_sandboxes();
        let x = count(number);
        start.push(x, alone(ms(began.elapsed())));
        let mut samples: [Sample; 4] = Default::default();
        for _ in 0..options.runs.min(RUNS) {
            progress.go_on()?;
            for (sample, path) in samples.iter_mut().zip(["/sandboxes", "/sandboxes/law-0", "/usage"]) {
                let began = Instant::now();
                many.get(path)?;
                sample.push(ms(began.elapsed()));
            }
            let began = Instant::now();
            many.post("/sandboxes", &json!({ "name": "made" }))?;
            many.exec("made", &["true"])?;
            samples[3].push(ms(began.elapsed()));
            many.delete("made")?;
        }
        memory.push(x, alone(resident_mib(many.pid())?));
        for (curve, sample) in [&mut list, &mut inspect, &mut usage, &mut create].into_iter().zip(samples) {
            curve.push(x, sample);
        }
    }
    let title = "What the daemon takes against the number of sandboxes that it keeps";
    Ok(vec![
        figure(
            "daemon-times",
            title,
            "sandboxes, all but one asleep",
            "ms",
            [list, inspect, usage, create, start],
        ),
        figure(
            "daemon-memory",
            "The daemon's memory against sandboxes",
            "sandboxes, all asleep",
            "MiB",
            [memory],
        ),
    ])
}

fn fill(model: &Path, root: &Path, number: usize, progress: Progress<'_>) -> Result<()> {
    const DURING: &str = "multiplying a sandbox";
    let text = fs::read(model.join(MANIFEST)).during(DURING)?;
    let manifest: Value = serde_json::from_slice(&text).during(DURING)?;
    let mut files = Vec::new();
    for entry in fs::read_dir(model).during(DURING)? {
        let entry = entry.during(DURING)?;
        if entry.file_name() != MANIFEST && entry.file_type().during(DURING)?.is_file() {
            files.push(entry.file_name());
        }
    }
    for at in 0..number {
        if at % 500 == 0 {
            progress.go_on()?;
        }
        let id = SandboxId::random();
        let dir = root.join("sandboxes").join(id.as_str());
        fs::create_dir_all(&dir).during(DURING)?;
        for name in &files {
            fs::hard_link(model.join(name), dir.join(name)).during(DURING)?;
        }
        let (was, name) = (&manifest["body"]["id"], format!("law-{at}"));
        let was = was.as_str().ok_or_else(|| Error::new(DURING, "the model has no id"))?;
        fs::write(dir.join(MANIFEST), renamed(&text, was, id.as_str(), &name)?).during(DURING)?;
    }
    Ok(())
}

/// The record of a sandbox with another id and another name: docs/formats/manifest.md says how it is checked.
fn renamed(text: &[u8], was: &str, id: &str, name: &str) -> Result<String> {
    const DURING: &str = "renaming a manifest";
    let text = std::str::from_utf8(text).during(DURING)?;
    let (head, body) = text.split_once("\"body\":").ok_or_else(|| Error::new(DURING, "it has no body"))?;
    let body = body.trim_end().strip_suffix('}').ok_or_else(|| Error::new(DURING, "it does not end"))?;
    let body = body.trim_end().replace(was, id).replacen("\"model\"", &format!("\"{name}\""), 1);
    let checksum = blake3::hash(body.as_bytes()).to_hex();
    let (before, _) =
        head.split_once("\"blake3\":\"").ok_or_else(|| Error::new(DURING, "it has no checksum"))?;
    Ok(format!("{before}\"blake3\":\"{checksum}\",\"body\":{body}}}\n"))
}

fn resident_mib(pid: u32) -> Result<f64> {
    const DURING: &str = "reading the daemon's memory";
    let status = fs::read_to_string(format!("/proc/{pid}/status")).during(DURING)?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let line = line.ok_or_else(|| Error::new(DURING, "it is not told"))?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().during(DURING)?;
    Ok(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renamed_manifest_has_the_checksum_of_its_new_body() {
        let text =
            br#"{"format":"bhatti-sandbox","version":6,"blake3":"00","body":{"id":"aa","name":"model"}}"#;
        let made = renamed(text, "aa", "bb", "law-3").unwrap();
        let body = r#"{"id":"bb","name":"law-3"}"#;
        assert!(made.contains(&format!("\"body\":{body}}}")), "{made}");
        assert!(made.contains(&blake3::hash(body.as_bytes()).to_hex().to_string()), "{made}");
    }
}
