//! Freezing a root disk: what was the top becomes a layer, and an empty top takes its place.
//!
//! # Crash order
//! 1. The guest may run. The old top gets a second name in `layers/`; an empty overlay over it waits in the sandbox's
//!    directory as `rootfs-<layer>.new`; the manifest that names the layer waits as `manifest.json.new`. All are synced.
//!    A crash leaves staging files and a layer that nothing names.
//! 2. The guest stands still and its writes are on the disk. The VMM turns to the waiting top, which stays empty.
//! 3. The manifest is renamed in, then the top; the directory is synced. A crash between the two renames is finished by
//!    whoever opens the store: the manifest names the layer, and the waiting top says which one it is for.
//! 4. The guest goes on.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use types::{Bytes, LayerId, StorageLayout};

use crate::durable::{self, Staged};
use crate::error::{Error, ErrorKind, Result};
use crate::hole;
use crate::layout::{self, MANIFEST};
use crate::manifest::{LayerFormat, LayerRef, Manifest};
use crate::references::{Pin, Shared};
use crate::sandbox_dir::{SandboxDir, tables_of};
use crate::sparse;
use crate::store::Store;

/// A root disk about to be frozen. Dropped before the VMM turned to the new top it leaves all as it was; afterwards it
/// leaves all as it is, for `finish_freeze` to find.
#[derive(Debug)]
pub struct Freeze {
    store: Store,
    dir: SandboxDir,
    old: PathBuf,
    layer: LayerRef,
    top_path: PathBuf,
    manifest: Manifest,
    staged: Option<(Staged, Staged)>,
    /// Keeps the layer, which no manifest names yet.
    _pin: Pin,
    turned: bool,
    committed: bool,
}

impl SandboxDir {
    /// Gives the root disk its second name as a layer and says where the new top is to be made.
    ///
    /// # Errors
    /// `Corrupt` when the root disk is no disk, or what the system says.
    pub fn begin_freeze(&self, store: &Store) -> Result<Freeze> {
        let manifest = self.manifest()?;
        let old = self.path.join(layout::root_disk(manifest.layout));
        let layer = LayerRef { id: LayerId::random(), format: frozen_format(manifest.layout) };
        let link = store.layout().layer(&layer);
        let pin = store.pin_objects(vec![Shared::Layer(layer.clone())]);
        durable::hard_link(&old, &link)?;
        let top_path = self.path.join(layout::next_top(&layer.id));
        let mut layers = vec![layer.clone()];
        layers.extend(manifest.layers.iter().cloned());
        let manifest = Manifest { layout: StorageLayout::Overlay, layers, ..manifest };
        let (store, dir) = (store.clone(), self.clone());
        Ok(Freeze {
            store,
            dir,
            old,
            layer,
            top_path,
            manifest,
            staged: None,
            _pin: pin,
            turned: false,
            committed: false,
        })
    }

    /// A top that waits to take its place, and the layer it is for: the daemon died while the sandbox was being frozen.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn waiting_top(&self, store: &Store) -> Result<Option<(String, LayerId)>> {
        let names = store.names_in(&self.path)?;
        Ok(names.into_iter().find_map(|name| layout::next_top_over(&name).map(|layer| (name, layer))))
    }

    /// Finishes the freezing of a machine that turned to its waiting top already. Returns the manifest as committed.
    ///
    /// # Errors
    /// `Corrupt` when the layer is not there, or what the system says.
    pub fn finish_freeze(&self, store: &Store, layer: LayerId) -> Result<Manifest> {
        let mut manifest = self.manifest()?;
        if manifest.layers.first().is_none_or(|first| first.id != layer) {
            let layer = LayerRef { id: layer, format: frozen_format(manifest.layout) };
            if !store.layout().layer(&layer).exists() {
                return Err(Error::new(ErrorKind::Corrupt, "finish freezing", store.layout().layer(&layer))
                    .because("the layer is missing"));
            }
            manifest.layout = StorageLayout::Overlay;
            manifest.layers.insert(0, layer);
            self.commit(&manifest)?;
        }
        finish(store, self, &manifest)?;
        Ok(manifest)
    }
}

impl SandboxDir {
    /// Forgets a freeze that the VMM had not turned to. Returns the manifest as it is.
    ///
    /// # Errors
    /// What the system says.
    pub fn abandon_freeze(&self, store: &Store, layer: LayerId) -> Result<Manifest> {
        let manifest = self.manifest()?;
        if manifest.layers.iter().any(|named| named.id == layer) {
            finish(store, self, &manifest)?;
            return Ok(manifest);
        }
        let layer = LayerRef { id: layer, format: frozen_format(manifest.layout) };
        durable::remove_if_there(&self.path.join(layout::next_top(&layer.id)))?;
        durable::remove_if_there(&self.path.join(layout::MANIFEST_NEW))?;
        durable::remove_if_there(&store.layout().layer(&layer))?;
        Ok(manifest)
    }
}

const fn frozen_format(layout: StorageLayout) -> LayerFormat {
    match layout {
        StorageLayout::Overlay => LayerFormat::Qcow2,
        StorageLayout::Reflink => LayerFormat::Raw,
    }
}

impl Freeze {
    /// Where the empty overlay must be made.
    #[must_use]
    pub fn top_path(&self) -> &Path {
        &self.top_path
    }

    /// The overlay's file name, in the sandbox's directory.
    #[must_use]
    pub fn top_name(&self) -> String {
        layout::next_top(&self.layer.id)
    }

    /// The layer as the overlay must name it.
    #[must_use]
    pub fn backing(&self) -> PathBuf {
        layout::from_machine_dir(&layout::layer_below_root(&self.layer))
    }

    /// The layer.
    #[must_use]
    pub fn layer(&self) -> &LayerRef {
        &self.layer
    }

    /// The manifest as it will be.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Size of the disk that the guest sees.
    ///
    /// # Errors
    /// `Corrupt` when its header is none.
    pub fn disk_size(&self) -> Result<Bytes> {
        disk_size(&self.old, self.layer.format)
    }

    /// Makes all durable that can be while the guest runs: the new top, the layer's name and what the guest wrote so far.
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn prepare(&mut self) -> Result<()> {
        let top = Staged::adopt(self.top_path.clone())?;
        durable::set_mode(top.file(), top.path(), 0o600)?;
        // Where it sleeps, its memory lies over this top from now on.
        let tables = tables_of(top.path())?;
        if let Some(memory) = &mut self.manifest.memory {
            memory.root_tables_blake3 = tables;
        }
        hole::dig(top.file(), top.path())?;
        let staged = self.dir.stage_manifest(&self.manifest)?;
        let old = File::open(&self.old).map_err(|error| Error::io("open", &self.old, error))?;
        durable::sync(&old, &self.old)?;
        durable::sync(top.file(), top.path())?;
        durable::sync(staged.file(), staged.path())?;
        durable::sync_parent(&self.store.layout().layer(&self.layer))?;
        self.staged = Some((top, staged));
        Ok(())
    }

    /// Notes that the VMM writes to the new top from now on.
    pub fn turned(&mut self) {
        self.turned = true;
    }

    /// The commit, after the VMM turned to the new top (or when there is none). Returns the manifest as committed. After
    /// a failure it may be tried again; until it succeeds the guest must stand still.
    ///
    /// # Errors
    /// What the system says.
    pub fn commit(&mut self) -> Result<Manifest> {
        let manifest = self.dir.path.join(MANIFEST);
        let target = self.dir.path.join(layout::root_disk(StorageLayout::Overlay));
        if !self.committed {
            let Some((_, staged)) = &mut self.staged else {
                return Err(
                    Error::new(ErrorKind::Invalid, "freeze", &self.old).because("it was not prepared")
                );
            };
            staged.put(&manifest)?;
            self.committed = true;
        }
        if let Some((top, _)) = &mut self.staged {
            top.put(&target)?;
            self.staged = None;
        }
        if self.old != target {
            durable::remove_if_there(&self.old)?;
        }
        durable::sync_dir(&self.dir.path)?;
        // It is shared from now on; that nobody writes to it is what its new top is for.
        let link = self.store.layout().layer(&self.layer);
        let file = File::open(&link).map_err(|error| Error::io("open", &link, error))?;
        durable::set_mode(&file, &link, 0o444)?;
        Ok(self.manifest.clone())
    }
}

impl Drop for Freeze {
    fn drop(&mut self) {
        if self.turned || self.committed {
            if let Some((top, manifest)) = self.staged.take() {
                top.keep();
                if !self.committed {
                    manifest.keep();
                }
            }
        } else {
            // What cannot be removed now is a leftover with a meaning: a layer that no manifest names.
            let _ = fs::remove_file(self.store.layout().layer(&self.layer));
            let _ = fs::remove_file(&self.top_path);
        }
    }
}

/// Finishes a freeze that a crash cut between its two renames. Tells whether there was one.
pub(crate) fn finish(store: &Store, dir: &SandboxDir, manifest: &Manifest) -> Result<bool> {
    let Some(layer) = manifest.layers.first() else { return Ok(false) };
    let waiting = dir.path.join(layout::next_top(&layer.id));
    if !waiting.exists() {
        return Ok(false);
    }
    let target = dir.path.join(layout::root_disk(StorageLayout::Overlay));
    durable::rename(&waiting, &target)?;
    let raw = dir.path.join(layout::root_disk(StorageLayout::Reflink));
    if same_file(&raw, &store.layout().layer(layer)) {
        durable::remove_if_there(&raw)?;
    }
    durable::sync_dir(&dir.path)?;
    let link = store.layout().layer(layer);
    let file = File::open(&link).map_err(|error| Error::io("open", &link, error))?;
    durable::set_mode(&file, &link, 0o444)?;
    Ok(true)
}

pub(crate) fn same_file(a: &Path, b: &Path) -> bool {
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Size of the disk in a file: what a qcow2 header says (docs/interop/qcow2.rst of QEMU: bytes 24 to 31, big-endian), or
/// the file's own length.
fn disk_size(path: &Path, format: LayerFormat) -> Result<Bytes> {
    let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
    if format == LayerFormat::Raw {
        return Ok(Bytes(file.metadata().map_err(|error| Error::io("stat", path, error))?.len()));
    }
    let mut header = [0u8; 32];
    file.read_exact_at(&mut header, 0).map_err(|error| Error::io("read", path, error))?;
    let mut size = [0u8; 8];
    size.copy_from_slice(&header[24..]);
    if header[..4] != *b"QFI\xfb" {
        return Err(Error::new(ErrorKind::Corrupt, "read", path).because("it is no qcow2 file"));
    }
    Ok(Bytes(u64::from_be_bytes(size)))
}

impl SandboxDir {
    /// Size of the root disk that the guest sees, as its file says.
    ///
    /// # Errors
    /// `Corrupt` when its header is none.
    pub fn disk_size(&self, manifest: &Manifest) -> Result<Bytes> {
        disk_size(&self.root_disk_path(manifest.layout), frozen_format(manifest.layout))
    }

    /// Whether the root disk is an overlay into which nothing was written since it was made. Only true of one that no VMM
    /// has open is it certain.
    ///
    /// # Errors
    /// What the system says.
    pub fn top_is_empty(&self, manifest: &Manifest) -> Result<bool> {
        if manifest.layout == StorageLayout::Reflink {
            return Ok(false);
        }
        let path = self.path.join(layout::root_disk(StorageLayout::Overlay));
        let fail = |error| Error::io("read", &path, error);
        let file = File::open(&path).map_err(fail)?;
        // docs/interop/qcow2.rst: bytes 36 to 39 the number of entries of the first-level table, 40 to 47 its offset. An
        // overlay without an entry there has no block of its own.
        let mut header = [0u8; 48];
        file.read_exact_at(&mut header, 0).map_err(fail)?;
        let entries = u32::from_be_bytes([header[36], header[37], header[38], header[39]]);
        let mut offset = [0u8; 8];
        offset.copy_from_slice(&header[40..]);
        let len = usize::try_from(entries).unwrap_or(usize::MAX).saturating_mul(8).min(64 << 20);
        let mut table = vec![0; len];
        file.read_exact_at(&mut table, u64::from_be_bytes(offset)).map_err(fail)?;
        Ok(sparse::is_zero(&table))
    }
}
