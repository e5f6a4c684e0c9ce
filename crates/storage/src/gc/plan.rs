//! Who can still want what: the decision, and nothing that changes a file.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use types::{Bytes, ContentId, LayerId};

use super::{Company, GcItem, GcKind, GcPlan, What};
use crate::error::{Error, ErrorKind, Result};
use crate::lock;
use crate::manifest::{LayerFormat, LayerRef};
use crate::reconcile::{Leftover, LeftoverKind};
use crate::references::{Held, Shared};
use crate::store::Store;
use crate::template::TemplateRecord;

/// A leftover that is younger than this, in company, may be what somebody makes just now and has not locked yet.
const YOUNG: Duration = Duration::from_secs(60);

/// Decides with the pins' lock held.
pub(super) fn plan(store: &Store, held: &Held, company: &Company, setting_up: bool) -> Result<GcPlan> {
    let references = store.references()?;
    let mut wanted = references.objects();
    wanted.extend(held.keys().cloned());
    let mut judge = Judge {
        store,
        company,
        setting_up,
        manifests: references.unreadable.iter().map(ToString::to_string).collect(),
        records: Vec::new(),
        plan: GcPlan::default(),
    };
    judge.layers(&wanted)?;
    judge.bases(&wanted)?;
    judge.images_kernels_templates(wanted)?;
    judge.blobs()?;
    judge.leftovers()?;
    judge.plan.unreadable = judge.manifests;
    judge.plan.unreadable.append(&mut judge.records);
    Ok(judge.plan)
}

struct Judge<'a> {
    store: &'a Store,
    company: &'a Company,
    setting_up: bool,
    /// Manifests that cannot be read: they may name anything.
    manifests: Vec<String>,
    /// Records of images, kernels and templates that cannot be read: they may name images, kernels and templates.
    records: Vec<String>,
    plan: GcPlan,
}

impl Judge<'_> {
    fn layers(&mut self, wanted: &HashSet<Shared>) -> Result<()> {
        const WHY: &str = "no sandbox and no snapshot lies on it";
        let dir = self.store.layout().layers();
        let names = self.store.names_in(&dir)?;
        let mut there: HashSet<LayerId> = wanted
            .iter()
            .filter_map(|object| match object {
                Shared::Layer(layer) => Some(layer.id.clone()),
                _ => None,
            })
            .collect();
        for name in &names {
            let Some(layer) = layer_of(name) else { continue };
            there.insert(layer.id.clone());
            let object = Shared::Layer(layer.clone());
            if !wanted.contains(&object) {
                self.garbage(GcKind::Layer, What::Object(object), layer.id.to_string(), dir.join(name), WHY)?;
            }
        }
        for name in &names {
            let id = name.strip_suffix(".json").and_then(|id| id.parse::<LayerId>().ok());
            if let Some(id) = id.filter(|id| !there.contains(id)) {
                let why = "its layer is gone";
                self.garbage(GcKind::Layer, What::Seal, id.to_string(), dir.join(name), why)?;
            }
        }
        Ok(())
    }

    fn bases(&mut self, wanted: &HashSet<Shared>) -> Result<()> {
        let dir = self.store.layout().bases();
        for name in self.store.names_in(&dir)? {
            let Some(ram) = id_of(&name, ".ram") else { continue };
            let object = Shared::Base(ram.clone());
            if !wanted.contains(&object) {
                let why = "no memory lies over it";
                self.garbage(GcKind::RamBase, What::Object(object), ram.to_string(), dir.join(&name), why)?;
            }
        }
        Ok(())
    }

    fn images_kernels_templates(&mut self, mut wanted: HashSet<Shared>) -> Result<()> {
        let store = self.store;
        let mut named = HashSet::new();
        for (path, record) in store.images().records()? {
            match record {
                Ok(record) => drop(named.insert(record.id)),
                Err(error) => self.unreadable(&path, &error),
            }
        }
        let mut current = HashSet::new();
        for (path, record) in store.kernel().current()? {
            match record {
                Ok(record) => drop(current.insert(record.id)),
                Err(error) => self.unreadable(&path, &error),
            }
        }
        for (key, record) in store.templates().list()? {
            let record = match record {
                Ok(record) => record,
                Err(error) => {
                    self.unreadable(&store.templates().dir(&key), &error);
                    continue;
                }
            };
            let object = Shared::Template(key);
            let obsolete = obsolete(&record, &named, &current).filter(|_| !wanted.contains(&object));
            let goes = match obsolete {
                Some(why) => {
                    let path = store.templates().dir(&record.key);
                    let name = record.key.to_string();
                    self.garbage(GcKind::Template, What::Object(object), name, path, &why)?
                }
                None => false,
            };
            if !goes {
                wanted.extend([Shared::Image(record.spec.image.id), Shared::Kernel(record.spec.kernel)]);
            }
        }
        wanted.extend(named.into_iter().map(Shared::Image));
        wanted.extend(current.into_iter().map(Shared::Kernel));
        self.images(&wanted)?;
        self.kernels(&wanted)
    }

    fn images(&mut self, wanted: &HashSet<Shared>) -> Result<()> {
        const WHY: &str = "it has no name, and no sandbox, snapshot or template needs it";
        let (images, dir) = (self.store.layout().images(), self.store.layout().objects());
        // A name without a record is a name all the same.
        let links: HashSet<(u64, u64)> = self
            .store
            .names_in(&images)?
            .iter()
            .filter(|name| name.starts_with("rootfs-"))
            .filter_map(|name| fs::metadata(images.join(name)).ok())
            .map(|meta| (meta.dev(), meta.ino()))
            .collect();
        for name in self.store.names_in(&dir)? {
            let Some(id) = id_of(&name, ".ext4") else { continue };
            let path = dir.join(&name);
            let linked = fs::metadata(&path).is_ok_and(|meta| links.contains(&(meta.dev(), meta.ino())));
            let object = Shared::Image(id.clone());
            if !linked && !wanted.contains(&object) {
                self.garbage(GcKind::Image, What::Object(object), id.to_string(), path, WHY)?;
            }
        }
        Ok(())
    }

    fn kernels(&mut self, wanted: &HashSet<Shared>) -> Result<()> {
        const WHY: &str = "it is not current, and no sandbox, snapshot or template boots it";
        let dir = self.store.layout().kernel();
        for name in self.store.names_in(&dir)? {
            let Ok(id) = name.parse::<ContentId>() else { continue };
            let object = Shared::Kernel(id.clone());
            if !wanted.contains(&object) {
                self.garbage(GcKind::Kernel, What::Object(object), id.to_string(), dir.join(&name), WHY)?;
            }
        }
        Ok(())
    }

    fn blobs(&mut self) -> Result<()> {
        let dir = self.store.layout().blobs();
        for name in self.store.names_in(&dir)?.into_iter().filter(|name| crate::blob::is_blob_name(name)) {
            let path = dir.join(&name);
            let why = "it is a download that was kept to be used again";
            self.garbage(GcKind::Blob, What::Blob, name, path, why)?;
        }
        Ok(())
    }

    fn leftovers(&mut self) -> Result<()> {
        for leftover in self.store.reconcile_plan()? {
            if !leftover.will_be_removed() || matches!(leftover.kind, LeftoverKind::HalfFrozen(_)) {
                continue;
            }
            if !self.company.alone && (belongs_to_owner(self.store, &leftover) || is_young(&leftover.path)) {
                continue;
            }
            let path = leftover.path.clone();
            let name = below_root(self.store, &path);
            self.garbage(GcKind::Leftover, What::Leftover(leftover), name, path, "left by a crash")?;
        }
        Ok(())
    }

    fn unreadable(&mut self, path: &Path, error: &Error) {
        // It went while it was looked at.
        if path.exists() {
            self.records.push(error.to_string());
        }
    }

    /// Nobody names it. Tells whether it goes.
    fn garbage(&mut self, kind: GcKind, what: What, name: String, path: PathBuf, why: &str) -> Result<bool> {
        let weight = match Weight::of(&path) {
            Ok(weight) => weight,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(error),
        };
        let set_up = matches!(kind, GcKind::Template | GcKind::Image | GcKind::Kernel);
        let stays = if kind == GcKind::Leftover {
            None
        } else if kind == GcKind::Blob {
            crate::blob::is_in_use(&path)?.then(|| "a pull is at it".to_owned())
        } else if !self.manifests.is_empty() {
            Some("a manifest that cannot be read may name it".to_owned())
        } else if set_up && !self.records.is_empty() {
            Some("a record that cannot be read may need it".to_owned())
        } else if set_up && self.setting_up {
            Some("`bhatti setup` is at work and may want it".to_owned())
        } else if weight.files.iter().any(|(path, meta)| self.company.open.has(path, meta)) {
            Some("a process has it open".to_owned())
        } else if lock::is_held(&path)? {
            Some("a process holds it".to_owned())
        } else {
            None
        };
        let goes = stays.is_none();
        let why = stays.unwrap_or_else(|| why.to_owned());
        let (allocated, frees) = (weight.allocated(), weight.frees());
        let item = GcItem { kind, name, path, why, allocated, frees, what };
        if goes {
            self.plan.items.push(item)
        } else {
            self.plan.kept.push(item)
        }
        Ok(goes)
    }
}

/// Why no create can want this template any more.
fn obsolete(
    record: &TemplateRecord,
    named: &HashSet<ContentId>,
    current: &HashSet<ContentId>,
) -> Option<String> {
    let spec = &record.spec;
    if !named.contains(&spec.image.id) {
        Some(format!("no memory lies over it, and image {} has other content by now", spec.image.name))
    } else if !current.contains(&spec.kernel) {
        Some("no memory lies over it, and its kernel is not current".to_owned())
    } else {
        None
    }
}

/// Whether it lies in a sandbox's directory, where the sandbox's owner task tidies.
pub(crate) fn belongs_to_owner(store: &Store, leftover: &Leftover) -> bool {
    // Volumes for a copy are made before the copy's directory has its name.
    leftover.kind == LeftoverKind::OrphanedVolume
        || leftover.path.parent().is_some_and(|dir| dir.parent() == Some(&store.layout().sandboxes()))
}

pub(crate) fn is_young(path: &Path) -> bool {
    let changed = fs::symlink_metadata(path).and_then(|meta| meta.modified());
    // A time in the future, because the clock was set back, is young until it has come.
    changed.is_ok_and(|changed| changed.elapsed().map_or(true, |age| age < YOUNG))
}

/// Whether another process has it, or a file in it, open.
pub(crate) fn is_in_use(company: &Company, path: &Path) -> Result<bool> {
    Ok(Weight::of(path)?.files.iter().any(|(path, meta)| company.open.has(path, meta)))
}

pub(crate) fn layer_of(name: &str) -> Option<LayerRef> {
    let (id, extension) = name.split_once('.')?;
    let format = match extension {
        "qcow2" => LayerFormat::Qcow2,
        "ext4" => LayerFormat::Raw,
        _ => return None,
    };
    Some(LayerRef { id: id.parse().ok()?, format })
}

pub(crate) fn id_of(name: &str, extension: &str) -> Option<ContentId> {
    name.strip_suffix(extension)?.parse().ok()
}

/// A path as it is told to people.
pub(crate) fn below_root(store: &Store, path: &Path) -> String {
    path.strip_prefix(store.root()).unwrap_or(path).display().to_string()
}

/// The files of something.
struct Weight {
    files: Vec<(PathBuf, fs::Metadata)>,
}

impl Weight {
    fn of(path: &Path) -> Result<Self> {
        let mut weight = Self { files: Vec::new() };
        weight.add(path)?;
        Ok(weight)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let meta = fs::symlink_metadata(path).map_err(|error| Error::io("stat", path, error))?;
        if meta.is_dir() {
            let fail = |error| Error::io("list", path, error);
            for entry in fs::read_dir(path).map_err(fail)? {
                self.add(&entry.map_err(fail)?.path())?;
            }
        }
        self.files.push((path.to_owned(), meta));
        Ok(())
    }

    fn allocated(&self) -> Bytes {
        Bytes(self.by_inode().values().map(|(meta, _)| blocks(meta)).sum())
    }

    /// What has no other name than those here.
    fn frees(&self) -> Bytes {
        let inodes = self.by_inode();
        let last = inodes.values().filter(|(meta, names)| meta.is_dir() || *names >= meta.nlink());
        Bytes(last.map(|(meta, _)| blocks(meta)).sum())
    }

    /// Each file once, with how many of its names are here.
    fn by_inode(&self) -> HashMap<(u64, u64), (&fs::Metadata, u64)> {
        let mut inodes = HashMap::new();
        for (_, meta) in &self.files {
            inodes.entry((meta.dev(), meta.ino())).or_insert((meta, 0)).1 += 1;
        }
        inodes
    }
}

/// `st_blocks` counts 512 bytes whatever the filesystem's block is (stat(2)).
fn blocks(meta: &fs::Metadata) -> u64 {
    meta.blocks().saturating_mul(512)
}
