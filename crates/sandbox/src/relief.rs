//! Making room in memory: sandboxes that nobody uses are put to sleep before their time, one after the other.
//!
//! Asked for by who needs room below a limit (`services::room_for`), and by itself when the host is short of memory.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use types::Mebibytes;

use crate::actor::Command;
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Inner, send};
use crate::memory::{Candidate, LOOK_EVERY, in_order, is_short};
use crate::services::blocking;

/// How long one sandbox may take to go to sleep before the next one is tried.
const STOP_WITHIN: Duration = Duration::from_secs(15);

/// Somebody needs room for a machine and waits until as much was done as can be.
#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) size: Mebibytes,
    pub(crate) done: oneshot::Sender<()>,
}

/// Serves those who need room, and watches the host, for as long as there is one.
pub(crate) async fn watch(host: Weak<Inner>, mut rooms: mpsc::Receiver<Room>) {
    let mut clock = tokio::time::interval(LOOK_EVERY);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told = false;
    loop {
        let room = tokio::select! {
            room = rooms.recv() => room,
            _ = clock.tick() => None,
        };
        let Some(inner) = host.upgrade() else { return };
        match room {
            // Each in a task of its own: one that takes long holds up nobody else.
            Some(Room { size, done }) => {
                let services = Arc::clone(&inner.services);
                services.background.spawn(async move {
                    make_room(&inner, size).await;
                    let _gone = done.send(());
                });
            }
            None => match short_of_memory(&inner).await {
                Ok(true) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!("the host is short of memory: idle sandboxes are put to sleep");
                    }
                    put_one_to_sleep(&inner).await;
                }
                Ok(false) => told = false,
                Err(error) => {
                    tracing::warn!(error = %error.with_causes(), "the host's memory cannot be watched");
                    return;
                }
            },
        }
    }
}

async fn short_of_memory(inner: &Inner) -> Result<bool> {
    let proc = inner.services.config.proc.clone();
    blocking(move || match vm::host_pressure(&proc) {
        Ok(pressure) => Ok(is_short(pressure)),
        Err(error) => {
            Err(Error::new(ErrorKind::NotReady, format!("reading {}", proc.display())).source(error))
        }
    })
    .await
}

/// Puts to sleep what it takes for a machine of `size`, or all that can be.
async fn make_room(inner: &Arc<Inner>, size: Mebibytes) {
    let ledger = &inner.services.memory;
    while !ledger.fits(size) && drop_nobodys(inner).await {}
    for candidate in candidates(inner) {
        if ledger.fits(size) {
            return;
        }
        relieve(inner, &candidate).await;
    }
}

async fn put_one_to_sleep(inner: &Arc<Inner>) {
    // Machines that are nobody's yet go before anybody's.
    if drop_nobodys(inner).await {
        return;
    }
    for candidate in candidates(inner) {
        if relieve(inner, &candidate).await {
            return;
        }
    }
}

/// Ends a machine that is nobody's yet, those first that save the least time; whether there was one.
async fn drop_nobodys(inner: &Inner) -> bool {
    inner.services.spares.drop_one().await || inner.services.standbys.drop_one().await
}

fn candidates(inner: &Inner) -> Vec<Candidate> {
    let candidate = |entry: crate::registry::Entry| {
        let view = entry.shared.view();
        Candidate {
            id: entry.id,
            thermal: view.thermal,
            keep_hot: view.keep_hot,
            leases: entry.shared.activity.leases(),
            idle_since: entry.shared.activity.idle_since(),
        }
    };
    in_order(inner.registry.all().into_iter().map(candidate).collect())
}

/// Whether the sandbox went to sleep. Its owner decides: it may be in use by now.
async fn relieve(inner: &Inner, candidate: &Candidate) -> bool {
    let Some(entry) = inner.registry.by_id(&candidate.id) else { return false };
    let asked = tokio::time::timeout(STOP_WITHIN, send(&entry, Command::Relieve)).await;
    matches!(asked, Ok(Ok(true)))
}
