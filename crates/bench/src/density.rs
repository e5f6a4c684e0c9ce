//! What a sleeping sandbox costs on disk, and what five readers of one image cost in the page cache.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::Options;
use crate::crowd;
use crate::daemon::Daemon;
use crate::error::{During as _, Error, Result};
use crate::progress::Progress;
use crate::sample::{Sample, mib};
use crate::table::{Row, Target};

/// Reads the image's programs and libraries, which are most of it.
pub(crate) const READ: &str = "cat /usr/bin/* /usr/sbin/* /usr/lib/*/* > /dev/null 2>&1; true";
const READERS: usize = 5;

pub(crate) fn measure(daemon: &Daemon, options: &Options, progress: Progress<'_>) -> Result<Vec<Row>> {
    let mut cold = Sample::default();
    for run in 1..=options.runs {
        progress.step(&format!("bytes of a cold sandbox: run {run} of {}", options.runs))?;
        daemon.post("/sandboxes", &json!({ "name": "bytes" }))?;
        daemon.exec("bytes", &["true"])?;
        daemon.post("/sandboxes/bytes/stop", &json!({}))?;
        cold.push(mib(allocated(&daemon.sandbox_dir("bytes")?)?));
        daemon.delete("bytes")?;
    }
    progress.step("page cache of one reader and of five")?;
    let names: Vec<String> = (1..=READERS).map(|n| format!("reader-{n}")).collect();
    for name in &names {
        daemon.post("/sandboxes", &json!({ "name": name }))?;
    }
    let before = cached(daemon)?;
    let mut after = Vec::new();
    for readers in [0..1, 1..READERS] {
        crowd::each(readers, |reader| daemon.exec(&names[reader], &["sh", "-c", READ]).map(drop))?;
        after.push(cached(daemon)?.saturating_sub(before));
    }
    for name in &names {
        daemon.delete(name)?;
    }
    let (one, five) = (after[0], after[1]);
    let alone = |value| Sample { values: vec![value] };
    Ok(vec![
        Row::new("a cold idle sandbox, all its files", "MiB", cold).target(Target::AtMost(3.0)),
        Row::new("page cache, 5 sandboxes read the image", "MiB", alone(mib(five)))
            .against("1 sandbox", alone(mib(one)))
            .target(Target::AtMostTimes(1.3)),
    ])
}

/// Allocated bytes of a directory's files and of itself.
pub(crate) fn allocated(dir: &Path) -> Result<u64> {
    let mut total = fs::metadata(dir).during("looking at the sandbox")?.blocks() * 512;
    for entry in fs::read_dir(dir).during("looking at the sandbox")? {
        total += entry.and_then(|entry| entry.metadata()).during("looking at the sandbox")?.blocks() * 512;
    }
    Ok(total)
}

/// Bytes in the page cache of every image and every sandbox's root disk (fincore(1) of util-linux).
pub(crate) fn cached(daemon: &Daemon) -> Result<u64> {
    let mut command = Command::new("fincore");
    command.args(["--bytes", "--raw", "--noheadings", "--output", "RES"]);
    for dir in ["images/objects", "sandboxes"] {
        for entry in fs::read_dir(daemon.data_dir().join(dir)).during("looking for disks")? {
            let path = entry.during("looking for disks")?.path();
            if path.extension().is_some_and(|kind| kind == "ext4") {
                command.arg(path);
            } else if path.is_dir() {
                let disks = ["rootfs.qcow2", "rootfs.ext4"].map(|name| path.join(name));
                command.args(disks.iter().filter(|disk| disk.exists()));
            }
        }
    }
    let output = command.output().during("running fincore")?;
    if !output.status.success() {
        return Err(Error::new("fincore", String::from_utf8_lossy(&output.stderr)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace().map(|number| number.parse::<u64>().during("reading fincore's output")).sum()
}
