//! Backups of volumes: a copy as of one moment goes to the store; what comes back is compared before it replaces.
//!
//! # Order
//! A backup: 1. the volume is held and copied, a guest that writes to it stands still for a moment; 2. the volume is let
//! go; 3. the copy goes to the store; 4. the copy is removed. A restore: 1. refused while a sandbox has the volume;
//! 2. everything is read into a staging file and compared; 3. the volume is held, asked again who has it, and the staging
//! file takes its name, durably. Until then the old content is untouched, whatever breaks off.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use remote::{BackupId, Keep, Listed, Progress, PruneReport, Shelf, Store, StoreOptions, Summary, Watch};
use serde_json::json;
use storage::VolumeRecord;
use types::{Bytes, CloneMethod, Counted, Nonce, Owner, Timestamp, VolumeName};

use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::schedule;
use crate::services::blocking;
use crate::timing::Stopwatch;
use crate::view::Timings;
use crate::volumes::{VolumeView, busy, names_of, volume_busy};

/// How often it is asked whether a backup is due.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// What must stay free beside what is restored.
const ROOM_BESIDE: u64 = 16 << 20;

/// Where the backups are that a verb is about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum BackupPlace {
    /// Where this host keeps them.
    #[default]
    Usual,
    /// A store by its URL; for the admin only, since the daemon's rights and keys are used.
    At(String),
}

/// What a backup did.
#[derive(Debug, Clone, PartialEq)]
pub struct BackupReport {
    /// What it is.
    pub summary: Summary,
    /// The store's URL.
    pub store: String,
    /// Chunks that are not zeros.
    pub chunks: u64,
    /// Those that the store did not have.
    pub new_chunks: u64,
    /// All that went to or came from the store.
    pub moved: Bytes,
    /// How the copy was made.
    pub clone: CloneMethod,
    /// How long the guest's writes were held for it.
    pub stall: Option<Duration>,
    /// What this call took.
    pub timings: Timings,
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq)]
pub struct RestoreReport {
    /// The backup.
    pub summary: Summary,
    /// The volume afterwards.
    pub view: VolumeView,
    /// Whether there was no such volume before.
    pub created: bool,
    /// What was read of the store.
    pub moved: Bytes,
    /// What this call took.
    pub timings: Timings,
}

/// Stops the work when it is dropped: nobody waits for it any more.
struct CallOff(remote::Cancel);

impl Drop for CallOff {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Host {
    /// Backs a volume up as it is at this moment, attached or not. A caller who goes away calls it off, and there is no
    /// backup then.
    ///
    /// # Errors
    /// `NotFound`; `Busy` while another backup of the volume is under way; `NotReady` when the store cannot be reached or
    /// refuses; `NoSpace` here or there.
    pub async fn volume_backup(
        &self,
        owner: &Owner,
        name: &VolumeName,
        place: BackupPlace,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<BackupReport> {
        let cancel = remote::Cancel::default();
        let _when_dropped = CallOff(cancel.clone());
        let watch = Watch::new(progress, cancel);
        let (host, owner, name) = (self.clone(), owner.clone(), name.clone());
        self.to_the_end(async move {
            // Asked before the store is: it is the cheaper question.
            host.volume(&owner, &name).await?;
            let shelf = host.shelf(&owner, &name, &place).await?;
            let mut timer = Stopwatch::start();
            let held = host.hold_volumes(&owner, [&name]).await;
            let at = Timestamp::now();
            let (staged, copied) = host.copy_of_held(&owner, &name).await?;
            drop(held);
            timer.lap("copy");
            let file = staged.file().try_clone().map_err(|error| {
                Error::new(ErrorKind::Internal, "the copy cannot be opened again").source(error)
            })?;
            let done = shelf.backup(file, at, watch).await;
            timer.lap("upload");
            // Removing a large file takes a while.
            blocking(move || {
                drop(staged);
                Ok(())
            })
            .await?;
            let remote::BackupReport { summary, chunks, new_chunks, moved } = done?;
            let detail = json!({ "volume": name, "backup": summary.id, "moved_bytes": moved });
            host.inner.services.events.host("volume.backed_up", &owner, detail);
            Ok(BackupReport {
                summary,
                store: shelf.store_url().to_owned(),
                chunks,
                new_chunks,
                moved,
                clone: copied.method,
                stall: copied.stall,
                timings: timer.finish(),
            })
        })
        .await
    }

    /// The backups of a volume, oldest first; also of one that is gone.
    ///
    /// # Errors
    /// `NotReady` when the store cannot be reached or refuses.
    pub async fn volume_backups(
        &self,
        owner: &Owner,
        name: &VolumeName,
        place: BackupPlace,
    ) -> Result<Vec<Listed>> {
        let listed = self.shelf(owner, name, &place).await?.list().await?;
        if listed.is_empty() {
            // Of a name that never was, that is no answer.
            self.volume(owner, name).await?;
        }
        Ok(listed)
    }

    /// Removes one backup.
    ///
    /// # Errors
    /// `NotFound`, `Busy` while a backup of the volume is under way, `NotReady`.
    pub async fn volume_backup_delete(
        &self,
        owner: &Owner,
        name: &VolumeName,
        id: &BackupId,
        place: BackupPlace,
    ) -> Result<PruneReport> {
        let shelf = self.shelf(owner, name, &place).await?;
        let (host, owner, name, id) = (self.clone(), owner.clone(), name.clone(), id.clone());
        self.to_the_end(async move {
            let report = shelf.delete(&id).await?;
            let detail = json!({ "volume": name, "backup": id, "freed_bytes": report.freed });
            host.inner.services.events.host("volume.backup_deleted", &owner, detail);
            Ok(report)
        })
        .await
    }

    /// Removes the backups that `keep` does not want; with `dry_run` only says which.
    ///
    /// # Errors
    /// `BadRequest` when nothing would be kept, `Busy` while a backup of the volume is under way, `NotReady`.
    pub async fn volume_backup_prune(
        &self,
        owner: &Owner,
        name: &VolumeName,
        keep: Keep,
        dry_run: bool,
        place: BackupPlace,
    ) -> Result<PruneReport> {
        let shelf = self.shelf(owner, name, &place).await?;
        if dry_run {
            return Ok(PruneReport { plan: shelf.plan(keep).await?, ..PruneReport::default() });
        }
        self.to_the_end(async move { Ok(shelf.prune(keep).await?) }).await
    }

    /// Puts a volume back to what a backup holds; makes it where it is gone. A caller who goes away before everything is
    /// read calls it off.
    ///
    /// # Errors
    /// `VolumeBusy` while a sandbox has it; `NotFound`; `Corrupt` and `Conflict` name what is wrong with the backup;
    /// `NotReady`, `NoSpace`. The volume is as before then.
    pub async fn volume_restore(
        &self,
        owner: &Owner,
        name: &VolumeName,
        id: &BackupId,
        place: BackupPlace,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<RestoreReport> {
        let cancel = remote::Cancel::default();
        let _when_dropped = CallOff(cancel.clone());
        let watch = Watch::new(progress, cancel);
        let (host, owner, name, id) = (self.clone(), owner.clone(), name.clone(), id.clone());
        self.to_the_end(async move {
            host.refuse_users(&owner, &name)?;
            let shelf = host.shelf(&owner, &name, &place).await?;
            let services = &host.inner.services;
            let mut timer = Stopwatch::start();
            let summary = shelf.summary(&id).await?;
            let room = Bytes(summary.data.0.saturating_add(ROOM_BESIDE));
            services.require_space(room, &format!("restoring volume {name}"))?;
            let (store, whose) = (services.store.clone(), owner.clone());
            let new = u64::from(!store.volumes().exists(&owner, &name));
            let size = summary.data.0.div_ceil(1 << 20);
            let _places = host.places(&owner, &[(Counted::Volumes, new), (Counted::Disk, size)]).await?;
            let staged = blocking(move || Ok(store.volumes().stage(&whose)?)).await?;
            let file = staged.file().try_clone().map_err(|error| {
                Error::new(ErrorKind::Internal, "the staging file cannot be opened again").source(error)
            })?;
            let restored = shelf.restore(&id, file, watch).await?;
            timer.lap("download");
            let _held = host.hold_volumes(&owner, [&name]).await;
            host.refuse_users(&owner, &name)?;
            let (store, whose, which) = (services.store.clone(), owner.clone(), name.clone());
            let created = blocking(move || {
                let volumes = store.volumes();
                if !volumes.exists(&whose, &which) {
                    staged.commit(&VolumeRecord::new(whose, which))?;
                    return Ok(true);
                }
                let lock = volumes.lock(&whose, &which).map_err(|error| match error.kind() {
                    storage::ErrorKind::Busy => volume_busy(error),
                    _ => error.into(),
                })?;
                staged.replace(lock)?;
                Ok(false)
            })
            .await?;
            timer.lap("swap");
            let detail = json!({ "volume": name, "backup": id, "created": created });
            services.events.host("volume.restored", &owner, detail);
            let view = host.volume(&owner, &name).await?;
            let (summary, moved) = (restored.summary, restored.moved);
            Ok(RestoreReport { summary, view, created, moved, timings: timer.finish() })
        })
        .await
    }

    /// Backs a volume up by itself from now on, or no more. Returns the volume.
    ///
    /// # Errors
    /// `NotFound`; `BadRequest` for a time that never comes.
    pub async fn volume_schedule(
        &self,
        owner: &Owner,
        name: &VolumeName,
        wish: Option<(&str, u32)>,
    ) -> Result<VolumeView> {
        let schedule =
            wish.map(|(cron, keep)| schedule::schedule(cron, keep, Timestamp::now())).transpose()?;
        let _held = self.hold_volumes(owner, [name]).await;
        let (store, whose, which) = (self.inner.services.store.clone(), owner.clone(), name.clone());
        blocking(move || Ok(store.volumes().set_schedule(&whose, &which, schedule)?)).await?;
        self.volume(owner, name).await
    }

    /// Looks for backups that are due until the daemon ends.
    pub(crate) fn look_after_schedules(&self) {
        let inner = Arc::downgrade(&self.inner);
        self.spawn_until_the_end(async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                let Some(inner) = inner.upgrade() else { break };
                Self { inner }.back_up_what_is_due(Timestamp::now()).await;
            }
        });
    }

    /// One after the other, so that they do not fight for the disk.
    pub(crate) async fn back_up_what_is_due(&self, now: Timestamp) {
        let store = self.inner.services.store.clone();
        let all = match blocking(move || Ok(store.volumes().all()?)).await {
            Ok(all) => all,
            Err(error) => {
                tracing::error!(error = %error.with_causes(), "volumes cannot be listed, so none is backed up");
                return;
            }
        };
        for (owner, name, volume) in all {
            let wanted = volume.ok().and_then(|volume| volume.record.schedule);
            if let Some(wanted) = wanted.filter(|wanted| schedule::due(wanted, now)) {
                self.back_up_as_scheduled(&owner, &name, wanted.keep).await;
            }
        }
    }

    async fn back_up_as_scheduled(&self, owner: &Owner, name: &VolumeName, keep: u32) {
        let keep = Keep { last: keep, ..Keep::default() };
        let done = async {
            self.volume_backup(owner, name, BackupPlace::Usual, |_| {}).await?;
            self.volume_backup_prune(owner, name, keep, false, BackupPlace::Usual).await
        }
        .await;
        let failed = done.err().map(|error| error.with_causes());
        if let Some(error) = &failed {
            tracing::error!(%error, %name, %owner, "the scheduled backup of a volume failed");
            let detail = json!({ "volume": name, "error": error });
            self.inner.services.events.host("volume.backup_failed", owner, detail);
        }
        let _held = self.hold_volumes(owner, [name]).await;
        let (store, whose, which) = (self.inner.services.store.clone(), owner.clone(), name.clone());
        let noted = blocking(move || {
            let volumes = store.volumes();
            // It may have been called off meanwhile.
            let Some(mut schedule) = volumes.open(&whose, &which)?.record.schedule else { return Ok(()) };
            schedule.since = Timestamp::now();
            schedule.last_error = failed;
            Ok(volumes.set_schedule(&whose, &which, Some(schedule))?)
        });
        if let Err(error) = noted.await {
            tracing::error!(error = %error.with_causes(), %name, "when a volume was backed up is not noted");
        }
    }

    fn refuse_users(&self, owner: &Owner, name: &VolumeName) -> Result<()> {
        let users = self.users_of(owner, name);
        let Some((_, first)) = users.first() else { return Ok(()) };
        Err(busy(format!("volume {name} is in use by {}", names_of(&users)))
            .hint(format!("first `bhatti volume detach {name} {}`", first.name)))
    }

    async fn shelf(&self, owner: &Owner, name: &VolumeName, place: &BackupPlace) -> Result<Shelf> {
        let store = match place {
            BackupPlace::Usual => self.inner.services.backups().await?,
            BackupPlace::At(_) if *owner != Owner::admin() => {
                return Err(Error::new(
                    ErrorKind::BadRequest,
                    "only the admin may name another backup store",
                )
                .hint("leave it out: backups then go where this host keeps them"));
            }
            BackupPlace::At(url) => {
                let name = self.inner.services.data_dir_id().await?;
                open_store(BackupStore::Url(url.clone()), name).await?
            }
        };
        Ok(store.shelf(owner, name))
    }
}

/// Where backups are kept.
#[derive(Debug, Clone)]
pub(crate) enum BackupStore {
    Directory(PathBuf),
    Url(String),
}

pub(crate) async fn open_store(place: BackupStore, host: Nonce) -> Result<Store> {
    blocking(move || {
        let store = match place {
            BackupStore::Directory(dir) => Store::directory(&dir)?,
            BackupStore::Url(url) => Store::open(&url, &StoreOptions::default())?,
        };
        Ok(store.of_host(host))
    })
    .await
}
