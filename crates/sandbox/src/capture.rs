//! Capturing a sandbox: its disk frozen, its memory copied, and the sandbox as it was before.
//!
//! # Crash order
//! 1. The guest runs on. Staging directory, empty top and config drive are made, the disk's and the volumes' writes are
//!    synced, memory for the copy is made ready; volumes whose extents cannot be shared are copied, and noted from then on.
//! 2. The guest stands still: the VMM turns to the new top, writes its device state, the pages are copied, volumes are
//!    shared or begun to be made those of this moment, and the frozen disk is committed (see `storage`). Nothing here waits for more than a directory's sync.
//! 3. The guest goes on. What was captured is written out by whoever asked for it.
//!
//! If the commit of step 2 fails, the guest stands still until it succeeds: its VMM writes to a disk that the manifest
//! does not know. Every verb tries it again first.

use std::time::{Duration, Instant};

use storage::{Freeze, LayerRef, Manifest, Pin, RunState, SandboxDir, StagedSnapshot};
use types::{Bytes, StorageLayout};
use vm::Machine;

use crate::actor::{Actor, Running};
use crate::error::{Error, ErrorKind, Result};
use crate::ram::{CaptureBuffer, Captured};
use crate::services::{Services, blocking, devices_not_saved};
use crate::state::State;
use crate::timing::Stopwatch;
use crate::view::Timings;

/// Layers under a root disk above which they are made one before the next is added: each costs every start a little.
const MOST_LAYERS: usize = 12;

/// How long the guest may take to finish what is being said to it.
const QUIET_TIMEOUT: Duration = Duration::from_secs(2);

/// What of a sandbox's memory was captured.
#[derive(Debug)]
pub(crate) enum CapturedMemory {
    /// None: it has none, or only its disk was wanted.
    None,
    /// A sleeping sandbox's files, in the staging directory.
    Stored {
        /// Whether the agent had detached cleanly.
        detached: bool,
    },
    /// A running sandbox's pages; its device state is in the staging directory.
    Pages(Captured),
}

/// A sandbox at one moment.
#[derive(Debug)]
pub(crate) struct Capture {
    /// Its disks, and its memory if that is in files.
    pub(crate) staged: StagedSnapshot,
    /// Its manifest; names the layer that was frozen.
    pub(crate) manifest: Manifest,
    pub(crate) memory: CapturedMemory,
    /// How long the guest stood still.
    pub(crate) pause: Duration,
    pub(crate) timings: Timings,
    /// Keeps what the manifest names.
    pub(crate) pin: Pin,
    /// The layer that is to be sealed when there is time.
    pub(crate) frozen: Option<LayerRef>,
}

impl Actor {
    /// Captures the sandbox into `staged`; it goes on as it was.
    pub(crate) async fn capture(&mut self, staged: StagedSnapshot, with_memory: bool) -> Result<Capture> {
        self.settle_freeze().await?;
        self.settle_disks().await?;
        match self.state {
            State::Hot | State::Warm => self.capture_running(staged, with_memory).await,
            State::Cold | State::Off => self.capture_resting(staged, with_memory).await,
            State::Broken => {
                let (name, why) = (&self.manifest.name, self.trouble.clone().unwrap_or_default());
                Err(Error::new(ErrorKind::Corrupt, format!("{name} is broken: {why}")).hint(format!(
                    "make it whole first: `bhatti start {name} --discard-memory` boots it from its disk"
                )))
            }
            State::Gone => {
                Err(Error::new(ErrorKind::NotFound, format!("{} was destroyed", self.manifest.name)))
            }
        }
    }

    async fn capture_resting(&mut self, staged: StagedSnapshot, with_memory: bool) -> Result<Capture> {
        let mut watch = Stopwatch::start();
        let (store, dir, before) = (self.services.store.clone(), self.dir.clone(), self.manifest.clone());
        let with_memory = with_memory && before.state == RunState::Cold;
        let (staged, manifest, frozen) = blocking(move || {
            let _lock = dir.lock_machine()?;
            // A disk that nothing was written to since it was last frozen needs no other layer.
            let unchanged = !before.layers.is_empty() && dir.top_is_empty(&before)?;
            let (manifest, frozen) =
                if unchanged || before.layout == StorageLayout::Reflink && staged.reflink_root(&dir)? {
                    if unchanged {
                        staged.take_root(&dir.root_disk_path(before.layout), before.layout)?;
                    }
                    (before, None)
                } else {
                    let mut freeze = dir.begin_freeze(&store)?;
                    make_top(&mut freeze)?;
                    staged.take_root(freeze.top_path(), StorageLayout::Overlay)?;
                    (freeze.commit()?, Some(freeze.layer().clone()))
                };
            staged.take_config(&dir)?;
            for volume in writable(&manifest) {
                let _shared = store.volumes().share(&manifest.owner, &volume.name)?;
                staged.take_volume(&store, &manifest.owner, &volume.name)?;
            }
            if with_memory {
                staged.take_memory(&dir)?;
            }
            Ok((staged, manifest, frozen))
        })
        .await?;
        watch.lap("disk");
        self.manifest = manifest.clone();
        let memory = match &manifest.memory {
            Some(memory) if with_memory => CapturedMemory::Stored { detached: memory.detached },
            _ => CapturedMemory::None,
        };
        let pin = self.services.store.pin(&manifest);
        Ok(Capture { staged, manifest, memory, pause: Duration::ZERO, timings: watch.finish(), pin, frozen })
    }

    async fn capture_running(&mut self, staged: StagedSnapshot, with_memory: bool) -> Result<Capture> {
        let mut watch = Stopwatch::start();
        self.fold_layers().await?;
        watch.lap("fold");
        // The long part first: what is written meanwhile is little.
        let (staged, volumes) = self.prepare_volumes(staged).await?;
        watch.lap("volumes");
        let running = self.running()?;
        let hot = self.state == State::Hot;
        if hot && !with_memory {
            running.guest.sync().await?;
        }
        let ram = if with_memory { Some(running.machine.ram()?) } else { None };
        let (store, dir, before) = (self.services.store.clone(), self.dir.clone(), self.manifest.clone());
        let reflink =
            before.layout == StorageLayout::Reflink && self.services.store.can_reflink(&self.dir)?;
        let looked_at = ram.clone();
        let (staged, freeze, buffer) = blocking(move || {
            staged.take_config(&dir)?;
            let freeze = if reflink {
                dir.sync_root(&before)?;
                None
            } else {
                let mut freeze = dir.begin_freeze(&store)?;
                make_top(&mut freeze)?;
                staged.take_root(freeze.top_path(), StorageLayout::Overlay)?;
                Some(freeze)
            };
            for volume in writable(&before) {
                store.sync_volume(&before.owner, &volume.name)?;
            }
            let buffer = looked_at.as_ref().map(CaptureBuffer::for_guest).transpose().map_err(no_memory)?;
            if with_memory {
                dir.stage_devices()?;
            }
            Ok((staged, freeze, buffer))
        })
        .await?;
        watch.lap("prepare");
        // The half frame that a copy would find on its channel is finished first.
        let quiet = match hot {
            true => running.guest.quiet(tokio::time::Instant::now() + QUIET_TIMEOUT).await.ok(),
            false => None,
        };
        let next = match &freeze {
            Some(freeze) => Some(running.machine.open_top(&freeze.top_name()).await?),
            None => None,
        };
        self.sync_disks_again().await?;
        watch.lap("quiet");
        let began = Instant::now();
        if hot {
            running.machine.pause().await?;
        }
        let pages = async {
            match (buffer, ram) {
                (Some(buffer), Some(ram)) => {
                    blocking(move || buffer.capture(&ram).map(Some).map_err(unreadable)).await
                }
                _ => Ok(None),
            }
        };
        let disks = async {
            // From the switch on the freeze must be committed: the VMM writes to the new top.
            let turned = match (freeze, next) {
                (Some(mut freeze), Some(next)) => running.machine.switch_top(next).await.map(|()| {
                    freeze.turned();
                    Some(freeze)
                }),
                _ => Ok(None),
            };
            match turned {
                Ok(freeze) => {
                    let still = StandingStill {
                        with_memory,
                        layout: self.manifest.layout,
                        store: self.services.store.clone(),
                        owner: self.manifest.owner.clone(),
                        volumes: &volumes,
                    };
                    tokio::join!(copy(&running.machine, &self.dir, still, staged), commit(freeze))
                }
                Err(error) => (Err(error.into()), Ok(None)),
            }
        };
        // The VMM turns to the new top and writes its devices while the pages are copied: none touches the others'.
        let (pages, (copied, committed)) = tokio::join!(pages, disks);
        let copied = copied.and_then(|staged| Ok((staged, pages?)));
        let committed = self.note_commit(committed);
        if hot && committed.is_ok() {
            self.running()?.machine.resume().await?;
        }
        drop(quiet);
        let pause = if hot { began.elapsed() } else { Duration::ZERO };
        watch.lap("pause");
        let frozen = committed?;
        let (staged, pages) = self.finish_volumes(&volumes, copied).await?;
        watch.lap("volumes");
        let manifest = self.manifest.clone();
        let pin = self.services.store.pin(&manifest);
        let memory = pages.map_or(CapturedMemory::None, CapturedMemory::Pages);
        Ok(Capture { staged, manifest, memory, pause, timings: watch.finish(), pin, frozen })
    }

    pub(crate) fn running(&self) -> Result<&Running> {
        self.running
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::Internal, "a running sandbox has no machine"))
    }

    /// Makes ready for the copies of volumes what can be while the guest runs: their writes are synced where extents are
    /// shared; elsewhere the VMM notes what is written from now on, and the rest is copied.
    async fn prepare_volumes(&self, staged: StagedSnapshot) -> Result<(StagedSnapshot, VolumeCopies)> {
        let names: Vec<_> = writable(&self.manifest).map(|volume| volume.name.clone()).collect();
        if names.is_empty() {
            return Ok((staged, VolumeCopies::Shared(names)));
        }
        let running = self.running()?;
        if self.state == State::Hot {
            running.guest.sync().await?;
        }
        let (store, owner) = (self.services.store.clone(), self.manifest.owner.clone());
        let (there, whose, synced) = (store.clone(), owner.clone(), names.clone());
        let reflink = blocking(move || {
            for name in &synced {
                there.sync_volume(&whose, name)?;
            }
            Ok(there.volumes_reflink()?)
        })
        .await?;
        if reflink {
            return Ok((staged, VolumeCopies::Shared(names)));
        }
        let ports: Vec<u8> = writable(&self.manifest).map(|volume| volume.port).collect();
        for port in &ports {
            running.machine.watch_volume(*port).await?;
        }
        let staged = blocking(move || {
            for name in &names {
                staged.take_volume(&store, &owner, name)?;
            }
            Ok(staged)
        })
        .await?;
        for volume in writable(&self.manifest) {
            running.machine.aim_copy(volume.port, &staged.volume_path(&volume.name)).await?;
        }
        Ok((staged, VolumeCopies::Watched(ports)))
    }

    /// A machine that is stopped flushes each of its disks, one after the other: with volumes, what came since they were
    /// synced is written out before.
    async fn sync_disks_again(&self) -> Result<()> {
        if writable(&self.manifest).next().is_none() {
            return Ok(());
        }
        let (store, dir, manifest) = (self.services.store.clone(), self.dir.clone(), self.manifest.clone());
        blocking(move || {
            for volume in writable(&manifest) {
                store.sync_volume(&manifest.owner, &volume.name)?;
            }
            Ok(dir.sync_root(&manifest)?)
        })
        .await
    }

    /// Waits for the copies of volumes that the VMM makes, or calls them off when the capture has failed.
    async fn finish_volumes<T>(&self, volumes: &VolumeCopies, captured: Result<T>) -> Result<T> {
        let VolumeCopies::Watched(ports) = volumes else { return captured };
        let machine = &self.running()?.machine;
        let mut finished = captured;
        for port in ports {
            match &finished {
                Ok(_) => {
                    if let Err(error) = machine.finish_copy(*port).await {
                        finished = Err(error.into());
                    }
                }
                Err(_) => {
                    if let Err(error) = machine.abandon_copy(*port).await {
                        tracing::warn!(%error, "what a copy left is cleared away by the next one");
                    }
                }
            }
        }
        finished
    }

    /// Tries again what an earlier verb could not commit, so that a guest stands still no longer than it must.
    pub(crate) async fn settle_freeze(&mut self) -> Result<()> {
        if self.finish_freeze().await?.is_some()
            && self.state == State::Hot
            && let Some(running) = &self.running
        {
            running.machine.resume().await?;
        }
        Ok(())
    }

    async fn finish_freeze(&mut self) -> Result<Option<LayerRef>> {
        let pending = self.pending_freeze.take();
        let committed = commit(pending).await;
        self.note_commit(committed)
    }

    /// What a commit came to: the manifest as it is now, or a freeze that is still to be committed. Returns the layer.
    fn note_commit(&mut self, committed: Result<Option<Freeze>, Uncommitted>) -> Result<Option<LayerRef>> {
        match committed {
            Ok(None) => Ok(None),
            Ok(Some(freeze)) => {
                self.manifest = freeze.manifest().clone();
                Ok(Some(freeze.layer().clone()))
            }
            Err((freeze, error)) => {
                self.pending_freeze = freeze;
                Err(error.hint(format!(
                    "{} stands still until its disk can be committed; try again when the host's disk works",
                    self.manifest.name
                )))
            }
        }
    }

    /// Makes many layers one, while the guest runs.
    async fn fold_layers(&mut self) -> Result<()> {
        if self.manifest.layers.len() < MOST_LAYERS {
            return Ok(());
        }
        if self.running()?.machine.fold_top().await? == vm::Folded::GaveWay {
            return Ok(());
        }
        let before = self.manifest.clone();
        let mut manifest = before.clone();
        // A whole disk at the bottom stays, as an image would.
        manifest.layers.retain(|layer| layer.format == storage::LayerFormat::Raw);
        self.commit(manifest).await?;
        self.release(before);
        Ok(())
    }

    /// Removes what an earlier manifest named and nothing names any more, when nobody waits for it.
    pub(crate) fn release(&self, before: Manifest) {
        let store = self.services.store.clone();
        self.services.background.spawn_blocking(move || {
            if let Err(error) = store.release(&before) {
                tracing::warn!(%error, sandbox = %before.name, "what it no longer needs stays; `bhatti gc` removes it");
            }
        });
    }
}

/// What is needed while the guest stands still, made ready before.
struct StandingStill<'a> {
    with_memory: bool,
    layout: StorageLayout,
    store: storage::Store,
    owner: types::Owner,
    volumes: &'a VolumeCopies,
}

/// How the volumes that the guest can write to are copied.
#[derive(Debug)]
enum VolumeCopies {
    /// Their extents are shared while the guest stands still.
    Shared(Vec<types::VolumeName>),
    /// They were copied before; while the guest stands still the VMM begins to copy what was written since.
    Watched(Vec<u8>),
}

/// The volumes of a sandbox that its guest can write to: the others change under nobody's hands.
fn writable(manifest: &Manifest) -> impl Iterator<Item = &storage::VolumeRef> {
    manifest.volumes.iter().filter(|volume| !volume.read_only)
}

/// Devices and volumes of a guest that stands still; a raw root disk, too.
async fn copy(
    machine: &Machine,
    dir: &SandboxDir,
    still: StandingStill<'_>,
    staged: StagedSnapshot,
) -> Result<StagedSnapshot> {
    let (there, store) = (dir.clone(), still.store.clone());
    if let VolumeCopies::Watched(ports) = still.volumes {
        for port in ports {
            machine.start_copy(*port).await?;
        }
    }
    let shared = match still.volumes {
        VolumeCopies::Shared(names) => names.clone(),
        VolumeCopies::Watched(_) => Vec::new(),
    };
    let disks = blocking(move || {
        for name in &shared {
            if !staged.reflink_volume(&still.store, &still.owner, name)? {
                return Err(refuses_now());
            }
        }
        if still.layout == StorageLayout::Reflink && !staged.has_root() && !staged.reflink_root(&there)? {
            return Err(refuses_now());
        }
        Ok(staged)
    });
    let devices = async {
        match still.with_memory {
            true => machine.save_devices(storage::layout::VM_SNAP_NEW).await,
            false => Ok(()),
        }
    };
    let (copied, saved) = tokio::join!(disks, devices);
    let saved = saved.map_err(|error| devices_not_saved(&store, error));
    let staged = match copied.and_then(|copied| saved.map(|()| copied)) {
        Ok(copied) => copied,
        Err(error) => {
            drop_devices(dir).await;
            return Err(error);
        }
    };
    if !still.with_memory {
        return Ok(staged);
    }
    let dir = dir.clone();
    blocking(move || {
        staged.take_devices(&dir)?;
        Ok(staged)
    })
    .await
}

/// Removes a device state that was written for nothing.
pub(crate) async fn drop_devices(dir: &SandboxDir) {
    let dir = dir.clone();
    if let Err(error) = blocking(move || Ok(dir.drop_devices()?)).await {
        // It is a staging file: whoever opens the store next removes it.
        tracing::warn!(error = %error.with_causes(), "a device state that nobody needs could not be removed");
    }
}

fn refuses_now() -> Error {
    Error::new(ErrorKind::Internal, "the filesystem shared extents before and refuses now")
}

/// A freeze that could not be committed, and why; the freeze is lost only with the thread that worked on it.
type Uncommitted = (Option<Freeze>, Error);

/// Commits a freeze that the VMM has carried out already.
async fn commit(freeze: Option<Freeze>) -> Result<Option<Freeze>, Uncommitted> {
    let Some(mut freeze) = freeze else { return Ok(None) };
    let done = blocking(move || {
        let committed = freeze.commit();
        Ok((freeze, committed))
    });
    match done.await {
        Ok((freeze, Ok(_manifest))) => Ok(Some(freeze)),
        Ok((freeze, Err(error))) => Err((Some(freeze), error.into())),
        Err(error) => Err((None, error)),
    }
}

/// The empty overlay over a disk about to be frozen.
fn make_top(freeze: &mut Freeze) -> Result<()> {
    let format = match freeze.layer().format {
        storage::LayerFormat::Qcow2 => image::BackingFormat::Qcow2,
        storage::LayerFormat::Raw => image::BackingFormat::Raw,
    };
    image::qemu_img_create_overlay(freeze.top_path(), &freeze.backing(), format, freeze.disk_size()?)?;
    Ok(freeze.prepare()?)
}

fn no_memory(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Busy, "the host has not enough memory free to copy the guest's")
        .hint("stop other sandboxes first, or stop this one: a sleeping sandbox is captured without a copy")
        .source(error)
}

pub(crate) fn unreadable(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Vmm, "guest memory could not be read").source(error)
}

/// What was captured goes to files nobody waits for: sums for the check of the frozen layer.
pub(crate) fn seal_later(services: &Services, layer: Option<LayerRef>, pin: Pin) {
    let Some(layer) = layer else { return };
    let store = services.store.clone();
    services.background.spawn_blocking(move || {
        if let Err(error) = store.layers().seal(&layer) {
            tracing::warn!(%error, layer = %layer.id, "a frozen layer has no checksum yet; `bhatti fsck` makes it");
        }
        drop(pin);
    });
}

impl CapturedMemory {
    /// How much memory was captured.
    pub(crate) fn private(&self) -> Bytes {
        match self {
            Self::Pages(pages) => pages.private(),
            Self::None | Self::Stored { .. } => Bytes(0),
        }
    }
}
