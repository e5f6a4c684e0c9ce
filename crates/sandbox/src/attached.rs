//! The volumes of one sandbox: plugged in and out while its guest runs, grown, copied as of one moment.
//!
//! # Crash order
//! Attach: the manifest names the volume, durably; the disk is plugged in; the guest mounts it. Detach: the guest writes
//! it out and unmounts it; the disk is plugged out; the manifest lets it go, durably. So a volume that a guest may have
//! written to is always named by the manifest, and whoever finds one named and not plugged in (see `reopen`) plugs it in.
//! A sandbox without a machine only has its manifest changed; its next boot does the rest.

use std::time::{Duration, Instant};

use serde_json::json;
use storage::{DeviceRecord, MachineRecord, Manifest, StagedVolume, VolumeRef};
use types::{CloneMethod, Mebibytes, VolumeMount, VolumeName, check_mounts};
use vm::{Machine, VolumeDisk};

use crate::actor::{Actor, Start};
use crate::error::{Error, ErrorKind, Result};
use crate::services::blocking;
use crate::state::State;
use crate::timing::Stopwatch;
use crate::view::Timings;
use crate::volumes::{Copied, busy, copy_at_rest};

/// How long a guest that is to end may take to write its volumes out.
const LET_GO_TIMEOUT: Duration = Duration::from_secs(10);

/// What came of a change.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Change {
    pub(crate) changed: bool,
    pub(crate) timings: Timings,
    pub(crate) warnings: Vec<String>,
}

/// A copy of a volume that was begun.
#[derive(Debug)]
pub(crate) enum Begun {
    /// It is made already.
    Done(StagedVolume, Copied),
    /// From now on the VMM notes what is written: the file is to be copied, and the copy ended.
    Watching(StagedVolume),
}

/// A volume as the VMM takes it.
pub(crate) fn disk(manifest: &Manifest, volume: &VolumeRef) -> VolumeDisk {
    let path = storage::volume_from_machine_dir(&manifest.owner, &volume.name);
    VolumeDisk { port: volume.port, path, read_only: volume.read_only }
}

/// All volumes as the VMM takes them.
pub(crate) fn disks(manifest: &Manifest) -> Vec<VolumeDisk> {
    manifest.volumes.iter().map(|volume| disk(manifest, volume)).collect()
}

/// A volume as the agent takes it.
pub(crate) fn mount_of(volume: &VolumeRef) -> wire::VolumeMount {
    wire::VolumeMount {
        name: volume.name.to_string(),
        serial: vm::volume_serial(volume.port),
        path: volume.mount.to_string(),
        read_only: volume.read_only,
    }
}

/// All volumes as the agent takes them.
pub(crate) fn mounts_of(manifest: &Manifest) -> Vec<wire::VolumeMount> {
    manifest.volumes.iter().map(mount_of).collect()
}

/// The manifest with another volume in the first free port.
pub(crate) fn with_volume(manifest: Manifest, volume: &VolumeMount) -> Result<Manifest> {
    let there = manifest.volumes.iter().map(|volume| (&volume.name, &volume.mount));
    check_mounts(there.chain([(&volume.name, &volume.mount)]))?;
    let port = manifest.free_port().ok_or_else(|| {
        Error::new(ErrorKind::BadRequest, format!("{} has no port for another volume", manifest.name))
    })?;
    let VolumeMount { name, mount, read_only } = volume.clone();
    let volume = VolumeRef { name, mount, read_only, port };
    let mut manifest = manifest;
    manifest.machine.devices.push(device(&volume));
    Ok(manifest.with_volume(volume))
}

/// A fresh machine's record with the disks of volumes beside its own devices.
pub(crate) fn machine_with_volumes(mut machine: MachineRecord, volumes: &[VolumeRef]) -> MachineRecord {
    machine.devices.extend(volumes.iter().map(device));
    machine
}

fn device(volume: &VolumeRef) -> DeviceRecord {
    let (id, port) = (vm::volume_serial(volume.port), format!("port{}", volume.port));
    DeviceRecord { id, kind: "virtio-blk".to_owned(), port }
}

/// The manifest without a volume.
fn without_volume(manifest: Manifest, volume: &VolumeRef) -> Manifest {
    let id = vm::volume_serial(volume.port);
    let mut manifest = manifest.without_volume(&volume.name);
    manifest.machine.devices.retain(|device| device.id != id);
    manifest
}

/// Why a disk could not be plugged in.
pub(crate) fn plug_failed(error: vm::Error, name: &VolumeName) -> Error {
    if error.kind() == vm::ErrorKind::Refused && error.detail().contains("lock") {
        return busy(format!("another virtual machine has volume {name} open"))
            .hint("`bhatti volume inspect` and `bhatti doctor` tell which; end that one first");
    }
    error.into()
}

impl Actor {
    /// To be called before a memory image is made: where a disk could not be plugged in or out, it is now.
    pub(crate) async fn settle_disks(&mut self) -> Result<()> {
        if !self.running.as_ref().is_some_and(|running| running.disks_in_doubt) {
            return Ok(());
        }
        // A guest that stands still lets go of nothing.
        self.ensure_hot(Start::default()).await?;
        match_disks(&self.running()?.machine, &self.manifest).await?;
        self.doubt_disks(false);
        Ok(())
    }

    fn doubt_disks(&mut self, doubt: bool) {
        if let Some(running) = &mut self.running {
            running.disks_in_doubt = doubt;
        }
    }

    pub(crate) async fn attach_volume(&mut self, volume: VolumeMount) -> Result<Change> {
        self.settle_freeze().await?;
        if let Some(there) = self.manifest.volume(&volume.name) {
            if there.mount == volume.mount && there.read_only == volume.read_only {
                return Ok(Change::default());
            }
            let how = if there.read_only { " read-only" } else { "" };
            let text =
                format!("{} has volume {} already, on {}{how}", self.manifest.name, there.name, there.mount);
            return Err(Error::new(ErrorKind::Conflict, text).hint("detach it first"));
        }
        let mut watch = Stopwatch::start();
        let _planned = with_volume(self.manifest.clone(), &volume)?;
        let mut warnings = Vec::new();
        if self.state != State::Off {
            warnings = self.ensure_hot(Start::default()).await?.2;
            watch.lap("start");
        }
        let before = self.manifest.clone();
        self.commit(with_volume(before.clone(), &volume)?).await?;
        watch.lap("commit");
        if self.state == State::Hot
            && let Err(error) = self.bring_in(&volume.name, &mut watch).await
        {
            self.doubt_disks(true);
            // It is not there for the guest, so the manifest must not say so for long.
            self.commit(before).await?;
            self.publish();
            return Err(error);
        }
        self.publish();
        self.event(
            "volume_attached",
            json!({ "volume": volume.name, "mount": volume.mount, "read_only": volume.read_only }),
        );
        Ok(Change { changed: true, timings: watch.finish(), warnings })
    }

    /// Plugs in and mounts a volume that the manifest names; neither is left when that fails.
    async fn bring_in(&self, name: &VolumeName, watch: &mut Stopwatch) -> Result<()> {
        let running = self.running()?;
        let volume = self.manifest.volume(name).ok_or_else(|| not_attached(name))?;
        running
            .machine
            .plug_volume(&disk(&self.manifest, volume))
            .await
            .map_err(|error| plug_failed(error, name))?;
        watch.lap("plug");
        let mut mounted = running.guest.mount(mount_of(volume)).await;
        if volume.read_only && mounted.as_ref().is_err_and(is_unclean) {
            mounted = self.mount_settled(volume).await?;
        }
        watch.lap("mount");
        if let Err(error) = mounted {
            if let Err(stays) = running.machine.unplug_volume(volume.port).await {
                tracing::error!(error = %stays, sandbox = %self.manifest.name, volume = %name, "its disk stays plugged in");
            }
            return Err(guest_refused(error));
        }
        Ok(())
    }

    /// Mounts a volume read-only that was not unmounted cleanly: its journal is played back first, for which its disk is
    /// plugged in for writing. That nobody else has it, the lock of its file says.
    async fn mount_settled(&self, volume: &VolumeRef) -> Result<guest::Result<()>> {
        let running = self.running()?;
        let (machine, for_reading) = (&running.machine, disk(&self.manifest, volume));
        let for_writing = VolumeDisk { read_only: false, ..for_reading.clone() };
        machine.unplug_volume(volume.port).await?;
        machine.plug_volume(&for_writing).await.map_err(|error| plug_failed(error, &volume.name))?;
        let settled = running.guest.settle(mount_of(volume)).await;
        machine.unplug_volume(volume.port).await?;
        machine.plug_volume(&for_reading).await.map_err(|error| plug_failed(error, &volume.name))?;
        match settled {
            Ok(()) => Ok(running.guest.mount(mount_of(volume)).await),
            refused => Ok(refused),
        }
    }

    pub(crate) async fn detach_volume(&mut self, name: VolumeName) -> Result<Change> {
        self.settle_freeze().await?;
        if self.manifest.volume(&name).is_none() {
            return Ok(Change::default());
        }
        let mut watch = Stopwatch::start();
        let mut warnings = Vec::new();
        if self.state != State::Off {
            warnings = self.ensure_hot(Start::default()).await?.2;
            watch.lap("start");
        }
        let volume = self.manifest.volume(&name).ok_or_else(|| not_attached(&name))?.clone();
        if self.state == State::Hot {
            let running = self.running()?;
            running.guest.unmount(mount_of(&volume)).await.map_err(guest_refused)?;
            watch.lap("unmount");
            if let Err(error) = running.machine.unplug_volume(volume.port).await {
                self.doubt_disks(true);
                self.mount_again(&volume).await;
                return Err(error.into());
            }
            watch.lap("unplug");
        }
        if let Err(error) = self.commit(without_volume(self.manifest.clone(), &volume)).await {
            self.doubt_disks(true);
            // It is still named, so it is made to be there again.
            if self.state == State::Hot
                && let Err(gone) = self.running()?.machine.plug_volume(&disk(&self.manifest, &volume)).await
            {
                tracing::error!(error = %gone, volume = %name, "a disk that is still named is not plugged in");
            }
            self.mount_again(&volume).await;
            return Err(error);
        }
        watch.lap("commit");
        self.publish();
        self.event("volume_detached", json!({ "volume": name }));
        Ok(Change { changed: true, timings: watch.finish(), warnings })
    }

    async fn mount_again(&self, volume: &VolumeRef) {
        let Some(running) = self.running.as_ref() else { return };
        if let Err(error) = running.guest.mount(mount_of(volume)).await {
            tracing::error!(%error, volume = %volume.name, "a volume that stays attached could not be mounted again");
        }
    }

    pub(crate) async fn resize_volume(&mut self, name: VolumeName, size: Mebibytes) -> Result<Change> {
        self.settle_freeze().await?;
        let mut warnings = Vec::new();
        if self.state != State::Off {
            warnings = self.ensure_hot(Start::default()).await?.2;
        }
        let volume = self.manifest.volume(&name).ok_or_else(|| not_attached(&name))?.clone();
        if self.state == State::Off {
            let (store, owner) = (self.services.store.clone(), self.manifest.owner.clone());
            blocking(move || {
                let lock = store.volumes().lock(&owner, &name)?;
                Ok(store.volumes().grow(&lock, size.bytes())?)
            })
            .await?;
            warnings
                .push(format!("the file system of {} grows when {} starts", volume.name, self.manifest.name));
        } else {
            let running = self.running()?;
            running.machine.resize_volume(volume.port, size.bytes()).await?;
            let growth = wire::VolumeGrowth { volume: mount_of(&volume), bytes: size.bytes().0 };
            running.guest.grow_volume(growth).await.map_err(guest_refused)?;
        }
        self.event("volume_resized", json!({ "volume": volume.name, "size_mb": size.0 }));
        Ok(Change { changed: true, timings: Timings::default(), warnings })
    }

    /// Begins a copy of a volume that the guest may write to. Where extents are shared it is made at once; else the VMM
    /// notes from now on what is written.
    pub(crate) async fn begin_copy(&mut self, name: VolumeName, staged: StagedVolume) -> Result<Begun> {
        self.settle_freeze().await?;
        if self.state == State::Off {
            let owner = self.manifest.owner.clone();
            let (staged, copied) = copy_at_rest(&self.services, &owner, &name, staged).await?;
            return Ok(Begun::Done(staged, copied));
        }
        // What sleeps has writes in its memory that no copy of its disk would have.
        self.ensure_hot(Start::default()).await?;
        let volume = self.manifest.volume(&name).ok_or_else(|| not_attached(&name))?.clone();
        let running = self.running()?;
        running.guest.sync().await?;
        let (store, owner) = (self.services.store.clone(), self.manifest.owner.clone());
        let (which, there) = (name.clone(), store.clone());
        let reflink = blocking(move || {
            // What the host has not written yet, sharing extents would have to wait for while the guest is held.
            there.sync_volume(&owner, &which)?;
            Ok(there.volumes_reflink()?)
        })
        .await?;
        if !reflink {
            running.machine.watch_volume(volume.port).await?;
            return Ok(Begun::Watching(staged));
        }
        let owner = self.manifest.owner.clone();
        let (staged, stall) = blocking(move || {
            let volume = store.volumes().open(&owner, &name)?;
            let began = Instant::now();
            match staged.share_extents_of(volume.path())? {
                true => Ok((staged, began.elapsed())),
                false => Err(Error::new(
                    ErrorKind::Internal,
                    "the filesystem shared extents before and refuses now",
                )),
            }
        })
        .await?;
        let settled = self.settle(&staged).await;
        Ok(Begun::Done(staged, Copied { method: CloneMethod::Reflink, stall: Some(stall), settled }))
    }

    /// Ends a copy of a volume: it becomes one of this moment. Returns how long the guest's writes had to wait.
    pub(crate) async fn end_copy(
        &mut self,
        name: VolumeName,
        staged: StagedVolume,
    ) -> Result<(StagedVolume, Copied)> {
        self.settle_freeze().await?;
        let volume = self.manifest.volume(&name).ok_or_else(|| not_attached(&name))?.clone();
        if self.state != State::Hot {
            let text = format!("{} was put to sleep while its volume {name} was copied", self.manifest.name);
            return Err(Error::new(ErrorKind::Busy, text).hint("try again"));
        }
        let running = self.running()?;
        let machine = &running.machine;
        let copied = async {
            machine.aim_copy(volume.port, staged.path()).await?;
            // All that the guest's programs had written when the clone was asked for is in it.
            running.guest.sync().await?;
            let began = Instant::now();
            machine.start_copy(volume.port).await?;
            let stall = began.elapsed();
            machine.finish_copy(volume.port).await?;
            Ok(stall)
        };
        match copied.await {
            Ok(stall) => {
                let settled = self.settle(&staged).await;
                Ok((staged, Copied { method: CloneMethod::SparseCopy, stall: Some(stall), settled }))
            }
            Err(error) => {
                if let Err(left) = machine.abandon_copy(volume.port).await {
                    tracing::warn!(error = %left, volume = %name, "what a copy left is cleared away by the next one");
                }
                Err(error)
            }
        }
    }

    /// Has the guest play back the journal of a clone of its own volume, so that the clone is as if it had been
    /// unmounted. Nobody else's kernel or program ever reads what a guest wrote. Tells whether that was done: it takes a
    /// free port.
    async fn settle(&mut self, clone: &StagedVolume) -> bool {
        let Some(port) = self.manifest.free_port() else { return false };
        let done = async {
            let running = self.running()?;
            let disk = VolumeDisk { port, path: clone.path().to_owned(), read_only: false };
            running.machine.plug_volume(&disk).await?;
            let volume = wire::VolumeMount {
                name: "the clone".to_owned(),
                serial: vm::volume_serial(port),
                path: String::new(),
                read_only: false,
            };
            let settled = running.guest.settle(volume).await;
            running.machine.unplug_volume(port).await?;
            settled.map_err(guest_refused)
        };
        match done.await {
            Ok(()) => true,
            Err(error) => {
                self.doubt_disks(true);
                tracing::warn!(error = %error.with_causes(), sandbox = %self.manifest.name, "a clone's journal is not played back yet");
                false
            }
        }
    }

    /// Writes the volumes of a guest that is about to end out, and unmounts those that nothing in it uses.
    pub(crate) async fn let_go_of_volumes(&self) {
        let writable = || self.manifest.volumes.iter().filter(|volume| !volume.read_only);
        let Some(running) = self.running.as_ref().filter(|_| writable().next().is_some()) else { return };
        let done = async {
            if self.state == State::Warm {
                running.machine.resume().await?;
            }
            running.guest.sync().await?;
            for volume in writable() {
                // One that is in use is written out, and its journal says the rest.
                if let Err(error) = running.guest.unmount(mount_of(volume)).await {
                    tracing::debug!(%error, volume = %volume.name, "it ends mounted");
                }
            }
            Ok::<(), Error>(())
        };
        match tokio::time::timeout(LET_GO_TIMEOUT, done).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %error.with_causes(), sandbox = %self.manifest.name, "its volumes were not written out");
            }
            Err(_elapsed) => {
                tracing::warn!(sandbox = %self.manifest.name, "its volumes were not written out in time");
            }
        }
    }
}

/// Plugs in the disks of volumes that the manifest names and the machine lacks.
pub(crate) async fn plug_missing(machine: &Machine, manifest: &Manifest) -> Result<()> {
    let there = machine.volume_ports().await?;
    for volume in &manifest.volumes {
        if !there.contains(&volume.port) {
            let plugged = machine.plug_volume(&disk(manifest, volume)).await;
            plugged.map_err(|error| plug_failed(error, &volume.name))?;
        }
    }
    Ok(())
}

/// Gives the machine the disks that the manifest names, and no others: a memory image of another machine could not be
/// loaded into the one that is made from the manifest.
async fn match_disks(machine: &Machine, manifest: &Manifest) -> Result<()> {
    for port in machine.volume_ports().await? {
        if !manifest.volumes.iter().any(|volume| volume.port == port) {
            machine.unplug_volume(port).await?;
        }
    }
    plug_missing(machine, manifest).await
}

/// The machine has the disks that the manifest names, and all are mounted: a daemon died in the middle of an attach, a
/// detach, or of playing back the journal of a copy.
pub(crate) async fn restore(machine: &Machine, guest: &guest::Guest, manifest: &Manifest) -> Result<()> {
    match_disks(machine, manifest).await?;
    for volume in &manifest.volumes {
        machine.abandon_copy(volume.port).await?;
        guest.mount(mount_of(volume)).await.map_err(guest_refused)?;
    }
    Ok(())
}

fn not_attached(name: &VolumeName) -> Error {
    Error::new(ErrorKind::Conflict, format!("volume {name} is not attached any more")).hint("try again")
}

/// Whether the agent could not mount a volume read-only because its journal is to be played back.
fn is_unclean(error: &guest::Error) -> bool {
    let code = wire::ErrorCode::Unclean;
    error.kind() == guest::ErrorKind::Refused { code }
}

/// What the agent says of a volume, as the answer to a verb on volumes.
pub(crate) fn guest_refused(error: guest::Error) -> Error {
    let guest::ErrorKind::Refused { code } = error.kind() else { return error.into() };
    let said = error.said().unwrap_or("the guest refused").to_owned();
    match code {
        wire::ErrorCode::Busy => busy(said).hint("end that process, or what it does there, and try again"),
        wire::ErrorCode::BadRequest if said.contains("does not know that request") => {
            let text = "the agent in the guest's memory is older than volumes";
            Error::new(ErrorKind::Conflict, text)
                .hint("boot the sandbox: `bhatti start NAME --discard-memory`")
        }
        wire::ErrorCode::BadRequest => Error::new(ErrorKind::BadRequest, said),
        _ => Error::new(ErrorKind::GuestRefused, said),
    }
}
