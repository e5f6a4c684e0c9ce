//! Sandboxes made from a sandbox: what resume and fork have in common.
//!
//! # Crash order
//! As in `create`: disks and manifest get their name before the VMM starts, and are removed again when the guest does not
//! come up. Volumes that are cloned for it come before: one whose sandbox never got its name goes when a store is opened.
//! A copy's manifest says `running` from the start: if all dies before the copy was told who it is, it boots
//! from its disk and never runs as its source.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;
use storage::{
    CloneReport, Manifest, MemoryImage, Pin, RunState, SandboxDir, SnapshotDir, StagedSnapshot, VolumeRecord,
};
use types::{
    Boot, CloneMethod, Labels, Mebibytes, SandboxId, SandboxName, StorageLayout, Timestamp, VolumeName,
};

use crate::actor::{Actor, Start};
use crate::bring_up::{self, Origin, Pages, Volumes, bring_up};
use crate::create;
use crate::error::{Error, ErrorKind, Result};
use crate::launch;
use crate::services::{ROOM_FOR_A_SANDBOX, Services, blocking};
use crate::state::{Happening, State};
use crate::timing::Stopwatch;
use crate::view::Timings;
use crate::volumes;

/// What copies are made from.
pub(crate) struct Seed {
    /// The source at that moment.
    pub(crate) manifest: Manifest,
    /// Where its disks are.
    pub(crate) disks: Disks,
    /// Its memory; none boots from the disk.
    pub(crate) memory: Option<Memory>,
    /// How the copies begin.
    pub(crate) boot: Boot,
    /// Keeps what the manifest names.
    pub(crate) _pin: Pin,
}

/// The directory with root disk and config drive.
pub(crate) enum Disks {
    Named { snapshot: Box<SnapshotDir>, _held: std::fs::File },
    Staged(StagedSnapshot),
}

/// A guest's memory and devices.
pub(crate) struct Memory {
    pub(crate) pages: Pages,
    /// Whether the agent had detached cleanly.
    pub(crate) detached: bool,
}

impl Memory {
    pub(crate) fn stored(image: MemoryImage, detached: bool) -> Self {
        Self { pages: Pages::Stored(Arc::new(image)), detached }
    }
}

/// One copy to be made.
#[derive(Debug, Clone)]
pub(crate) struct Copy {
    pub(crate) name: SandboxName,
    pub(crate) labels: Labels,
    pub(crate) keep_hot: bool,
    pub(crate) disk_size: Option<Mebibytes>,
}

impl Seed {
    /// What a copy is to be, checked before anything is made.
    fn manifest_of(&self, id: &SandboxId, copy: &Copy) -> Result<Manifest> {
        let source = &self.manifest;
        let disk_size_mib = match copy.disk_size {
            Some(size) if size < source.disk_size_mib => {
                return Err(Error::new(
                    ErrorKind::BadRequest,
                    format!(
                        "a disk of {size} is smaller than the source's, which has {}",
                        source.disk_size_mib
                    ),
                )
                .hint(format!("disks only grow: use {} or more", source.disk_size_mib.0)));
            }
            size => size.unwrap_or(source.disk_size_mib),
        };
        let mut labels = source.labels.clone();
        labels.extend(copy.labels.clone());
        labels.retain(|_, value| !value.is_empty());
        Ok(Manifest {
            id: id.clone(),
            name: copy.name.clone(),
            generation: 1,
            state: if self.memory.is_some() { RunState::Running } else { RunState::Off },
            disk_size_mib,
            labels,
            keep_hot: copy.keep_hot,
            created_at: Timestamp::now(),
            memory: None,
            ..source.clone()
        })
    }

    fn open_devices(&self) -> Result<std::fs::File> {
        match &self.disks {
            Disks::Named { snapshot, .. } => snapshot.open_devices()?.ok_or_else(no_devices),
            Disks::Staged(staged) => Ok(staged.open_devices(&self.manifest)?),
        }
    }

    /// Gives the copy's manifest volumes of its own in place of those that its source could write to, and tells which:
    /// the source's and the copy's. What was attached read-only is shared.
    fn volumes_for(
        &self,
        services: &Services,
        manifest: &mut Manifest,
    ) -> Result<Vec<(VolumeName, VolumeName)>> {
        let mut own = Vec::new();
        let taken: Vec<VolumeName> = manifest.volumes.iter().map(|volume| volume.name.clone()).collect();
        for volume in manifest.volumes.iter_mut().filter(|volume| !volume.read_only) {
            let free = |name: &VolumeName| {
                !services.store.volumes().exists(&manifest.owner, name) && !taken.contains(name)
            };
            let name = (0..)
                .map(|attempt| volumes::name_for_copy(&volume.name, &manifest.name, attempt))
                .find(|name| name.as_ref().map_or(true, free))
                .ok_or_else(|| Error::new(ErrorKind::Internal, "no name is free for a volume"))??;
            own.push((std::mem::replace(&mut volume.name, name.clone()), name));
        }
        Ok(own)
    }

    fn clone_volume(
        &self,
        services: &Services,
        copy: &Manifest,
        volume: &VolumeName,
        name: &VolumeName,
    ) -> Result<()> {
        let from = self.directory().join(storage::snapshot_volume(volume));
        let staged = services.store.volumes().stage(&copy.owner)?;
        staged.copy_of(&from)?;
        let mut record = VolumeRecord::new(copy.owner.clone(), name.clone());
        record.made_for = Some(copy.id.clone());
        staged.commit(&record)?;
        Ok(())
    }

    fn directory(&self) -> PathBuf {
        match &self.disks {
            Disks::Named { snapshot, .. } => snapshot.path().to_owned(),
            Disks::Staged(staged) => staged.dir().to_owned(),
        }
    }

    fn stage(&self, services: &Services, manifest: &Manifest) -> Result<(SandboxDir, CloneReport)> {
        let staged = services.store.stage_sandbox(&manifest.id)?;
        let cloned = staged.take_disks_from(&self.directory(), manifest.layout)?;
        Ok((staged.commit(manifest)?, cloned))
    }
}

fn no_devices() -> Error {
    Error::new(ErrorKind::Internal, "a snapshot with memory has no device state")
}

/// Makes one copy and its running machine. What was made is removed again when any step fails.
pub(crate) async fn make(
    services: &Arc<Services>,
    seed: &Arc<Seed>,
    copy: Copy,
) -> Result<(Actor, Timings, Vec<String>)> {
    let mut watch = Stopwatch::start();
    services.require_space(ROOM_FOR_A_SANDBOX, "a copy")?;
    let seat = services.network.draw(&seed.manifest.owner, seed.manifest.net.as_ref())?;
    let id = seat.id.clone();
    let mut manifest = seed.manifest_of(&id, &copy)?;
    let own = seed.volumes_for(services, &mut manifest)?;
    create::check_disk_size(services, manifest.disk_size_mib)?;
    let grow = (manifest.disk_size_mib > seed.manifest.disk_size_mib).then(|| manifest.disk_size_mib.bytes());
    if seed.memory.is_some() {
        let qemu = services.qemu().await?;
        let saved_by = vm::Version::parse(&manifest.machine.qemu_version)
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, "the manifest names no VMM version"))?;
        qemu.check_loads(saved_by)?;
        manifest.machine.qemu_version = qemu.version.to_string();
    }
    let (services_there, from, staged) = (Arc::clone(services), Arc::clone(seed), manifest.clone());
    let made = own.iter().map(|(_, name)| name.clone()).collect::<Vec<_>>();
    let staged = blocking(move || {
        for (volume, name) in &own {
            from.clone_volume(&services_there, &staged, volume, name)?;
        }
        from.stage(&services_there, &staged)
    })
    .await;
    let (dir, cloned) = match staged {
        Ok(staged) => staged,
        Err(error) => {
            volumes::remove_made(services, &manifest.owner, made).await;
            return Err(error);
        }
    };
    watch.lap("disk");
    let clone = match manifest.layout {
        // The overlay's own few pages are copied either way; what matters is that what lies below is not.
        StorageLayout::Overlay => CloneMethod::Overlay,
        StorageLayout::Reflink => cloned.method,
    };
    let mut actor = create::actor(services, dir.clone(), manifest.clone(), clone, Timestamp::now());
    let started = match &seed.memory {
        Some(memory) => wake_copy(&mut actor, seed, memory, grow, &mut watch).await,
        None => {
            let booted = actor.ensure_hot(Start::default()).await;
            watch.lap("boot");
            booted.map(|(_changed, _timings, warnings)| warnings)
        }
    };
    let warnings = match started {
        Ok(warnings) => warnings,
        Err(error) => {
            drop(actor);
            if let Err(left) = blocking(move || Ok(dir.destroy()?)).await {
                tracing::error!(error = %left, %id, "a copy that failed to start could not be removed");
            }
            volumes::remove_made(services, &manifest.owner, made).await;
            return Err(error);
        }
    };
    seat.keep();
    let timings = watch.finish();
    actor.record("create", &timings, &[]);
    actor.index();
    let detail = json!({
        "from": seed.manifest.name,
        "boot": actor.boot,
        "clone": clone,
        "total_ms": timings.total_ms(),
    });
    actor.event(if seed.boot == Boot::Fork { "forked" } else { "resumed" }, detail);
    Ok((actor, timings, warnings))
}

async fn wake_copy(
    actor: &mut Actor,
    seed: &Arc<Seed>,
    memory: &Memory,
    grow: Option<types::Bytes>,
    watch: &mut Stopwatch,
) -> Result<Vec<String>> {
    let from = Arc::clone(seed);
    let devices = blocking(move || from.open_devices()).await?;
    let mut identity = launch::identity(&actor.manifest.id, &actor.manifest.name, false);
    // What its source read from the config drive is in its memory.
    identity.read_config = false;
    let origin = Origin {
        pages: memory.pages.clone(),
        devices,
        start: bring_up::Start { identity, pad: !memory.detached, grow, volumes: Volumes::InMemory },
    };
    let (services, dir, manifest) = (Arc::clone(&actor.services), actor.dir.clone(), actor.manifest.clone());
    let (running, warnings) = bring_up(&services, &dir, &manifest, origin, watch).await?;
    actor.running = Some(running);
    actor.boot = seed.boot;
    // It says running and had no machine, as after a crash; only this time that is as it should be.
    actor.state = State::Off;
    actor.enter(Happening::Booted)?;
    Ok(warnings)
}
