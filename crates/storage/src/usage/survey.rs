//! The walk over the data root, from names and files to figures.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use types::{Bytes, ContentId, Owner, SnapshotName, StorageLayout};

use crate::layout;
use crate::manifest::{LayerFormat, Manifest, RamBase};
use crate::store::Store;
use crate::usage::gauge::{Gauge, Measured, Source};
use crate::usage::ledger::{Balance, InodeId, Ledger, NodeId};
use crate::usage::place::{self, Place, Thing};
use crate::usage::{
    Figures, FileUsage, ObjectUsage, OwnerUsage, SandboxUsage, SnapshotUsage, Usage, UsageKind, UsageMethod,
};

/// A file that was found.
#[derive(Debug)]
struct Found {
    thing: usize,
    kind: UsageKind,
    path: PathBuf,
    node: NodeId,
}

/// What goes on while the data root is walked.
pub(crate) struct Survey {
    gauge: Gauge,
    ledger: Ledger,
    owners: BTreeMap<Option<Owner>, NodeId>,
    things: Vec<(Thing, NodeId)>,
    by_thing: HashMap<Thing, usize>,
    manifests: HashMap<String, Manifest>,
    found: Vec<Found>,
    /// Inodes with several names: which it is, in which thing it was found first, and how many names are still to come.
    linked: HashMap<(u64, u64), (InodeId, usize, u64)>,
    /// The image of each name below `images/`.
    images: BTreeMap<String, usize>,
    unreadable: u64,
}

impl Survey {
    pub(crate) fn new() -> Self {
        Self {
            gauge: Gauge::default(),
            ledger: Ledger::new(),
            owners: BTreeMap::new(),
            things: Vec::new(),
            by_thing: HashMap::new(),
            manifests: HashMap::new(),
            found: Vec::new(),
            linked: HashMap::new(),
            images: BTreeMap::new(),
            unreadable: 0,
        }
    }

    /// Looks at everything below the data root, each directory's names in their order: objects come before their links.
    pub(crate) fn walk(&mut self, root: &Path) -> io::Result<()> {
        let mut todo = self.names_below(root, PathBuf::new())?;
        self.take(root, Path::new(""));
        while let Some(path) = todo.pop() {
            if self.take(root, &path).is_some_and(|meta| meta.is_dir()) {
                match self.names_below(root, path) {
                    Ok(names) => todo.extend(names),
                    Err(error) => self.missed(&error),
                }
            }
        }
        Ok(())
    }

    /// The names in a directory, the last first.
    fn names_below(&self, root: &Path, dir: PathBuf) -> io::Result<Vec<PathBuf>> {
        let names: io::Result<Vec<_>> =
            fs::read_dir(root.join(&dir))?.map(|entry| Ok(dir.join(entry?.file_name()))).collect();
        let mut names = names?;
        names.sort_by(|a, b| b.cmp(a));
        Ok(names)
    }

    /// Counts what could not be looked at; what is gone by now is nothing to count.
    fn missed(&mut self, error: &io::Error) {
        if error.kind() != io::ErrorKind::NotFound {
            self.unreadable += 1;
        }
    }

    /// Measures what has that name.
    fn take(&mut self, root: &Path, path: &Path) -> Option<Metadata> {
        let full = root.join(path);
        let (meta, measured) = match self.measure(&full) {
            Ok(done) => done,
            Err(error) => {
                self.missed(&error);
                return None;
            }
        };
        let Place { thing, kind } = place::place(path, meta.is_dir());
        let key = (meta.dev(), meta.ino());
        let thing = match self.named_image(root, path, &meta, key) {
            Some(image) => image,
            None => self.thing(root, thing),
        };
        let node = self.ledger.node(self.things[thing].1);
        self.found.push(Found { thing, kind, path: path.to_owned(), node });
        match measured {
            Some(Measured { bytes, stretches }) => {
                let inode = self.ledger.inode(node, bytes);
                for stretch in stretches {
                    self.ledger.stretch(inode, stretch);
                }
                if !meta.is_dir() && meta.nlink() > 1 {
                    self.linked.insert(key, (inode, thing, meta.nlink() - 1));
                }
            }
            None => {
                if let Some((inode, _, left)) = self.linked.get_mut(&key) {
                    *left = left.saturating_sub(1);
                    self.ledger.name(*inode, node);
                }
            }
        }
        Some(meta)
    }

    /// What the name stands for, and what that takes unless it was measured under another name already.
    fn measure(&mut self, full: &Path) -> io::Result<(Metadata, Option<Measured>)> {
        let meta = fs::symlink_metadata(full)?;
        if !meta.is_dir() && self.linked.contains_key(&(meta.dev(), meta.ino())) {
            return Ok((meta, None));
        }
        if !meta.is_file() {
            let measured = Gauge::measure_other(&meta);
            return Ok((meta, Some(measured)));
        }
        let file = Gauge::open(full)?;
        // The name may stand for another file by now.
        let meta = file.metadata()?;
        if self.linked.contains_key(&(meta.dev(), meta.ino())) {
            return Ok((meta, None));
        }
        let measured =
            if meta.is_file() { self.gauge.measure(&file, &meta)? } else { Gauge::measure_other(&meta) };
        Ok((meta, Some(measured)))
    }

    /// The image that a name of an image belongs to: that of the object it is a link to, or of the link beside it.
    fn named_image(&mut self, root: &Path, path: &Path, meta: &Metadata, key: (u64, u64)) -> Option<usize> {
        if !place::is_image_name(path) {
            return None;
        }
        let stem = path.with_extension("").to_str()?.to_owned();
        let object = if meta.is_symlink() {
            let target = fs::read_link(root.join(path)).ok()?;
            let object = path.with_file_name(target);
            self.by_thing.get(&Thing::Object(UsageKind::Image, object)).copied()
        } else {
            self.linked.get(&key).map(|(_, thing, _)| *thing)
        };
        let image = object.or_else(|| self.images.get(&stem).copied())?;
        self.images.insert(stem, image);
        Some(image)
    }

    /// The number of a thing, made when it is met first.
    fn thing(&mut self, root: &Path, thing: Thing) -> usize {
        if let Some(number) = self.by_thing.get(&thing) {
            return *number;
        }
        let parent = match &thing {
            Thing::Sandbox(id) => {
                let path = root.join("sandboxes").join(id).join(layout::MANIFEST);
                let manifest = fs::read(&path).ok().and_then(|bytes| Manifest::decode(&bytes, &path).ok());
                let owner = manifest.as_ref().map(|manifest| manifest.owner.clone());
                if let Some(manifest) = manifest {
                    self.manifests.insert(id.clone(), manifest);
                }
                self.owner(owner)
            }
            Thing::Snapshot(owner, _) | Thing::Volume(owner, _) => self.owner(owner.parse().ok()),
            Thing::Object(..) => Ledger::ROOT,
        };
        let number = self.things.len();
        self.things.push((thing.clone(), self.ledger.node(parent)));
        self.by_thing.insert(thing, number);
        number
    }

    fn owner(&mut self, owner: Option<Owner>) -> NodeId {
        *self.owners.entry(owner).or_insert_with(|| self.ledger.node(Ledger::ROOT))
    }

    /// The figures of all that was found.
    pub(crate) fn finish(mut self, store: &Store) -> Usage {
        for (inode, _, left) in self.linked.values() {
            self.ledger.set_named_elsewhere(*inode, *left > 0);
        }
        let notes = self.notes(store);
        let method = match self.gauge.sources().min() {
            Some(Source::Extents) => UsageMethod::BtrfsExtents,
            Some(Source::Maps) => UsageMethod::Fiemap,
            Some(Source::Blocks) | None => UsageMethod::Blocks,
        };
        let balance = self.ledger.balance();
        let owner = |(owner, node)| OwnerUsage { owner, figures: figures(&balance, node) };
        let mut usage = Usage {
            method,
            exact: notes.is_empty(),
            note: (!notes.is_empty()).then(|| notes.join("; ")),
            total: figures(&balance, Ledger::ROOT),
            owners: self.owners.into_iter().map(owner).collect(),
            sandboxes: Vec::new(),
            snapshots: Vec::new(),
            objects: Vec::new(),
        };
        let mut files: Vec<Vec<FileUsage>> = vec![Vec::new(); self.things.len()];
        for Found { thing, kind, path, node } in self.found {
            files[thing].push(FileUsage { kind, path, figures: figures(&balance, node) });
        }
        let mut images: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
        for (stem, image) in &self.images {
            images.entry(*image).or_default().extend(place::image_name(Path::new(stem)));
        }
        for (number, ((thing, node), files)) in self.things.into_iter().zip(files).enumerate() {
            let figures = figures(&balance, node);
            match thing {
                Thing::Sandbox(id) => {
                    let manifest = self.manifests.remove(&id);
                    let lies_on = manifest.as_ref().map(lies_on).unwrap_or_default();
                    let (name, owner) = manifest.map(|manifest| (manifest.name, manifest.owner)).unzip();
                    usage.sandboxes.push(SandboxUsage { id, name, owner, figures, files, lies_on });
                }
                Thing::Snapshot(owner, name) => {
                    let owner: Option<Owner> = owner.parse().ok();
                    let record = owner.as_ref().zip(name.parse::<SnapshotName>().ok());
                    let record = record.and_then(|(owner, name)| store.snapshots().open(owner, &name).ok());
                    let lies_on = record.map(|dir| lies_on(&dir.record().sandbox)).unwrap_or_default();
                    usage.snapshots.push(SnapshotUsage { name, owner, figures, files, lies_on });
                }
                Thing::Volume(owner, name) => {
                    let (kind, path) =
                        (UsageKind::Volume, main_path(&files, UsageKind::Volume, PathBuf::new()));
                    let owner = owner.parse().ok();
                    usage.objects.push(ObjectUsage { kind, name, path, owner, figures, files });
                }
                Thing::Object(kind, path) => {
                    let name = match images.get(&number) {
                        Some(names) if !names.is_empty() => names.join(", "),
                        _ => object_name(kind, &path),
                    };
                    let path = main_path(&files, kind, path);
                    usage.objects.push(ObjectUsage { kind, name, path, owner: None, figures, files });
                }
            }
        }
        usage.sandboxes.sort_by(|a, b| (&a.owner, &a.name, &a.id).cmp(&(&b.owner, &b.name, &b.id)));
        usage.snapshots.sort_by(|a, b| (&a.owner, &a.name).cmp(&(&b.owner, &b.name)));
        usage.objects.sort_by(|a, b| (a.kind, &a.owner, &a.path).cmp(&(b.kind, &b.owner, &b.path)));
        usage
    }

    /// Why figures are not exact.
    fn notes(&self, store: &Store) -> Vec<String> {
        let mut notes = Vec::new();
        if self.gauge.is_locked_out() {
            notes.push(
                "only root (CAP_SYS_ADMIN) may read the extents of this btrfs: physical and exclusive bytes are upper \
                 bounds, taken from where extents begin"
                    .to_owned(),
            );
        }
        let only_counted = self.gauge.sources().any(|source| source == Source::Blocks);
        if only_counted && store.probe().map_or(true, |can| can.reflink) {
            notes.push(
                "this filesystem does not tell which bytes its files share: each counts as its own"
                    .to_owned(),
            );
        }
        if self.unreadable > 0 {
            notes.push(format!("{} files could not be read and are not counted", self.unreadable));
        }
        notes
    }
}

fn figures(balance: &Balance, node: NodeId) -> Figures {
    let sums = balance.of(node);
    Figures {
        apparent: Bytes(sums.apparent),
        referenced: Bytes(sums.referenced),
        unique: Bytes(sums.unique),
        physical: Bytes(sums.physical),
        exclusive: Bytes(sums.exclusive),
    }
}

/// Where something is: its directory, or the one of its files that it is about.
fn main_path(files: &[FileUsage], kind: UsageKind, path: PathBuf) -> PathBuf {
    let is_dir = files.iter().any(|file| file.path == path);
    let main = files.iter().find(|file| file.kind == kind).or_else(|| files.first());
    main.filter(|_| !is_dir).map_or(path, |file| file.path.clone())
}

/// What people call a shared object: its file's or directory's name, of a long id the beginning.
fn object_name(kind: UsageKind, path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match (kind, name.split_once('.').map_or(name.as_str(), |(stem, _)| stem).parse::<ContentId>()) {
        (UsageKind::Directory, _) => "directories".to_owned(),
        (_, Ok(id)) => id.short().to_owned(),
        (_, Err(_)) => name,
    }
}

/// The shared objects under a sandbox.
fn lies_on(manifest: &Manifest) -> Vec<PathBuf> {
    let mut under: Vec<PathBuf> = manifest.layers.iter().map(layout::layer_below_root).collect();
    // Nothing lies below a disk that is whole.
    let whole = manifest.layers.last().map(|layer| layer.format == LayerFormat::Raw);
    if !whole.unwrap_or(manifest.layout == StorageLayout::Reflink) {
        under.push(layout::object_below_root(&manifest.image.id));
    }
    under.push(layout::kernel_below_root(&manifest.kernel));
    under.push(match &manifest.ram_base {
        RamBase::Template { key, .. } => Path::new("templates").join(key.as_str()),
        RamBase::Own { ram } => layout::base_below_root(ram),
        RamBase::Zero => PathBuf::from("templates/zero"),
    });
    under
}
