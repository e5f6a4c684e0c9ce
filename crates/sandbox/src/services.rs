//! What every verb needs: the rooms below, opened once, and the one door for blocking work.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meta::Index;
use storage::Store;
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use types::{Accel, Arch, Bytes, Mebibytes, Nonce, Owner, StorageLayout};
use vm::Qemu;

use crate::backups::{BackupStore, open_store};
use crate::error::{Error, ErrorKind, Result};
use crate::events::Events;
use crate::memory::{Ledger, Share};
use crate::metrics::Metrics;
use crate::moment::Bustle;
use crate::prefetch::Prefetch;
use crate::relief::Room;
use crate::secrets::{SecretsKey, SecretsKeyText};
use crate::spare::Spares;
use crate::standby::Standbys;
use crate::thermal::ThermalConfig;

/// The setting that tells one data directory from others where they share a store.
const DATA_DIR_ID: &str = "data_dir_id";

/// How a host is to be run.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// The VMM's program; the usual name in `PATH` when missing.
    pub qemu: Option<PathBuf>,
    /// How new sandboxes keep their root disks; as measured on this host when missing.
    pub layout: Option<StorageLayout>,
    /// What is to execute guests; what a probe proved when missing.
    pub accel: Option<Accel>,
    /// How long a guest may take to boot.
    pub boot_timeout: Duration,
    /// How idle sandboxes are treated.
    pub thermal: ThermalConfig,
    /// How many sandboxes wake or boot side by side; the others wait their turn.
    pub wakes: NonZeroUsize,
    /// How long a request waits for its turn.
    pub wake_wait: Duration,
    /// The most memory that all machines together are promised; no limit when missing.
    pub max_memory: Option<Mebibytes>,
    /// How many machines of each shape that is used stand by for the next create.
    pub standby: usize,
    /// How many VMMs are started ahead, for machines that wake or are made from memory.
    pub spare_vmms: usize,
    /// What is read ahead of a wake.
    pub prefetch: Prefetch,
    /// Where the kernel tells of the host's memory.
    pub proc: PathBuf,
    /// How much what is published may be asked for.
    pub publish: crate::publish::PublishLimits,
    /// Where backups of volumes go, by URL; `backups/` in the data directory when missing.
    pub backup_to: Option<String>,
    /// The network of sandboxes that do not say.
    pub net: crate::network::NetDefault,
    /// Whether each VMM gets a control group, where that is possible.
    pub cgroups: bool,
    /// Whether each VMM gives up what it does not need of rights and surroundings.
    pub confine: bool,
    /// What sandboxes may move in a second that do not say.
    pub rates: crate::rates::Rates,
    /// The command that runs `net::relay`, with its orders as arguments.
    pub net_relay: Vec<String>,
    /// The key that secrets are sealed to (`AGE-SECRET-KEY-1...`); that of the data directory when missing.
    pub secrets_key: Option<SecretsKeyText>,
}

impl HostConfig {
    /// The defaults for a data directory.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            qemu: None,
            layout: None,
            accel: None,
            boot_timeout: Duration::from_secs(120),
            thermal: ThermalConfig::default(),
            wakes: NonZeroUsize::new(8).unwrap_or(NonZeroUsize::MIN),
            wake_wait: Duration::from_secs(30),
            max_memory: None,
            standby: 0,
            spare_vmms: 0,
            prefetch: Prefetch::default(),
            proc: PathBuf::from("/proc"),
            publish: crate::publish::PublishLimits::default(),
            backup_to: None,
            net: crate::network::NetDefault::None,
            cgroups: false,
            confine: false,
            rates: crate::rates::Rates::default(),
            net_relay: Vec::new(),
            secrets_key: None,
        }
    }
}

/// What a sandbox needs to be made: config drive, the overlay's own blocks, and what a guest writes in its first moments.
pub(crate) const ROOM_FOR_A_SANDBOX: Bytes = Bytes(16 << 20);

/// What a template needs to be made: the RAM of a booted guest, its disk, and some more.
pub(crate) const ROOM_FOR_A_TEMPLATE: Bytes = Bytes(256 << 20);

/// Where machines are held to what they may take. Who has no right to make groups is told once, and does without.
fn cgroups() -> Option<Arc<vm::Cgroups>> {
    match vm::Cgroups::find().and_then(|found| found.sweep().map(|()| found)) {
        Ok(found) => {
            tracing::info!(place = found.describe(), "each VMM gets a control group");
            Some(Arc::new(found))
        }
        Err(error) => {
            tracing::warn!(%error, "VMMs are not held to what they may take: no control groups");
            None
        }
    }
}

/// What each VMM is to give up.
fn confinement(program: &Path) -> Option<vm::Confinement> {
    match vm::Confinement::find(program) {
        Ok(found) => {
            let (without, keeps) = found.describe(false);
            tracing::info!(without, ?keeps, "each VMM is confined");
            Some(found)
        }
        Err(error) => {
            tracing::warn!(%error, "VMMs are not confined");
            None
        }
    }
}

/// The rooms below, shared by all sandboxes of one host.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) config: HostConfig,
    pub(crate) store: Store,
    pub(crate) events: Events,
    pub(crate) builds: crate::keyed::KeyedLocks<types::ContentId>,
    /// One download of a blob at a time, by its digest.
    pub(crate) downloads: crate::keyed::KeyedLocks<String>,
    pub(crate) accel: OnceCell<Accel>,
    pub(crate) layout: OnceCell<StorageLayout>,
    /// A permit for each sandbox that may wake at the same time; first come, first served.
    wakes: Semaphore,
    pub(crate) memory: Arc<Ledger>,
    pub(crate) standbys: Standbys,
    pub(crate) spares: Spares,
    /// What is done for somebody right now.
    pub(crate) bustle: Arc<Bustle>,
    /// Cancelled when the daemon ends, for what goes on by itself.
    pub(crate) ending: CancellationToken,
    /// What goes on by itself; the daemon's end waits for it.
    pub(crate) background: TaskTracker,
    pub(crate) metrics: Metrics,
    pub(crate) network: crate::network::Network,
    pub(crate) users: crate::users::Users,
    pub(crate) tally: Arc<crate::quota::Tally>,
    rooms: mpsc::Sender<Room>,
    /// The other end, until the host takes it.
    pub(crate) who_needs_room: Mutex<Option<mpsc::Receiver<Room>>>,
    index: Arc<Mutex<Index>>,
    qemu: OnceCell<Qemu>,
    backups: OnceCell<remote::Store>,
    pub(crate) secrets_key: OnceCell<SecretsKey>,
}

impl Services {
    /// Opens the rooms in `config.data_dir`; takes no daemon lock.
    pub(crate) fn open(config: HostConfig) -> Result<Arc<Self>> {
        let store = Store::open(&config.data_dir)?;
        let index = match Index::open(&store.db_path()) {
            Err(error) if error.kind() == meta::ErrorKind::Corrupt => {
                // The index can be made again from the manifests; the damaged one is kept for whoever wants to look.
                let kept = Index::set_aside(&store.db_path())?;
                tracing::warn!(%error, kept = %kept.display(), "the index was damaged and is made anew");
                Index::open(&store.db_path())?
            }
            other => other?,
        };
        let users = crate::users::Users::load(&index)?;
        let index = Arc::new(Mutex::new(index));
        let (rooms, who_needs_room) = mpsc::channel(64);
        Ok(Arc::new(Self {
            wakes: Semaphore::new(config.wakes.get()),
            memory: Ledger::new(config.max_memory),
            standbys: Standbys::default(),
            spares: Spares::default(),
            bustle: Bustle::new(),
            ending: CancellationToken::new(),
            background: TaskTracker::new(),
            metrics: Metrics::default(),
            network: crate::network::Network::open(config.net, &config.net_relay, store.lanes_path())?,
            users,
            tally: Arc::default(),
            rooms,
            who_needs_room: Mutex::new(Some(who_needs_room)),
            config,
            store,
            events: Events::new(Arc::clone(&index)),
            builds: crate::keyed::KeyedLocks::default(),
            downloads: crate::keyed::KeyedLocks::default(),
            accel: OnceCell::new(),
            layout: OnceCell::new(),
            index,
            qemu: OnceCell::new(),
            backups: OnceCell::new(),
            secrets_key: OnceCell::new(),
        }))
    }

    /// The VMM, looked for until it is found.
    pub(crate) async fn qemu(&self) -> Result<&Qemu> {
        self.qemu
            .get_or_try_init(|| async {
                let given = self.config.qemu.clone();
                let (held, confined) = (self.config.cgroups, self.config.confine);
                blocking(move || {
                    let qemu = Qemu::discover(given.as_deref(), Arch::host())?;
                    let confinement = confined.then(|| confinement(&qemu.path)).flatten();
                    Ok(Qemu { cgroups: held.then(cgroups).flatten(), confinement, ..qemu })
                })
                .await
            })
            .await
    }

    /// The VMM, if it was ever needed.
    pub(crate) fn qemu_if_known(&self) -> Option<&Qemu> {
        self.qemu.get()
    }

    /// Waits for a turn to wake, first come first served; for who asked at `asked` not longer than the host allows.
    pub(crate) async fn turn_to_wake(&self, asked: Instant) -> Result<SemaphorePermit<'_>> {
        let _waits = self.metrics.queued();
        let Ok(turn) = tokio::time::timeout_at(asked + self.config.wake_wait, self.wakes.acquire()).await
        else {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "{} sandboxes are waking already, and none was done within {} s",
                    self.config.wakes,
                    self.config.wake_wait.as_secs()
                ),
            )
            .hint("try again in a moment, or let more wake at once with `bhatti serve --wakes`"));
        };
        turn.map_err(|closed| Error::new(ErrorKind::Internal, "nothing wakes any more").source(closed))
    }

    /// The memory for a machine of `owner`, charged to them.
    pub(crate) async fn room_for_machine(&self, owner: &Owner, cpus: u32, size: Mebibytes) -> Result<Share> {
        let charge = self.charge(owner, cpus, size)?;
        Ok(self.room_for(size).await?.charged(charge))
    }

    /// The memory for a machine. Where there is a limit and it is reached, those who need theirs least give it up first.
    pub(crate) async fn room_for(&self, size: Mebibytes) -> Result<Share> {
        if let Some(share) = self.memory.take(size) {
            return Ok(share);
        }
        let most = self.memory.most().unwrap_or(size);
        if size > most {
            return Err(Error::new(
                ErrorKind::BadRequest,
                format!(
                    "{size} of memory are more than all machines here may have together, which is {most}"
                ),
            )
            .hint(format!("ask for {} or less, or raise `bhatti serve --max-memory`", most.0)));
        }
        let (done, waiting) = oneshot::channel();
        if self.rooms.send(Room { size, done }).await.is_ok() {
            let _done_or_nobody_there = waiting.await;
        }
        self.memory.take(size).ok_or_else(|| {
            Error::new(
                ErrorKind::NoMemory,
                format!(
                    "{size} of memory do not fit: the machines that are in use have {} of the {most} that all may have",
                    self.memory.promised()
                ),
            )
            .hint("stop or destroy a sandbox, let idle ones sleep (`--no-keep-hot`), or raise `bhatti serve --max-memory`")
        })
    }

    /// Where this host keeps backups of volumes, tried until it is there.
    pub(crate) async fn backups(&self) -> Result<remote::Store> {
        let place = match &self.config.backup_to {
            Some(url) => BackupStore::Url(url.clone()),
            None => BackupStore::Directory(self.store.backups_dir()),
        };
        let open = async || open_store(place, self.data_dir_id().await?).await;
        self.backups.get_or_try_init(open).await.cloned()
    }

    /// What this data directory is called in stores that several hosts may use, made at the first call.
    pub(crate) async fn data_dir_id(&self) -> Result<Nonce> {
        self.tell_index(|index| {
            // One that cannot be read is of no use to anybody.
            if let Some(name) = index.get_setting(DATA_DIR_ID)?.and_then(|name| name.parse().ok()) {
                return Ok(name);
            }
            let name = Nonce::random();
            index.set_setting(DATA_DIR_ID, name.as_str())?;
            Ok(name)
        })
        .await
    }

    /// Refuses new work that the data root's filesystem has no room for: a machine that meets a full disk stands still,
    /// and everybody else's with it.
    pub(crate) fn require_space(&self, least: Bytes, what: &str) -> Result<()> {
        require_space(&self.store, least, what)
    }

    /// The index, for a call that ends in well under a millisecond.
    pub(crate) fn index(&self) -> MutexGuard<'_, Index> {
        held(&self.index)
    }

    /// The index, for a word that is synced: it takes as long as the disk, so not on this thread.
    pub(crate) async fn tell_index<T, F>(&self, word: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Index) -> Result<T> + Send + 'static,
    {
        let index = Arc::clone(&self.index);
        blocking(move || word(&mut held(&index))).await
    }
}

fn held(index: &Mutex<Index>) -> MutexGuard<'_, Index> {
    // A panic while it was held cannot have left a transaction half done.
    index.lock().unwrap_or_else(PoisonError::into_inner)
}

fn require_space(store: &Store, least: Bytes, what: &str) -> Result<()> {
    let free = store.space()?.free;
    if free >= least {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::NoSpace,
        format!("{what} needs {least} free, and the data directory's filesystem has {free}: it is full"),
    )
    .hint("destroy what is not needed, `bhatti gc`, or make room there"))
}

/// Why a device state was not saved: the VMM does not say that the disk is full.
pub(crate) fn devices_not_saved(store: &Store, error: vm::Error) -> Error {
    match require_space(store, Bytes(4 << 20), "the device state") {
        Err(full) if full.kind() == ErrorKind::NoSpace => full.source(error),
        _ => error.into(),
    }
}

/// The one door through which blocking work enters: runs `work` on a thread that may wait.
pub(crate) async fn blocking<T, F>(work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::new(ErrorKind::Internal, "a worker thread failed").source(error)),
    }
}
