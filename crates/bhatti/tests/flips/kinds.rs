//! The kinds of files, where in them damage is done, and what uses them.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// How a file is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// The sandbox `a` is woken.
    Wake,
    /// The sandbox `a` is booted from its disk.
    Boot,
    /// A sandbox is made of the snapshot `s`.
    Resume,
    /// A sandbox is made.
    Create,
    /// The volume `kept` is restored from its backup.
    Restore,
    /// The volume `kept` is attached to `a`, which wakes.
    Attach,
    /// The daemon is started.
    Serve,
}

/// Where in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    All,
    /// Header, names below it and tables of a qcow2.
    Tables,
    /// Blocks of data of a qcow2.
    Blocks,
    /// The tables of a memory image, and the frames.
    Content,
}

/// A kind of file.
#[derive(Debug)]
pub struct Kind {
    pub name: &'static str,
    pub used: Use,
    pub part: Part,
    /// Below the data directory; `*` is any one name, `{a}` the id of that sandbox.
    pub path: &'static str,
    /// All of these are in the message of a refusal at use.
    pub says: &'static [&'static str],
    /// Why nobody keeps a checksum of it, where nobody does.
    pub unpromised: Option<&'static str>,
}

const GUEST_DATA: &str =
    "blocks that a guest may write at any time have no checksum but its filesystem's own";

const fn kind(
    name: &'static str,
    used: Use,
    part: Part,
    path: &'static str,
    says: &'static [&'static str],
) -> Kind {
    Kind { name, used, part, path, says, unpromised: None }
}

pub const KINDS: [Kind; 20] = [
    kind(
        "mem.snap",
        Use::Wake,
        Part::Content,
        "sandboxes/{a}/mem.snap",
        &["mem.snap", "sandbox a", "--discard-memory"],
    ),
    kind(
        "vm.snap",
        Use::Wake,
        Part::All,
        "sandboxes/{a}/vm.snap",
        &["vm.snap", "sandbox a", "--discard-memory"],
    ),
    kind("manifest", Use::Wake, Part::All, "sandboxes/{a}/manifest.json", &["manifest", "sandbox a", "{a}"]),
    kind(
        "root overlay: tables",
        Use::Wake,
        Part::Tables,
        "sandboxes/{a}/rootfs.qcow2",
        &["root disk", "sandbox a"],
    ),
    Kind {
        unpromised: Some(GUEST_DATA),
        ..kind("root overlay: blocks", Use::Wake, Part::Blocks, "sandboxes/{a}/rootfs.qcow2", &["root disk"])
    },
    kind("config drive", Use::Boot, Part::All, "sandboxes/{a}/config.ext4", &["config", "a"]),
    kind("layer: tables", Use::Wake, Part::Tables, "layers/*.qcow2", &["layer"]),
    kind("layer: blocks", Use::Wake, Part::Blocks, "layers/*.qcow2", &["layer"]),
    kind("layer's seal", Use::Wake, Part::All, "layers/*.json", &["layer"]),
    kind("snapshot's manifest", Use::Resume, Part::All, "snapshots/admin/s/manifest.json", &["s"]),
    kind(
        "snapshot's mem.snap",
        Use::Resume,
        Part::Content,
        "snapshots/admin/s/mem.snap",
        &["mem.snap", "snapshot s"],
    ),
    kind(
        "snapshot's vm.snap",
        Use::Resume,
        Part::All,
        "snapshots/admin/s/vm.snap",
        &["vm.snap", "snapshot s"],
    ),
    kind("base image", Use::Create, Part::All, "images/rootfs-minimal-*.ext4", &["image", "minimal"]),
    kind("image's record", Use::Create, Part::All, "images/rootfs-minimal-*.json", &["image", "minimal"]),
    kind("RAM base", Use::Wake, Part::All, "templates/*/ram.base", &["ram.base", "a"]),
    kind("template's record", Use::Create, Part::All, "templates/*/manifest.json", &["template"]),
    kind("backup's chunk", Use::Restore, Part::All, "backups/admin/kept/chunks/*/*", &["chunk", "kept"]),
    kind("backup's manifest", Use::Restore, Part::All, "backups/admin/kept/backups/*.json", &["backup"]),
    kind("volume's record", Use::Attach, Part::All, "volumes/admin/kept.json", &["kept"]),
    kind("index", Use::Serve, Part::All, "bhatti.db", &["index"]),
];

/// The file that a pattern means, the first of several.
pub fn find(root: &Path, pattern: &str, a: &str) -> PathBuf {
    let mut at = vec![root.to_owned()];
    for part in pattern.replace("{a}", a).split('/') {
        let matches = |name: &str| match part.split_once('*') {
            None => name == part,
            Some((before, after)) => name.starts_with(before) && name.ends_with(after) && name != "zero",
        };
        let mut next = Vec::new();
        for dir in &at {
            for entry in std::fs::read_dir(dir).into_iter().flatten() {
                let entry = entry.expect("an entry");
                if matches(&entry.file_name().to_string_lossy()) {
                    next.push(entry.path());
                }
            }
        }
        next.sort();
        at = next;
    }
    at.into_iter().next().unwrap_or_else(|| panic!("nothing is at {pattern}"))
}

/// The pieces of a file that have data: offset and length each.
fn data(file: &File) -> Vec<(u64, u64)> {
    use rustix::fs::{SeekFrom, seek};
    let (mut pieces, mut at) = (Vec::new(), 0);
    while let Ok(start) = seek(file, SeekFrom::Data(at)) {
        at = seek(file, SeekFrom::Hole(start)).expect("an end");
        pieces.push((start, at - start));
    }
    pieces
}

impl Kind {
    /// The pieces of the file in which damage is done.
    pub fn pieces(&self, path: &Path) -> Vec<(u64, u64)> {
        let file = File::open(path).expect("the file");
        let number = |at: u64, len: usize| {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes[8 - len..], at).expect("a number");
            u64::from_be_bytes(bytes)
        };
        match self.part {
            Part::All => data(&file),
            Part::Content => {
                // Little-endian: runs, frames, private pages, body offset and length (docs/formats/mem-snap.md).
                let little = |at, len| number(at, len).swap_bytes() >> (64 - 8 * len);
                let tables = 160 + little(64, 4) * 8 + little(72, 8).div_ceil(8) + little(68, 4) * 24;
                vec![(0, tables), (little(88, 8), little(96, 8))]
            }
            Part::Tables | Part::Blocks => {
                // docs/interop/qcow2 of QEMU.
                let cluster = 1 << number(20, 4);
                let (first, entries) = (number(40, 8), number(36, 4));
                let offset = |at: u64| number(at, 8) & 0x00ff_ffff_ffff_fe00;
                let second: Vec<u64> =
                    (0..entries).map(|n| offset(first + n * 8)).filter(|at| *at > 0).collect();
                if self.part == Part::Tables {
                    let header = number(8, 8) + number(16, 4);
                    let mut pieces = vec![(0, header), (first, entries * 8)];
                    pieces.extend(second.iter().map(|at| (*at, cluster)));
                    return pieces;
                }
                let blocks =
                    |table: &u64| (0..cluster / 8).map(|n| offset(table + n * 8)).collect::<Vec<_>>();
                second.iter().flat_map(blocks).filter(|at| *at > 0).map(|at| (at, cluster)).collect()
            }
        }
    }
}
