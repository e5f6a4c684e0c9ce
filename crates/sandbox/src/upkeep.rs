//! Upkeep: everything checked, and what nothing names removed; beside a daemon's work, or on a directory without one.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use storage::{Company, DaemonLock, FsckOptions, FsckProgress, FsckReport, GcItem, GcKind, GcReport, Store};
use types::{Bytes, SandboxId};

use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::services::blocking;

/// What gc did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gc {
    /// Whether it was only to be told.
    pub dry_run: bool,
    /// What is gone, or would be.
    pub removed: Vec<GcItem>,
    /// What nobody names and stays all the same, with the reason.
    pub kept: Vec<GcItem>,
    /// Records that cannot be read, so that what they may name stays.
    pub unreadable: Vec<String>,
    /// What could not be removed, and why.
    pub failed: Vec<String>,
    /// What is free by it.
    pub freed: Bytes,
}

/// Called off when it is dropped: nobody waits for the check any more.
struct CallOff(Arc<AtomicBool>);

impl Drop for CallOff {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Host {
    /// Checks every manifest, checksum, base and reference; with `repair` mends what can be mended without losing
    /// anything, and moves away what cannot. A caller who goes away calls it off.
    ///
    /// # Errors
    /// When the data directory cannot be read.
    pub async fn fsck(&self, repair: bool) -> Result<FsckReport> {
        let store = self.inner.services.store.clone();
        let known: HashSet<SandboxId> = self.inner.registry.ids();
        let cancel = Arc::new(AtomicBool::new(false));
        let _when_dropped = CallOff(Arc::clone(&cancel));
        blocking(move || check(&store, false, repair, &|id| known.contains(id), &|_| {}, &cancel)).await
    }

    /// Removes what no manifest names and nobody has open.
    ///
    /// # Errors
    /// When the data directory cannot be read; nothing is removed then.
    pub async fn gc(&self, dry_run: bool) -> Result<Gc> {
        let store = self.inner.services.store.clone();
        self.to_the_end(blocking(move || collect(&store, false, dry_run, None))).await
    }
}

/// A data directory without a daemon, taken for its upkeep.
#[derive(Debug)]
pub struct Upkeep {
    store: Store,
    _lock: DaemonLock,
}

impl Upkeep {
    /// Takes the directory.
    ///
    /// # Errors
    /// `NotFound` when there is none, `Busy` when a daemon has it, `NotReady` when it cannot be written.
    pub fn open(data_dir: &Path) -> Result<Self> {
        let store = Store::open(data_dir)?;
        let lock = store.lock_daemon()?;
        Ok(Self { store, _lock: lock })
    }

    /// As [`Host::fsck`]; `watch` is told how far it is, and it ends soon after `cancel` became true.
    ///
    /// # Errors
    /// When the data directory cannot be read.
    pub fn fsck(
        &self,
        repair: bool,
        watch: &dyn Fn(FsckProgress),
        cancel: &AtomicBool,
    ) -> Result<FsckReport> {
        check(&self.store, true, repair, &|_| false, watch, cancel)
    }

    /// As [`Host::gc`].
    ///
    /// # Errors
    /// When the data directory cannot be read; nothing is removed then.
    pub fn gc(&self, dry_run: bool) -> Result<Gc> {
        collect(&self.store, true, dry_run, None)
    }
}

/// Layers and RAM bases that a crash left without a manifest that names them. Their sandboxes are gone or never came to
/// be, so nobody will release them.
pub(crate) fn collect_unnamed(store: &Store) -> Result<Gc> {
    collect(store, true, false, Some(&[GcKind::Layer, GcKind::RamBase]))
}

fn company(alone: bool) -> Result<Company> {
    let open = vm::OpenFiles::of_other_processes().map_err(|error| {
        Error::new(ErrorKind::Internal, "what other processes have open could not be seen").source(error)
    })?;
    Ok(Company { alone, open })
}

fn check(
    store: &Store,
    alone: bool,
    repair: bool,
    is_known: &dyn Fn(&SandboxId) -> bool,
    progress: &dyn Fn(FsckProgress),
    cancel: &AtomicBool,
) -> Result<FsckReport> {
    let company = company(alone)?;
    let options = FsckOptions { progress, cancel, check_overlay: None, is_known };
    let mut report = store.fsck(&company, &options)?;
    if repair && report.complete {
        store.repair(&mut report, &company, is_known);
    }
    Ok(report)
}

fn collect(store: &Store, alone: bool, dry_run: bool, only: Option<&[GcKind]>) -> Result<Gc> {
    let company = company(alone)?;
    let mut plan = store.gc_plan(&company)?;
    if let Some(kinds) = only {
        plan = plan.only(kinds);
    }
    if dry_run {
        let freed = plan.frees();
        let (removed, kept, unreadable) = (plan.items, plan.kept, plan.unreadable);
        return Ok(Gc { dry_run, removed, kept, unreadable, failed: Vec::new(), freed });
    }
    let report = store.gc(&plan, &company)?;
    let freed = report.freed();
    let GcReport { removed, kept, unreadable, failed } = report;
    let failed = failed.iter().map(ToString::to_string).collect();
    Ok(Gc { dry_run, removed, kept, unreadable, failed, freed })
}
