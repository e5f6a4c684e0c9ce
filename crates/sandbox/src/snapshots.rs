//! Named snapshots and forks: the verbs that make sandboxes out of a sandbox.

use std::sync::Arc;
use std::time::Duration;

use storage::{MemoryHeader, OWN_BASE_ABOVE, SnapshotRecord, StagedMemory, StagedSnapshot, Unchanged};
use types::{Boot, Bytes, Counted, Labels, Mebibytes, Owner, SandboxName, SnapshotName};

use crate::actor::Command;
use crate::bring_up::Pages;
use crate::capture::{Capture, CapturedMemory, seal_later};
use crate::copies::{self, Copy, Disks, Memory, Seed};
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Host, send};
use crate::quota::Places;
use crate::services::{Services, blocking};
use crate::sleep::COMPRESSION_LEVEL;
use crate::timing::Stopwatch;
use crate::view::{Report, SnapshotReport, SnapshotView};

/// A snapshot to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotWish {
    /// Its name, free among the owner's.
    pub name: SnapshotName,
    /// Only the disk: what is resumed from it boots.
    pub disk_only: bool,
}

/// A sandbox to be made from a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resume {
    /// Its name, free among the owner's.
    pub name: SandboxName,
    /// Labels beside the source's.
    pub labels: Labels,
    /// Exempt from going to sleep by itself.
    pub keep_hot: bool,
    /// A larger root disk.
    pub disk_size: Option<Mebibytes>,
    /// Refuse the slow path.
    pub strict: bool,
}

/// Copies to be made of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fork {
    /// Their names, each free among the owner's.
    pub names: Vec<SandboxName>,
    /// Labels beside the source's.
    pub labels: Labels,
    /// Exempt from going to sleep by itself.
    pub keep_hot: bool,
    /// A larger root disk.
    pub disk_size: Option<Mebibytes>,
    /// Refuse the slow path.
    pub strict: bool,
}

/// How many copies are made at the same time: their VMMs' starts compete for the same processors.
const COPIES_AT_ONCE: usize = 4;

impl Host {
    /// Makes a named snapshot of a sandbox, which goes on as it was. Once begun it is finished even when the caller goes
    /// away.
    ///
    /// # Errors
    /// `Conflict` when the name is taken, `Corrupt` for a broken sandbox, `NoSpace`; nothing is left then and the guest
    /// still runs.
    pub async fn snapshot_create(
        &self,
        owner: &Owner,
        which: &str,
        wish: SnapshotWish,
    ) -> Result<SnapshotReport> {
        let entry = self.inner.registry.find(owner, which)?;
        let (host, owner) = (self.clone(), owner.clone());
        self.to_the_end(async move {
            let mut watch = Stopwatch::start();
            let services = Arc::clone(&host.inner.services);
            let (store, name) = (services.store.clone(), wish.name.clone());
            let _places = host.places(&owner, &[(Counted::Snapshots, 1), (Counted::Disk, 0)]).await?;
            let staged = blocking(move || Ok(store.snapshots().stage(&owner, &name)?)).await?;
            let with_memory = !wish.disk_only;
            let capture = send(&entry, |reply| Command::Capture { staged, with_memory, reply }).await?;
            let mut phases = capture.timings.phases.clone();
            let own = capture.timings.total;
            watch.lap("capture");
            let (record, private, stored) = write_out(&services, capture).await?;
            watch.lap("write");
            let mut timings = watch.finish();
            // The capture's own phases stand for it, after the wait for the sandbox's owner.
            phases.insert(0, ("queue", phase(&timings, "capture").saturating_sub(own)));
            timings.phases.splice(0..1, phases);
            services.metrics.changed("snapshot", &timings);
            let view = view(&record, private, stored);
            services.events.sandbox(
                "snapshotted",
                &record.owner,
                &record.source_id,
                &record.source_name,
                serde_json::json!({
                    "snapshot": record.name,
                    "disk_only": record.disk_only(),
                    "pause_ms": record.pause_ms,
                    "total_ms": timings.total_ms(),
                }),
            );
            let warning = (with_memory && record.disk_only()).then(|| {
                format!(
                    "{} was powered off and has no memory: the snapshot is its disk alone",
                    record.source_name
                )
            });
            Ok(SnapshotReport { view, timings, warnings: warning.into_iter().collect() })
        })
        .await
    }

    /// The owner's snapshots, by name. One whose record cannot be read is left out and logged.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn snapshots(&self, owner: &Owner) -> Result<Vec<SnapshotView>> {
        let (store, owner) = (self.inner.services.store.clone(), owner.clone());
        blocking(move || {
            let mut views = Vec::new();
            for (name, record) in store.snapshots().of(&owner)? {
                match record {
                    Ok(record) => views.push(measured(&store, &record)),
                    Err(error) => tracing::error!(%error, %name, "a snapshot cannot be read"),
                }
            }
            Ok(views)
        })
        .await
    }

    /// One snapshot.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`.
    pub async fn snapshot(&self, owner: &Owner, name: &SnapshotName) -> Result<SnapshotView> {
        let (store, owner, name) = (self.inner.services.store.clone(), owner.clone(), name.clone());
        blocking(move || Ok(measured(&store, store.snapshots().open(&owner, &name)?.record()))).await
    }

    /// Makes a sandbox from a snapshot: with its memory, or booted if it has none.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `Conflict` for a name that is taken, `SlowPath`, `NoSpace`; nothing is left then.
    pub async fn snapshot_resume(
        &self,
        owner: &Owner,
        name: &SnapshotName,
        resume: Resume,
    ) -> Result<Report> {
        let (host, owner, name) = (self.clone(), owner.clone(), name.clone());
        self.to_the_end(async move {
            let services = Arc::clone(&host.inner.services);
            let taken = host.take_names(&owner, std::slice::from_ref(&resume.name)).await?;
            let store = services.store.clone();
            let seed = blocking(move || {
                let snapshot = store.snapshots().open(&owner, &name)?;
                let held = snapshot.hold()?;
                let manifest = snapshot.record().sandbox.clone();
                let pin = store.pin(&manifest);
                let detached = manifest.memory.as_ref().is_some_and(|memory| memory.detached);
                let memory = snapshot.open_memory()?.map(|image| Memory::stored(image, detached));
                let disks = Disks::Named { snapshot: Box::new(snapshot), _held: held };
                Ok(Seed { manifest, disks, memory, boot: Boot::Resume, _pin: pin })
            })
            .await?;
            let writable = seed.manifest.volumes.iter().filter(|volume| !volume.read_only).count();
            let _places = host.places_for_copies(&seed.manifest.owner, 1, writable).await?;
            let _shared = host.share_volumes(&seed.manifest).await?;
            if resume.strict && seed.memory.is_none() {
                return Err(Error::new(
                    ErrorKind::SlowPath,
                    "that snapshot has no memory, so this would boot it",
                )
                .hint("leave --strict away to boot it"));
            }
            let copy = Copy {
                name: resume.name,
                labels: resume.labels,
                keep_hot: resume.keep_hot,
                disk_size: resume.disk_size,
            };
            let report = host.make_copy(&Arc::new(seed), copy).await?;
            drop(taken);
            Ok(report)
        })
        .await
    }

    /// Removes a snapshot. Sandboxes made from it keep what they need.
    ///
    /// # Errors
    /// `NotFound`, `Busy` while something is made from it.
    pub async fn snapshot_delete(&self, owner: &Owner, name: &SnapshotName) -> Result<()> {
        let (store, owner, name) = (self.inner.services.store.clone(), owner.clone(), name.clone());
        let (gone, whose) = (name.clone(), owner.clone());
        blocking(move || {
            let manifest =
                store.snapshots().open(&owner, &name).map(|snapshot| snapshot.record().sandbox.clone());
            store.snapshots().remove(&owner, &name)?;
            // One whose record cannot be read names what only `gc` can find.
            if let Ok(manifest) = manifest
                && let Err(error) = store.release(&manifest)
            {
                tracing::warn!(%error, snapshot = %name, "what it named stays; `bhatti gc` removes it");
            }
            Ok(())
        })
        .await?;
        self.inner.services.events.host("snapshot.deleted", &whose, serde_json::json!({ "snapshot": gone }));
        Ok(())
    }

    /// Makes live copies of a sandbox, which goes on as it was.
    ///
    /// # Errors
    /// `Conflict` for a name that is taken, `SlowPath`, `NoSpace`; no copy is left then.
    pub async fn fork(&self, owner: &Owner, which: &str, fork: Fork) -> Result<Vec<Report>> {
        let entry = self.inner.registry.find(owner, which)?;
        let (host, owner) = (self.clone(), owner.clone());
        self.to_the_end(async move {
            let mut watch = Stopwatch::start();
            let services = Arc::clone(&host.inner.services);
            let taken = host.take_names(&owner, &fork.names).await?;
            let volumes = entry.shared.view().volumes;
            let writable = volumes.iter().filter(|volume| !volume.read_only).count();
            let _places = host.places_for_copies(&owner, fork.names.len(), writable).await?;
            let store = services.store.clone();
            let staged = blocking(move || Ok(store.snapshots().stage_fork()?)).await?;
            let capture = send(&entry, |reply| Command::Capture { staged, with_memory: true, reply }).await?;
            if fork.strict && matches!(capture.memory, CapturedMemory::None) {
                return Err(Error::new(
                    ErrorKind::SlowPath,
                    format!("{} has no memory to copy, so its copies would boot", entry.name),
                )
                .hint("leave --strict away to boot them"));
            }
            let (pause, frozen) = (capture.pause, capture.frozen.clone());
            seal_later(&services, frozen, services.store.pin(&capture.manifest));
            watch.lap("capture");
            let _shared = host.share_volumes(&capture.manifest).await?;
            let seed = Arc::new(seed_of(&services, capture, fork.names.len()).await?);
            watch.lap("pages");
            let copies = fork.names.into_iter().map(|name| Copy {
                name,
                labels: fork.labels.clone(),
                keep_hot: fork.keep_hot,
                disk_size: fork.disk_size,
            });
            let shared = watch.finish();
            let mut reports = host.make_copies(&owner, &seed, copies.collect()).await?;
            for report in &mut reports {
                let phases = [("capture", phase(&shared, "capture")), ("pages", phase(&shared, "pages"))];
                report.timings.phases.splice(0..0, phases);
                report.timings.total += shared.total;
                report.pause = Some(pause);
            }
            drop(taken);
            Ok(reports)
        })
        .await
    }

    /// Places for so many copies, each of which gets so many volumes of its own.
    async fn places_for_copies(&self, owner: &Owner, copies: usize, volumes: usize) -> Result<Places> {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let volumes = count(copies.saturating_mul(volumes));
        let wanted = [(Counted::Sandboxes, count(copies)), (Counted::Volumes, volumes), (Counted::Disk, 0)];
        self.places(owner, &wanted).await
    }

    /// The volumes that copies share, held until they have them: those that were only read, which must still be there
    /// and written by nobody.
    async fn share_volumes(&self, source: &storage::Manifest) -> Result<crate::volumes::Held> {
        let shared: Vec<_> = source.volumes.iter().filter(|volume| volume.read_only).collect();
        let held = self.hold_volumes(&source.owner, shared.iter().map(|volume| &volume.name)).await;
        for volume in shared {
            self.volume(&source.owner, &volume.name).await.map_err(|error| {
                let hint =
                    "it was attached read-only, so the snapshot has no clone of it; bring it back first";
                if error.kind() == ErrorKind::NotFound { error.hint(hint) } else { error }
            })?;
            let wanted = types::VolumeMount {
                name: volume.name.clone(),
                mount: volume.mount.clone(),
                read_only: true,
            };
            self.check_free(&source.owner, &wanted, None)?;
        }
        Ok(held)
    }

    /// The names, free and taken until the guards are dropped. In order, so that two who want the same cannot wait for
    /// each other.
    async fn take_names(
        &self,
        owner: &Owner,
        names: &[SandboxName],
    ) -> Result<Vec<tokio::sync::OwnedMutexGuard<()>>> {
        let mut sorted = names.to_vec();
        sorted.sort();
        let mut taken = Vec::with_capacity(sorted.len());
        for pair in sorted.windows(2) {
            if pair[0] == pair[1] {
                return Err(Error::new(
                    ErrorKind::BadRequest,
                    format!("two copies cannot both be named {}", pair[0]),
                ));
            }
        }
        for name in sorted {
            taken.push(self.inner.names.lock(&(owner.clone(), name.clone())).await);
            self.inner.registry.check_name(owner, &name)?;
            if self.inner.registry.by_name(owner, &name).is_some() {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("there is a sandbox named {name} already"),
                )
                .hint("choose another name, or destroy that one first"));
            }
        }
        Ok(taken)
    }

    async fn make_copy(&self, seed: &Arc<Seed>, copy: Copy) -> Result<Report> {
        let (actor, timings, warnings) = copies::make(&self.inner.services, seed, copy).await?;
        let mut report = actor.report(true, timings, warnings);
        report.created = true;
        self.adopt(actor);
        Ok(report)
    }

    /// All copies, or none.
    async fn make_copies(&self, owner: &Owner, seed: &Arc<Seed>, copies: Vec<Copy>) -> Result<Vec<Report>> {
        let limit = Arc::new(tokio::sync::Semaphore::new(COPIES_AT_ONCE));
        let making: Vec<_> = copies
            .into_iter()
            .map(|copy| {
                let (host, seed, limit) = (self.clone(), Arc::clone(seed), Arc::clone(&limit));
                tokio::spawn(async move {
                    let _permit = limit.acquire_owned().await;
                    host.make_copy(&seed, copy).await
                })
            })
            .collect();
        let (mut made, mut failed) = (Vec::new(), None);
        for making in making {
            let lost = |error| Error::new(ErrorKind::Internal, "copying failed").source(error);
            match making.await.map_err(lost).and_then(|made| made) {
                Ok(report) => made.push(report),
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        let Some(error) = failed else { return Ok(made) };
        for report in made {
            if let Err(left) = self.destroy(owner, report.view.id.as_str()).await {
                tracing::error!(error = %left, sandbox = %report.view.name, "a copy of a failed fork stays");
            }
        }
        Err(error)
    }
}

fn phase(timings: &crate::view::Timings, name: &str) -> Duration {
    timings.phases.iter().find(|(phase, _)| *phase == name).map_or(Duration::ZERO, |(_, took)| *took)
}

/// Writes a capture's memory and makes the snapshot last. Returns how much memory that was, in the guest and on disk.
async fn write_out(services: &Arc<Services>, capture: Capture) -> Result<(SnapshotRecord, Bytes, Bytes)> {
    let store = services.store.clone();
    let Capture { staged, mut manifest, memory, pause, pin, frozen, .. } = capture;
    let private = memory.private();
    let record = blocking(move || {
        let detached = match &memory {
            CapturedMemory::Stored { detached } => *detached,
            CapturedMemory::None | CapturedMemory::Pages(_) => false,
        };
        // A base of its own that was just written is named by nobody yet.
        let (written, _pinned) = match memory {
            CapturedMemory::None => {
                manifest.memory = None;
                (None, None)
            }
            CapturedMemory::Stored { .. } => (None, None),
            CapturedMemory::Pages(pages) => {
                let (memory, pin) = write_pages(&store, &staged, &mut manifest, &pages)?;
                (Some(memory), pin)
            }
        };
        Ok(staged.commit(written.map(|memory| (memory, detached)), pause, manifest)?)
    })
    .await?;
    seal_later(services, frozen, pin);
    let stored = record.sandbox.memory.as_ref().map_or(Bytes(0), |memory| memory.mem_content_bytes);
    Ok((record, private, stored))
}

/// The pages as a memory image; over a base of their own when they are many, which `manifest` then names and the pin
/// keeps.
fn write_pages(
    store: &storage::Store,
    staged: &StagedSnapshot,
    manifest: &mut storage::Manifest,
    pages: &crate::ram::Captured,
) -> Result<(StagedMemory, Option<storage::Pin>)> {
    let len = manifest.memory_mib.bytes();
    if pages.private() <= OWN_BASE_ABOVE {
        let header = MemoryHeader { generation: manifest.generation, base: manifest.ram_base.id() };
        return Ok((staged.write_memory(pages, header, COMPRESSION_LEVEL)?, None));
    }
    let (base, _report, pin) = store.write_own_base(&manifest.ram_base, manifest.memory_mib, pages)?;
    manifest.ram_base = base;
    let header = MemoryHeader { generation: manifest.generation, base: manifest.ram_base.id() };
    Ok((staged.write_memory(&Unchanged(len), header, COMPRESSION_LEVEL)?, Some(pin)))
}

/// What `count` copies are made from.
async fn seed_of(services: &Arc<Services>, capture: Capture, count: usize) -> Result<Seed> {
    let store = services.store.clone();
    blocking(move || {
        let Capture { staged, mut manifest, memory, mut pin, .. } = capture;
        let memory = match memory {
            CapturedMemory::None => None,
            CapturedMemory::Stored { detached } => {
                staged.open_memory(&manifest)?.map(|image| Memory::stored(image, detached))
            }
            // Several copies of much memory share one base instead.
            CapturedMemory::Pages(pages) if count > 1 && pages.private() > OWN_BASE_ABOVE => {
                let (base, _report, _until_pinned) =
                    store.write_own_base(&manifest.ram_base, manifest.memory_mib, &pages)?;
                manifest.ram_base = base;
                pin = store.pin(&manifest);
                Some(Memory { pages: Pages::Base, detached: false })
            }
            CapturedMemory::Pages(pages) => {
                Some(Memory { pages: Pages::Captured(Arc::new(pages)), detached: false })
            }
        };
        Ok(Seed { manifest, disks: Disks::Staged(staged), memory, boot: Boot::Fork, _pin: pin })
    })
    .await
}

fn view(record: &SnapshotRecord, private: Bytes, stored: Bytes) -> SnapshotView {
    let sandbox = &record.sandbox;
    SnapshotView {
        name: record.name.clone(),
        owner: record.owner.clone(),
        source_id: record.source_id.clone(),
        source_name: record.source_name.clone(),
        created_at: record.created_at,
        disk_only: record.disk_only(),
        image: sandbox.image.name.clone(),
        cpus: sandbox.cpus,
        memory: sandbox.memory_mib,
        disk_size: sandbox.disk_size_mib,
        labels: sandbox.labels.clone(),
        accel: sandbox.machine.accel,
        pause: Duration::from_secs_f64(record.pause_ms.max(0.0) / 1e3),
        private,
        stored,
    }
}

/// A snapshot with what its memory image says of itself.
fn measured(store: &storage::Store, record: &SnapshotRecord) -> SnapshotView {
    let image =
        store.snapshots().open(&record.owner, &record.name).and_then(|snapshot| snapshot.open_memory());
    let stats = image.ok().flatten().map(|image| image.stats());
    let (private, stored) = stats.map_or((Bytes(0), Bytes(0)), |stats| (stats.private, stats.stored));
    view(record, private, stored)
}
