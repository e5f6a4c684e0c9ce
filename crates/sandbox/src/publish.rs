//! Publishing: a port of a sandbox under an alias, for whoever knows the alias.
//!
//! # Invariants
//! - An alias is in the index before it is answered, and out of the index before it is said to be gone.
//! - What goes through an alias hangs on its token: taking the alias back, or destroying the sandbox, cuts it at once.
//! - How much is let through is decided without waiting, by [`Bucket::take`] and the number of sandboxes being woken.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use guest::Connection;
use meta::PublicationRow;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use types::{Alias, Owner, SandboxId, SandboxName, Thermal, Timestamp};

use crate::bucket::{Bucket, Pace};
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::lease::Leased;
use crate::services::blocking;

/// How much is let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishLimits {
    /// Requests for one alias.
    pub pace: Pace,
    /// Sandboxes that are woken through aliases at the same time.
    pub wakes: usize,
}

impl Default for PublishLimits {
    fn default() -> Self {
        Self { pace: Pace { rate: 100, burst: 200 }, wakes: 8 }
    }
}

/// A port of a sandbox under an alias.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// The alias.
    pub alias: Alias,
    /// Whose it is.
    pub owner: Owner,
    /// The sandbox's id.
    pub sandbox_id: SandboxId,
    /// The sandbox's name.
    pub sandbox_name: SandboxName,
    /// The port.
    pub port: u16,
    /// When it was published.
    pub created_at: Timestamp,
}

/// A request that was let through.
#[derive(Debug)]
pub struct Admitted {
    owner: Owner,
    sandbox: SandboxId,
    port: u16,
    cut: CancellationToken,
    _waking: Waking,
}

impl Admitted {
    /// Called when the alias is taken back or the sandbox destroyed.
    #[must_use]
    pub fn cut(&self) -> CancellationToken {
        self.cut.clone()
    }
}

#[derive(Debug)]
struct Published {
    row: PublicationRow,
    cut: CancellationToken,
    bucket: Bucket,
}

#[derive(Debug, Default)]
struct Table {
    published: BTreeMap<Alias, Published>,
    /// Sandboxes that are being woken, each with the number of requests that wait for it.
    waking: HashMap<SandboxId, usize>,
}

/// All that is published. Its lock is never held over an await.
#[derive(Debug)]
pub(crate) struct Publications {
    limits: PublishLimits,
    table: Arc<Mutex<Table>>,
}

/// A request that may have to wait for a wake.
#[derive(Debug)]
struct Waking {
    table: Arc<Mutex<Table>>,
    sandbox: Option<SandboxId>,
}

impl Drop for Waking {
    fn drop(&mut self) {
        let Some(sandbox) = self.sandbox.take() else { return };
        let mut table = lock(&self.table);
        if let Some(count) = table.waking.get_mut(&sandbox) {
            *count -= 1;
            if *count == 0 {
                table.waking.remove(&sandbox);
            }
        }
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    // No code under the lock leaves the table half changed.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Publications {
    pub(crate) fn new(limits: PublishLimits) -> Self {
        Self { limits, table: Arc::default() }
    }

    fn insert(&self, row: PublicationRow) {
        let published =
            Published { cut: CancellationToken::new(), bucket: Bucket::new(self.limits.pace), row };
        lock(&self.table).published.insert(published.row.alias.clone(), published);
    }

    /// Cuts everything that goes to a sandbox which is no more.
    pub(crate) fn forget(&self, sandbox: &SandboxId) {
        lock(&self.table).published.retain(|_, published| {
            let stays = published.row.sandbox_id != *sandbox;
            if !stays {
                published.cut.cancel();
            }
            stays
        });
    }

    /// Lets a request through, or says why not. `is_hot` tells whether a sandbox needs no waking.
    fn admit(
        &self,
        alias: &str,
        now: Instant,
        is_hot: impl FnOnce(&PublicationRow) -> bool,
    ) -> Result<Admitted> {
        let unknown = || {
            let shown: String = alias.chars().take(80).collect();
            Error::new(ErrorKind::NotFound, format!("nothing is published as {shown:?}"))
        };
        let wanted: Alias = alias.parse().map_err(|_| unknown())?;
        let mut table = lock(&self.table);
        let published = table.published.get_mut(&wanted).ok_or_else(unknown)?;
        if !published.bucket.take(self.limits.pace, now) {
            return Err(Error::new(
                ErrorKind::TooManyRequests,
                format!("{wanted} is asked for more than {} times a second", self.limits.pace.rate),
            )
            .hint("try again later"));
        }
        let (row, cut) = (published.row.clone(), published.cut.clone());
        let mut waking = Waking { table: Arc::clone(&self.table), sandbox: None };
        if !is_hot(&row) {
            let many = table.waking.len() >= self.limits.wakes && !table.waking.contains_key(&row.sandbox_id);
            if many {
                drop(table);
                return Err(Error::new(ErrorKind::Busy, "too many sandboxes are being woken at once")
                    .hint("try again in a moment"));
            }
            *table.waking.entry(row.sandbox_id.clone()).or_default() += 1;
            waking.sandbox = Some(row.sandbox_id.clone());
        }
        drop(table);
        Ok(Admitted { owner: row.owner, sandbox: row.sandbox_id, port: row.port, cut, _waking: waking })
    }
}

impl Host {
    /// Takes up what was published before; what is left of sandboxes that are gone is removed.
    pub(crate) fn reopen_publications(&self) -> Result<()> {
        let ids = self.inner.registry.ids();
        let mut index = self.inner.services.index();
        for row in index.all_publications()? {
            if ids.contains(&row.sandbox_id) {
                self.inner.publications.insert(row);
            } else if !self.inner.registry.is_damaged(&row.sandbox_id) {
                tracing::info!(alias = %row.alias, "the sandbox that was published under it is gone");
                index.remove_publication(&row.alias)?;
            }
        }
        Ok(())
    }

    /// Publishes a port; whether it was not published so before. Without an alias, one is made that cannot be guessed,
    /// unless the port has one already.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when the alias is taken or reserved; `BadRequest` for port 0.
    pub async fn publish(
        &self,
        owner: &Owner,
        which: &str,
        port: u16,
        alias: Option<Alias>,
    ) -> Result<(Publication, bool)> {
        let (host, owner, which) = (self.clone(), owner.clone(), which.to_owned());
        // Synced, so it may take longer than other words to the index.
        blocking(move || host.publish_synced(&owner, &which, port, alias)).await
    }

    fn publish_synced(
        &self,
        owner: &Owner,
        which: &str,
        port: u16,
        alias: Option<Alias>,
    ) -> Result<(Publication, bool)> {
        if port == 0 {
            return Err(Error::new(ErrorKind::BadRequest, "port 0 is none").hint("use 1 to 65535"));
        }
        let view = self.find(owner, which)?.view();
        if let Some(reserved) = alias.as_ref().filter(|alias| alias.is_reserved()) {
            return Err(Error::new(ErrorKind::Conflict, format!("the alias {reserved} is reserved"))
                .hint("choose another, or leave it out"));
        }
        // The index is held over the look and the entry, so that of two who want an alias one gets it.
        let mut index = self.inner.services.index();
        let known = {
            let table = lock(&self.inner.publications.table);
            let same = |row: &PublicationRow| row.sandbox_id == view.id && row.port == port;
            match &alias {
                Some(alias) => match table.published.get(alias) {
                    Some(published) if same(&published.row) => Some(published.row.clone()),
                    Some(_) => {
                        return Err(Error::new(ErrorKind::Conflict, format!("the alias {alias} is taken"))
                            .hint("choose another, or leave it out"));
                    }
                    None => None,
                },
                None => {
                    table.published.values().map(|published| &published.row).find(|row| same(row)).cloned()
                }
            }
        };
        let (row, new) = match known {
            Some(row) => (row, false),
            None => {
                let row = PublicationRow {
                    alias: alias.unwrap_or_else(Alias::random),
                    owner: owner.clone(),
                    sandbox_id: view.id.clone(),
                    port,
                    created_at: Timestamp::now(),
                };
                index.put_publication(&row)?;
                self.inner.publications.insert(row.clone());
                (row, true)
            }
        };
        drop(index);
        if new {
            // The alias itself may be a secret: it is not kept among the events.
            self.inner.services.events.sandbox(
                "published",
                owner,
                &view.id,
                &view.name,
                json!({ "port": port }),
            );
        }
        Ok((self.publication(row, view.name), new))
    }

    fn publication(&self, row: PublicationRow, sandbox_name: SandboxName) -> Publication {
        let PublicationRow { alias, owner, sandbox_id, port, created_at } = row;
        Publication { alias, owner, sandbox_id, sandbox_name, port, created_at }
    }

    /// What the owner has published, by alias; of one sandbox where one is named.
    ///
    /// # Errors
    /// `NotFound` for the sandbox.
    pub fn published(&self, owner: &Owner, which: Option<&str>) -> Result<Vec<Publication>> {
        let only = which.map(|which| self.find(owner, which)).transpose()?.map(|shared| shared.view().id);
        let rows: Vec<PublicationRow> = {
            let table = lock(&self.inner.publications.table);
            let wanted = |row: &&PublicationRow| {
                row.owner == *owner && only.as_ref().is_none_or(|id| *id == row.sandbox_id)
            };
            table.published.values().map(|published| &published.row).filter(wanted).cloned().collect()
        };
        // One that was destroyed a moment ago has no name any more.
        let named = |row: PublicationRow| {
            let name = self.find(owner, row.sandbox_id.as_str()).ok()?.view().name;
            Some(self.publication(row, name))
        };
        Ok(rows.into_iter().filter_map(named).collect())
    }

    /// Takes back what is published of a sandbox: under one alias, on one port, or all of it. Open connections are cut.
    ///
    /// # Errors
    /// `NotFound` when there is nothing of the kind.
    pub async fn unpublish(
        &self,
        owner: &Owner,
        which: &str,
        alias: Option<String>,
        port: Option<u16>,
    ) -> Result<Vec<Publication>> {
        let (host, owner, which) = (self.clone(), owner.clone(), which.to_owned());
        blocking(move || host.unpublish_synced(&owner, &which, alias.as_deref(), port)).await
    }

    fn unpublish_synced(
        &self,
        owner: &Owner,
        which: &str,
        alias: Option<&str>,
        port: Option<u16>,
    ) -> Result<Vec<Publication>> {
        let view = self.find(owner, which)?.view();
        let wanted: Vec<Publication> = self
            .published(owner, Some(which))?
            .into_iter()
            .filter(|one| alias.is_none_or(|alias| one.alias.as_str() == alias))
            .filter(|one| port.is_none_or(|port| one.port == port))
            .collect();
        if wanted.is_empty() {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("{}: nothing of the kind is published", view.name),
            )
            .hint("GET /published, or `bhatti publish` without arguments, shows what is"));
        }
        for one in &wanted {
            self.inner.services.index().remove_publication(&one.alias)?;
            if let Some(gone) = lock(&self.inner.publications.table).published.remove(&one.alias) {
                gone.cut.cancel();
            }
            let detail = json!({ "port": one.port });
            self.inner.services.events.sandbox("unpublished", owner, &view.id, &view.name, detail);
        }
        Ok(wanted)
    }

    /// Lets a request for an alias through.
    ///
    /// # Errors
    /// `NotFound`, `TooManyRequests`, `Busy` when too many sandboxes are being woken.
    pub fn admit(&self, alias: &str) -> Result<Admitted> {
        self.inner.publications.admit(alias, Instant::now(), |row| {
            let view = self.find(&row.owner, row.sandbox_id.as_str()).map(|shared| shared.view());
            view.is_ok_and(|view| view.thermal == Thermal::Hot)
        })
    }

    /// Connects to what was published, waking the sandbox.
    ///
    /// # Errors
    /// As [`Host::connect`].
    pub async fn connect_published(&self, admitted: Admitted) -> Result<Leased<Connection>> {
        let connected = self.connect(&admitted.owner, admitted.sandbox.as_str(), admitted.port).await;
        // Whoever asks for an alias has no business with names and verbs of this host.
        connected.map_err(|error| match error.kind() {
            ErrorKind::NotListening => Error::new(ErrorKind::NotListening, "nobody serves what is published here"),
            kind => {
                tracing::info!(error = %error.with_causes(), sandbox = %admitted.sandbox, "what is published could not be reached");
                Error::new(kind, "what is published here could not be reached")
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publications(limits: PublishLimits, sandboxes: &[&SandboxId]) -> Publications {
        let publications = Publications::new(limits);
        for (number, sandbox) in sandboxes.iter().enumerate() {
            publications.insert(PublicationRow {
                alias: format!("a{number}").parse().unwrap(),
                owner: Owner::admin(),
                sandbox_id: (*sandbox).clone(),
                port: 80,
                created_at: Timestamp(0),
            });
        }
        publications
    }

    #[test]
    fn many_requests_for_one_sleeper_are_one_wake_and_the_next_sleeper_waits_its_turn() {
        let (one, two) = (SandboxId::random(), SandboxId::random());
        let publications =
            publications(PublishLimits { pace: Pace { rate: 0, burst: 0 }, wakes: 1 }, &[&one, &two]);
        let now = Instant::now();
        let ask = |alias: &str, hot: bool| publications.admit(alias, now, |_| hot);
        let waiting: Vec<Admitted> = (0..100).map(|_| ask("a0", false).unwrap()).collect();
        assert_eq!(ask("a1", false).unwrap_err().kind(), ErrorKind::Busy);
        assert!(ask("a1", true).is_ok(), "who is awake is not in the way of anybody");
        drop(waiting);
        assert!(ask("a1", false).is_ok());
    }

    #[test]
    fn a_destroyed_sandbox_takes_its_aliases_with_it_and_cuts_what_is_under_way() {
        let (one, two) = (SandboxId::random(), SandboxId::random());
        let publications = publications(PublishLimits::default(), &[&one, &two]);
        let now = Instant::now();
        let (a, b) = (
            publications.admit("a0", now, |_| true).unwrap(),
            publications.admit("a1", now, |_| true).unwrap(),
        );
        publications.forget(&one);
        assert!(a.cut().is_cancelled() && !b.cut().is_cancelled());
        assert_eq!(publications.admit("a0", now, |_| true).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(publications.admit("../x", now, |_| true).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
