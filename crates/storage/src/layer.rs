//! Frozen layers: root disks that were written once and are shared ever after.
//!
//! # Layout
//! `layers/<id>.qcow2` or `.ext4`, mode 0444; `layers/<id>.json` is its seal: length and checksum. A layer counts from
//! the moment a manifest names it, which is before its seal is there: sealing reads all of it and happens when nobody
//! waits. One without a seal was frozen just before a crash; whoever finds it may seal it.

use std::fs::File;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use types::{Bytes, ContentId, Timestamp};

use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::layout;
use crate::manifest::{LayerRef, Manifest};
use crate::record::{self, Format};
use crate::sparse;
use crate::store::Store;

const FORMAT: Format = Format { name: "bhatti-layer", version: 1 };

/// What a frozen layer was when it was sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerSeal {
    /// The layer.
    pub layer: LayerRef,
    /// Length of its file.
    pub len_bytes: Bytes,
    /// BLAKE3 of its file.
    pub blake3: ContentId,
    /// When it was sealed.
    pub sealed_at: Timestamp,
}

/// The frozen layers of a store.
#[derive(Debug, Clone, Copy)]
pub struct Layers<'a> {
    pub(crate) store: &'a Store,
}

impl Layers<'_> {
    /// The layer's file.
    #[must_use]
    pub fn path(&self, layer: &LayerRef) -> PathBuf {
        self.store.layout().layer(layer)
    }

    /// The layers under a sandbox's root disk as its VMM sees them, the nearest first.
    ///
    /// # Errors
    /// `Corrupt` when one is missing or not as long as when it was sealed.
    pub fn below(&self, manifest: &Manifest) -> Result<Vec<(LayerRef, PathBuf)>> {
        let found = manifest.layers.iter().map(|layer| {
            let path = self.path(layer);
            let damaged = |what: &str| {
                Error::new(ErrorKind::Corrupt, "use layer", &path)
                    .because(format!("the disk of sandbox {} lies on it, and {what}", manifest.name))
                    .hint_to("`bhatti fsck` tells what else is damaged; restore the file from a backup")
            };
            let len = match std::fs::metadata(&path) {
                Ok(meta) => meta.len(),
                Err(error) => return Err(damaged("it is missing").caused_by(error)),
            };
            match self.seal_of(layer)? {
                Some(seal) if seal.len_bytes.0 != len => {
                    Err(damaged("it has another size than when it was sealed"))
                }
                _ => Ok((layer.clone(), layout::from_machine_dir(&layout::layer_below_root(layer)))),
            }
        });
        found.collect()
    }

    /// The layer's seal, if it has one yet.
    ///
    /// # Errors
    /// `Corrupt` when the seal itself is damaged.
    pub fn seal_of(&self, layer: &LayerRef) -> Result<Option<LayerSeal>> {
        match record::read::<LayerSeal>(FORMAT, &self.store.layout().layer_record(&layer.id)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Ok(seal) if seal.layer != *layer => {
                Err(Error::new(ErrorKind::Corrupt, "read", self.store.layout().layer_record(&layer.id))
                    .because("it is the seal of another layer"))
            }
            read => read.map(Some),
        }
    }

    /// Reads the whole layer and notes its length and checksum; nothing when it is sealed already.
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn seal(&self, layer: &LayerRef) -> Result<()> {
        if self.seal_of(layer)?.is_some() {
            return Ok(());
        }
        // A crash may have come between the commit that named it and its mode.
        let path = self.path(layer);
        let file = File::open(&path).map_err(|error| Error::io("open", &path, error))?;
        durable::set_mode(&file, &path, 0o444)?;
        let seal = self.measure(layer)?;
        durable::replace(&self.store.layout().layer_record(&layer.id), &record::encode(FORMAT, &seal), 0o600)
    }

    /// What the layer is now.
    pub(crate) fn measure(&self, layer: &LayerRef) -> Result<LayerSeal> {
        let path = self.path(layer);
        let file = File::open(&path).map_err(|error| Error::io("open", &path, error))?;
        let len = file.metadata().map_err(|error| Error::io("stat", &path, error))?.len();
        let blake3 = sparse::content_id(&file, &path)?;
        Ok(LayerSeal { layer: layer.clone(), len_bytes: Bytes(len), blake3, sealed_at: Timestamp::now() })
    }

    /// Whether the layer is what it was when it was sealed; `None` when it was not yet.
    ///
    /// # Errors
    /// What the system says.
    pub fn verify(&self, layer: &LayerRef) -> Result<Option<bool>> {
        let Some(seal) = self.seal_of(layer)? else { return Ok(None) };
        let now = self.measure(layer)?;
        Ok(Some(now.len_bytes == seal.len_bytes && now.blake3 == seal.blake3))
    }

    /// Removes a layer that nothing names any more.
    pub(crate) fn remove(&self, layer: &LayerRef) -> Result<()> {
        durable::remove_if_there(&self.path(layer))?;
        durable::remove_if_there(&self.store.layout().layer_record(&layer.id)).map(drop)
    }
}
