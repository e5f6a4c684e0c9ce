//! VMMs that are started ahead: blank machines that wait, as nobody's, for disks, memory and device state.
//!
//! Starting a VMM (its libraries, its devices) is the longest part of a wake that has nothing to do with the guest. Which
//! machine it will be need not be known then, only its shape: processors, memory and what that started as. The shapes that
//! were used last are those that will be used next.
//!
//! ```text
//!  a machine starts ──► its shape is wanted ──► (a moment's rest) ──► launch_blank ──► waits
//!  a machine of that shape starts ──► taken ──► its directory becomes the sandbox's, disks are inserted ──► as any VMM
//! ```
//!
//! # Crash order
//! A spare lives in a staging directory that nobody but this daemon knows; whatever ends the daemon leaves that with a
//! VMM in it, and the next daemon ends both (`reopen`). To be taken it changes places with the sandbox's own
//! directory (`storage::place`), which leaves the sandbox as it was, but with a VMM that holds its lock and whose guest
//! has run nothing: what a wake finds after any crash of the one before.
//!
//! # Invariants
//! - It holds nobody's disk and nobody's memory, and is taken at most once.
//! - It is never there at the price of a sandbox: made where there is room, the first to go where there is none, and gone
//!   when nothing has started for a while.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use net::FarEnd;
use serde_json::json;
use storage::{Manifest, RamBase, SandboxDir, StagedSandbox};
use tokio::sync::Notify;
use tokio::time::Instant;
use types::{Mebibytes, Owner, SandboxId};
use vm::{Blank, Machine, MachineSpec, Status};

use crate::bring_up::At;
use crate::error::Result;
use crate::memory::Share;
use crate::network::{Plug, Wired, Wiring};
use crate::services::{Services, blocking};

/// What one is promised of the host's memory: 20 MiB of its own were measured. The guest's memory is promised when it
/// gets a guest.
const COSTS: Mebibytes = Mebibytes(32);
/// How long nothing has to start before one is made: what was just started needs the processors more.
const REST: Duration = Duration::from_millis(400);
/// How long one waits for somebody before it is given up.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(600);

/// A VMM that is nobody's yet.
#[derive(Debug)]
struct Spare {
    shape: Blank,
    place: StagedSandbox,
    machine: Machine,
    /// The far end of its network card's line, if it has one.
    far: Option<FarEnd>,
    _memory: Share,
}

impl Spare {
    /// Ends it; nothing of it stays.
    async fn end(self) {
        end(&self.machine).await;
    }
}

async fn end(machine: &Machine) {
    if let Err(error) = machine.kill().await {
        tracing::error!(%error, pid = machine.pid(), "a spare VMM did not end");
    }
}

/// Those that wait, and what is wanted.
#[derive(Debug, Default)]
pub(crate) struct Spares {
    /// Held for a look-up only, never over an await.
    list: Mutex<List>,
    /// Something was wanted, or it is over.
    told: Arc<Notify>,
}

impl Drop for Spares {
    fn drop(&mut self) {
        self.told.notify_one();
    }
}

#[derive(Debug, Default)]
struct List {
    ready: Vec<Spare>,
    wanted: Wanted<Blank>,
    closed: bool,
}

/// The shapes that were used last, the newest first, and when that was.
#[derive(Debug)]
struct Wanted<T> {
    shapes: VecDeque<T>,
    last: Option<Instant>,
}

impl<T> Default for Wanted<T> {
    fn default() -> Self {
        Self { shapes: VecDeque::new(), last: None }
    }
}

/// What is to be done about the spares.
#[derive(Debug, PartialEq, Eq)]
enum Plan<T> {
    /// End the one at that place in the list, then ask again.
    End(usize),
    /// Make one of that shape, then ask again.
    Make(T),
    /// Nothing before that.
    Wait(Option<Instant>),
}

impl<T: PartialEq + Clone> Wanted<T> {
    /// A machine of that shape starts.
    fn use_of(&mut self, shape: &T, most: usize, now: Instant) {
        self.shapes.retain(|other| other != shape);
        self.shapes.push_front(shape.clone());
        self.shapes.truncate(most);
        self.last = Some(now);
    }

    /// What to do, given what waits.
    fn plan(&self, ready: &[&T], now: Instant) -> Plan<T> {
        let Some(last) = self.last else { return Plan::Wait(None) };
        let given_up = now >= last + GIVEN_UP_AFTER;
        let unwanted = |shape: &&T| given_up || !self.shapes.contains(shape);
        if let Some(index) = ready.iter().position(unwanted) {
            return Plan::End(index);
        }
        if given_up {
            return Plan::Wait(None);
        }
        match self.shapes.iter().find(|shape| !ready.contains(shape)) {
            Some(_) if now < last + REST => Plan::Wait(Some(last + REST)),
            Some(shape) => Plan::Make(shape.clone()),
            None => Plan::Wait(Some(last + GIVEN_UP_AFTER)),
        }
    }
}

impl Spares {
    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of that shape, if there is one whose VMM is as it was left. In any case the shape is wanted from now on.
    async fn take(&self, shape: &Blank, most: usize) -> Option<Spare> {
        let taken = {
            let mut list = self.list();
            list.wanted.use_of(shape, most, Instant::now());
            let place = list.ready.iter().position(|spare| spare.shape == *shape);
            place.map(|place| list.ready.swap_remove(place))
        };
        self.told.notify_one();
        let spare = taken?;
        if matches!(spare.machine.status().await, Ok(Status::Incoming)) {
            return Some(spare);
        }
        tracing::warn!(pid = spare.machine.pid(), "a spare VMM is not fit to be used");
        spare.end().await;
        None
    }

    /// How many wait.
    pub(crate) fn ready(&self) -> usize {
        self.list().ready.len()
    }

    /// Ends one, for its memory is needed: none is made until the next machine starts. Whether there was one.
    pub(crate) async fn drop_one(&self) -> bool {
        let one = {
            let mut list = self.list();
            list.wanted.shapes.clear();
            list.ready.pop()
        };
        match one {
            Some(spare) => {
                spare.end().await;
                true
            }
            None => false,
        }
    }

    /// Ends all, so that what they map is not in use; none is made until the next machine starts.
    pub(crate) async fn drop_all(&self) {
        while self.drop_one().await {}
    }

    /// Ends all; none is made from now on.
    pub(crate) async fn close(&self) {
        self.list().closed = true;
        self.told.notify_one();
        self.drop_all().await;
    }

    /// Keeps one that was made; gives it back if nobody wants it any more.
    fn put(&self, spare: Spare) -> Option<Spare> {
        let mut list = self.list();
        if list.closed || !list.wanted.shapes.contains(&spare.shape) {
            return Some(spare);
        }
        list.ready.push(spare);
        None
    }

    /// The next thing to be done, and the spare to be ended; `None` when it is over.
    fn next(&self) -> Option<(Plan<Blank>, Option<Spare>)> {
        let mut list = self.list();
        if list.closed {
            return None;
        }
        let ready: Vec<_> = list.ready.iter().map(|spare| &spare.shape).collect();
        let plan = list.wanted.plan(&ready, Instant::now());
        let ended = match plan {
            Plan::End(index) => Some(list.ready.swap_remove(index)),
            Plan::Make(_) | Plan::Wait(_) => None,
        };
        Some((plan, ended))
    }
}

/// Keeps spares, for as long as the host is open.
pub(crate) fn keep(services: &Arc<Services>) {
    if services.config.spare_vmms > 0 {
        services.background.spawn(keep_going(Arc::downgrade(services)));
    }
}

async fn keep_going(services: Weak<Services>) {
    loop {
        let Some(services) = services.upgrade() else { return };
        let Some((plan, ended)) = services.spares.next() else { return };
        match plan {
            Plan::End(_) => {
                if let Some(spare) = ended {
                    spare.end().await;
                }
            }
            Plan::Make(shape) => {
                let made = make(&services, shape).await.unwrap_or_else(|error| {
                    tracing::warn!(error = %error.with_causes(), "no VMM could be started ahead");
                    None
                });
                match made.map(|spare| services.spares.put(spare)) {
                    Some(None) => services.events.host("vmm.spare", &Owner::admin(), json!({})),
                    Some(Some(unwanted)) => unwanted.end().await,
                    // Not again for the same reason: when the next machine starts.
                    None => wait(services, None).await,
                }
            }
            Plan::Wait(until) => wait(services, until).await,
        }
    }
}

/// Waits until something is wanted, and does not keep the host from ending.
async fn wait(services: Arc<Services>, until: Option<Instant>) {
    let told = Arc::clone(&services.spares.told);
    drop(services);
    match until {
        Some(until) => {
            let _either = tokio::time::timeout_at(until, told.notified()).await;
        }
        None => told.notified().await,
    }
}

/// One that waits; `None` where there is no memory for it.
async fn make(services: &Arc<Services>, shape: Blank) -> Result<Option<Spare>> {
    let Some(memory) = services.memory.take(COSTS) else { return Ok(None) };
    let qemu = services.qemu().await?;
    let store = services.store.clone();
    let (place, lock) = blocking(move || {
        let place = store.stage_sandbox(&SandboxId::random())?;
        let lock = place.lock_machine()?;
        Ok((place, lock))
    })
    .await?;
    let (vmm, far) = if shape.has_line() { Some(services.line()?) } else { None }.unzip();
    let machine = Machine::launch_blank(qemu, &shape, place.dir(), lock, vmm).await?;
    Ok(Some(Spare { shape, place, machine, far, _memory: memory }))
}

/// Whether machines like this one are likely to start again: one whose memory lies over a base of its own is the only one
/// of its shape.
pub(crate) fn is_common(manifest: &Manifest) -> bool {
    match manifest.ram_base {
        RamBase::Zero | RamBase::Template { .. } => true,
        RamBase::Own { .. } => false,
    }
}

/// A VMM that has its disks and waits for memory and device state: a spare one that was given the sandbox's place, else a
/// new one; and who is at the far end of its line. None is left when this fails.
pub(crate) async fn vmm(
    services: &Services,
    at: At<'_>,
    manifest: &Manifest,
    spec: &MachineSpec,
    plug: Plug,
) -> Result<(Machine, Wired)> {
    let At { dir, mut lock, sandbox } = at;
    let most = services.config.spare_vmms;
    if let (Some(sandbox), Some(shape), 1..) = (sandbox, spec.blank(), most)
        && let Some(spare) = services.spares.take(&shape, most).await
    {
        match become_of(spare, sandbox, spec).await {
            Ok((machine, far)) => {
                let line = far.map(|far| services.connect(manifest, far, dir));
                return Ok((machine, line.unwrap_or_default()));
            }
            Err(error) => {
                tracing::warn!(error = %error.with_causes(), id = %sandbox.id(), "a spare VMM could not be used");
            }
        }
        // Which directory has the name now does not matter: both are the sandbox's.
        drop(lock);
        let sandbox = sandbox.clone();
        lock = blocking(move || {
            let lock = sandbox.lock_machine()?;
            sandbox.clear_sockets()?;
            Ok(lock)
        })
        .await?;
    }
    // Who is at the far end starts while the VMM does.
    let Wiring { vmm, line } = match plug {
        Plug::Itself => services.wire(manifest, dir)?,
        Plug::Nobodys(vmm) => Wiring { vmm, ..Wiring::default() },
    };
    Ok((Machine::launch_on_line(services.qemu().await?, spec, dir, lock, vmm).await?, line))
}

/// The spare VMM as the sandbox's, whose directory's lock the caller holds. The VMM is gone when this fails.
async fn become_of(
    spare: Spare,
    sandbox: &SandboxDir,
    spec: &MachineSpec,
) -> Result<(Machine, Option<FarEnd>)> {
    let Spare { place, machine, far, .. } = spare;
    let became = async {
        let dir = sandbox.clone();
        let place = blocking(move || {
            place.link_files_of(&dir)?;
            Ok(place)
        })
        .await?;
        let dir = sandbox.clone();
        let moving = blocking(move || Ok(place.take_place_of(&dir)?));
        let (inserted, moved) = tokio::join!(machine.insert_disks(spec), moving);
        moved?;
        Ok(inserted?)
    };
    match became.await {
        Ok(()) => Ok((machine, far)),
        Err(error) => {
            end(&machine).await;
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shapes_used_last_are_made_after_a_rest_and_others_are_ended() {
        let begin = Instant::now();
        let mut wanted = Wanted::default();
        assert_eq!(wanted.plan(&[], begin), Plan::Wait(None));
        wanted.use_of(&'a', 2, begin);
        assert_eq!(wanted.plan(&[], begin), Plan::Wait(Some(begin + REST)));
        assert_eq!(wanted.plan(&[], begin + REST), Plan::Make('a'));
        // Who comes meanwhile puts it off.
        let later = begin + REST / 2;
        wanted.use_of(&'b', 2, later);
        assert_eq!(wanted.plan(&[], begin + REST), Plan::Wait(Some(later + REST)));
        assert_eq!(wanted.plan(&[], later + REST), Plan::Make('b'), "the newest first");
        assert_eq!(wanted.plan(&[&'b'], later + REST), Plan::Make('a'));
        assert_eq!(wanted.plan(&[&'b', &'a'], later + REST), Plan::Wait(Some(later + GIVEN_UP_AFTER)));
        wanted.use_of(&'c', 2, later);
        assert_eq!(wanted.plan(&[&'b', &'a'], later), Plan::End(1));
        assert_eq!(wanted.plan(&[&'b'], later + REST), Plan::Make('c'));
        wanted.use_of(&'b', 2, later);
        assert_eq!(wanted.plan(&[&'a', &'b', &'c'], later), Plan::End(0));
    }

    #[test]
    fn all_are_ended_when_nothing_has_started_for_long() {
        let begin = Instant::now();
        let mut wanted = Wanted::default();
        wanted.use_of(&'a', 1, begin);
        assert_eq!(wanted.plan(&[&'a'], begin + GIVEN_UP_AFTER), Plan::End(0));
        assert_eq!(wanted.plan(&[], begin + GIVEN_UP_AFTER), Plan::Wait(None));
        wanted.use_of(&'a', 1, begin + GIVEN_UP_AFTER);
        assert_eq!(wanted.plan(&[], begin + GIVEN_UP_AFTER + REST), Plan::Make('a'));
    }
}
