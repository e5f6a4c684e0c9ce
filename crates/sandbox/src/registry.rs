//! Who is there: every sandbox by id and by name, and the way to its owner.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::mpsc;
use types::{Owner, SandboxId, SandboxName};

use crate::actor::{Command, Shared};
use crate::error::{Error, ErrorKind, Result};

/// The least digits by which an id may be told.
const MIN_PREFIX: usize = 6;

/// One sandbox, as others know it.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) id: SandboxId,
    pub(crate) owner: Owner,
    pub(crate) name: SandboxName,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) shared: Arc<Shared>,
}

/// A sandbox on disk whose manifest cannot be read: nothing is done with it, and nothing else has its name.
#[derive(Debug, Clone)]
pub(crate) struct Damaged {
    pub(crate) id: SandboxId,
    /// Owner and name, where the index knew them.
    pub(crate) called: Option<(Owner, SandboxName)>,
    pub(crate) why: String,
}

impl Damaged {
    fn error(&self) -> Error {
        let name = self.called.as_ref().map_or(self.id.as_str(), |(_, name)| name.as_str());
        Error::new(ErrorKind::Corrupt, format!("sandbox {name} cannot be used: {}", self.why)).hint(format!(
            "restore {}/manifest.json and start the daemon anew, or move the sandbox into quarantine with `bhatti fsck --repair`",
            self.id
        ))
    }
}

/// All sandboxes. Its lock is held for look-ups only, never over an await.
#[derive(Default)]
pub(crate) struct Registry {
    tables: RwLock<Tables>,
}

#[derive(Default)]
struct Tables {
    by_id: HashMap<SandboxId, Entry>,
    by_name: HashMap<(Owner, SandboxName), SandboxId>,
    damaged: Vec<Damaged>,
    closed: bool,
}

impl Registry {
    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a sandbox known. After [`Registry::close`] it is not: its owner then ends at once, its machine runs on,
    /// and the next daemon takes it over.
    pub(crate) fn insert(&self, entry: Entry) {
        let mut tables = self.write();
        if tables.closed {
            return;
        }
        tables.by_name.insert((entry.owner.clone(), entry.name.clone()), entry.id.clone());
        tables.by_id.insert(entry.id.clone(), entry);
    }

    /// Notes one that is there and cannot be used.
    pub(crate) fn note_damaged(&self, damaged: Damaged) {
        self.write().damaged.push(damaged);
    }

    /// Forgets those that are not on disk any more, and gives them.
    pub(crate) fn forget_damaged(&self, there: &HashSet<SandboxId>) -> Vec<SandboxId> {
        let gone =
            self.write().damaged.extract_if(.., |damaged| !there.contains(&damaged.id)).collect::<Vec<_>>();
        gone.into_iter().map(|damaged| damaged.id).collect()
    }

    /// Whether it is there and cannot be used.
    pub(crate) fn is_damaged(&self, id: &SandboxId) -> bool {
        self.read().damaged.iter().any(|damaged| damaged.id == *id)
    }

    /// Refuses a name that a damaged sandbox has.
    pub(crate) fn check_name(&self, owner: &Owner, name: &SandboxName) -> Result<()> {
        let tables = self.read();
        let taken =
            tables.damaged.iter().find(|it| it.called.as_ref().is_some_and(|(o, n)| o == owner && n == name));
        taken.map_or(Ok(()), |damaged| Err(damaged.error()))
    }

    pub(crate) fn remove(&self, id: &SandboxId) {
        let mut tables = self.write();
        if let Some(entry) = tables.by_id.remove(id) {
            tables.by_name.remove(&(entry.owner, entry.name));
        }
    }

    pub(crate) fn rename(&self, id: &SandboxId, name: &SandboxName) {
        let mut tables = self.write();
        let Some(entry) = tables.by_id.get_mut(id) else { return };
        let old = (entry.owner.clone(), std::mem::replace(&mut entry.name, name.clone()));
        let new = (entry.owner.clone(), name.clone());
        tables.by_name.remove(&old);
        tables.by_name.insert(new, id.clone());
    }

    pub(crate) fn by_name(&self, owner: &Owner, name: &SandboxName) -> Option<Entry> {
        let tables = self.read();
        let id = tables.by_name.get(&(owner.clone(), name.clone()))?;
        tables.by_id.get(id).cloned()
    }

    /// Every sandbox's id.
    pub(crate) fn ids(&self) -> HashSet<SandboxId> {
        self.read().by_id.keys().cloned().collect()
    }

    pub(crate) fn by_id(&self, id: &SandboxId) -> Option<Entry> {
        self.read().by_id.get(id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Entry> {
        self.read().by_id.values().cloned().collect()
    }

    pub(crate) fn of_owner(&self, owner: &Owner) -> Vec<Entry> {
        self.read().by_id.values().filter(|entry| entry.owner == *owner).cloned().collect()
    }

    /// By name, by id, or by the beginning of an id if only one begins so.
    pub(crate) fn find(&self, owner: &Owner, which: &str) -> Result<Entry> {
        let tables = self.read();
        if tables.closed {
            return Err(
                Error::new(ErrorKind::ShuttingDown, "the daemon is shutting down").hint("try again later")
            );
        }
        if let Ok(name) = which.parse::<SandboxName>()
            && let Some(id) = tables.by_name.get(&(owner.clone(), name))
            && let Some(entry) = tables.by_id.get(id)
        {
            return Ok(entry.clone());
        }
        let begins = |entry: &&Entry| {
            which.len() >= MIN_PREFIX && entry.owner == *owner && entry.id.as_str().starts_with(which)
        };
        // To the admin alone where nobody knows any more whose it was.
        let damaged = tables.damaged.iter().find(|damaged| match &damaged.called {
            Some((whose, name)) => {
                whose == owner
                    && (name.as_str() == which
                        || (which.len() >= MIN_PREFIX && damaged.id.as_str().starts_with(which)))
            }
            None => {
                *owner == Owner::admin()
                    && which.len() >= MIN_PREFIX
                    && damaged.id.as_str().starts_with(which)
            }
        });
        if let Some(damaged) = damaged {
            return Err(damaged.error());
        }
        let mut found = tables.by_id.values().filter(begins);
        match (found.next(), found.next()) {
            (Some(entry), None) => Ok(entry.clone()),
            (Some(_), Some(_)) => Err(Error::new(
                ErrorKind::BadRequest,
                format!("more than one sandbox's id begins with {which}"),
            )
            .hint("give more digits")),
            (None, _) => {
                let shown: String = which.chars().take(80).collect();
                Err(Error::new(ErrorKind::NotFound, format!("there is no sandbox {shown:?}"))
                    .hint("`bhatti list` shows those that are there"))
            }
        }
    }

    /// A name nobody of this owner's has: a word and a number.
    pub(crate) fn free_name(&self, owner: &Owner) -> SandboxName {
        const WORDS: [&str; 16] = [
            "amber", "basil", "cedar", "clay", "coral", "ember", "fern", "flint", "hazel", "iris", "jade",
            "maple", "olive", "pearl", "sage", "slate",
        ];
        let tables = self.read();
        loop {
            // A sandbox id is random: its digits choose.
            let random = SandboxId::random();
            let (word, number) = random.as_str().split_at(1);
            let word = WORDS[usize::from_str_radix(word, 16).unwrap_or_default() % WORDS.len()];
            let name = format!("{word}-{}", &number[..4]);
            if let Ok(name) = name.parse::<SandboxName>()
                && !tables.by_name.contains_key(&(owner.clone(), name.clone()))
            {
                return name;
            }
        }
    }

    /// Refuses look-ups from now on and gives up all entries.
    pub(crate) fn close(&self) -> Vec<Entry> {
        let mut tables = self.write();
        tables.closed = true;
        tables.by_name.clear();
        std::mem::take(&mut tables.by_id).into_values().collect()
    }
}
