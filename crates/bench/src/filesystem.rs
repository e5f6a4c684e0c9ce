//! Clones, snapshots, forks, and where the bytes are: the same measurements on one filesystem after the other.

mod accounts;
mod artefacts;
mod backups;
mod clones;
mod cold;
mod fork;
mod memory;
mod much_memory;
mod pause;
mod resumes;
mod stall;

use std::path::{Path, PathBuf};

use serde_json::json;
use storage::{ImageRecord, RamBase, Store, TemplateRecord};
use types::{Arch, SandboxId};

use crate::daemon::Daemon;
use crate::error::{During as _, Error, Result};
use crate::pages::Pages;
use crate::place::{Filesystem, Mounted, device_of};
use crate::progress::Progress;
use crate::sample::Sample;
use crate::table::{Row, Section, Table, Target};
use crate::{Options, data};

/// What one part of the suite has found.
#[derive(Default)]
struct Found {
    rows: Vec<Row>,
    notes: Vec<String>,
}

/// What is compared between filesystems.
#[derive(Default)]
struct Across {
    /// Whether the rest is left out.
    only_snapshots: bool,
    /// A guest's memory, the same one everywhere.
    pages: Option<Pages>,
    /// MiB on the disk that it takes as a memory image, by filesystem.
    image_mib: Vec<(String, f64)>,
    /// MiB on the disk of a cold sandbox, by filesystem.
    cold_mib: Vec<(String, f64)>,
    /// Lines of the table of clones.
    clones: Vec<Vec<String>>,
    /// Lines of the table of what lies on the disk.
    artefacts: Vec<Vec<String>>,
}

impl Across {
    /// The tables that set the filesystems beside each other.
    fn tables(self, rows: &[Row]) -> Vec<Table> {
        let table = |title: &str, head: &[&str], lines| Table {
            title: title.to_owned(),
            head: head.iter().map(|&word| word.to_owned()).collect(),
            lines,
        };
        let tables = [
            table("What a clone is, by filesystem", &clones::HEAD, self.clones),
            table("What lies on the disk", &artefacts::HEAD, self.artefacts),
            point_by_point(rows),
        ];
        tables.into_iter().filter(|table| !table.lines.is_empty()).collect()
    }
}

/// The medians of all rows that several filesystems have, side by side.
fn point_by_point(rows: &[Row]) -> Table {
    const KINDS: [&str; 3] = ["ext4", "btrfs", "xfs"];
    let mut lines: Vec<Vec<String>> = Vec::new();
    for row in rows.iter().filter(|row| row.missing.is_none()) {
        let Some((step, kind)) = row.step.rsplit_once(", ") else { continue };
        let Some(at) = KINDS.iter().position(|&known| known == kind) else { continue };
        let place = lines.iter().position(|line| line[0] == step).unwrap_or_else(|| {
            lines.push(vec![step.to_owned(), String::new(), String::new(), String::new()]);
            lines.len() - 1
        });
        lines[place][at + 1] = row.median();
    }
    lines.retain(|line| line[1..].iter().filter(|cell| !cell.is_empty()).count() > 1);
    let head = std::iter::once("step").chain(KINDS).map(str::to_owned).collect();
    Table { title: "Point by point, medians".to_owned(), head, lines }
}

/// One filesystem with a daemon on it.
struct Bed<'a> {
    options: &'a Options,
    progress: Progress<'a>,
    /// The filesystem's name.
    fs: String,
    daemon: Daemon,
    store: Store,
    /// The device that holds it.
    device: PathBuf,
    image: ImageRecord,
    /// The template that sandboxes are cloned from.
    template: TemplateRecord,
    /// Whether the filesystem shares extents.
    reflink: bool,
}

/// Measures on every filesystem that was asked for, or that can be had here: all, or what concerns snapshots.
pub(crate) fn measure(
    options: &Options,
    progress: Progress<'_>,
    all: bool,
    host: &mut Vec<(String, String)>,
) -> Result<Section> {
    let mut section = Section::default();
    let root = rustix::process::geteuid().is_root();
    let kinds = match options.on.as_slice() {
        [] if root => vec![Filesystem::Ext4, Filesystem::Btrfs, Filesystem::Xfs],
        [] => {
            let why = "only root can mount them; here is the filesystem of the data directory";
            section.rows.push(Row::missing("storage on ext4, btrfs and xfs", why));
            vec![Filesystem::Here]
        }
        on => on.to_vec(),
    };
    let mut across = Across { only_snapshots: !all, ..Across::default() };
    if root {
        // Nobody else sees what is mounted, and what is left of it goes with this thread and its children.
        image::with_mounts_of_own(|| on_each(&kinds, options, progress, &mut across, host, &mut section))?;
    } else {
        on_each(&kinds, options, progress, &mut across, host, &mut section)?;
    }
    section.tables.splice(..0, across.tables(&section.rows));
    Ok(section)
}

fn on_each(
    kinds: &[Filesystem],
    options: &Options,
    progress: Progress<'_>,
    across: &mut Across,
    host: &mut Vec<(String, String)>,
    section: &mut Section,
) -> Result<()> {
    for &kind in kinds {
        match on_one(kind, options, progress, across, host, section) {
            Err(error) if error.is_interrupted() => return Err(error),
            Err(error) => section.rows.push(Row::missing(format!("everything on {}", kind.name()), error)),
            Ok(()) => {}
        }
    }
    let unlike = |step: &str, figures: &[(String, f64)], section: &mut Section| {
        let by_size = |a: &&(String, f64), b: &&(String, f64)| a.1.total_cmp(&b.1);
        let (most, least) = (figures.iter().max_by(by_size), figures.iter().min_by(by_size));
        let (Some(most), Some(least), true) = (most, least, figures.len() > 1) else { return };
        let alone = |figure: f64| Sample { values: vec![figure] };
        let row = Row::new(format!("{step}: {}, the most", most.0), "MiB", alone(most.1));
        let row = row.against(format!("{}, the least", least.0), alone(least.1));
        section.rows.push(row.target(Target::AtMostTimes(1.2)));
    };
    unlike("bytes of a cold sandbox with 1 MiB of its own", &across.cold_mib, section);
    unlike("bytes of one memory image", &across.image_mib, section);
    Ok(())
}

fn on_one(
    kind: Filesystem,
    options: &Options,
    progress: Progress<'_>,
    across: &mut Across,
    host: &mut Vec<(String, String)>,
    section: &mut Section,
) -> Result<()> {
    progress.step(&format!("{}: preparing it", kind.name()))?;
    // The daemon goes before the filesystem that it is on: in reverse order of these.
    let mounted = match kind {
        Filesystem::Here => None,
        _ => Some(Mounted::new(&options.scratch, kind)?),
    };
    let dir = match &mounted {
        Some(mounted) => data::copied(options, mounted.at())?,
        None => data::linked(options)?,
    };
    let device = match &mounted {
        Some(mounted) => mounted.device().to_owned(),
        None => device_of(dir.path())?,
    };
    let daemon = Daemon::start(options, dir, progress)?;
    let bed = Bed::new(options, progress, daemon, device)?;
    if host.is_empty() {
        *host = bed.daemon.describe()?;
        crate::compare::same_host(options, host)?;
    }
    type Part = fn(&Bed<'_>, &mut Across) -> Result<Found>;
    let snapshots: [(&str, Part); 3] =
        [("named snapshots", pause::measure), ("fork", fork::measure), ("resumes", resumes::measure)];
    let rest: [(&str, Part); 8] = [
        ("clones", clones::measure),
        ("cold sandboxes", cold::measure),
        ("artefacts", artefacts::measure),
        ("much private memory", much_memory::measure),
        ("memory images", memory::measure),
        ("backups of volumes", backups::measure),
        ("copies of a volume that is written to", stall::measure),
        ("compsize", accounts::compsize),
    ];
    let rest = if across.only_snapshots { &rest[..0] } else { &rest[..] };
    for &(what, part) in snapshots.iter().chain(rest) {
        progress.step(&format!("{}: {what}", bed.fs))?;
        match part(&bed, across) {
            Ok(found) => {
                section.rows.extend(found.rows);
                section.notes.extend(found.notes.into_iter().map(|note| format!("{}: {note}", bed.fs)));
            }
            Err(error) if error.is_interrupted() => return Err(error),
            Err(error) => section.rows.push(Row::missing(format!("{what}, {}", bed.fs), error)),
        }
        bed.daemon.clear()?;
    }
    if section.tables.is_empty()
        && let Some(pages) = &across.pages
    {
        progress.step("compression levels")?;
        section.tables.push(memory::levels(&bed, pages)?);
    }
    Ok(())
}

impl<'a> Bed<'a> {
    fn new(options: &'a Options, progress: Progress<'a>, daemon: Daemon, device: PathBuf) -> Result<Self> {
        let store = Store::open(daemon.data_dir()).during("opening the data directory")?;
        let can = store.probe().during("probing the filesystem")?;
        // What a sandbox is made from here, its own manifest tells.
        let id = daemon.post("/sandboxes", &json!({ "name": "shape" }))?["id"].clone();
        let id: SandboxId = id.as_str().unwrap_or_default().parse().during("reading a sandbox's id")?;
        let manifest = store.sandbox(&id).manifest().during("reading a manifest")?;
        daemon.delete("shape")?;
        let RamBase::Template { key, .. } = &manifest.ram_base else {
            return Err(Error::new("looking for the template", "a new sandbox is not made from one"));
        };
        let template = store.templates().get(key).during("reading the template")?;
        let template = template.ok_or_else(|| Error::new("reading the template", "it is gone"))?;
        let image =
            store.images().resolve(&manifest.image.name, Arch::host()).during("looking for the image")?;
        Ok(Self {
            options,
            progress,
            fs: can.fs_type,
            daemon,
            store,
            device,
            image,
            template,
            reflink: can.reflink,
        })
    }

    /// A row's name, with the filesystem.
    fn step(&self, what: &str) -> String {
        format!("{what}, {}", self.fs)
    }

    fn create(&self, name: &str) -> Result<()> {
        self.daemon.post("/sandboxes", &json!({ "name": name, "keep_hot": true }))?;
        self.daemon.exec(name, &["true"]).map(drop)
    }

    /// Removes every volume's backups.
    fn drop_backups(&self) -> Result<()> {
        std::fs::remove_dir_all(self.daemon.data_dir().join("backups")).during("removing the backups")
    }

    fn sh(&self, name: &str, script: &str) -> Result<()> {
        self.daemon.root_script(name, script).map(drop)
    }

    /// Bytes read so far from the device that holds the filesystem.
    fn bytes_read(&self) -> Result<u64> {
        let during = "reading the device's statistics";
        let name = self.device.file_name().ok_or_else(|| Error::new(during, self.device.display()))?;
        let path = Path::new("/sys/class/block").join(name).join("stat");
        let stat = std::fs::read_to_string(path).during(during)?;
        // Documentation/block/stat.rst: the third number counts sectors of 512 bytes.
        let sectors: u64 = stat.split_whitespace().nth(2).unwrap_or_default().parse().during(during)?;
        Ok(sectors * 512)
    }
}
