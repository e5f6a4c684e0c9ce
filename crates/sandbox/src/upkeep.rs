//! Upkeep: everything checked, and what nothing names removed; beside a daemon's work, or on a directory without one.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use storage::{
    Company, DaemonLock, FsckOptions, FsckProgress, FsckReport, GcItem, GcKind, GcReport, Outcome, Severity,
    Store,
};
use types::{Bytes, Owner, SandboxId};

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
    /// anything, and moves away what cannot. `watch` is told how far it is. A caller who goes away calls it off; a repair
    /// that has begun is finished.
    ///
    /// # Errors
    /// When the data directory cannot be read.
    pub async fn fsck(
        &self,
        repair: bool,
        watch: impl Fn(FsckProgress) + Send + 'static,
    ) -> Result<FsckReport> {
        let store = self.inner.services.store.clone();
        let registry = self.clone();
        let cancel = Arc::new(AtomicBool::new(false));
        let _when_dropped = CallOff(Arc::clone(&cancel));
        let report = blocking(move || {
            // Asked anew each time: a sandbox may be made or destroyed while others are checked.
            let is_known = |id: &SandboxId| registry.inner.registry.ids().contains(id);
            check(&store, false, repair, &is_known, &watch, &cancel)
        })
        .await?;
        if repair {
            let store = self.inner.services.store.clone();
            let there =
                blocking(move || Ok(store.sandboxes()?)).await?.into_iter().map(|(id, _)| id).collect();
            for id in self.inner.registry.forget_damaged(&there) {
                self.inner.services.index().remove_sandbox(&id)?;
            }
        }
        let repaired =
            report.findings.iter().filter(|finding| matches!(finding.outcome, Some(Outcome::Done(_))));
        let detail = json!({
            "complete": report.complete,
            "errors": report.left(Severity::Error),
            "warnings": report.left(Severity::Warning),
            "repaired": repaired.count(),
        });
        self.inner.services.events.host("fsck", &Owner::admin(), detail);
        Ok(report)
    }

    /// Removes what no manifest names and nobody has open. Once begun it is finished even when the caller goes away.
    ///
    /// # Errors
    /// When the data directory cannot be read; nothing is removed then.
    pub async fn gc(&self, dry_run: bool) -> Result<Gc> {
        self.inner.services.spares.drop_all().await;
        let store = self.inner.services.store.clone();
        let gone = self.to_the_end(blocking(move || collect(&store, false, dry_run, None))).await?;
        if !dry_run && !gone.removed.is_empty() {
            let detail = json!({ "removed": gone.removed.len(), "freed_bytes": gone.freed });
            self.inner.services.events.host("gc", &Owner::admin(), detail);
        }
        Ok(gone)
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
    /// `NotFound` when it is no data directory, `Busy` when a daemon has it, `NotReady` when it cannot be written.
    pub fn open(data_dir: &Path) -> Result<Self> {
        if !Store::is_there(data_dir) {
            let text = format!("{} is no data directory of bhatti", data_dir.display());
            return Err(Error::new(ErrorKind::NotFound, text).hint("give another with --data-dir"));
        }
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

/// The content of an image that has lost its name, and the templates of it, if nothing needs them.
pub(crate) fn collect_image(store: &Store, id: &types::ContentId) -> Result<()> {
    let company = company(false)?;
    let templates: Vec<String> = store
        .templates()
        .list()?
        .into_iter()
        .filter_map(|(key, record)| (record.ok()?.spec.image.id == *id).then(|| key.to_string()))
        .collect();
    let mut plan = store.gc_plan(&company)?.only(&crate::images::WITH_AN_IMAGE);
    plan.items.retain(|item| item.name == id.as_str() || templates.contains(&item.name));
    let report = store.gc(&plan, &company)?;
    report.failed.into_iter().next().map_or(Ok(()), |error| Err(error.into()))
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
    let options = FsckOptions { progress, cancel, check_overlay: Some(&overlay_damage), is_known };
    let mut report = store.fsck(&company, &options)?;
    if repair && report.complete && !cancel.load(Ordering::Relaxed) {
        store.repair(&mut report, &company, is_known);
    }
    Ok(report)
}

/// What the program that made an overlay says of it; nothing where it cannot be asked.
fn overlay_damage(path: &Path) -> Option<String> {
    match image::qemu_img_check(path) {
        Ok(damage) => damage,
        Err(error) => {
            tracing::debug!(%error, path = %path.display(), "an overlay was not looked into");
            None
        }
    }
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
