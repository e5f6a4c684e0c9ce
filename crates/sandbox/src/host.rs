//! The host: all sandboxes of one data directory, and the verbs that find one and hand the work to its owner.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use storage::{DaemonLock, OwnCertificate};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::task::TaskTracker;
use types::{
    Counted, Labels, Mebibytes, Owner, SandboxName, SandboxSpec, Since, SpecLimits, Thermal, VolumeName,
};

use crate::actor::{Actor, Command, Edit, Reply, Shared, Start};
use crate::error::{Error, ErrorKind, Result};
use crate::keyed::KeyedLocks;
use crate::lease::Lease;
use crate::quota::Places;
use crate::registry::{Entry, Registry};
use crate::services::{HostConfig, Services, blocking};
use crate::view::{EventView, HostInfo, Report, SandboxView};

/// How many commands may wait for one sandbox's owner before who asks must wait to ask.
const COMMANDS: usize = 64;

/// The least guest memory that boots, with room for the agent and a shell.
const MIN_MEMORY: Mebibytes = Mebibytes(128);

/// All sandboxes of one data directory. Cheap to clone.
#[derive(Clone)]
pub struct Host {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) services: Arc<Services>,
    pub(crate) registry: Registry,
    /// One creation or renaming a name at a time.
    pub(crate) names: KeyedLocks<(Owner, SandboxName)>,
    /// One verb on a volume at a time.
    pub(crate) volumes: KeyedLocks<(Owner, VolumeName)>,
    /// Read by who makes what names secrets, written by who takes one away.
    pub(crate) secrets: Arc<tokio::sync::RwLock<()>>,
    /// What is published of them.
    pub(crate) publications: crate::publish::Publications,
    pub(crate) owners: TaskTracker,
    pub(crate) tasks: crate::tasks::Tasks,
    limits: SpecLimits,
    info: OnceLock<HostInfo>,
    /// Until the end of `shutdown`, whoever still holds the host then.
    lock: Mutex<Option<DaemonLock>>,
}

impl Host {
    /// Takes the data directory for this daemon, tidies what a crash left, and takes over machines that still run.
    ///
    /// # Errors
    /// `Busy` when another daemon has it; `NotReady` when it cannot be written.
    pub async fn open(config: HostConfig) -> Result<Self> {
        let (services, lock) = blocking(move || {
            let services = Services::open(config)?;
            let lock = services.store.lock_daemon()?;
            Ok((services, lock))
        })
        .await?;
        let limits = SpecLimits {
            max_cpus: vm::host_cpus(),
            min_memory: MIN_MEMORY,
            max_memory: vm::host_memory().floor_mib(),
            max_files_bytes: image::CONFIG_FILES_MAX_BYTES.0,
        };
        let publications = crate::publish::Publications::new(services.config.publish);
        let host = Self {
            inner: Arc::new(Inner {
                services,
                registry: Registry::default(),
                names: KeyedLocks::default(),
                volumes: KeyedLocks::default(),
                secrets: Arc::default(),
                publications,
                owners: TaskTracker::new(),
                tasks: crate::tasks::Tasks::default(),
                limits,
                info: OnceLock::new(),
                lock: Mutex::new(Some(lock)),
            }),
        };
        if let Some(why) = host.inner.services.network.why_not() {
            tracing::info!(why, "sandboxes have no network");
        }
        crate::tasks::bury(&host.inner.services)?;
        crate::reopen::reopen(&host).await?;
        let rooms = host.inner.services.who_needs_room.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(rooms) = rooms {
            host.spawn_until_the_end(crate::relief::watch(Arc::downgrade(&host.inner), rooms));
        }
        if let Some(asked) = host.inner.services.network.asked() {
            let inner = Arc::downgrade(&host.inner);
            host.spawn_until_the_end(crate::network::wake_for_siblings(inner, asked));
        }
        crate::spare::keep(&host.inner.services);
        host.reopen_publications()?;
        host.look_after_schedules();
        Ok(host)
    }

    /// What this host is; probes the accelerator when that was not done yet.
    ///
    /// # Errors
    /// `NotReady` without a VMM or a kernel.
    pub async fn info(&self) -> Result<HostInfo> {
        if let Some(info) = self.inner.info.get() {
            return Ok(info.clone());
        }
        let services = &self.inner.services;
        let info = HostInfo {
            vmm: format!("QEMU {}", services.qemu().await?.version),
            accel: services.accel().await?,
            data_dir: services.store.root().to_owned(),
        };
        Ok(self.inner.info.get_or_init(|| info).clone())
    }

    /// What one sandbox may be given.
    #[must_use]
    pub fn limits(&self) -> SpecLimits {
        self.inner.limits
    }

    /// Where the unix socket belongs.
    #[must_use]
    pub fn socket_path(&self) -> PathBuf {
        self.inner.services.store.socket_path()
    }

    /// Where the admin key is.
    #[must_use]
    pub fn admin_key_path(&self) -> PathBuf {
        self.inner.services.store.admin_key_path()
    }

    /// The admin key: read from its file, written there when there is none yet.
    ///
    /// # Errors
    /// The file can be neither read nor written.
    pub async fn admin_key(&self, fresh: String) -> Result<String> {
        let store = self.inner.services.store.clone();
        blocking(move || Ok(store.admin_key(&fresh)?)).await
    }

    /// The files of this host's own certificate and its key, made anew unless what is kept `fits`.
    ///
    /// # Errors
    /// It cannot be made, or the files can be neither read nor written.
    pub async fn own_certificate(
        &self,
        fits: impl FnOnce(&str) -> bool + Send + 'static,
        make: impl FnOnce() -> std::io::Result<OwnCertificate> + Send + 'static,
    ) -> Result<[PathBuf; 2]> {
        let store = self.inner.services.store.clone();
        blocking(move || Ok(store.own_certificate(fits, make)?)).await
    }

    /// A name that is free among the owner's.
    #[must_use]
    pub fn free_name(&self, owner: &Owner) -> SandboxName {
        self.inner.registry.free_name(owner)
    }

    /// Makes a sandbox, or returns the one of that name and shape.
    ///
    /// # Errors
    /// `BadRequest`, `NotFound` for the image, `Conflict` for a name of another shape, `NotReady`, `NoSpace`, and what
    /// goes wrong with the VMM; nothing is left then.
    pub async fn create(&self, spec: SandboxSpec) -> Result<Report> {
        spec.validate(&self.inner.limits)?;
        let name = self.inner.names.lock(&(spec.owner.clone(), spec.name.clone())).await;
        self.inner.registry.check_name(&spec.owner, &spec.name)?;
        if let Some(entry) = self.inner.registry.by_name(&spec.owner, &spec.name) {
            return existing(&spec, entry.shared.view());
        }
        // Until its manifest names them, nobody takes them away.
        let secrets = Arc::clone(&self.inner.secrets).read_owned().await;
        self.require_secrets(&spec.owner, &spec.secrets).await?;
        let held = self.hold_volumes(&spec.owner, spec.volumes.iter().map(|volume| &volume.name)).await;
        let places = self.places_for(&spec).await?;
        // Made in a task of its own, so that a caller who goes away leaves a whole sandbox or none. The name stays taken
        // for as long as the task works on it.
        let host = self.clone();
        let made = self.inner.owners.spawn(async move {
            let (_name, _held, _secrets, _places) = (name, held, secrets, places);
            let owner = spec.owner.clone();
            let (provided, mut said) = host.provide_volumes(&owner, &spec.volumes).await?;
            let made = crate::create::create(&host.inner.services, spec).await;
            let (actor, timings, warnings) = match made {
                Ok(made) => made,
                Err(error) => {
                    crate::volumes::remove_made(&host.inner.services, &owner, provided).await;
                    return Err(error);
                }
            };
            said.extend(warnings);
            let warnings = said;
            let mut report = actor.report(true, timings, warnings);
            report.created = true;
            host.adopt(actor);
            Ok(report)
        });
        made.await.map_err(|error| Error::new(ErrorKind::Internal, "creating failed").source(error))?
    }

    /// Places for a new sandbox and for those of its volumes that are not there yet.
    async fn places_for(&self, spec: &SandboxSpec) -> Result<Places> {
        let volumes = self.inner.services.store.volumes();
        let missing = spec.volumes.iter().filter(|volume| !volumes.exists(&spec.owner, &volume.name)).count();
        let missing = u64::try_from(missing).unwrap_or(u64::MAX);
        let wanted = [(Counted::Sandboxes, 1), (Counted::Volumes, missing), (Counted::Disk, 0)];
        self.places(&spec.owner, &wanted).await
    }

    /// Wakes, one after the other and behind everybody's back, what is to stay hot and is not.
    pub(crate) fn wake_kept_hot(&self) {
        let host = self.clone();
        let asleep = |view: &SandboxView| {
            view.keep_hot && view.thermal == Thermal::Cold && view.status == crate::view::Status::Stopped
        };
        let asleep: Vec<_> =
            self.inner.registry.all().iter().map(|entry| entry.shared.view()).filter(asleep).collect();
        self.inner.owners.spawn(async move {
            for SandboxView { id, owner, name, .. } in asleep {
                let start = |reply| Command::Start(Start::default(), reply);
                match host.ask(&owner, id.as_str(), start).await {
                    Ok(_) => tracing::info!(sandbox = %name, "is to be kept hot, and is again"),
                    Err(error) if error.kind() == ErrorKind::ShuttingDown => return,
                    Err(error) => {
                        tracing::warn!(error = %error.with_causes(), sandbox = %name, "is to be kept hot, and did not wake");
                    }
                }
            }
        });
    }

    /// Does `work` by itself, until it is done or the daemon ends.
    pub(crate) fn spawn_until_the_end(&self, work: impl Future<Output = ()> + Send + 'static) {
        let ending = self.inner.services.ending.clone();
        self.inner.services.background.spawn(async move {
            tokio::select! {
                () = work => {}
                () = ending.cancelled() => {}
            }
        });
    }

    /// Runs a verb in a task of its own, so that a caller who goes away leaves all of it done or none.
    pub(crate) async fn to_the_end<T: Send + 'static>(
        &self,
        verb: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let done = self.inner.owners.spawn(verb).await;
        done.map_err(|error| Error::new(ErrorKind::Internal, "a verb broke off").source(error))?
    }

    /// Gives a sandbox its owner task.
    pub(crate) fn adopt(&self, actor: Actor) {
        let (commands, queue) = mpsc::channel(COMMANDS);
        let manifest = &actor.manifest;
        self.inner.registry.insert(Entry {
            id: manifest.id.clone(),
            owner: manifest.owner.clone(),
            name: manifest.name.clone(),
            commands,
            shared: Arc::clone(&actor.shared),
        });
        let (id, host) = (manifest.id.clone(), Arc::downgrade(&self.inner));
        self.inner.owners.spawn(async move {
            actor.run(queue).await;
            if let Some(inner) = host.upgrade() {
                inner.registry.remove(&id);
            }
        });
    }

    /// The owner's sandboxes, or everybody's, that have all these labels, by name.
    #[must_use]
    pub fn list(&self, owner: Option<&Owner>, labels: &Labels) -> Vec<SandboxView> {
        let has = |view: &SandboxView| labels.iter().all(|(key, value)| view.labels.get(key) == Some(value));
        let entries = match owner {
            Some(owner) => self.inner.registry.of_owner(owner),
            None => self.inner.registry.all(),
        };
        let mut views: Vec<_> = entries.iter().map(|entry| entry.shared.view()).filter(has).collect();
        views.sort_by(|a, b| (&a.name, &a.owner).cmp(&(&b.name, &b.owner)));
        views
    }

    /// One sandbox, by name, id, or the beginning of an id.
    ///
    /// # Errors
    /// `NotFound`, `BadRequest` for an ambiguous beginning.
    pub fn inspect(&self, owner: &Owner, which: &str) -> Result<SandboxView> {
        Ok(self.find(owner, which)?.view())
    }

    /// Changes what can be changed without touching the machine.
    ///
    /// # Errors
    /// `Conflict` when the new name is taken.
    pub async fn edit(&self, owner: &Owner, which: &str, edit: Edit) -> Result<SandboxView> {
        let Some(name) = edit.name.clone() else {
            return self.ask(owner, which, |reply| Command::Edit(edit, reply)).await;
        };
        let taken = self.inner.names.lock(&(owner.clone(), name.clone())).await;
        let id = self.find(owner, which)?.view().id;
        self.inner.registry.check_name(owner, &name)?;
        if self.inner.registry.by_name(owner, &name).is_some_and(|other| other.id != id) {
            return Err(Error::new(ErrorKind::Conflict, format!("there is a sandbox named {name} already"))
                .hint("choose another name"));
        }
        // In a task of its own: a caller who goes away must not leave the old name in the registry.
        let (host, owner) = (self.clone(), owner.clone());
        let renamed = self.inner.owners.spawn(async move {
            let _taken = taken;
            let view = host.ask(&owner, id.as_str(), |reply| Command::Edit(edit, reply)).await?;
            host.inner.registry.rename(&id, &name);
            Ok(view)
        });
        renamed.await.map_err(|error| Error::new(ErrorKind::Internal, "renaming failed").source(error))?
    }

    /// Puts a sandbox to sleep.
    ///
    /// # Errors
    /// `NoSpace` and others; the guest then goes on running.
    pub async fn stop(&self, owner: &Owner, which: &str) -> Result<Report> {
        self.ask(owner, which, Command::Stop).await
    }

    /// Makes a sandbox hot.
    ///
    /// # Errors
    /// `Corrupt` when its memory is damaged (`discard_memory` is the way out), `SlowPath`, and what the VMM says.
    pub async fn start(&self, owner: &Owner, which: &str, start: Start) -> Result<Report> {
        self.ask(owner, which, |reply| Command::Start(start, reply)).await
    }

    /// Stops a sandbox's processors and keeps it in memory (warm); anything that needs it makes it hot again.
    ///
    /// # Errors
    /// `Busy` when work is in flight and `only_if_idle` was asked for.
    pub async fn pause(&self, owner: &Owner, which: &str, only_if_idle: bool) -> Result<Report> {
        self.ask(owner, which, |reply| Command::Pause { only_if_idle, reply }).await
    }

    /// Removes a sandbox with everything in it.
    ///
    /// # Errors
    /// When its files could not be removed.
    pub async fn destroy(&self, owner: &Owner, which: &str) -> Result<()> {
        let id = self.find(owner, which)?.view().id;
        self.ask(owner, id.as_str(), Command::Destroy).await?;
        self.inner.publications.forget(&id);
        Ok(())
    }

    /// The guest of a sandbox, awake, with a lease that keeps it so.
    pub(crate) async fn lease(&self, owner: &Owner, which: &str) -> Result<(guest::Guest, Lease)> {
        let asked = tokio::time::Instant::now();
        self.ask(owner, which, |reply| Command::Lease(asked, reply)).await
    }

    /// Events after `seq`, oldest first; only those of `owner` when given.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn events_since(&self, owner: Option<&Owner>, seq: u64, limit: u32) -> Result<Vec<EventView>> {
        self.inner.services.events.since(seq, limit, owner)
    }

    /// The number after which the events are that `since` means.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn events_after(&self, since: Since) -> Result<u64> {
        match since {
            Since::Number(number) => Ok(number),
            Since::Time(at) => self.inner.services.events.last_before(at),
        }
    }

    /// Events from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<EventView> {
        self.inner.services.events.subscribe()
    }

    /// Ends the daemon's part: machines go on running unless `stop_all`. Afterwards every verb is refused.
    ///
    /// # Errors
    /// With `stop_all`: the first sandbox that could not be put to sleep; the others are tried all the same.
    pub async fn shutdown(&self, stop_all: bool) -> Result<()> {
        let services = &self.inner.services;
        services.ending.cancel();
        self.inner.tasks.end();
        let entries = self.inner.registry.close();
        services.standbys.close().await;
        services.spares.close().await;
        let mut first_error = None;
        if stop_all {
            for entry in &entries {
                if let Err(error) = send(entry, Command::Stop).await {
                    tracing::error!(error = %error.with_causes(), sandbox = %entry.name, "could not be put to sleep");
                    first_error.get_or_insert(error);
                }
            }
        }
        let seen: Vec<_> = entries.iter().map(|e| (e.id.clone(), e.shared.activity.last_active())).collect();
        // The owners end when nobody can ask them any more.
        drop(entries);
        self.inner.owners.close();
        self.inner.owners.wait().await;
        services.background.close();
        services.background.wait().await;
        services.index().touch(&seen)?;
        let qemu = services.qemu_if_known().cloned();
        if let Err(error) = blocking(move || Ok(qemu.map_or(Ok(()), |qemu| qemu.leave_cgroups()))).await? {
            tracing::warn!(%error, "empty control groups stay");
        }
        // Nothing works on its files any more: the next daemon may have them.
        drop(self.inner.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
        first_error.map_or(Ok(()), Err)
    }

    pub(crate) fn find(&self, owner: &Owner, which: &str) -> Result<Arc<Shared>> {
        Ok(self.inner.registry.find(owner, which)?.shared)
    }

    pub(crate) async fn ask<T>(
        &self,
        owner: &Owner,
        which: &str,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T> {
        send(&self.inner.registry.find(owner, which)?, command).await
    }
}

/// Hands a command to a sandbox's owner and waits for the reply.
pub(crate) async fn send<T>(entry: &Entry, command: impl FnOnce(Reply<T>) -> Command) -> Result<T> {
    let gone = || Error::new(ErrorKind::NotFound, format!("{} was destroyed", entry.name));
    let (reply, answer) = oneshot::channel();
    entry.commands.send(command(reply)).await.map_err(|_closed| gone())?;
    answer.await.map_err(|_dropped| gone())?
}

/// Whether a sandbox reaches the world as was asked for.
fn net_agrees(spec: &SandboxSpec, has: Option<&crate::view::NetView>) -> bool {
    spec.net.is_none_or(|mode| mode == has.map_or(types::NetMode::None, |net| net.mode))
        && spec.egress.as_ref().is_none_or(|egress| has.is_some_and(|net| net.egress == *egress))
}

/// What a create of a name that exists gives: the sandbox unchanged, if it is what was asked for.
fn existing(spec: &SandboxSpec, view: SandboxView) -> Result<Report> {
    let differs = [
        (view.image != spec.image, format!("image {}", view.image)),
        (view.cpus != spec.cpus, format!("{} cpus", view.cpus)),
        (view.memory != spec.memory, format!("{} of memory", view.memory)),
        (spec.disk_size.is_some_and(|size| size != view.disk_size), format!("a disk of {}", view.disk_size)),
        (!spec.volumes.iter().all(|volume| view.volumes.contains(volume)), "other volumes".to_owned()),
        (!spec.secrets.iter().all(|secret| view.secrets.contains(secret)), "other secrets".to_owned()),
        (!net_agrees(spec, view.net.as_ref()), "another network".to_owned()),
    ];
    match differs.into_iter().find(|(differs, _)| *differs) {
        Some((_, has)) => Err(Error::new(
            ErrorKind::Conflict,
            format!("there is a sandbox named {} already, and it has {has}", view.name),
        )
        .hint("choose another name, or destroy that one first")),
        None => Ok(Report {
            view,
            created: false,
            changed: false,
            timings: Default::default(),
            pause: None,
            warnings: Vec::new(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_data_directory_is_free_when_its_daemon_has_ended_even_if_somebody_still_holds_the_host() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..20 {
            let host = Host::open(HostConfig::new(dir.path())).await.unwrap();
            let taken = Host::open(HostConfig::new(dir.path())).await;
            assert_eq!(taken.err().map(|error| error.kind()), Some(ErrorKind::Busy));
            // What goes on by itself has begun and may be at work on anything.
            host.inner.services.background.spawn(tokio::task::yield_now());
            host.shutdown(false).await.unwrap();
            assert!(host.inner.services.background.is_empty());
            let next = Host::open(HostConfig::new(dir.path())).await.unwrap();
            next.shutdown(false).await.unwrap();
        }
    }
}
