//! The task that owns one sandbox: everything that changes it passes here, one thing after the other.
//!
//! # Invariants
//! - `machine` is there if and only if the state has a machine.
//! - The state told to users is set in the same step as the state itself, on every way out of a verb.
//! - A verb that was begun is finished even when the one who asked has gone.

use std::sync::{Arc, PoisonError, RwLock};

use guest::Guest;
use serde_json::json;
use storage::{Freeze, Manifest, RunState, SandboxDir, StagedSnapshot, StagedVolume};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::ReusableBoxFuture;
use types::{After, Boot, CloneMethod, Mebibytes, Rate, SandboxName, Timestamp, VolumeMount, VolumeName};
use vm::{End, Machine};

use crate::attached::{Begun, Change};
use crate::breaker::Breaker;
use crate::capture::Capture;
use crate::error::{Error, ErrorKind, Result};
use crate::lease::{Activity, Lease};
use crate::memory::Share;
use crate::metrics;
use crate::services::{Services, blocking};
use crate::state::{Happening, State};
use crate::tick::Watch;
use crate::timing::Stopwatch;
use crate::view::{Report, SandboxView, Status, Timings, Transition};
use crate::volumes::Copied;

/// What may be changed of a sandbox without touching its machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edit {
    /// A new name, free among the owner's.
    pub name: Option<SandboxName>,
    /// Whether to stay hot.
    pub keep_hot: Option<bool>,
    /// When to pause it; `Some(None)` is as the host says.
    pub warm_after: Option<Option<After>>,
    /// When to put it to sleep; `Some(None)` is as the host says.
    pub cold_after: Option<Option<After>>,
    /// Whether to do so while its guest is busy.
    pub sleep_busy: Option<bool>,
    /// How much its network may carry; `Some(None)` is as the host says.
    pub net_rate: Option<Option<Rate>>,
    /// How much its disks may read and write; `Some(None)` is as the host says.
    pub disk_rate: Option<Option<Rate>>,
    /// Labels to set; an empty value removes the label.
    pub labels: types::Labels,
}

/// How to start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Start {
    /// Give up the memory image and boot from the disk.
    pub discard_memory: bool,
    /// Refuse to boot from the disk.
    pub strict: bool,
}

pub(crate) type Reply<T> = oneshot::Sender<Result<T>>;

/// What the owner of a sandbox may be asked.
pub(crate) enum Command {
    /// Asked at that moment.
    Lease(Instant, Reply<(Guest, Lease)>),
    Sessions(Reply<Vec<wire::SessionInfo>>),
    Start(Start, Reply<Report>),
    Stop(Reply<Report>),
    Pause {
        only_if_idle: bool,
        reply: Reply<Report>,
    },
    /// Go to sleep if nobody uses it, for others need its memory; whether it did.
    Relieve(Reply<bool>),
    Edit(Edit, Reply<SandboxView>),
    Capture {
        staged: StagedSnapshot,
        with_memory: bool,
        reply: Reply<Capture>,
    },
    AttachVolume(VolumeMount, Reply<Change>),
    DetachVolume(VolumeName, Reply<Change>),
    ResizeVolume(VolumeName, Mebibytes, Reply<Change>),
    BeginCopy(VolumeName, StagedVolume, Reply<Begun>),
    EndCopy(VolumeName, StagedVolume, Reply<(StagedVolume, Copied)>),
    Destroy(Reply<()>),
}

/// What others may know of a sandbox without asking its owner.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) view: RwLock<SandboxView>,
    pub(crate) activity: Arc<Activity>,
}

impl Shared {
    pub(crate) fn view(&self) -> SandboxView {
        let mut view = self.view.read().unwrap_or_else(PoisonError::into_inner).clone();
        view.last_active_at = self.activity.last_active();
        view
    }
}

/// A machine with its agent attached.
pub(crate) struct Running {
    pub(crate) machine: Machine,
    pub(crate) guest: Guest,
    _memory: Share,
    /// Whether the machine may have other disks of volumes than the manifest names.
    pub(crate) disks_in_doubt: bool,
    ended: ReusableBoxFuture<'static, End>,
}

impl Running {
    pub(crate) fn new(machine: Machine, guest: Guest, memory: Share) -> Self {
        let ended = ReusableBoxFuture::new(machine.ended());
        Self { machine, guest, _memory: memory, disks_in_doubt: false, ended }
    }

    /// Resolves, once, when the machine has ended by itself.
    pub(crate) async fn ended(&mut self) -> End {
        (&mut self.ended).await
    }
}

/// The owner of one sandbox.
pub(crate) struct Actor {
    pub(crate) services: Arc<Services>,
    pub(crate) dir: SandboxDir,
    pub(crate) manifest: Manifest,
    pub(crate) state: State,
    pub(crate) running: Option<Running>,
    /// A freeze that the VMM has carried out and that is not committed; the guest stands still.
    pub(crate) pending_freeze: Option<Freeze>,
    /// Why it is broken, or why its memory is gone; told at the next start.
    pub(crate) trouble: Option<String>,
    pub(crate) breaker: Breaker,
    pub(crate) boot: Boot,
    pub(crate) clone: CloneMethod,
    pub(crate) last_transition: Option<Transition>,
    pub(crate) watch: Watch,
    pub(crate) shared: Arc<Shared>,
}

impl Actor {
    /// Serves commands until the sandbox is destroyed or nobody can ask any more. In the latter case a machine that
    /// runs goes on running: it outlives the daemon.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            let ended = async {
                match &mut self.running {
                    Some(running) => running.ended().await,
                    None => std::future::pending().await,
                }
            };
            let look_at = self.watch.next_look(self.state);
            let looking = async {
                match look_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let command = tokio::select! {
                // An end that was seen comes before commands, which would otherwise talk to a machine that is gone.
                biased;
                end = ended => {
                    self.on_end(end).await;
                    continue;
                }
                command = commands.recv() => command,
                () = looking => {
                    self.look().await;
                    continue;
                }
            };
            match command {
                None => return,
                Some(command) => self.obey(command).await,
            }
            if self.state == State::Gone {
                return;
            }
        }
    }

    /// Carries out one command. Who asked may have gone: then nobody hears the reply, and that is all.
    async fn obey(&mut self, command: Command) {
        let _at_work = self.services.bustle.enter();
        match command {
            Command::Lease(asked, reply) => {
                // Waking for somebody who has gone would be for nobody.
                if !reply.is_closed() {
                    let leased = self.lease(asked).await;
                    let _heard = reply.send(leased);
                }
            }
            Command::Sessions(reply) => {
                let sessions = self.sessions().await;
                let _heard = reply.send(sessions);
            }
            Command::Start(start, reply) => {
                let report = self.start(start).await;
                let _heard = reply.send(report);
            }
            Command::Stop(reply) => {
                let report = self.stop().await;
                let _heard = reply.send(report);
            }
            Command::Pause { only_if_idle, reply } => {
                let report = self.pause(only_if_idle).await;
                let _heard = reply.send(report);
            }
            Command::Relieve(reply) => {
                let slept = self.relieve().await;
                let _heard = reply.send(Ok(slept));
            }
            Command::Edit(edit, reply) => {
                let view = self.edit(edit).await;
                let _heard = reply.send(view);
            }
            Command::Capture { staged, with_memory, reply } => {
                let captured = self.capture(staged, with_memory).await;
                let _heard = reply.send(captured);
            }
            Command::AttachVolume(volume, reply) => {
                let change = self.attach_volume(volume).await;
                let _heard = reply.send(change);
            }
            Command::DetachVolume(name, reply) => {
                let change = self.detach_volume(name).await;
                let _heard = reply.send(change);
            }
            Command::ResizeVolume(name, size, reply) => {
                let change = self.resize_volume(name, size).await;
                let _heard = reply.send(change);
            }
            Command::BeginCopy(name, staged, reply) => {
                let begun = self.begin_copy(name, staged).await;
                let _heard = reply.send(begun);
            }
            Command::EndCopy(name, staged, reply) => {
                let ended = self.end_copy(name, staged).await;
                let _heard = reply.send(ended);
            }
            Command::Destroy(reply) => {
                let done = self.destroy().await;
                let _heard = reply.send(done);
            }
        }
    }

    /// The guest and a lease on it; wakes what sleeps.
    async fn lease(&mut self, asked: Instant) -> Result<(Guest, Lease)> {
        self.ensure_hot_for(asked, Start::default()).await?;
        match &self.running {
            Some(running) => Ok((running.guest.clone(), self.shared.activity.lease())),
            None => Err(no_machine()),
        }
    }

    async fn start(&mut self, start: Start) -> Result<Report> {
        let (changed, timings, warnings) = self.ensure_hot(start).await?;
        self.shared.activity.touch();
        Ok(self.report(changed, timings, warnings))
    }

    pub(crate) async fn pause(&mut self, only_if_idle: bool) -> Result<Report> {
        self.settle_freeze().await?;
        if self.state != State::Hot {
            return Ok(self.report(false, Timings::default(), Vec::new()));
        }
        let leases = self.shared.activity.leases();
        if only_if_idle && leases > 0 {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("{} works: {leases} in flight", self.manifest.name),
            ));
        }
        let mut watch = Stopwatch::start();
        // What is paused is asked nothing: what it would have said is kept.
        let sessions = self.ask_sessions().await;
        let running = self.running.as_ref().ok_or_else(no_machine)?;
        running.machine.pause().await?;
        watch.lap("halt");
        self.watch.sessions = sessions;
        self.enter(Happening::Paused)?;
        let timings = watch.finish();
        self.services.metrics.changed("pause", &timings);
        Ok(self.report(true, timings, Vec::new()))
    }

    async fn edit(&mut self, edit: Edit) -> Result<SandboxView> {
        self.settle_freeze().await?;
        let mut manifest = self.manifest.clone();
        if let Some(name) = edit.name {
            manifest.name = name;
        }
        if let Some(keep_hot) = edit.keep_hot {
            manifest.keep_hot = keep_hot;
        }
        let rule = &mut manifest.thermal;
        rule.warm_after = edit.warm_after.unwrap_or(rule.warm_after);
        rule.cold_after = edit.cold_after.unwrap_or(rule.cold_after);
        rule.sleep_busy = edit.sleep_busy.or(rule.sleep_busy);
        rule.check(self.services.config.thermal.times)?;
        manifest.net_rate = edit.net_rate.unwrap_or(manifest.net_rate);
        manifest.disk_rate = edit.disk_rate.unwrap_or(manifest.disk_rate);
        for (key, value) in edit.labels {
            if value.is_empty() {
                manifest.labels.remove(&key);
            } else {
                manifest.labels.insert(key, value);
            }
        }
        if manifest != self.manifest {
            self.commit(manifest).await?;
            self.services.network.seat(&self.manifest);
            self.publish();
            self.index();
            self.event("edited", json!({}));
            if let (true, Some(running)) = (edit.disk_rate.is_some(), &self.running) {
                self.services.config.rates.hold_anew(&running.machine, &self.manifest).await?;
            }
        }
        Ok(self.shared.view())
    }

    /// The name goes first, and the machine after it: a daemon that dies in between leaves no sandbox without its memory,
    /// and a disk that refuses leaves one that runs.
    async fn destroy(&mut self) -> Result<()> {
        let dir = self.dir.clone();
        if self.running.is_some() {
            let departed = blocking(move || Ok(dir.take_away()?)).await?;
            self.end_for_good().await?;
            if let Err(error) = blocking(move || Ok(departed.remove()?)).await {
                tracing::warn!(error = %error.with_causes(), sandbox = %self.manifest.name, "what is left of a destroyed sandbox stays until the daemon starts again");
            }
        } else {
            blocking(move || Ok(dir.destroy()?)).await?;
        }
        self.pending_freeze = None;
        self.services.network.leave(&self.manifest.owner, &self.manifest.id, self.manifest.net.as_ref());
        self.release(self.manifest.clone());
        self.remove_made_volumes().await;
        self.enter(Happening::Destroyed)?;
        if let Err(error) = self.services.index().remove_sandbox(&self.manifest.id) {
            // Its directory is gone, and the directories are the truth: the next start of the daemon corrects the index.
            tracing::warn!(%error, sandbox = %self.manifest.name, "the index still lists a destroyed sandbox");
        }
        self.event("destroyed", json!({}));
        Ok(())
    }

    /// Ends the machine of a sandbox that has no name any more.
    async fn end_for_good(&mut self) -> Result<()> {
        if self.pending_freeze.is_none() {
            self.let_go_of_volumes().await;
        }
        let Some(running) = self.running.take() else { return Ok(()) };
        drop(running.guest);
        if let Err(error) = running.machine.kill().await {
            tracing::error!(%error, sandbox = %self.manifest.name, "the VMM did not end");
        }
        self.enter(Happening::Ended)
    }

    /// Removes the volumes that were cloned for this sandbox, a copy of another; all others stay.
    async fn remove_made_volumes(&self) {
        let (store, manifest) = (self.services.store.clone(), self.manifest.clone());
        let removed = blocking(move || {
            for volume in &manifest.volumes {
                let record = store.volumes().open(&manifest.owner, &volume.name);
                if record.is_ok_and(|volume| volume.record.made_for.as_ref() == Some(&manifest.id)) {
                    store.volumes().remove(&manifest.owner, &volume.name)?;
                }
            }
            Ok(())
        });
        if let Err(error) = removed.await {
            tracing::warn!(error = %error.with_causes(), sandbox = %self.manifest.name, "a volume that was made for it stays until the daemon starts again");
        }
    }

    /// The machine ended by itself.
    pub(crate) async fn on_end(&mut self, end: End) {
        let Some(running) = self.running.take() else { return };
        drop(running.guest);
        if let Err(error) = running.machine.kill().await {
            tracing::error!(%error, sandbox = %self.manifest.name, "the VMM did not end");
        }
        let (kind, trouble) = match end {
            End::Shutdown => ("powered_off", None),
            End::Panicked => ("panicked", Some("its kernel panicked, so its memory is lost".to_owned())),
            End::Gone => ("died", Some("its VMM ended unexpectedly, so its memory is lost".to_owned())),
        };
        self.trouble = trouble;
        // Its disk may wait to be frozen: that is made good, or tried again at the next start.
        if let Err(error) = self.settle_freeze().await {
            tracing::warn!(error = %error.with_causes(), sandbox = %self.manifest.name, "its disk is not frozen yet");
        }
        // A manifest that still says `running` without a VMM means the same; this only says it sooner.
        if let Err(error) = self.commit(self.manifest.clone().into_off()).await {
            tracing::warn!(%error, sandbox = %self.manifest.name, "the manifest still says that it runs");
        }
        if let Err(error) = self.enter(Happening::Ended) {
            tracing::error!(%error, sandbox = %self.manifest.name, "an end that should not be possible");
        }
        self.event(kind, json!({ "generation": self.manifest.generation }));
    }

    /// Replaces the manifest on disk and, if that worked, in memory.
    pub(crate) async fn commit(&mut self, manifest: Manifest) -> Result<()> {
        let (dir, new) = (self.dir.clone(), manifest.clone());
        blocking(move || Ok(dir.commit(&new)?)).await?;
        self.manifest = manifest;
        Ok(())
    }

    /// Moves to the state after `what` and tells everybody.
    pub(crate) fn enter(&mut self, what: Happening) -> Result<()> {
        let Some(next) = self.state.next(what) else {
            let text = format!("{:?} cannot happen to a sandbox that is {:?}", what, self.state);
            return Err(Error::new(ErrorKind::Internal, text));
        };
        self.state = next;
        self.publish();
        Ok(())
    }

    /// Notes a finished change of state.
    pub(crate) fn record(
        &mut self,
        verb: &'static str,
        timings: &Timings,
        bytes: &[(&'static str, types::Bytes)],
    ) {
        let metrics = &self.services.metrics;
        metrics.changed(metrics::change(verb, self.boot), timings);
        for (kind, amount) in bytes {
            metrics.stopped(kind, *amount);
        }
        let bytes = bytes.iter().copied().collect();
        self.last_transition =
            Some(Transition { verb, at: Timestamp::now(), timings: timings.clone(), bytes });
        self.publish();
    }

    pub(crate) fn event(&self, kind: &'static str, detail: serde_json::Value) {
        let manifest = &self.manifest;
        self.services.events.sandbox(kind, &manifest.owner, &manifest.id, &manifest.name, detail);
    }

    /// Notes the sandbox in the index. A failure fails no verb: what happened has happened, the manifests are the
    /// truth, and the next start of the daemon makes the index again from them.
    pub(crate) fn index(&self) {
        let row = row(&self.manifest, self.shared.activity.last_active());
        if let Err(error) = self.services.index().put_sandbox(&row) {
            tracing::warn!(%error, sandbox = %self.manifest.name, "the index could not be brought up to date");
        }
    }

    pub(crate) fn publish(&self) {
        let mut view = self.shared.view.write().unwrap_or_else(PoisonError::into_inner);
        *view = self.view();
    }

    fn view(&self) -> SandboxView {
        let manifest = &self.manifest;
        SandboxView {
            id: manifest.id.clone(),
            name: manifest.name.clone(),
            owner: manifest.owner.clone(),
            image: manifest.image.name.clone(),
            cpus: manifest.cpus,
            memory: manifest.memory_mib,
            disk_size: manifest.disk_size_mib,
            status: match self.state {
                State::Hot | State::Warm => Status::Running,
                State::Off | State::Cold | State::Gone => Status::Stopped,
                State::Broken => Status::Error(self.trouble.clone().unwrap_or_default()),
            },
            thermal: self.state.thermal(),
            keep_hot: manifest.keep_hot,
            rule: manifest.thermal,
            times: self.times(),
            last_decision: self.watch.last_decision(),
            labels: manifest.labels.clone(),
            volumes: if self.state == State::Gone { Vec::new() } else { volumes_of(manifest) },
            secrets: manifest.secrets.clone(),
            net: net_of(manifest),
            net_rate: self.services.config.rates.of_net(manifest),
            disk_rate: self.services.config.rates.of_disk(manifest),
            created_at: manifest.created_at,
            last_active_at: self.shared.activity.last_active(),
            generation: manifest.generation,
            boot: self.boot,
            clone: self.clone,
            accel: manifest.machine.accel,
            last_transition: self.last_transition.clone(),
            vmm_pid: self.running.as_ref().map(|running| running.machine.pid()),
        }
    }

    pub(crate) fn report(&self, changed: bool, timings: Timings, warnings: Vec<String>) -> Report {
        Report { view: self.shared.view(), created: false, changed, timings, pause: None, warnings }
    }
}

pub(crate) fn no_machine() -> Error {
    Error::new(ErrorKind::Internal, "a hot sandbox has no machine")
}

/// The volumes that a manifest names.
pub(crate) fn volumes_of(manifest: &Manifest) -> Vec<VolumeMount> {
    let mount = |volume: &storage::VolumeRef| VolumeMount {
        name: volume.name.clone(),
        mount: volume.mount.clone(),
        read_only: volume.read_only,
    };
    manifest.volumes.iter().map(mount).collect()
}

/// How a manifest has its sandbox reach the world.
pub(crate) fn net_of(manifest: &Manifest) -> Option<crate::view::NetView> {
    let record = manifest.net.as_ref()?;
    let egress = record.egress.clone();
    Some(crate::view::NetView { mode: record.mode, egress, ip: crate::network::address(&manifest.id).v4 })
}

/// The state in which a manifest leaves a sandbox that has no machine.
pub(crate) const fn resting_state(manifest: &Manifest) -> State {
    match manifest.state {
        RunState::Cold => State::Cold,
        // It says running, and there is no machine: host or VMM died.
        RunState::Off | RunState::Running => State::Off,
    }
}

/// A sandbox as the index lists it.
pub(crate) fn row(manifest: &Manifest, last_active_at: Timestamp) -> meta::SandboxRow {
    meta::SandboxRow {
        id: manifest.id.clone(),
        owner: manifest.owner.clone(),
        name: manifest.name.clone(),
        record_json: json!({
            "image": manifest.image.name,
            "cpus": manifest.cpus,
            "memory_mb": manifest.memory_mib,
            "labels": manifest.labels,
        })
        .to_string(),
        created_at: manifest.created_at,
        last_active_at,
    }
}
