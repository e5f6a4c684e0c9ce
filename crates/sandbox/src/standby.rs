//! Machines that stand by: clones of a template that are loaded, have run a command that does nothing, and are paused,
//! so that a create only has to give one its identity and let it go. What a VMM makes of a guest's code when it is first
//! run (page tables; under emulation the translation) it has made by then.
//!
//! # When one is made
//! After a create has taken one, or could have: in a moment when nobody works ([`crate::moment`]), one at a time on a
//! host, because making one takes as much of the processors as a create.
//!
//! # Crash order
//! A machine that stands by lives in a staging directory, which nobody but this daemon knows. To hand it out is to
//! commit that directory under its sandbox's id, manifest and all, before the guest executes anything as that sandbox.
//! Whatever ends the daemon earlier leaves a staging directory with a VMM in it; the next daemon ends both.
//!
//! # Invariants
//! - One is handed out at most once: it is taken out of the list under its lock before anything is done with it.
//! - It is promised memory like any other machine, never at the price of a sandbox's: one is made only where there is
//!   room, and they are the first to go when there is none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::json;
use storage::{Pin, StagedSandbox, TemplateRecord};
use tokio::time::Instant;
use types::{CloneMethod, ContentId, Owner, SandboxId, SandboxSpec};
use vm::{Machine, Status};

use crate::bring_up::{self, Pages};
use crate::create;
use crate::error::Result;
use crate::launch::{self, ATTACH_TIMEOUT, Greeting};
use crate::memory::Share;
use crate::network::Plug;
use crate::services::{ROOM_FOR_A_SANDBOX, Services, blocking};
use crate::template::TemplateWish;
use crate::timing::Stopwatch;

/// A machine that waits to become somebody.
#[derive(Debug)]
pub(crate) struct Standby {
    pub(crate) id: SandboxId,
    pub(crate) staged: StagedSandbox,
    pub(crate) machine: Machine,
    pub(crate) memory: Share,
    /// The far end of its network card's line, for whoever's it becomes.
    pub(crate) far: Option<net::FarEnd>,
    /// How its root disk was made.
    pub(crate) clone: CloneMethod,
    /// Keeps image, kernel and template until a manifest names them.
    _pin: Option<Arc<Pin>>,
}

impl Standby {
    /// Ends it; nothing of it stays.
    pub(crate) async fn end(self) {
        if let Err(error) = self.machine.kill().await {
            tracing::error!(%error, id = %self.id, "a machine that stood by did not end");
        }
    }
}

/// Those that stand by, by the key of their template.
#[derive(Debug, Default)]
pub(crate) struct Standbys {
    /// Held for a look-up only, never over an await.
    list: Mutex<List>,
    /// One is made at a time.
    making: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct List {
    ready: HashMap<ContentId, Vec<Standby>>,
    making: HashMap<ContentId, usize>,
    closed: bool,
}

impl List {
    fn count(&self, key: &ContentId) -> usize {
        self.ready.get(key).map_or(0, Vec::len) + self.making.get(key).copied().unwrap_or_default()
    }
}

impl Standbys {
    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of that template, if there is one whose VMM is as it was left.
    pub(crate) async fn take(&self, key: &ContentId) -> Option<Standby> {
        loop {
            let standby = self.list().ready.get_mut(key)?.pop()?;
            if matches!(standby.machine.status().await, Ok(Status::Paused)) {
                return Some(standby);
            }
            tracing::warn!(id = %standby.id, "a machine that stood by is not fit to be used");
            standby.end().await;
        }
    }

    /// How many stand by.
    pub(crate) fn ready(&self) -> usize {
        self.list().ready.values().map(Vec::len).sum()
    }

    /// Ends one; whether there was one.
    pub(crate) async fn drop_one(&self) -> bool {
        let one = self.list().ready.values_mut().find_map(Vec::pop);
        match one {
            Some(standby) => {
                standby.end().await;
                true
            }
            None => false,
        }
    }

    /// Ends all; none is made from now on.
    pub(crate) async fn close(&self) {
        self.list().closed = true;
        while self.drop_one().await {}
    }

    /// Promises to make one of `key`, unless there are `want` already or are about to be.
    fn begin(&self, key: &ContentId, want: usize) -> bool {
        let mut list = self.list();
        if list.closed || list.count(key) >= want {
            return false;
        }
        *list.making.entry(key.clone()).or_default() += 1;
        true
    }

    /// Keeps that promise, or takes it back. Gives back what nobody wants any more.
    fn finish(&self, key: &ContentId, made: Option<Standby>) -> Option<Standby> {
        let mut list = self.list();
        if let Some(making) = list.making.get_mut(key) {
            *making = making.saturating_sub(1);
        }
        if list.closed {
            return made;
        }
        list.ready.entry(key.clone()).or_default().extend(made);
        None
    }
}

/// Makes, behind everybody's back, as many of this shape stand by as the host is to have.
pub(crate) fn refill(
    services: &Arc<Services>,
    wish: TemplateWish,
    template: TemplateRecord,
    like: SandboxSpec,
) {
    let want = services.config.standby;
    if want == 0 {
        return;
    }
    let making = Arc::clone(services);
    services.background.spawn(async move {
        let services = making;
        let key = wish.key();
        while services.standbys.begin(&key, want) {
            let made = make_in_a_moment(&services, &wish, &template, &like).await;
            let made = made.unwrap_or_else(|error| {
                tracing::warn!(error = %error.with_causes(), "no machine could be made to stand by");
                None
            });
            let one_more = made.is_some();
            if let Some(unwanted) = services.standbys.finish(&key, made) {
                unwanted.end().await;
                return;
            }
            if !one_more {
                return;
            }
            services.events.host("standby.ready", &Owner::admin(), json!({ "image": wish.image.name }));
        }
    });
}

/// One, as soon as nobody is in its way; `None` when the daemon ends before.
async fn make_in_a_moment(
    services: &Arc<Services>,
    wish: &TemplateWish,
    template: &TemplateRecord,
    like: &SandboxSpec,
) -> Result<Option<Standby>> {
    let quiet = async {
        let one_at_a_time = services.standbys.making.lock().await;
        services.bustle.moment().await;
        one_at_a_time
    };
    tokio::select! {
        _one_at_a_time = quiet => make(services, wish, template, like).await,
        () = services.ending.cancelled() => Ok(None),
    }
}

/// One that has run and is paused; `None` where there is no memory for it.
async fn make(
    services: &Arc<Services>,
    wish: &TemplateWish,
    template: &TemplateRecord,
    like: &SandboxSpec,
) -> Result<Option<Standby>> {
    let Some(memory) = services.memory.take(wish.memory) else { return Ok(None) };
    services.require_space(ROOM_FOR_A_SANDBOX, "a machine that stands by")?;
    let id = SandboxId::random();
    // What it runs on is decided by the template alone; the rest of this manifest is nobody's and never written.
    let manifest = create::manifest(&id, like, wish, template, create::image_size(wish))?;
    let (store, record, which) = (services.store.clone(), template.clone(), id.clone());
    let (staged, clone, lock, devices) = blocking(move || {
        let staged = store.stage_sandbox(&which)?;
        let clone = staged.clone_root_from_template(&record)?.method;
        let (env, defaults) = Default::default();
        let drive = image::ConfigDrive { env: &env, init: None, defaults: &defaults, files: &[] };
        image::config_drive(&staged.config_path(), &drive)?;
        let lock = staged.lock_machine()?;
        Ok((staged, clone, lock, store.templates().open_devices(&record)?))
    })
    .await?;
    let mut watch = Stopwatch::start();
    let at = bring_up::At { dir: staged.dir(), lock, sandbox: None };
    let (vmm, far) = services.line_to_stand_by(&manifest.machine)?.unzip();
    let plug = Plug::Nobodys(vmm);
    let (machine, _line) =
        bring_up::load(services, at, &manifest, Pages::Base, devices, Vec::new(), plug, &mut watch).await?;
    let ran = rehearse(services, &machine, template).await;
    if let Err(error) = ran {
        machine.kill().await?;
        return Err(error);
    }
    Ok(Some(Standby { id, staged, machine, memory, far, clone, _pin: wish.pin.clone() }))
}

/// Lets it run as nobody, and leaves it paused with nothing in its channel. Its config drive it does not look at.
async fn rehearse(services: &Services, machine: &Machine, template: &TemplateRecord) -> Result<()> {
    machine.resume().await?;
    let greeting = Greeting::plain(!template.spec.detached);
    let (guest, _welcome) = launch::attach(machine, greeting, services.config.boot_timeout).await?;
    crate::template::run_to_warm_up(&guest, &["true"], None).await?;
    guest.detach(Instant::now() + ATTACH_TIMEOUT).await?;
    drop(guest);
    Ok(machine.pause().await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_begun_than_are_wanted_and_none_after_the_end() {
        let (standbys, key) = (Standbys::default(), ContentId::from_hash(&[1; 32]));
        assert!(!standbys.begin(&key, 0));
        assert!(standbys.begin(&key, 2) && standbys.begin(&key, 2));
        assert!(!standbys.begin(&key, 2));
        assert!(standbys.begin(&ContentId::from_hash(&[2; 32]), 1), "each template has its own");
        assert!(standbys.finish(&key, None).is_none());
        assert!(standbys.begin(&key, 2));
        standbys.list().closed = true;
        assert!(!standbys.begin(&key, 9));
    }
}
