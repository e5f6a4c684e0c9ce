//! What lies on the disk: one memory image, one stopped sandbox, and all of many users' together.

use serde_json::json;
use storage::{Figures, UsageKind};

use super::{Across, Bed, Found};
use crate::error::{Error, Result};
use crate::sample::mib;

/// Size of the guest, and what it does before it sleeps: reads much of the system, and has some files of its own.
const MEMORY_MIB: u32 = 1024;
const WORK: &str = "cat /usr/bin/* > /dev/null; seq 1 1000000 > /root/numbers; sync";

/// Columns of the table.
pub(super) const HEAD: [&str; 7] =
    ["filesystem", "artefact", "apparent", "physical", "ratio", "by sharing", "by compression"];

/// A line of the table.
pub(super) fn line(bed: &Bed<'_>, what: &str, figures: &Figures) -> Vec<String> {
    let size = |bytes: u64| format!("{:.1} MiB", mib(bytes));
    let (apparent, physical) = (figures.apparent.0, figures.physical.0);
    vec![
        bed.fs.clone(),
        what.to_owned(),
        size(apparent),
        size(physical),
        format!("{:.1}x", mib(apparent) / mib(physical)),
        format!("{:.2}x", figures.dedup_ratio()),
        format!("{:.2}x", figures.compression_ratio()),
    ]
}

pub(super) fn measure(bed: &Bed<'_>, across: &mut Across) -> Result<Found> {
    const NAME: &str = "artefacts";
    bed.daemon.post("/sandboxes", &json!({ "name": NAME, "memory_mb": MEMORY_MIB }))?;
    bed.sh(NAME, WORK)?;
    bed.daemon.post(&format!("/sandboxes/{NAME}/stop"), &json!({}))?;
    let usage = super::accounts::Standing::of(bed)?.usage;
    let during = "looking at a stopped sandbox";
    let all = usage.sandboxes.iter();
    let sandbox = all.into_iter().find(|one| one.name.as_ref().is_some_and(|name| name.as_str() == NAME));
    let sandbox = sandbox.ok_or_else(|| Error::new(during, "usage does not tell of it"))?;
    let memory = sandbox.files.iter().find(|file| file.kind == UsageKind::Memory);
    let memory = memory.ok_or_else(|| Error::new(during, "it has no memory image"))?;
    across.artefacts.push(line(bed, &format!("one `mem.snap` of {MEMORY_MIB} MiB"), &memory.figures));
    across.artefacts.push(line(bed, "that stopped sandbox, all its files", &sandbox.figures));
    bed.daemon.delete(NAME)?;
    Ok(Found::default())
}
