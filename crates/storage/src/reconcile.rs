//! What crashes left behind: a plan that can be shown, then executed.
//!
//! `durable` says what each name means. A directory is held while its maker or a VMM lives: the maker locks the
//! directory, the VMM the root disk in it.

use std::path::{Path, PathBuf};

use types::{ContentId, Owner, SandboxId, StorageLayout, VolumeName};

use crate::durable;
use crate::error::{Error, Result};
use crate::freeze;
use crate::layout::{self, GONE, NEW};
use crate::lock;
use crate::manifest::RunState;
use crate::store::Store;
use crate::volume::is_volume_name;

/// What a leftover is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeftoverKind {
    /// A sandbox that was never committed.
    StagedSandbox,
    /// A sandbox that was being destroyed.
    GoneSandbox,
    /// A template that was never committed; if held, its VMM still runs in it.
    StagedTemplate,
    /// A template that was being removed.
    GoneTemplate,
    /// An image that was never committed.
    StagedImage,
    /// A kernel that was never committed.
    StagedKernel,
    /// A snapshot that was never committed, or what a fork was made of.
    StagedSnapshot,
    /// A snapshot that was being removed.
    GoneSnapshot,
    /// A volume, or a volume's new content, that was never committed, or a record without its volume.
    StagedVolume,
    /// A volume that was being removed.
    GoneVolume,
    /// A volume that was cloned for a sandbox that never came to be or is gone; its record goes, too.
    OrphanedVolume,
    /// A RAM base that was never committed.
    StagedBase,
    /// A layer, a base, an image or a kernel that was being removed.
    GoneObject,
    /// A file of a commit that did not happen, beside the one that counts.
    StagedFile,
    /// A memory image that a running or powered-off manifest does not name.
    ConsumedMemory(SandboxId),
    /// A root disk whose freezing was committed and not finished; finished instead of removed.
    HalfFrozen(SandboxId),
    /// A socket that nobody listens on.
    StaleSocket(SandboxId),
    /// A sandbox whose manifest cannot be read, and why. Never removed.
    Broken(SandboxId, String),
    /// Something bhatti never makes. Never removed.
    Foreign,
}

/// One thing that a crash left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// What it is.
    pub kind: LeftoverKind,
    /// Where it is.
    pub path: PathBuf,
    /// Whether a living process holds it: left alone.
    pub held: bool,
}

impl Leftover {
    /// Whether executing the plan removes it.
    #[must_use]
    pub fn will_be_removed(&self) -> bool {
        !self.held && !matches!(self.kind, LeftoverKind::Broken(..) | LeftoverKind::Foreign)
    }
}

/// What executing a plan did.
#[derive(Debug, Default)]
pub struct ReconcileReport {
    /// What is gone.
    pub removed: Vec<PathBuf>,
    /// What could not be removed.
    pub failed: Vec<Error>,
}

pub(crate) fn plan(store: &Store) -> Result<Vec<Leftover>> {
    let layout = store.layout();
    let mut plan = Vec::new();
    let mut add = |kind, path: PathBuf| -> Result<()> {
        let held = is_held(store, &kind, &path)?;
        plan.push(Leftover { kind, path, held });
        Ok(())
    };

    for name in store.names_in(store.root())? {
        if name.starts_with(NEW) || name.ends_with(".new") {
            add(LeftoverKind::StagedFile, store.root().join(name))?;
        }
    }
    for (dir, kind) in [
        (layout.images(), LeftoverKind::StagedFile),
        (layout.objects(), LeftoverKind::StagedImage),
        (layout.blobs(), LeftoverKind::StagedFile),
        (layout.zero(), LeftoverKind::StagedFile),
        (layout.kernel(), LeftoverKind::StagedKernel),
        (layout.bases(), LeftoverKind::StagedBase),
        (layout.layers(), LeftoverKind::StagedFile),
    ] {
        for name in store.names_in(&dir)? {
            if name.starts_with(NEW) {
                add(kind.clone(), dir.join(name))?;
            } else if name.starts_with(GONE) {
                add(LeftoverKind::GoneObject, dir.join(name))?;
            } else if name.ends_with(".new") {
                add(LeftoverKind::StagedFile, dir.join(name))?;
            }
        }
    }
    for name in store.names_in(&layout.templates())? {
        let path = layout.templates().join(&name);
        if name.starts_with(NEW) {
            add(LeftoverKind::StagedTemplate, path)?;
        } else if name.starts_with(GONE) {
            add(LeftoverKind::GoneTemplate, path)?;
        } else if name != "zero" && name.parse::<ContentId>().is_err() {
            add(LeftoverKind::Foreign, path)?;
        }
    }
    for name in store.names_in(&layout.sandboxes())? {
        let path = layout.sandboxes().join(&name);
        if name.starts_with(NEW) {
            add(LeftoverKind::StagedSandbox, path)?;
        } else if name.starts_with(GONE) {
            add(LeftoverKind::GoneSandbox, path)?;
        } else if let Ok(id) = name.parse::<SandboxId>() {
            for (kind, name) in in_sandbox(store, &id)? {
                add(kind, path.join(name))?;
            }
        } else {
            add(LeftoverKind::Foreign, path)?;
        }
    }
    for owner in store.names_in(&layout.snapshots())? {
        let path = layout.snapshots().join(&owner);
        if owner.starts_with(NEW) {
            add(LeftoverKind::StagedSnapshot, path)?;
            continue;
        }
        if !durable::is_dir_itself(&path) {
            continue;
        }
        for name in store.names_in(&path)? {
            if name.starts_with(NEW) {
                add(LeftoverKind::StagedSnapshot, path.join(name))?;
            } else if name.starts_with(GONE) {
                add(LeftoverKind::GoneSnapshot, path.join(name))?;
            }
        }
    }
    for owner in store.names_in(&layout.volumes())? {
        let path = layout.volumes().join(&owner);
        if owner.starts_with(NEW) {
            add(LeftoverKind::StagedVolume, path)?;
            continue;
        }
        if !durable::is_dir_itself(&path) {
            continue;
        }
        for name in store.names_in(&path)? {
            let without = name.strip_suffix(".json").is_some_and(|stem| {
                is_volume_name(&name) && path.join(format!("{stem}.ext4")).symlink_metadata().is_err()
            });
            if name.starts_with(NEW) || name.ends_with(".new") || without {
                add(LeftoverKind::StagedVolume, path.join(name))?;
            } else if name.starts_with(GONE) {
                add(LeftoverKind::GoneVolume, path.join(name))?;
            }
        }
    }
    for volume in store.orphaned_volumes()? {
        add(LeftoverKind::OrphanedVolume, volume.path().to_owned())?;
    }
    Ok(plan)
}

/// What is left over in a committed sandbox's directory: name below it, empty for itself.
fn in_sandbox(store: &Store, id: &SandboxId) -> Result<Vec<(LeftoverKind, String)>> {
    let dir = store.sandbox(id);
    let manifest = match dir.manifest() {
        Ok(manifest) => manifest,
        // It is being destroyed.
        Err(_) if !dir.path().exists() => return Ok(Vec::new()),
        Err(error) => return Ok(vec![(LeftoverKind::Broken(id.clone(), error.to_string()), String::new())]),
    };
    let mut found = Vec::new();
    let frozen = manifest.layers.first().map(|layer| layout::next_top(&layer.id));
    for name in store.names_if_there(dir.path())? {
        let kind = match name.as_str() {
            // It is the root disk: only its name is still to come.
            name if frozen.as_deref() == Some(name) => LeftoverKind::HalfFrozen(id.clone()),
            layout::MEM_SNAP | layout::VM_SNAP if manifest.state != RunState::Cold => {
                LeftoverKind::ConsumedMemory(id.clone())
            }
            layout::QMP_SOCKET | layout::AGENT_SOCKET => LeftoverKind::StaleSocket(id.clone()),
            name if name.ends_with(".new") => LeftoverKind::StagedFile,
            _ => continue,
        };
        found.push((kind, name));
    }
    Ok(found)
}

fn is_held(store: &Store, kind: &LeftoverKind, path: &Path) -> Result<bool> {
    let root_disk_in = |dir: &Path| -> Result<bool> {
        for layout in [StorageLayout::Overlay, StorageLayout::Reflink] {
            if lock::is_held(&dir.join(layout::root_disk(layout)))? {
                return Ok(true);
            }
        }
        Ok(false)
    };
    match kind {
        LeftoverKind::StagedSandbox
        | LeftoverKind::GoneSandbox
        | LeftoverKind::StagedTemplate
        | LeftoverKind::GoneTemplate => Ok(lock::is_held(path)? || root_disk_in(path)?),
        LeftoverKind::StagedImage
        | LeftoverKind::StagedKernel
        | LeftoverKind::StagedBase
        | LeftoverKind::GoneObject
        | LeftoverKind::StagedSnapshot
        | LeftoverKind::GoneSnapshot
        | LeftoverKind::StagedVolume => lock::is_held(path),
        LeftoverKind::GoneVolume | LeftoverKind::OrphanedVolume => lock::is_image_used(path),
        LeftoverKind::ConsumedMemory(id)
        | LeftoverKind::StaleSocket(id)
        | LeftoverKind::HalfFrozen(id)
        | LeftoverKind::Broken(id, _) => store.sandbox(id).is_locked(),
        LeftoverKind::StagedFile => {
            // In a sandbox's directory the VMM may be writing it; elsewhere its maker holds it.
            let machine_in = |dir: &Path| Ok(lock::is_held(dir)? || root_disk_in(dir)?);
            Ok(lock::is_held(path)? || path.parent().map_or(Ok(false), machine_in)?)
        }
        LeftoverKind::Foreign => Ok(false),
    }
}

/// Whose volume a file is, and which.
fn volume_of(path: &Path) -> Option<(Owner, VolumeName)> {
    let owner = path.parent()?.file_name()?.to_str()?.parse().ok()?;
    let name = path.file_name()?.to_str()?.strip_suffix(".ext4")?.parse().ok()?;
    Some((owner, name))
}

pub(crate) fn execute(store: &Store, plan: &[Leftover]) -> ReconcileReport {
    let mut report = ReconcileReport::default();
    for leftover in plan.iter().filter(|leftover| leftover.will_be_removed()) {
        let path = &leftover.path;
        if let LeftoverKind::HalfFrozen(id) = &leftover.kind {
            let dir = store.sandbox(id);
            let finished = dir.manifest().and_then(|manifest| freeze::finish(store, &dir, &manifest));
            report.failed.extend(finished.err());
            continue;
        }
        if let (LeftoverKind::OrphanedVolume, Some((owner, name))) = (&leftover.kind, volume_of(path)) {
            match store.volumes().remove(&owner, &name) {
                Ok(()) => report.removed.push(path.clone()),
                Err(error) => report.failed.push(error),
            }
            continue;
        }
        let removed = is_held(store, &leftover.kind, path).and_then(|held| match held {
            true => Ok(false),
            // A symbolic link is removed as itself, whatever it points to.
            false if path.is_dir() && !path.is_symlink() => durable::remove_tree(path).map(|()| true),
            false => durable::remove_if_there(path),
        });
        match removed {
            Ok(true) => report.removed.push(path.clone()),
            Ok(false) => {}
            Err(error) => report.failed.push(error),
        }
    }
    report
}
