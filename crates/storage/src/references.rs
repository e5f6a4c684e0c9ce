//! Who names what: layers and RAM bases are kept for as long as a manifest names them, or somebody holds a pin.
//!
//! # Invariants
//! A manifest that is to name a shared object is committed under a pin that was taken while another manifest named it.
//! So an object that neither a manifest nor a pin names can be wanted by nobody any more.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use types::ContentId;

use crate::error::Result;
use crate::manifest::{LayerRef, Manifest, RamBase};
use crate::store::Store;
use crate::{durable, lock};

/// A shared object that is counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Shared {
    Layer(LayerRef),
    Base(ContentId),
}

impl Shared {
    /// The counted objects that a manifest names.
    pub(crate) fn of(manifest: &Manifest) -> impl Iterator<Item = Self> + '_ {
        let base = match &manifest.ram_base {
            RamBase::Own { ram } => Some(Self::Base(ram.clone())),
            RamBase::Template { .. } | RamBase::Zero => None,
        };
        manifest.layers.iter().cloned().map(Self::Layer).chain(base)
    }
}

/// The pins of one store.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    held: Mutex<HashMap<Shared, usize>>,
}

impl Pins {
    fn held(&self) -> MutexGuard<'_, HashMap<Shared, usize>> {
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

impl Store {
    /// Keeps what `manifest` names while something is made from it.
    #[must_use]
    pub fn pin(&self, manifest: &Manifest) -> Pin {
        let pins = Arc::clone(self.pins());
        let objects: Vec<Shared> = Shared::of(manifest).collect();
        let mut held = pins.held();
        for object in &objects {
            *held.entry(object.clone()).or_default() += 1;
        }
        drop(held);
        Pin { pins, objects }
    }

    /// Removes those of the objects that `manifest` named and that nothing names any more. The manifest itself must be
    /// gone, or replaced by one that names others.
    ///
    /// # Errors
    /// When a manifest cannot be read: then nothing is removed, since it may name any of them.
    pub fn release(&self, manifest: &Manifest) -> Result<()> {
        let candidates: HashSet<Shared> = Shared::of(manifest).collect();
        if candidates.is_empty() {
            return Ok(());
        }
        let held = self.pins().held();
        let named = self.named()?;
        for object in candidates {
            if !named.contains(&object) && !held.contains_key(&object) {
                self.remove_shared(&object)?;
            }
        }
        Ok(())
    }

    /// Every counted object that some manifest names.
    pub(crate) fn named(&self) -> Result<HashSet<Shared>> {
        let mut named = HashSet::new();
        for (_, manifest) in self.sandboxes()? {
            named.extend(Shared::of(&manifest?));
        }
        for (_, _, record) in self.snapshots().all()? {
            named.extend(Shared::of(&record?.sandbox));
        }
        Ok(named)
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
        }
    }
}
