//! Volumes: the verbs on them, and who uses which.
//!
//! # Who uses a volume
//! The sandboxes whose manifests name it, running or not, until they let it go or are destroyed. One verb at a time works
//! on a volume; a verb that makes a sandbox holds all that the sandbox is to have. Below that the VMM holds the lock of
//! the file itself, which is what counts when no daemon lives.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use storage::{BackupSchedule, StagedVolume, Volume, VolumeRecord};
use tokio::sync::OwnedMutexGuard;
use types::{
    Bytes, CloneMethod, Counted, Mebibytes, Owner, SandboxId, SandboxName, Timestamp, VolumeMount,
    VolumeName, check_volume_size,
};

use crate::actor::Command;
use crate::attached::Begun;
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Host, send};
use crate::quota::Places;
use crate::registry::Entry;
use crate::services::{Services, blocking};
use crate::timing::Stopwatch;
use crate::view::Timings;

/// Size of a volume that a create names and that is not there. It is sparse, and it grows.
const DEFAULT_SIZE: Mebibytes = Mebibytes(1024);

/// What a new volume takes of its owner's quota.
pub(crate) const A_VOLUME: [(Counted, u64); 2] = [(Counted::Volumes, 1), (Counted::Disk, 0)];

/// What a new volume needs at once.
const ROOM_FOR_A_VOLUME: Bytes = Bytes(16 << 20);

/// A sandbox that uses a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeUser {
    /// Its id.
    pub id: SandboxId,
    /// Its name.
    pub name: SandboxName,
    /// Where and how.
    pub volume: VolumeMount,
}

/// A volume as it is at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct VolumeView {
    /// Name, unique for its owner.
    pub name: VolumeName,
    /// Whose it is.
    pub owner: Owner,
    /// What the guest sees.
    pub size: Bytes,
    /// What it takes on the disk.
    pub allocated: Bytes,
    /// When it was made.
    pub created_at: Timestamp,
    /// The copy of a sandbox that it was made for, and goes with.
    pub made_for: Option<SandboxId>,
    /// Who uses it, by name.
    pub users: Vec<VolumeUser>,
    /// When it is backed up by itself.
    pub schedule: Option<BackupSchedule>,
    /// When that is next.
    pub next_backup: Option<Timestamp>,
}

/// What a verb on a volume did.
#[derive(Debug, Clone, PartialEq)]
pub struct VolumeReport {
    /// The volume afterwards.
    pub view: VolumeView,
    /// Whether it was made by this call.
    pub created: bool,
    /// Whether this call changed anything.
    pub changed: bool,
    /// How it was cloned.
    pub clone: Option<CloneMethod>,
    /// How long the guest's writes to the volume had to wait for it.
    pub stall: Option<Duration>,
    /// What this call took.
    pub timings: Timings,
    /// What the caller should know.
    pub warnings: Vec<String>,
}

/// How a point-in-time copy was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Copied {
    pub(crate) method: CloneMethod,
    /// How long the guest's writes had to wait; none where no guest could write.
    pub(crate) stall: Option<Duration>,
    /// Whether it is as if it had been unmounted.
    pub(crate) settled: bool,
}

/// Volumes that nobody else's verb works on meanwhile.
pub(crate) type Held = Vec<OwnedMutexGuard<()>>;

impl Host {
    /// Makes a volume, or returns the one of that name and size.
    ///
    /// # Errors
    /// `BadRequest` for a size that is not possible, `Conflict` for a name of another size, `NoSpace`; nothing is left then.
    pub async fn volume_create(
        &self,
        owner: &Owner,
        name: &VolumeName,
        size: Mebibytes,
    ) -> Result<VolumeReport> {
        check_size(&self.inner.services, size)?;
        let held = self.hold_volumes(owner, [name]).await;
        let (host, owner, name) = (self.clone(), owner.clone(), name.clone());
        self.to_the_end(async move {
            let _held = held;
            let mut watch = Stopwatch::start();
            if host.inner.services.store.volumes().exists(&owner, &name) {
                let view = host.volume(&owner, &name).await?;
                if view.size == size.bytes() {
                    return Ok(unchanged(view));
                }
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("there is a volume {name} already, and it has {}", view.size.floor_mib()),
                )
                .hint(format!("choose another name, or `bhatti volume resize {name} --size MB`")));
            }
            let _places = host.places(&owner, &A_VOLUME).await?;
            make(&host.inner.services, &owner, &name, size).await?;
            watch.lap("make");
            host.volume_event("created", &owner, &name, json!({ "size_mb": size.0 }));
            let view = host.volume(&owner, &name).await?;
            Ok(VolumeReport { created: true, changed: true, timings: watch.finish(), ..unchanged(view) })
        })
        .await
    }

    /// The owner's volumes, by name. One whose record cannot be read is left out and logged.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn volumes(&self, owner: &Owner) -> Result<Vec<VolumeView>> {
        let (store, whose) = (self.inner.services.store.clone(), owner.clone());
        let found = blocking(move || Ok(store.volumes().of(&whose)?)).await?;
        let mut views = Vec::new();
        for (name, volume) in found {
            match volume {
                Ok(volume) => views.push(self.volume_view(volume)),
                Err(error) => tracing::error!(%error, %name, "a volume cannot be read"),
            }
        }
        Ok(views)
    }

    /// One volume.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`.
    pub async fn volume(&self, owner: &Owner, name: &VolumeName) -> Result<VolumeView> {
        Ok(self.volume_view(open(&self.inner.services, owner, name).await?))
    }

    /// Attaches a volume to a sandbox; one that sleeps is woken, one that is off gets it at its next start.
    ///
    /// # Errors
    /// `NotFound`, `VolumeBusy` naming who uses it, `BadRequest` for the path, `Conflict` when it is attached otherwise
    /// already, and what the guest says; nothing has changed then.
    pub async fn volume_attach(
        &self,
        owner: &Owner,
        which: &str,
        volume: VolumeMount,
    ) -> Result<VolumeReport> {
        let held = self.hold_volumes(owner, [&volume.name]).await;
        let entry = self.inner.registry.find(owner, which)?;
        let (host, owner) = (self.clone(), owner.clone());
        self.to_the_end(async move {
            let _held = held;
            open(&host.inner.services, &owner, &volume.name).await?;
            host.check_free(&owner, &volume, Some(&entry.id))?;
            let wanted = volume.clone();
            let change = send(&entry, |reply| Command::AttachVolume(wanted, reply)).await?;
            host.told(&owner, &volume.name, change.changed, change.timings, change.warnings).await
        })
        .await
    }

    /// Takes a volume away from a sandbox: written out, unmounted, unplugged. A sandbox that sleeps is woken for it.
    ///
    /// # Errors
    /// `NotFound`, `VolumeBusy` naming the process in the guest that uses it; it is attached as before then.
    pub async fn volume_detach(&self, owner: &Owner, which: &str, name: &VolumeName) -> Result<VolumeReport> {
        let held = self.hold_volumes(owner, [name]).await;
        let entry = self.inner.registry.find(owner, which)?;
        let (host, owner, name) = (self.clone(), owner.clone(), name.clone());
        self.to_the_end(async move {
            let _held = held;
            // Also one whose file somebody has taken away can be let go.
            let attached = entry.shared.view().volumes.iter().any(|volume| volume.name == name);
            if !attached {
                return Ok(unchanged(host.volume(&owner, &name).await?));
            }
            let wanted = name.clone();
            let change = send(&entry, |reply| Command::DetachVolume(wanted, reply)).await?;
            let (store, whose, freed) = (host.inner.services.store.clone(), owner.clone(), name.clone());
            blocking(move || Ok(store.volumes().set_free(&whose, &freed)?)).await?;
            host.told(&owner, &name, change.changed, change.timings, change.warnings).await
        })
        .await
    }

    /// Makes a volume larger, attached or not.
    ///
    /// # Errors
    /// `BadRequest` when it would become smaller, `VolumeBusy` while it is attached read-only, `NotFound`.
    pub async fn volume_resize(
        &self,
        owner: &Owner,
        name: &VolumeName,
        size: Mebibytes,
    ) -> Result<VolumeReport> {
        check_size(&self.inner.services, size)?;
        let held = self.hold_volumes(owner, [name]).await;
        let (host, owner, name) = (self.clone(), owner.clone(), name.clone());
        self.to_the_end(async move {
            let _held = held;
            let mut watch = Stopwatch::start();
            let services = &host.inner.services;
            let now = open(services, &owner, &name).await?.size;
            if size.bytes() < now {
                return Err(Error::new(
                    ErrorKind::BadRequest,
                    format!("volume {name} has {} and cannot become smaller", now.floor_mib()),
                )
                .hint(format!("volumes only grow: use {} or more", now.floor_mib().0)));
            }
            let users = host.users_of(&owner, &name);
            if let Some((_, user)) = users.iter().find(|(_, user)| user.volume.read_only) {
                return Err(busy(format!("volume {name} is attached read-only to {}", user.name))
                    .hint("detach it there first: a file system that is only read cannot grow"));
            }
            let _places = match size.bytes() == now {
                true => Places::default(),
                false => host.places(&owner, &[(Counted::Disk, 0)]).await?,
            };
            let warnings = match users.into_iter().next() {
                _ if size.bytes() == now => return Ok(unchanged(host.volume(&owner, &name).await?)),
                Some((entry, _)) => {
                    let wanted = name.clone();
                    send(&entry, |reply| Command::ResizeVolume(wanted, size, reply)).await?.warnings
                }
                None => {
                    let (store, whose, which) = (services.store.clone(), owner.clone(), name.clone());
                    blocking(move || {
                        let lock = store.volumes().lock(&whose, &which)?;
                        Ok(store.volumes().grow(&lock, size.bytes())?)
                    })
                    .await?;
                    vec![format!("the file system of {name} grows when it is attached next")]
                }
            };
            watch.lap("grow");
            host.volume_event("resized", &owner, &name, json!({ "size_mb": size.0 }));
            host.told(&owner, &name, true, watch.finish(), warnings).await
        })
        .await
    }

    /// Makes a volume that is as another one is at this moment; a guest that writes to that one waits for a moment.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` when the name is taken, `NoSpace`; nothing is left then.
    pub async fn volume_clone(
        &self,
        owner: &Owner,
        name: &VolumeName,
        to: &VolumeName,
    ) -> Result<VolumeReport> {
        if name == to {
            return Err(taken(to));
        }
        let held = self.hold_volumes(owner, [name, to]).await;
        let (host, owner, name, to) = (self.clone(), owner.clone(), name.clone(), to.clone());
        self.to_the_end(async move {
            let _held = held;
            let mut watch = Stopwatch::start();
            if host.inner.services.store.volumes().exists(&owner, &to) {
                return Err(taken(&to));
            }
            let _places = host.places(&owner, &A_VOLUME).await?;
            let (staged, copied) = host.copy_of_held(&owner, &name).await?;
            watch.lap("copy");
            let record = VolumeRecord::new(owner.clone(), to.clone());
            let volume = blocking(move || Ok(staged.commit(&record)?)).await?;
            watch.lap("commit");
            let detail =
                json!({ "from": name, "clone": copied.method, "stall_ms": copied.stall.map(milliseconds) });
            host.volume_event("cloned", &owner, &to, detail);
            let unsettled = (!copied.settled).then(|| {
                format!("the journal of {to} is not played back yet: attach it once for writing before `:ro`")
            });
            Ok(VolumeReport {
                created: true,
                changed: true,
                warnings: unsettled.into_iter().collect(),
                clone: Some(copied.method),
                stall: copied.stall,
                timings: watch.finish(),
                ..unchanged(host.volume_view(volume))
            })
        })
        .await
    }

    /// Removes a volume with all that is in it. Snapshots have clones of their own.
    ///
    /// # Errors
    /// `NotFound`, `VolumeBusy` naming who uses it.
    pub async fn volume_delete(&self, owner: &Owner, name: &VolumeName) -> Result<()> {
        let held = self.hold_volumes(owner, [name]).await;
        let (host, owner, name) = (self.clone(), owner.clone(), name.clone());
        self.to_the_end(async move {
            let _held = held;
            let users = host.users_of(&owner, &name);
            if !users.is_empty() {
                let detach: Vec<String> = users
                    .iter()
                    .map(|(_, user)| format!("`bhatti volume detach {name} {}`", user.name))
                    .collect();
                return Err(busy(format!("volume {name} is in use by {}", names_of(&users)))
                    .hint(format!("first {}", detach.join(" and "))));
            }
            let (store, whose, which) = (host.inner.services.store.clone(), owner.clone(), name.clone());
            blocking(move || {
                store.volumes().remove(&whose, &which).map_err(|error| match error.kind() {
                    storage::ErrorKind::Busy => volume_busy(error),
                    _ => error.into(),
                })
            })
            .await?;
            host.volume_event("deleted", &owner, &name, json!({}));
            Ok(())
        })
        .await
    }

    /// What a volume has in it at this moment, attached or not, as a file that nothing names. The caller holds the
    /// volume.
    pub(crate) async fn copy_of_held(
        &self,
        owner: &Owner,
        name: &VolumeName,
    ) -> Result<(StagedVolume, Copied)> {
        let store = self.inner.services.store.clone();
        open(&self.inner.services, owner, name).await?;
        let whose = owner.clone();
        let staged = blocking(move || Ok(store.volumes().stage(&whose)?)).await?;
        let writer = self.users_of(owner, name).into_iter().find(|(_, user)| !user.volume.read_only);
        let Some((entry, _)) = writer else {
            return copy_at_rest(&self.inner.services, owner, name, staged).await;
        };
        // Its owner is free for others while the file is copied, and keeps it awake.
        let (_guest, _lease) = match entry.shared.view().thermal {
            types::Thermal::Cold => (None, None),
            _ => send(&entry, |reply| Command::Lease(tokio::time::Instant::now(), reply))
                .await
                .map(|(guest, lease)| (Some(guest), Some(lease)))?,
        };
        let which = name.clone();
        match send(&entry, |reply| Command::BeginCopy(which, staged, reply)).await? {
            Begun::Done(staged, copied) => Ok((staged, copied)),
            Begun::Watching(staged) => {
                let (store, whose, which) = (self.inner.services.store.clone(), owner.clone(), name.clone());
                let staged = blocking(move || {
                    staged.copy_of(store.volumes().open(&whose, &which)?.path())?;
                    // The guest's own syncs would have to wait for it.
                    staged.sync()?;
                    Ok(staged)
                })
                .await?;
                let which = name.clone();
                send(&entry, |reply| Command::EndCopy(which, staged, reply)).await
            }
        }
    }

    /// Nobody else's verb works on these volumes until the guards are dropped. In order, so that two who want the same
    /// cannot wait for each other.
    pub(crate) async fn hold_volumes<'a>(
        &self,
        owner: &Owner,
        names: impl IntoIterator<Item = &'a VolumeName>,
    ) -> Held {
        let mut sorted: Vec<&VolumeName> = names.into_iter().collect();
        sorted.sort();
        sorted.dedup();
        let mut held = Vec::with_capacity(sorted.len());
        for name in sorted {
            held.push(self.inner.volumes.lock(&(owner.clone(), name.clone())).await);
        }
        held
    }

    /// Who uses a volume, by name.
    pub(crate) fn users_of(&self, owner: &Owner, name: &VolumeName) -> Vec<(Entry, VolumeUser)> {
        let mut users: Vec<_> = self
            .inner
            .registry
            .of_owner(owner)
            .into_iter()
            .filter_map(|entry| {
                let view = entry.shared.view();
                let volume = view.volumes.into_iter().find(|volume| volume.name == *name)?;
                Some((entry, VolumeUser { id: view.id, name: view.name, volume }))
            })
            .collect();
        users.sort_by(|(_, a), (_, b)| a.name.cmp(&b.name));
        users
    }

    /// Refuses a volume that others use in a way that does not go together with what is wanted.
    pub(crate) fn check_free(
        &self,
        owner: &Owner,
        wanted: &VolumeMount,
        except: Option<&SandboxId>,
    ) -> Result<()> {
        let name = &wanted.name;
        let mut users = self.users_of(owner, name);
        users.retain(|(_, user)| Some(&user.id) != except);
        let Some(writer) = users.iter().position(|(_, user)| !user.volume.read_only) else {
            if users.is_empty() || wanted.read_only {
                return Ok(());
            }
            return Err(busy(format!("volume {name} is attached read-only to {}", names_of(&users)))
                .hint("attach it with `:ro`, or detach it there first"));
        };
        let (_, user) = &users[writer];
        Err(busy(format!("volume {name} is in use by {}", user.name))
            .hint(format!("first `bhatti volume detach {name} {}`", user.name)))
    }

    /// Makes sure that the volumes of a sandbox about to be made can be its: makes those that are not there. Returns
    /// those, and what to say of them. The caller holds them.
    pub(crate) async fn provide_volumes(
        &self,
        owner: &Owner,
        volumes: &[VolumeMount],
    ) -> Result<(Vec<VolumeName>, Vec<String>)> {
        let services = &self.inner.services;
        for volume in volumes {
            self.check_free(owner, volume, None)?;
        }
        let (mut made, mut said) = (Vec::new(), Vec::new());
        for volume in volumes {
            let name = &volume.name;
            if services.store.volumes().exists(owner, name) {
                open(services, owner, name).await?;
                continue;
            }
            if let Err(error) = make(services, owner, name, DEFAULT_SIZE).await {
                remove_made(services, owner, made).await;
                return Err(error);
            }
            self.volume_event("created", owner, name, json!({ "size_mb": DEFAULT_SIZE.0 }));
            made.push(name.clone());
            said.push(format!("volume {name} was not there and was made, with {DEFAULT_SIZE}"));
        }
        Ok((made, said))
    }

    fn volume_view(&self, volume: Volume) -> VolumeView {
        let users = self.users_of(&volume.record.owner, &volume.record.name);
        VolumeView {
            size: volume.size,
            allocated: volume.allocated,
            created_at: volume.record.created_at,
            made_for: volume.record.made_for,
            next_backup: volume.record.schedule.as_ref().and_then(crate::schedule::next),
            schedule: volume.record.schedule,
            users: users.into_iter().map(|(_, user)| user).collect(),
            name: volume.record.name,
            owner: volume.record.owner,
        }
    }

    async fn told(
        &self,
        owner: &Owner,
        name: &VolumeName,
        changed: bool,
        timings: Timings,
        warnings: Vec<String>,
    ) -> Result<VolumeReport> {
        let view = self.volume(owner, name).await?;
        Ok(VolumeReport { changed, timings, warnings, ..unchanged(view) })
    }

    fn volume_event(&self, kind: &str, owner: &Owner, name: &VolumeName, mut detail: serde_json::Value) {
        detail["volume"] = json!(name);
        let kind = match kind {
            "created" => "volume.created",
            "resized" => "volume.resized",
            "cloned" => "volume.cloned",
            _ => "volume.deleted",
        };
        self.inner.services.events.host(kind, owner, detail);
    }
}

fn unchanged(view: VolumeView) -> VolumeReport {
    VolumeReport {
        view,
        created: false,
        changed: false,
        clone: None,
        stall: None,
        timings: Timings::default(),
        warnings: Vec::new(),
    }
}

pub(crate) fn names_of(users: &[(Entry, VolumeUser)]) -> String {
    let names: Vec<&str> = users.iter().map(|(_, user)| user.name.as_str()).collect();
    names.join(", ")
}

fn taken(name: &VolumeName) -> Error {
    Error::new(ErrorKind::Conflict, format!("there is a volume {name} already"))
        .hint("choose another name, or delete that one first")
}

pub(crate) fn busy(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::VolumeBusy, message)
}

/// A volume whose file a VMM has that no sandbox here accounts for.
pub(crate) fn volume_busy(error: storage::Error) -> Error {
    let hint = error.hint().unwrap_or_default().to_owned();
    busy(error.message()).hint(hint)
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Refuses a size that no volume can have, or that the host could not hold.
fn check_size(services: &Services, size: Mebibytes) -> Result<()> {
    check_volume_size(size)?;
    let most = services.store.space()?.total;
    if size.bytes() <= most {
        return Ok(());
    }
    let text = format!(
        "a volume of {size} is larger than the filesystem it would lie on, which has {}",
        most.floor_mib()
    );
    Err(Error::new(ErrorKind::BadRequest, text)
        .hint("ask for a smaller one, or keep the data directory on a larger filesystem"))
}

async fn open(services: &Arc<Services>, owner: &Owner, name: &VolumeName) -> Result<Volume> {
    let (store, owner, name) = (services.store.clone(), owner.clone(), name.clone());
    blocking(move || Ok(store.volumes().open(&owner, &name)?)).await
}

/// A new volume with an empty filesystem.
async fn make(services: &Arc<Services>, owner: &Owner, name: &VolumeName, size: Mebibytes) -> Result<Volume> {
    services.require_space(ROOM_FOR_A_VOLUME, "a volume")?;
    let (store, record) = (services.store.clone(), VolumeRecord::new(owner.clone(), name.clone()));
    blocking(move || {
        let staged = store.volumes().stage(&record.owner)?;
        staged.set_size(size.bytes())?;
        image::make_volume_fs(staged.path())?;
        Ok(staged.commit(&record)?)
    })
    .await
}

/// Removes volumes that were made for a sandbox that did not come to be.
pub(crate) async fn remove_made(services: &Arc<Services>, owner: &Owner, names: Vec<VolumeName>) {
    let (store, owner) = (services.store.clone(), owner.clone());
    let removed = blocking(move || {
        for name in &names {
            if let Err(error) = store.volumes().remove(&owner, name) {
                tracing::error!(%error, %name, "a volume that was made for nothing stays");
            }
        }
        Ok(())
    });
    if let Err(error) = removed.await {
        tracing::error!(error = %error.with_causes(), "volumes that were made for nothing stay");
    }
}

/// A copy of a volume that no guest can write to just now.
pub(crate) async fn copy_at_rest(
    services: &Arc<Services>,
    owner: &Owner,
    name: &VolumeName,
    staged: StagedVolume,
) -> Result<(StagedVolume, Copied)> {
    let (store, owner, name) = (services.store.clone(), owner.clone(), name.clone());
    blocking(move || {
        let _shared = store.volumes().share(&owner, &name).map_err(|error| match error.kind() {
            storage::ErrorKind::Busy => volume_busy(error),
            _ => error.into(),
        })?;
        let method = staged.copy_of(store.volumes().open(&owner, &name)?.path())?.method;
        Ok((staged, Copied { method, stall: None, settled: true }))
    })
    .await
}

/// The name of a clone that is made for a copy of a sandbox.
pub(crate) fn name_for_copy(volume: &VolumeName, copy: &SandboxName, attempt: usize) -> Result<VolumeName> {
    const MOST: usize = 63;
    let end = match attempt {
        0 => format!("-{copy}"),
        more => format!("-{copy}-{more}"),
    };
    let room = MOST.saturating_sub(end.len()).max(1);
    let begin: String = volume.as_str().chars().take(room).collect();
    let whole: String = format!("{}{end}", begin.trim_end_matches('-')).chars().take(MOST).collect();
    whole
        .trim_end_matches('-')
        .parse()
        .map_err(|error: types::NameError| Error::new(ErrorKind::Internal, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clone_for_a_copy_is_named_after_both_and_is_always_a_name() {
        let name = |volume: &str, copy: &str, attempt| {
            name_for_copy(&volume.parse().unwrap(), &copy.parse().unwrap(), attempt)
                .unwrap()
                .as_str()
                .to_owned()
        };
        assert_eq!(name("data", "web-2", 0), "data-web-2");
        assert_eq!(name("data", "web-2", 3), "data-web-2-3");
        for (volume, copy) in [("v".repeat(63), "c".repeat(63)), ("v".repeat(63), "c".to_owned())] {
            for attempt in [0, 1, 12] {
                assert!(name(&volume, &copy, attempt).len() <= 63);
            }
        }
        assert_ne!(name(&"v".repeat(63), "c", 1), name(&"v".repeat(63), "c", 2));
    }
}
