//! `du`: where the bytes are, and whether that is true.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use api::{ObjectUsage, Usage, UsageFigures};
use sandbox::UsageCheck;
use serde::Serialize;
use types::Bytes;

use crate::args::{self, DuSort, Global};
use crate::client::{self, Client, sandbox_path};
use crate::failure::{FAILED, Failure, Result};
use crate::{output, table};

/// Bytes of each kind in the files that `--verify` makes.
const TRIAL: Bytes = Bytes(64 << 20);

/// How far a figure may be off.
const TOLERATED_PERCENT: f64 = 1.0;

pub async fn du(global: &Global, asked: args::Du) -> Result<u8> {
    let client = Client::new(global)?;
    if let Some(which) = &asked.sandbox {
        let usage: Usage = client.get(&format!("{}/usage", sandbox_path(which))).await?;
        if global.json {
            output::document(&usage);
        } else {
            files(&usage, asked.sort);
        }
        return Ok(0);
    }
    let usage: Usage = client.get("/usage").await?;
    if !asked.verify {
        if global.json {
            output::document(&usage);
        } else {
            everything(&usage, asked.sort);
        }
        return Ok(0);
    }
    let checks = verify(global, &client).await?;
    if global.json {
        output::document(&Verified { usage: &usage, verify: &checks });
    } else {
        everything(&usage, asked.sort);
        output::line("");
        for check in &checks {
            output::line(check.line());
        }
    }
    let off: Vec<_> = checks.iter().filter(|check| !check.is_near()).map(|check| check.what).collect();
    if off.is_empty() {
        return Ok(0);
    }
    // Not returned as a failure, for the document is on stdout already.
    let failure = Failure::new("usage_differs", format!("du: {} is off by more than 1%", off.join(", ")))
        .hint("if others write to this filesystem, or sandboxes are busy, try again when it is quiet");
    eprintln!("{failure}");
    Ok(FAILED)
}

/// One line of the table.
struct Row {
    kind: &'static str,
    name: String,
    figures: UsageFigures,
}

impl Row {
    fn cells(self) -> Vec<String> {
        let Self { kind, name, figures } = self;
        let bytes = [
            figures.apparent_bytes,
            figures.referenced_bytes,
            figures.physical_bytes,
            figures.exclusive_bytes,
        ];
        [kind.to_owned(), name].into_iter().chain(bytes.map(table::bytes)).collect()
    }
}

fn sorted(mut rows: Vec<Row>, sort: DuSort) -> Vec<Row> {
    let by = |of: fn(&UsageFigures) -> u64| move |row: &Row| std::cmp::Reverse(of(&row.figures));
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    match sort {
        DuSort::Name => {}
        DuSort::Exclusive => rows.sort_by_key(by(|figures| figures.exclusive_bytes)),
        DuSort::Physical => rows.sort_by_key(by(|figures| figures.physical_bytes)),
        DuSort::Referenced => rows.sort_by_key(by(|figures| figures.referenced_bytes)),
        DuSort::Apparent => rows.sort_by_key(by(|figures| figures.apparent_bytes)),
    }
    rows
}

fn print(rows: impl IntoIterator<Item = Row>, usage: &Usage) {
    let rows: Vec<_> = rows.into_iter().map(Row::cells).collect();
    let header = ["KIND", "NAME", "APPARENT", "REFERENCED", "PHYSICAL", "EXCLUSIVE"];
    output::bytes(table::render(&header, &rows).as_bytes());
    output::line(format!("\n{}", sentence(&usage.total)));
    if let Some(note) = &usage.note {
        eprintln!("warning: {note}");
    }
}

/// The two ratios, as people would say them.
fn sentence(total: &UsageFigures) -> String {
    let UsageFigures { referenced_bytes, unique_bytes, physical_bytes, .. } = *total;
    format!(
        "{} are referenced. Sharing makes them {} ({}), compression {} ({}): {} together.",
        table::bytes(referenced_bytes),
        table::bytes(unique_bytes),
        times(total.dedup_ratio),
        table::bytes(physical_bytes),
        times(total.compression_ratio),
        times(total.dedup_ratio * total.compression_ratio),
    )
}

fn times(ratio: f64) -> String {
    if ratio < 9.95 { format!("{ratio:.1}x") } else { format!("{ratio:.0}x") }
}

/// The whole, owners, sandboxes, snapshots and volumes, then what they share.
fn everything(usage: &Usage, sort: DuSort) {
    let mut rows = vec![Row { kind: "total", name: String::new(), figures: usage.total }];
    let nobody = || "(unreadable)".to_owned();
    if usage.owners.len() > 1 {
        let owner = |of: &api::OwnerUsage| Row {
            kind: "owner",
            name: of.owner.clone().unwrap_or_else(nobody),
            figures: of.figures,
        };
        rows.extend(sorted(usage.owners.iter().map(owner).collect(), sort));
    }
    let owned = |owner: &Option<String>, name: &str| match owner {
        Some(owner) if usage.owners.len() > 1 => format!("{owner}/{name}"),
        _ => name.to_owned(),
    };
    let sandbox = |of: &api::SandboxUsage| Row {
        kind: "sandbox",
        name: of.name.as_ref().map_or_else(|| of.id.clone(), |name| owned(&of.owner, name)),
        figures: of.figures,
    };
    rows.extend(sorted(usage.sandboxes.iter().map(sandbox).collect(), sort));
    let snapshot = |of: &api::SnapshotUsage| Row {
        kind: "snapshot",
        name: owned(&of.owner, &of.name),
        figures: of.figures,
    };
    rows.extend(sorted(usage.snapshots.iter().map(snapshot).collect(), sort));
    let mut rest = UsageFigures::default();
    for (kind, plain) in SHOWN {
        let of_kind = usage.objects.iter().filter(|object| object.kind == kind);
        rows.extend(sorted(of_kind.map(|object| object_row(plain, object)).collect(), sort));
    }
    for object in usage.objects.iter().filter(|object| SHOWN.iter().all(|(kind, _)| object.kind != *kind)) {
        add(&mut rest, &object.figures);
    }
    rows.push(Row { kind: "other", name: "index, logs, directories".to_owned(), figures: rest });
    print(rows, usage);
    let copies = copies_saved(usage);
    if copies > 0 {
        output::line(copies_sentence(&usage.total, copies));
    }
}

/// What sandboxes and snapshots would have to have beside their own files if each had copies of what it lies on.
fn copies_saved(usage: &Usage) -> u64 {
    let of = |files: &[api::FileUsage], lies_on: &[String]| -> u64 {
        let sleeps = files.iter().any(|file| file.kind == "memory");
        let under = usage.objects.iter().filter(|object| lies_on.contains(&object.path));
        under
            .flat_map(|object| &object.files)
            .filter(|file| match file.kind.as_str() {
                "layer" => true,
                // Its other names are the same file.
                "image" => lies_on.contains(&file.path),
                // Memory is on the disk for those that sleep.
                "base" => sleeps,
                _ => false,
            })
            .map(|file| file.figures.referenced_bytes)
            .sum()
    };
    let sandboxes = usage.sandboxes.iter().map(|sandbox| of(&sandbox.files, &sandbox.lies_on));
    let snapshots = usage.snapshots.iter().map(|snapshot| of(&snapshot.files, &snapshot.lies_on));
    sandboxes.chain(snapshots).sum()
}

fn copies_sentence(total: &UsageFigures, copies: u64) -> String {
    let all = total.referenced_bytes.saturating_add(copies);
    format!(
        "With copies of what they lie on, sandboxes and snapshots would reference {} more: {} in all, {} of what is on \
         the disk.",
        table::bytes(copies),
        table::bytes(all),
        times(all as f64 / total.physical_bytes.max(1) as f64),
    )
}

/// Kinds of objects that have a line each.
const SHOWN: [(&str, &str); 8] = [
    ("volume", "volume"),
    ("image", "image"),
    ("template", "template"),
    ("layer", "layer"),
    ("base", "base"),
    ("kernel", "kernel"),
    ("staging", "in the making"),
    ("quarantine", "quarantine"),
];

fn object_row(kind: &'static str, object: &ObjectUsage) -> Row {
    Row { kind, name: object.name.clone(), figures: object.figures }
}

/// Adds what shares nothing with the rest.
fn add(sum: &mut UsageFigures, figures: &UsageFigures) {
    sum.apparent_bytes += figures.apparent_bytes;
    sum.referenced_bytes += figures.referenced_bytes;
    sum.physical_bytes += figures.physical_bytes;
    sum.exclusive_bytes += figures.exclusive_bytes;
}

/// One sandbox, file by file, then what it lies on.
fn files(usage: &Usage, sort: DuSort) {
    let mut rows = Vec::new();
    for sandbox in &usage.sandboxes {
        let name = sandbox.name.clone().unwrap_or_else(|| sandbox.id.clone());
        rows.push(Row { kind: "sandbox", name, figures: sandbox.figures });
        let own = Path::new("sandboxes").join(&sandbox.id);
        let file = |file: &api::FileUsage| {
            let path = Path::new(&file.path);
            let name = path.strip_prefix(&own).unwrap_or(path);
            // The directory itself.
            let name = if name.as_os_str().is_empty() { "./".to_owned() } else { name.display().to_string() };
            Row { kind: "  file", name, figures: file.figures }
        };
        let told =
            sandbox.files.iter().filter(|file| file.figures.apparent_bytes + file.figures.physical_bytes > 0);
        rows.extend(sorted(told.map(file).collect(), sort));
    }
    let shared = |(kind, plain): (&str, &'static str)| {
        let of_kind = usage.objects.iter().filter(|object| object.kind == kind);
        of_kind.map(|object| object_row(plain, object)).collect::<Vec<_>>()
    };
    rows.extend(
        SHOWN.into_iter().flat_map(shared).map(|row| Row { name: format!("{} (shared)", row.name), ..row }),
    );
    print(rows, usage);
}

/// The reply with what was found out about it.
#[derive(Serialize)]
struct Verified<'a> {
    #[serde(flatten)]
    usage: &'a Usage,
    verify: &'a [Check],
}

/// One figure, told by us and by somebody else.
#[derive(Debug, Serialize)]
struct Check {
    /// Which figure.
    what: &'static str,
    /// Who else was asked.
    against: &'static str,
    /// `None` when nobody could be asked.
    theirs_bytes: Option<u64>,
    ours_bytes: u64,
    difference_percent: Option<f64>,
    /// Why nobody could be asked.
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'static str,
}

impl Check {
    fn new(what: &'static str, against: &'static str, ours: u64, theirs: Result<u64, &'static str>) -> Self {
        let difference = theirs.ok().map(|theirs| {
            let off = ours.abs_diff(theirs) as f64 * 100.0 / theirs.max(1) as f64;
            let signed = if ours < theirs { -off } else { off };
            (signed * 1e3).round() / 1e3
        });
        Self {
            what,
            against,
            theirs_bytes: theirs.ok(),
            ours_bytes: ours,
            difference_percent: difference,
            reason: theirs.err().unwrap_or_default(),
        }
    }

    fn is_near(&self) -> bool {
        self.difference_percent.is_none_or(|percent| percent.abs() <= TOLERATED_PERCENT)
    }

    fn line(&self) -> String {
        let Self { what, against, theirs_bytes, ours_bytes, difference_percent, reason } = self;
        match (theirs_bytes, difference_percent) {
            (Some(theirs), Some(percent)) => {
                let verdict = if self.is_near() { "ok" } else { "OFF" };
                format!("{verdict}  {what}: {ours_bytes} bytes, {against} says {theirs} ({percent:+.3}%)")
            }
            _ => format!("--  {what}: not compared with {against}: {reason}"),
        }
    }
}

/// Compares the daemon's figures with those of others.
async fn verify(global: &Global, client: &Client) -> Result<Vec<Check>> {
    let check = UsageCheck::open(data_dir_of(global, client).await?).await?;
    // Written out first, so that everybody sees the same.
    check.free().await?;
    let usage: Usage = client.get("/usage").await?;
    let found = compsize(check.root());
    let mut checks = vec![
        Check::new("physical", "compsize", usage.total.physical_bytes, found.map(|found| found.disk)),
        Check::new("unique", "compsize", usage.total.unique_bytes, found.map(|found| found.uncompressed)),
    ];
    if found == Err(NOT_ITS_FILESYSTEM) {
        checks.truncate(1);
    }

    let physical = || async { client.get::<Usage>("/usage").await.map(|usage| usage.total.physical_bytes) };
    let (before, free_before) = (physical().await?, check.free().await?);
    let trial = check.trial(TRIAL).await?;
    let (after, free_after) = (physical().await?, check.free().await?);
    drop(trial);
    let (ours, theirs) = (after.saturating_sub(before), free_before.0.saturating_sub(free_after.0));
    checks.push(Check::new("what new files take", "statfs", ours, Ok(theirs)));
    Ok(checks)
}

/// The daemon's own data directory, which must be on this host.
async fn data_dir_of(global: &Global, client: &Client) -> Result<PathBuf> {
    // A host without a VMM cannot tell its version; then it is the one that is meant here.
    let dir = match client.get::<api::Version>("/version").await {
        Ok(version) => PathBuf::from(version.data_dir),
        Err(_) => client::data_dir(global)?,
    };
    if dir.join("bhatti.db").exists() {
        return Ok(dir);
    }
    Err(Failure::new(
        "not_here",
        format!("du --verify: the daemon's data directory {} is not here", dir.display()),
    )
    .hint("run it on the daemon's host, as the daemon's user"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Compsize {
    disk: u64,
    uncompressed: u64,
}

const NOT_ITS_FILESYSTEM: &str = "it answers for btrfs only, and as root";

/// Asks compsize(8), where it is installed and answers.
fn compsize(root: &Path) -> Result<Compsize, &'static str> {
    let mut command = Command::new("compsize");
    let output = command.arg("-b").arg("--").arg(root).stdin(Stdio::null()).output();
    let output = output.map_err(|_| "it is not installed (Debian: btrfs-compsize)")?;
    read_compsize(&String::from_utf8_lossy(&output.stdout)).ok_or(NOT_ITS_FILESYSTEM)
}

/// `TOTAL  68%  42612250  61922327  147905559`
fn read_compsize(text: &str) -> Option<Compsize> {
    let total = text.lines().find(|line| line.starts_with("TOTAL"))?;
    let mut columns = total.split_whitespace().skip(2).map(str::parse);
    Some(Compsize { disk: columns.next()?.ok()?, uncompressed: columns.next()?.ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_compsize_prints_is_read() {
        let text = "Processed 19 files, 163 regular extents (224 refs), 5 inline.\n\
                    Type       Perc     Disk Usage   Uncompressed Referenced  \n\
                    TOTAL       68%     42612250     61922327     147905559   \n\
                    none       100%     41979919     41979919     121671695   \n";
        assert_eq!(read_compsize(text), Some(Compsize { disk: 42_612_250, uncompressed: 61_922_327 }));
        assert_eq!(read_compsize("Not btrfs (or SEARCH_V2 unsupported): \"/\"\n"), None);
    }

    #[test]
    fn a_figure_is_near_within_one_percent_either_way() {
        let near = |ours, theirs| Check::new("physical", "compsize", ours, Ok(theirs)).is_near();
        assert!(near(1000, 1010) && near(1010, 1000) && near(0, 0));
        assert!(!near(1011, 1000) && !near(985, 1000) && !near(1, 0));
        let unasked = Check::new("physical", "compsize", 5, Err("why"));
        assert!(unasked.is_near() && unasked.line().ends_with("not compared with compsize: why"));
        assert!(Check::new("a", "b", 99, Ok(100)).line().contains("(-1.000%)"));
    }

    #[test]
    fn the_ratios_are_said_in_a_sentence() {
        let total = UsageFigures {
            referenced_bytes: 571 << 30,
            unique_bytes: 220 << 30,
            physical_bytes: 95 << 30,
            dedup_ratio: 2.6,
            compression_ratio: 2.316,
            ..UsageFigures::default()
        };
        assert_eq!(
            sentence(&total),
            "571.0 GiB are referenced. Sharing makes them 220.0 GiB (2.6x), compression 95.0 GiB (2.3x): 6.0x together."
        );
        assert_eq!(times(12.4), "12x");
    }

    fn figures(referenced: u64, physical: u64) -> UsageFigures {
        UsageFigures { referenced_bytes: referenced, physical_bytes: physical, ..UsageFigures::default() }
    }

    #[test]
    fn what_is_not_copied_is_counted_for_each_that_lies_on_it() {
        let file = |kind: &str, path: &str, referenced| api::FileUsage {
            kind: kind.to_owned(),
            path: path.to_owned(),
            figures: figures(referenced, referenced),
        };
        let object = |kind: &str, path: &str, files: Vec<api::FileUsage>| ObjectUsage {
            kind: kind.to_owned(),
            name: String::new(),
            path: path.to_owned(),
            owner: None,
            figures: figures(1 << 40, 1 << 40),
            files,
        };
        let sandbox = |sleeps: bool| api::SandboxUsage {
            id: String::new(),
            name: None,
            owner: None,
            figures: UsageFigures::default(),
            files: sleeps.then(|| file("memory", "m", 9)).into_iter().collect(),
            lies_on: ["i", "t", "k"].map(str::to_owned).to_vec(),
        };
        let usage = Usage {
            exact: true,
            note: None,
            method: "fiemap".to_owned(),
            total: figures(1 << 20, 1 << 20),
            owners: Vec::new(),
            sandboxes: vec![sandbox(false), sandbox(true)],
            snapshots: Vec::new(),
            objects: vec![
                object("image", "i", vec![file("image", "i", 100), file("image", "link", 100)]),
                object("template", "t", vec![file("base", "t/ram", 30), file("root_disk", "t/disk", 5)]),
                object("kernel", "k", vec![file("kernel", "k/vmlinuz", 7)]),
                object("layer", "l", vec![file("layer", "l", 5)]),
            ],
        };
        assert_eq!(copies_saved(&usage), 100 + 100 + 30);
        assert!(copies_sentence(&usage.total, 1 << 20).contains("2.0 MiB in all, 2.0x of"));
    }
}
