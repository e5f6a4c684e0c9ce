//! One writer at a time to a volume's shelf, whatever host it is on.
//!
//! `lock.json` is made with "only if it is not there", which directories and S3 both have, and removed at the end. It
//! is written again every minute while the work goes on. One that was not for ten minutes belongs to nobody any more
//! and is taken over; whoever wrote it finds that out before its manifest is written or a chunk is removed, since both
//! ask whether the lock is still theirs.
//!
//! A host that has a name ([`Store::of_host`](crate::Store::of_host)) knows its own locks: those that no work of this
//! process holds were left by a daemon that died, by a power cut that undid the removal, or by a removal that failed, and
//! are taken over at once.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use object_store::ObjectStoreExt as _;
use serde::{Deserialize, Serialize};
use tokio::task::AbortHandle;
use types::{Nonce, Timestamp};

use crate::record::{self, Format};
use crate::shelf::Shelf;
use crate::{Error, ErrorKind, Result};

const FORMAT: Format = Format { name: "bhatti-backup-lock", version: 1 };
const RENEWED_EVERY: Duration = Duration::from_secs(60);
const STALE_AFTER_MS: i64 = 10 * 60 * 1000;
const LOCK_BYTES_MAX: u64 = 64 << 10;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    holder: Nonce,
    doing: String,
    since: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host: Option<Nonce>,
}

/// The holders that work in this process.
static WORKING: Mutex<BTreeSet<Nonce>> = Mutex::new(BTreeSet::new());

/// A holder that works, for as long as this lives.
struct Working(Nonce);

impl Working {
    fn new() -> Self {
        let holder = Nonce::random();
        Self::all().insert(holder.clone());
        Self(holder)
    }

    fn all() -> MutexGuard<'static, BTreeSet<Nonce>> {
        WORKING.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is(holder: &Nonce) -> bool {
        Self::all().contains(holder)
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        Self::all().remove(&self.0);
    }
}

/// The lock, held. [`Lock::release`] it; one that is dropped is given up.
pub(crate) struct Lock {
    shelf: Shelf,
    body: Body,
    renewing: AbortHandle,
    _working: Working,
}

impl Lock {
    pub(crate) async fn take(shelf: &Shelf, doing: &'static str) -> Result<Self> {
        let working = Working::new();
        let (holder, host) = (working.0.clone(), shelf.store.host.clone());
        let body = Body { holder, doing: doing.to_owned(), since: Timestamp::now(), host };
        let path = shelf.lock_path();
        // Twice: the second time after one that is nobody's was removed. Whoever is quicker then has it.
        for may_take_over in [true, false] {
            let made = shelf.write(&path, record::encode(FORMAT, &body), true).await;
            match made {
                Ok(()) => return Ok(Self::held(shelf, body, working)),
                Err(error) if exists(&error) && may_take_over && is_nobodys(shelf).await? => {
                    shelf.remove(&path).await?;
                }
                Err(error) if exists(&error) => break,
                Err(error) => return Err(error),
            }
        }
        let holder = read(shelf).await.ok().flatten();
        let since = holder.map_or_else(
            || "somebody else works on the backups of this volume".to_owned(),
            |body| format!("since {} a {} of this volume is under way", body.since, body.doing),
        );
        Err(Error::new(ErrorKind::Busy, doing, shelf.volume.as_str()).because(since).hint_to(
            "try again when it is done; one that another host cut short is forgotten after ten minutes",
        ))
    }

    fn held(shelf: &Shelf, body: Body, working: Working) -> Self {
        let (its_shelf, its_body) = (shelf.clone(), body.clone());
        let renewing = tokio::spawn(async move {
            loop {
                tokio::time::sleep(RENEWED_EVERY).await;
                // What cannot be renewed now may be in a minute; what was taken over is not taken back.
                match read(&its_shelf).await {
                    Ok(Some(found)) if found.holder == its_body.holder => {
                        let bytes = record::encode(FORMAT, &its_body);
                        let _ = its_shelf.write(&its_shelf.lock_path(), bytes, false).await;
                    }
                    Ok(_) => break,
                    Err(_) => {}
                }
            }
        });
        Self { shelf: shelf.clone(), body, renewing: renewing.abort_handle(), _working: working }
    }

    /// Asks whether it is still held; to be asked before whatever cannot be taken back.
    pub(crate) async fn still_held(&self) -> Result<()> {
        match read(&self.shelf).await? {
            Some(found) if found.holder == self.body.holder => Ok(()),
            _ => Err(Error::new(ErrorKind::Busy, "keep the lock of", self.shelf.volume.as_str())
                .because("it stood still for so long that somebody else took it")
                .hint_to("try again")),
        }
    }

    /// Lets others in.
    pub(crate) async fn release(self) -> Result<()> {
        self.still_held().await?;
        self.shelf.remove(&self.shelf.lock_path()).await
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

async fn read(shelf: &Shelf) -> Result<Option<Body>> {
    let path = shelf.lock_path();
    match shelf.read(&path, LOCK_BYTES_MAX).await {
        Ok(bytes) => record::decode(FORMAT, &bytes, path.as_ref()).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

async fn is_nobodys(shelf: &Shelf) -> Result<bool> {
    let path = shelf.lock_path();
    // One that cannot be read is given up by its age.
    if let (Some(us), Ok(Some(found))) = (&shelf.store.host, read(shelf).await)
        && found.host.as_ref() == Some(us)
    {
        return Ok(!Working::is(&found.holder));
    }
    match shelf.store.objects.head(&path).await {
        Ok(meta) => {
            let age = Timestamp::now().0.saturating_sub(meta.last_modified.timestamp_millis());
            Ok(age > STALE_AFTER_MS)
        }
        // Just released.
        Err(object_store::Error::NotFound { .. }) => Ok(true),
        Err(error) => Err(Error::store("read", path.to_string(), error)),
    }
}

/// Whether the object that must be new is there. S3 says so as a precondition that failed.
fn exists(error: &Error) -> bool {
    use object_store::Error as Theirs;
    let theirs = std::error::Error::source(error).and_then(|source| source.downcast_ref::<Theirs>());
    matches!(theirs, Some(Theirs::AlreadyExists { .. } | Theirs::Precondition { .. }))
}
