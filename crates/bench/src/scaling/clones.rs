//! Disk and page cache against the number of clones of one image.

use serde_json::json;

use super::{Growing, alone, count, figure};
use crate::Options;
use crate::crowd;
use crate::daemon::Daemon;
use crate::density::{READ, allocated, cached};
use crate::error::{During as _, Result};
use crate::plot::Figure;
use crate::progress::Progress;
use crate::sample::mib;

/// The last of them with five runs or more.
const COLD: [usize; 8] = [1, 2, 5, 10, 20, 50, 100, 200];
/// Cold ones for each run asked for.
const A_RUN: usize = 40;
const READERS: [usize; 5] = [1, 2, 4, 6, 10];

pub(super) fn measure(daemon: &Daemon, options: &Options, progress: Progress<'_>) -> Result<Vec<Figure>> {
    let mut images = 0;
    for entry in std::fs::read_dir(daemon.data_dir().join("images/objects")).during("looking at images")? {
        let path = entry.during("looking at images")?.path();
        images = images.max(if path.is_dir() { allocated(&path)? } else { file(&path)? });
    }
    let mut ours = Growing::new("cold sandboxes, all their files");
    let mut copies = Growing::new("as many copies of the image (computed)");
    let (mut all, mut made) = (0, 0);
    let most = COLD[COLD.len() - 1].min(options.runs * A_RUN);
    for number in COLD.into_iter().filter(|number| *number <= most) {
        progress.step(&format!("scaling: cold sandboxes: {number} of {most}"))?;
        crowd::each(made..number, |one| {
            progress.go_on()?;
            let name = name(one);
            daemon.post("/sandboxes", &json!({ "name": name }))?;
            daemon.exec(&name, &["true"])?;
            daemon.post(&format!("/sandboxes/{name}/stop"), &json!({})).map(drop)
        })?;
        for one in made..number {
            all += allocated(&daemon.sandbox_dir(&name(one))?)?;
        }
        made = number;
        ours.push(count(number), alone(mib(all)));
        copies.push(count(number), alone(mib(images) * count(number)));
    }
    daemon.clear()?;
    progress.step("scaling: page cache of readers of one image")?;
    let before = cached(daemon)?;
    let mut cache = Growing::new("page cache of image and disks");
    let mut apart = Growing::new("the first one's, times their number (computed)");
    let mut one = 0.0;
    let mut made = 0;
    for number in READERS {
        crowd::each(made..number, |reader| {
            progress.go_on()?;
            let name = format!("reader-{reader}");
            daemon.post("/sandboxes", &json!({ "name": name, "keep_hot": true }))?;
            daemon.exec(&name, &["sh", "-c", READ]).map(drop)
        })?;
        made = number;
        let now = mib(cached(daemon)?.saturating_sub(before));
        if number == 1 {
            one = now;
        }
        cache.push(count(number), alone(now));
        apart.push(count(number), alone(one * count(number)));
    }
    Ok(vec![
        figure(
            "disk-clones",
            "Bytes on disk against the number of sandboxes",
            "sandboxes",
            "MiB",
            [ours, copies],
        ),
        figure(
            "cache-clones",
            "Page cache against the number of running sandboxes that read the image",
            "sandboxes",
            "MiB",
            [cache, apart],
        ),
    ])
}

fn name(number: usize) -> String {
    format!("clone-{number}")
}

fn file(path: &std::path::Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(path.metadata().during("looking at an image")?.blocks() * 512)
}
