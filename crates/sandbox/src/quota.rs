//! What users may have at once, and places that are taken before what they are for is there.
//!
//! # Invariants
//! - A place is taken under its owner's lock: what others have taken is read before what is there is counted, and nobody
//!   else takes one meanwhile. So two who want the last place cannot both get it; what is just being finished may be counted
//!   twice for a moment, never not at all.
//! - A machine is charged to its owner for as long as its share of the host's memory exists, however it began.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedRwLockReadGuard;
use types::{Counted, Mebibytes, Owner, Quota};

use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::keyed::KeyedLocks;
use crate::services::{Services, blocking};

/// What is taken: places of what is being made, and machines.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    taken: Mutex<HashMap<(Owner, Counted), u64>>,
    owners: KeyedLocks<Owner>,
}

impl Tally {
    fn taken(&self) -> MutexGuard<'_, HashMap<(Owner, Counted), u64>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, owner: &Owner, what: Counted) -> u64 {
        self.taken().get(&(owner.clone(), what)).copied().unwrap_or_default()
    }

    /// Takes what nobody may refuse any more.
    fn take(self: &Arc<Self>, owner: &Owner, what: Counted, count: u64) -> Taken {
        let mut taken = self.taken();
        let now = taken.entry((owner.clone(), what)).or_default();
        *now = now.saturating_add(count);
        Taken { tally: Arc::clone(self), owner: owner.clone(), what, count }
    }

    /// Takes all of these, or none, where what is taken is all that there is.
    fn take_all(
        self: &Arc<Self>,
        owner: &Owner,
        quota: &Quota,
        wanted: &[(Counted, u64)],
    ) -> Result<Vec<Taken>> {
        let mut taken = self.taken();
        for (what, count) in wanted {
            let used = taken.get(&(owner.clone(), *what)).copied().unwrap_or_default();
            check(owner, quota, *what, used, *count)?;
        }
        let take = |&(what, count): &(Counted, u64)| {
            let now = taken.entry((owner.clone(), what)).or_default();
            *now = now.saturating_add(count);
            Taken { tally: Arc::clone(self), owner: owner.clone(), what, count }
        };
        Ok(wanted.iter().map(take).collect())
    }
}

/// So much of something; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    tally: Arc<Tally>,
    owner: Owner,
    what: Counted,
    count: u64,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut taken = self.tally.taken();
        if let Some(now) = taken.get_mut(&(self.owner.clone(), self.what)) {
            *now = now.saturating_sub(self.count);
        }
    }
}

/// What a verb needs to make something for somebody: that they are not taken away meanwhile, and their places.
#[derive(Debug, Default)]
pub(crate) struct Places {
    _user: Option<OwnedRwLockReadGuard<()>>,
    _taken: Vec<Taken>,
}

/// Refuses what would be more than is allowed. What is counted by what it takes, and not by pieces, is refused once nothing is left.
fn check(owner: &Owner, quota: &Quota, what: Counted, used: u64, more: u64) -> Result<()> {
    let Some(most) = quota.most(what) else { return Ok(()) };
    let full = match what {
        Counted::Disk if more == 0 => used >= most,
        _ => more > 0 && used.saturating_add(more) > most,
    };
    if full { Err(reached(owner, what, used, more, most)) } else { Ok(()) }
}

fn reached(owner: &Owner, what: Counted, used: u64, more: u64, most: u64) -> Error {
    let (of, way_out) = match what {
        Counted::Sandboxes => ("sandboxes", "destroy one that is not needed"),
        Counted::Memory => {
            ("MiB of memory in machines that run", "stop a sandbox that is not needed just now")
        }
        Counted::Cpus => ("processors in machines that run", "stop a sandbox that is not needed just now"),
        Counted::Disk => {
            ("MiB on the disk", "`bhatti du` shows what takes them; destroy or delete what is not needed")
        }
        Counted::Volumes => ("volumes", "delete one that is not needed"),
        Counted::Snapshots => ("snapshots", "delete one that is not needed"),
        Counted::Images => ("images", "delete one that is not needed"),
    };
    let wanted = if more > 0 { format!(", and {more} more would be needed") } else { String::new() };
    Error::new(
        ErrorKind::QuotaExceeded,
        format!("{owner} has {used} of the {most} {of} that are allowed ({}){wanted}", what.field()),
    )
    .hint(format!("{way_out}, or ask the admin for more (`bhatti user edit {owner}`)"))
}

impl Services {
    /// Charges a machine to its owner, who may have it.
    pub(crate) fn charge(&self, owner: &Owner, cpus: u32, memory: Mebibytes) -> Result<Vec<Taken>> {
        let quota = self.users.quota(owner);
        let wanted = [(Counted::Memory, memory.0), (Counted::Cpus, cpus.into())];
        self.tally.take_all(owner, &quota, &wanted)
    }

    /// Charges a machine that is there already to its owner.
    pub(crate) fn charge_anyway(&self, owner: &Owner, cpus: u32, memory: Mebibytes) -> Vec<Taken> {
        vec![
            self.tally.take(owner, Counted::Memory, memory.0),
            self.tally.take(owner, Counted::Cpus, cpus.into()),
        ]
    }
}

impl Host {
    /// Takes places for what is to be made for `owner`.
    ///
    /// # Errors
    /// `QuotaExceeded`; `NotFound` for somebody who is no user any more.
    pub(crate) async fn places(&self, owner: &Owner, wanted: &[(Counted, u64)]) -> Result<Places> {
        let services = &self.inner.services;
        if *owner == Owner::admin() {
            return Ok(Places::default());
        }
        let user = services.users.stays(owner)?;
        let quota = services.users.quota(owner);
        let mut taken = Vec::new();
        let _alone = services.tally.owners.lock(owner).await;
        for (what, count) in wanted.iter().copied().filter(|(what, _)| quota.most(*what).is_some()) {
            let earlier = services.tally.of(owner, what);
            let used = earlier.saturating_add(self.there(owner, what).await?);
            check(owner, &quota, what, used, count)?;
            taken.push(services.tally.take(owner, what, count));
        }
        Ok(Places { _user: Some(user), _taken: taken })
    }

    /// How much of what is not charged while it lasts is there.
    async fn there(&self, owner: &Owner, what: Counted) -> Result<u64> {
        let (store, whose) = (self.inner.services.store.clone(), owner.clone());
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        match what {
            Counted::Sandboxes => Ok(count(self.inner.registry.of_owner(owner).len())),
            Counted::Memory | Counted::Cpus => Ok(0),
            Counted::Volumes => blocking(move || Ok(count(store.volumes().of(&whose)?.len()))).await,
            Counted::Snapshots => blocking(move || Ok(count(store.snapshots().of(&whose)?.len()))).await,
            Counted::Images => {
                let own = move |record: &storage::ImageRecord| record.owner.as_ref() == Some(&whose);
                blocking(move || Ok(count(store.images().list()?.iter().filter(|it| own(it)).count()))).await
            }
            Counted::Disk => {
                blocking(move || {
                    let usage = store.usage()?.of_owner(&whose);
                    let images = store.images().list()?;
                    let own = images.iter().filter(|record| record.owner.as_ref() == Some(&whose));
                    let bytes = own.map(|record| record.allocated.0).sum::<u64>();
                    Ok(bytes.saturating_add(usage.total.physical.0).div_ceil(1 << 20))
                })
                .await
            }
        }
    }

    /// How much of everything but the disk, which takes long to look at, somebody has.
    pub(crate) async fn used(&self, owner: &Owner) -> Result<BTreeMap<Counted, u64>> {
        let mut used = BTreeMap::new();
        for what in Counted::ALL.into_iter().filter(|what| *what != Counted::Disk) {
            let machines = match what {
                Counted::Memory | Counted::Cpus => self.inner.services.tally.of(owner, what),
                _ => 0,
            };
            used.insert(what, self.there(owner, what).await?.saturating_add(machines));
        }
        Ok(used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_place_is_taken_once_and_given_back() {
        let tally = Arc::new(Tally::default());
        let owner: Owner = "alice".parse().unwrap();
        let quota = Quota { max_memory_mb: Some(1024), max_cpus: Some(3), ..Quota::default() };
        let machine = [(Counted::Memory, 512), (Counted::Cpus, 1)];
        let first = tally.take_all(&owner, &quota, &machine).unwrap();
        let second = tally.take_all(&owner, &quota, &machine).unwrap();
        let refused = tally.take_all(&owner, &quota, &machine).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::QuotaExceeded);
        let said = refused.to_string();
        assert!(said.contains("alice has 1024 of the 1024 MiB") && said.contains("max_memory_mb"), "{said}");
        drop(first);
        // Of two limits the second may be the one that is reached; then nothing is taken of the first.
        let many = [(Counted::Memory, 1), (Counted::Cpus, 3)];
        assert!(tally.take_all(&owner, &quota, &many).unwrap_err().to_string().contains("max_cpus"));
        assert_eq!((tally.of(&owner, Counted::Memory), tally.of(&owner, Counted::Cpus)), (512, 1));
        let other: Owner = "bob".parse().unwrap();
        assert!(tally.take_all(&other, &quota, &machine).is_ok(), "each has their own");
        drop(second);
        assert_eq!(tally.of(&owner, Counted::Memory), 0);
    }

    #[test]
    fn what_is_taken_in_pieces_fills_up_and_what_is_measured_is_full_when_nothing_is_left() {
        let owner: Owner = "alice".parse().unwrap();
        let quota = Quota { max_volumes: Some(2), max_disk_mb: Some(100), ..Quota::default() };
        for (what, used, more, fits) in [
            (Counted::Volumes, 1, 1, true),
            (Counted::Volumes, 2, 1, false),
            (Counted::Volumes, 3, 0, true),
            (Counted::Volumes, 0, 3, false),
            (Counted::Disk, 99, 0, true),
            (Counted::Disk, 100, 0, false),
            (Counted::Disk, 60, 40, true),
            (Counted::Disk, 60, 41, false),
            (Counted::Sandboxes, u64::MAX, 1, true),
        ] {
            assert_eq!(check(&owner, &quota, what, used, more).is_ok(), fits, "{what:?} {used} {more}");
        }
    }
}
