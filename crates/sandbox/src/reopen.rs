//! Opening a data directory again: what a crash left is tidied, machines that still run are taken over.
//!
//! # What each finding means
//! | manifest | VMM | meaning | done |
//! |---|---|---|---|
//! | running | alive | it outlived the daemon | taken over; let go if it is paused |
//! | running | none | host or VMM died | boots from the disk at the next start |
//! | cold | alive, paused | the daemon died in a stop after the commit, or in a wake before it | the VMM is ended; wakes from memory |
//! | cold, off | alive, without sockets yet | the daemon died while it started it | the VMM is ended |
//! | cold | none | asleep | nothing |
//! | off | alive | the daemon died in a boot before the commit | the VMM is ended |
//! | none, name taken away | alive | the daemon died in a destroy | the VMM is ended, the directory removed |
//! | unreadable | any | damaged | refused by name with the file; nothing is touched |

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use storage::{Leftover, LeftoverKind, Manifest, RunState};
use tokio::time::Instant;
use types::{Boot, CloneMethod, SandboxId, StorageLayout};
use vm::{Machine, Status};

use crate::actor::{Actor, Running, row};
use crate::create;
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::launch::{self, ATTACH_TIMEOUT};
use crate::registry::Damaged;
use crate::services::{Services, blocking};

/// How long a machine that was just started may hold its lock after it was ended, and how often that is looked at.
const UNHEARD_TIMEOUT: Duration = Duration::from_secs(5);
const UNHEARD_LOOKS: Duration = Duration::from_millis(5);

/// Registers every sandbox on disk.
pub(crate) async fn reopen(host: &Host) -> Result<()> {
    let services = &host.inner.services;
    end_unowned(&services.store).await?;
    let store = services.store.clone();
    let (found, reflink) = blocking(move || {
        let plan = store.reconcile_plan()?;
        for leftover in &plan {
            tracing::info!(kind = ?leftover.kind, path = %leftover.path.display(), held = leftover.held, "left by a crash");
        }
        for error in store.execute(&plan).failed {
            tracing::warn!(%error, "a leftover stays");
        }
        Ok((store.sandboxes()?, store.probe()?.reflink))
    })
    .await?;
    let store = services.store.clone();
    match blocking(move || crate::upkeep::collect_unnamed(&store)).await {
        Ok(gone) => {
            for item in &gone.removed {
                tracing::info!(kind = item.kind.as_str(), name = %item.name, "left by a crash and named by nobody");
            }
        }
        Err(error) => {
            tracing::warn!(error = %error.with_causes(), "what a crash left unnamed stays; `bhatti gc` removes it")
        }
    }
    let known = services.index().all_sandboxes()?;
    let mut rows = Vec::with_capacity(found.len());
    for (id, manifest) in found {
        let manifest = match manifest {
            Ok(manifest) => manifest,
            Err(error) => {
                tracing::error!(%error, %id, "a sandbox whose manifest cannot be read is left alone; `bhatti fsck` tells more");
                let row = known.iter().find(|row| row.id == id);
                // Its row stays as it was: it is all that tells its name.
                rows.extend(row.cloned());
                let called = row.map(|row| (row.owner.clone(), row.name.clone()));
                host.inner.registry.note_damaged(Damaged { id, called, why: error.to_string() });
                continue;
            }
        };
        let active =
            known.iter().find(|row| row.id == id).map_or(manifest.created_at, |row| row.last_active_at);
        rows.push(row(&manifest, active));
        let clone = match manifest.layout {
            StorageLayout::Overlay => CloneMethod::Overlay,
            StorageLayout::Reflink if reflink => CloneMethod::Reflink,
            StorageLayout::Reflink => CloneMethod::SparseCopy,
        };
        services.network.seat(&manifest);
        let actor = create::actor(services, services.store.sandbox(&id), manifest, clone, active);
        host.adopt(take_over(actor, &id).await);
    }
    services.network.tidy();
    services.index().replace_all(&rows)?;
    host.wake_kept_hot();
    Ok(())
}

/// Ends the machines that are no sandbox's: those that stood by for the daemon before this one, and those whose sandbox it
/// had just destroyed.
async fn end_unowned(store: &storage::Store) -> Result<()> {
    let planned = store.clone();
    let plan = blocking(move || Ok(planned.reconcile_plan()?)).await?;
    let unowned = |left: &Leftover| {
        left.held && matches!(left.kind, LeftoverKind::StagedSandbox | LeftoverKind::GoneSandbox)
    };
    for left in plan.into_iter().filter(unowned) {
        match Machine::adopt(&left.path).await {
            Ok(Some(machine)) => {
                tracing::info!(path = %left.path.display(), "a machine that is no sandbox's is ended");
                machine.kill().await?;
            }
            Ok(None) => {
                let path = left.path.clone();
                let held = move || Ok(storage::is_held(&path)?);
                end_unheard(&left.path, held).await?;
            }
            Err(error) => {
                tracing::error!(%error, path = %left.path.display(), "a VMM is there and does not answer")
            }
        }
    }
    Ok(())
}

/// Ends a VMM that the daemon before this one had just started in a directory, and which nobody can speak to: whoever
/// starts the machine next would find it locked for good.
async fn end_unheard(dir: &Path, is_held: impl Fn() -> Result<bool> + Clone + Send + 'static) -> Result<()> {
    // Between fork and exec it is not yet what it will be, and a killed one is not gone at once.
    let give_up = Instant::now() + UNHEARD_TIMEOUT;
    while blocking(is_held.clone()).await? {
        let here = dir.to_owned();
        if blocking(move || Ok(Machine::end_unheard(&here)?)).await? > 0 {
            tracing::info!(path = %dir.display(), "a machine that was just being started is ended");
        }
        if Instant::now() > give_up {
            tracing::error!(path = %dir.display(), "somebody holds its lock who is no VMM of this program");
            break;
        }
        tokio::time::sleep(UNHEARD_LOOKS).await;
    }
    Ok(())
}

/// Joins a sandbox with the VMM that still runs it, if there is one.
async fn take_over(mut actor: Actor, id: &SandboxId) -> Actor {
    let machine = match Machine::adopt(actor.dir.path()).await {
        Ok(Some(machine)) => machine,
        Ok(None) => {
            note_loss(&mut actor);
            if actor.manifest.state != RunState::Running {
                let dir = actor.dir.clone();
                if let Err(error) = end_unheard(actor.dir.path(), move || Ok(dir.is_locked()?)).await {
                    tracing::error!(error = %error.with_causes(), %id, "who holds its lock could not be ended");
                }
            }
            return actor;
        }
        Err(error) => {
            tracing::error!(%error, %id, "a VMM is there and does not answer");
            note_loss(&mut actor);
            return actor;
        }
    };
    if actor.manifest.state != RunState::Running {
        tracing::info!(%id, "a VMM whose guest is not to run is ended");
        if let Err(error) = machine.kill().await {
            tracing::error!(%error, %id, "it did not end");
        }
        return actor;
    }
    if let Err(error) = settle_top(&mut actor, &machine).await {
        tracing::error!(error = %error.with_causes(), %id, "its disk was being frozen, and that could not be finished");
    }
    match let_go(&actor.services, &machine, &actor.manifest).await {
        Ok(guest) => {
            let restored = crate::attached::restore(&machine, &guest, &actor.manifest).await;
            if let Err(error) = &restored {
                tracing::error!(error = %error.with_causes(), %id, "a volume that it should have could not be given to it");
            }
            let (services, manifest) = (&actor.services, &actor.manifest);
            // The daemon before may have been told something else.
            if let Err(error) = services.config.rates.hold_anew(&machine, manifest).await {
                tracing::error!(error = %error.with_causes(), %id, "its disks could not be throttled");
            }
            let charge = services.charge_anyway(&manifest.owner, manifest.cpus, manifest.memory_mib);
            let memory = services.memory.note(manifest.memory_mib).charged(charge);
            let mut running = Running::new(machine, guest, memory);
            running.disks_in_doubt = restored.is_err();
            actor.running = Some(running);
            actor.boot = Boot::Resume;
            actor.state = crate::state::State::Hot;
            actor.publish();
            actor.event("adopted", json!({ "generation": actor.manifest.generation }));
        }
        Err(error) => {
            // Its guest cannot be reached: to let it run on unseen would be worse than to boot it from its disk.
            tracing::error!(error = %error.with_causes(), %id, "a running machine could not be taken over");
            if let Err(error) = machine.kill().await {
                tracing::error!(%error, %id, "it did not end");
            }
            actor.trouble =
                Some(format!("it could not be taken over, so its memory is lost ({})", error.with_causes()));
        }
    }
    actor
}

/// Says why the next start boots from the disk.
fn note_loss(actor: &mut Actor) {
    if actor.manifest.state == RunState::Running {
        actor.trouble = Some("its VMM ended while no daemon watched, so its memory is lost".to_owned());
        actor.event("memory_lost", json!({ "generation": actor.manifest.generation }));
    }
}

async fn let_go(services: &Services, machine: &Machine, manifest: &Manifest) -> Result<guest::Guest> {
    match machine.status().await? {
        Status::Paused => machine.resume().await?,
        // A copy whose daemon died while it was being made: there is no guest that could answer.
        Status::Incoming => {
            let text = "the daemon before this one ended before it had loaded its memory";
            return Err(Error::new(ErrorKind::NotReady, text));
        }
        _ => {}
    }
    let (guest, welcome) = launch::attach(machine, launch::Greeting::plain(true), ATTACH_TIMEOUT).await?;
    let itself = manifest.id.as_str();
    let first_boot = !welcome.configured;
    if welcome.configured && welcome.sandbox_id.as_deref() == Some(itself) {
        return Ok(guest);
    }
    // The daemon died between starting a clone and telling it who it is. One of a running guest takes itself for that.
    guest.detach(tokio::time::Instant::now() + ATTACH_TIMEOUT).await?;
    drop(guest);
    let mut identity = launch::identity(&manifest.id, &manifest.name, first_boot);
    identity.read_config = first_boot;
    let grow = Some(manifest.disk_size_mib.bytes());
    // Its init command is to find them, so they come before it knows who it is.
    crate::attached::plug_missing(machine, manifest).await?;
    let mounts = crate::attached::mounts_of(manifest);
    let (secrets, _missing) = services.secrets_of(manifest).await?;
    let net = crate::network::told(manifest);
    let greeting = launch::Greeting { identity: Some(identity), pad: true, grow, mounts, secrets, net };
    let (guest, _welcome) = launch::attach(machine, greeting, ATTACH_TIMEOUT).await?;
    Ok(guest)
}

/// The daemon died while the sandbox was being frozen: what the VMM turned to is committed, what it did not is dropped.
async fn settle_top(actor: &mut Actor, machine: &Machine) -> Result<()> {
    let (store, dir) = (actor.services.store.clone(), actor.dir.clone());
    let Some((name, layer)) = blocking(move || Ok(dir.waiting_top(&store)?)).await? else { return Ok(()) };
    let turned = machine.top_file().await?.ends_with(&name);
    let (store, dir) = (actor.services.store.clone(), actor.dir.clone());
    actor.manifest = blocking(move || match turned {
        true => Ok(dir.finish_freeze(&store, layer)?),
        false => Ok(dir.abandon_freeze(&store, layer)?),
    })
    .await?;
    Ok(())
}
