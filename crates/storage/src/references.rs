//! Who names what: a shared object is kept for as long as a manifest names it, or somebody holds a pin.
//!
//! Layers and RAM bases of their own are *counted*: they go as soon as nobody names them. Images, kernels and templates
//! stay until `gc` finds that nobody can want them any more.
//!
//! # Invariants
//! A manifest that is to name a shared object is committed under a pin that was taken while another manifest named it, or
//! before the object had its name. So an object that neither a manifest nor a pin names can be wanted by nobody any more.
//! Whoever removes objects holds the pins' lock from reading the manifests to the removal: no pin comes or goes meanwhile.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use types::{ContentId, Owner, SandboxId, SandboxName, SnapshotName};

use crate::error::{Error, ErrorKind, Result};
use crate::layout;
use crate::manifest::{LayerFormat, LayerRef, Manifest, RamBase};
use crate::store::Store;
use crate::{durable, lock};

/// A shared object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Shared {
    Layer(LayerRef),
    Base(ContentId),
    Image(ContentId),
    Kernel(ContentId),
    Template(ContentId),
}

impl Shared {
    /// The counted objects that a manifest names.
    pub(crate) fn counted(manifest: &Manifest) -> impl Iterator<Item = Self> + '_ {
        let base = match &manifest.ram_base {
            RamBase::Own { ram } => Some(Self::Base(ram.clone())),
            RamBase::Template { .. } | RamBase::Zero => None,
        };
        manifest.layers.iter().cloned().map(Self::Layer).chain(base)
    }

    /// All shared objects that a manifest names.
    pub(crate) fn of(manifest: &Manifest) -> impl Iterator<Item = Self> + '_ {
        let template = match &manifest.ram_base {
            RamBase::Template { key, .. } => Some(Self::Template(key.clone())),
            RamBase::Own { .. } | RamBase::Zero => None,
        };
        let parts = [Self::Image(manifest.image.id.clone()), Self::Kernel(manifest.kernel.clone())];
        Self::counted(manifest).chain(parts).chain(template)
    }
}

/// The pinned objects, and how often.
pub(crate) type Held = HashMap<Shared, usize>;

/// The pins of one store.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    held: Mutex<Held>,
}

impl Pins {
    /// Until the guard is dropped no pin is taken or given up.
    pub(crate) fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps what a manifest names from being removed, until dropped.
#[derive(Debug)]
pub struct Pin {
    pins: Arc<Pins>,
    objects: Vec<Shared>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut held = self.pins.held();
        for object in &self.objects {
            if let Some(count) = held.get_mut(object) {
                *count -= 1;
                if *count == 0 {
                    held.remove(object);
                }
            }
        }
    }
}

/// Whose manifest it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Namer {
    Sandbox(SandboxId, SandboxName),
    Snapshot(Owner, SnapshotName),
}

impl fmt::Display for Namer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sandbox(_, name) => write!(f, "sandbox {name}"),
            Self::Snapshot(owner, name) if *owner == Owner::admin() => write!(f, "snapshot {name}"),
            Self::Snapshot(owner, name) => write!(f, "snapshot {owner}/{name}"),
        }
    }
}

/// Who names what at one moment.
#[derive(Debug, Default)]
pub(crate) struct References {
    pub(crate) manifests: Vec<(Namer, Manifest)>,
    /// Layers for which a root disk waits in some sandbox's directory, whose manifest may not name them yet.
    pub(crate) waiting: HashSet<LayerRef>,
    /// What cannot be read, and so may name anything.
    pub(crate) unreadable: Vec<Error>,
}

impl References {
    /// Every object that is named.
    pub(crate) fn objects(&self) -> HashSet<Shared> {
        let waiting = self.waiting.iter().cloned().map(Shared::Layer);
        self.manifests.iter().flat_map(|(_, manifest)| Shared::of(manifest)).chain(waiting).collect()
    }
}

impl Store {
    /// Keeps what `manifest` names while something is made from it.
    #[must_use]
    pub fn pin(&self, manifest: &Manifest) -> Pin {
        self.pin_objects(Shared::of(manifest).collect())
    }

    /// Keeps what a new sandbox or a template is made of. Whoever found them before must look again afterwards whether
    /// they are still there.
    #[must_use]
    pub fn pin_parts(&self, image: &ContentId, kernel: &ContentId, template: &ContentId) -> Pin {
        self.pin_objects(vec![
            Shared::Image(image.clone()),
            Shared::Kernel(kernel.clone()),
            Shared::Template(template.clone()),
        ])
    }

    pub(crate) fn pin_objects(&self, objects: Vec<Shared>) -> Pin {
        let pins = Arc::clone(self.pins());
        let mut held = pins.held();
        for object in &objects {
            *held.entry(object.clone()).or_default() += 1;
        }
        drop(held);
        Pin { pins, objects }
    }

    /// Removes those of the counted objects that `manifest` named and that nothing names any more. The manifest itself
    /// must be gone, or replaced by one that names others.
    ///
    /// # Errors
    /// When a manifest cannot be read: then nothing is removed, since it may name any of them.
    pub fn release(&self, manifest: &Manifest) -> Result<()> {
        let candidates: HashSet<Shared> = Shared::counted(manifest).collect();
        if candidates.is_empty() {
            return Ok(());
        }
        let held = self.pins().held();
        let mut references = self.references()?;
        if let Some(error) = references.unreadable.pop() {
            return Err(error);
        }
        let named = references.objects();
        for object in candidates {
            if !named.contains(&object) && !held.contains_key(&object) {
                self.remove_shared(&object)?;
            }
        }
        Ok(())
    }

    /// Reads every manifest. What goes while it is read is not there.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub(crate) fn references(&self) -> Result<References> {
        let mut found = References::default();
        for (id, manifest) in self.sandboxes()? {
            let dir = self.sandbox(&id);
            match manifest {
                Ok(manifest) => {
                    found.manifests.push((Namer::Sandbox(id, manifest.name.clone()), manifest));
                }
                Err(_) if !dir.path().exists() => continue,
                Err(error) => found.unreadable.push(error),
            }
            match self.names_if_there(dir.path()) {
                Ok(names) => found.waiting.extend(
                    names.iter().filter_map(|name| layout::next_top_over(name)).flat_map(|id| {
                        [LayerFormat::Qcow2, LayerFormat::Raw]
                            .map(|format| LayerRef { id: id.clone(), format })
                    }),
                ),
                Err(error) => found.unreadable.push(error),
            }
        }
        for (owner, name, record) in self.snapshots().all()? {
            match record {
                Ok(record) => found.manifests.push((Namer::Snapshot(owner, name), record.sandbox)),
                Err(_) if !self.layout().snapshot(&owner, &name).exists() => {}
                Err(error) => found.unreadable.push(error),
            }
        }
        found.unreadable.extend(self.quarantined()?.into_iter().map(may_name_anything));
        Ok(found)
    }

    /// The sandboxes and snapshots in quarantine.
    fn quarantined(&self) -> Result<Vec<PathBuf>> {
        let quarantine = self.layout().quarantine();
        let names = self.names_if_there(&quarantine)?;
        let machines = names.into_iter().filter(|name| layout::is_quarantined_machine(name));
        Ok(machines.map(|name| quarantine.join(name)).collect())
    }

    fn remove_shared(&self, object: &Shared) -> Result<()> {
        match object {
            Shared::Layer(layer) => self.layers().remove(layer),
            Shared::Base(ram) => {
                let path = self.layout().base(ram);
                if lock::is_held(&path)? {
                    return Ok(());
                }
                durable::remove_if_there(&path).map(drop)
            }
            Shared::Image(_) | Shared::Kernel(_) | Shared::Template(_) => Ok(()),
        }
    }
}

fn may_name_anything(path: PathBuf) -> Error {
    Error::new(ErrorKind::Corrupt, "read", path)
        .because("it is in quarantine, and may need any layer, base, image, kernel or template")
        .hint_to("restore it, or remove it from the quarantine when nobody needs it")
}
