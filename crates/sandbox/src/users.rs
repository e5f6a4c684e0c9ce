//! Users: who may ask with which key, and what becomes of what they have.
//!
//! A key is 256 random bits, so a fast hash is enough: there is nothing to guess that a slow one would make dearer. Only
//! the hash is kept. A key is found by its hash, whose bits nobody can choose, and then compared in constant time.
//!
//! # Order
//! A new key is in the index, synced, before it is told; an old one is out of the index before it is said to be revoked.
//! Then it opens nothing more, and what was opened with it is cut.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use meta::{Index, UserRow};
use serde_json::json;
use tokio::sync::OwnedRwLockReadGuard;
use tokio_util::sync::CancellationToken;
use types::{Counted, Owner, Quota, Timestamp};

use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::services::blocking;

/// A key as text, which no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct UserKey(pub String);

impl std::fmt::Debug for UserKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UserKey")
    }
}

impl UserKey {
    /// `bht_` and 64 hex digits that stand for 32 random bytes.
    fn random() -> Result<Self> {
        let mut secret = [0u8; 32];
        getrandom::fill(&mut secret).map_err(|error| {
            Error::new(ErrorKind::Internal, format!("the kernel's random generator: {error}"))
        })?;
        let mut text = "bht_".to_owned();
        for byte in secret {
            let _ = write!(text, "{byte:02x}");
        }
        Ok(Self(text))
    }

    fn hash(&self) -> blake3::Hash {
        hash(&self.0)
    }
}

fn hash(text: &str) -> blake3::Hash {
    blake3::hash(text.as_bytes())
}

/// Who holds a key.
#[derive(Debug, Clone)]
pub struct KeyHolder {
    /// Whose things they may use.
    pub owner: Owner,
    /// Called when the key is no longer one.
    pub revoked: CancellationToken,
}

/// A user as they are at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserView {
    /// Their name, which is that of the owner of what they make.
    pub name: Owner,
    /// What they may have.
    pub quota: Quota,
    /// What they have; how much of the disk is not looked at for this.
    pub used: BTreeMap<Counted, u64>,
    /// When they were made.
    pub created_at: Timestamp,
    /// When their key was made.
    pub rotated_at: Timestamp,
}

#[derive(Debug, Clone)]
struct User {
    key: blake3::Hash,
    quota: Quota,
    created_at: Timestamp,
    rotated_at: Timestamp,
    revoked: CancellationToken,
    /// Read by who makes something for them, written by who takes them away.
    making: Arc<tokio::sync::RwLock<()>>,
}

impl User {
    fn row(&self, name: &Owner) -> UserRow {
        UserRow {
            name: name.clone(),
            key_hash: *self.key.as_bytes(),
            quota_json: serde_json::to_string(&self.quota).unwrap_or_default(),
            created_at: self.created_at,
            rotated_at: self.rotated_at,
        }
    }
}

/// All users. Its lock is held for look-ups only, never over an await.
#[derive(Debug, Default)]
pub(crate) struct Users {
    table: RwLock<Table>,
    /// One change at a time.
    changes: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Table {
    by_name: BTreeMap<Owner, User>,
    by_key: HashMap<[u8; 32], Owner>,
}

impl Table {
    fn insert(&mut self, name: Owner, user: User) {
        self.by_key.insert(*user.key.as_bytes(), name.clone());
        if let Some(old) = self.by_name.insert(name, user.clone())
            && old.key != user.key
        {
            self.by_key.remove(old.key.as_bytes());
        }
    }
}

impl Users {
    /// Those that the index has.
    pub(crate) fn load(index: &Index) -> Result<Self> {
        let users = Self::default();
        for row in index.users()? {
            let quota = serde_json::from_str(&row.quota_json).map_err(|error| {
                Error::new(
                    ErrorKind::Corrupt,
                    format!("the index: what {} may have makes no sense", row.name),
                )
                .source(error)
            })?;
            let user = User {
                key: blake3::Hash::from_bytes(row.key_hash),
                quota,
                created_at: row.created_at,
                rotated_at: row.rotated_at,
                revoked: CancellationToken::new(),
                making: Arc::default(),
            };
            users.write().insert(row.name, user);
        }
        Ok(users)
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, name: &Owner) -> Result<User> {
        self.read().by_name.get(name).cloned().ok_or_else(|| missing(name))
    }

    fn names(&self) -> Vec<Owner> {
        self.read().by_name.keys().cloned().collect()
    }

    fn holder(&self, key: &str) -> Option<KeyHolder> {
        let hash = hash(key);
        let table = self.read();
        let owner = table.by_key.get(hash.as_bytes())?;
        let user = table.by_name.get(owner)?;
        // `blake3::Hash` compares in constant time.
        (user.key == hash).then(|| KeyHolder { owner: owner.clone(), revoked: user.revoked.clone() })
    }

    /// What somebody may have; everything for the admin, and for what is nobody's any more.
    pub(crate) fn quota(&self, name: &Owner) -> Quota {
        self.read().by_name.get(name).map(|user| user.quota).unwrap_or_default()
    }

    /// That they are not taken away for as long as this is held.
    pub(crate) fn stays(&self, name: &Owner) -> Result<OwnedRwLockReadGuard<()>> {
        let user = self.get(name)?;
        Arc::clone(&user.making).try_read_owned().map_err(|_written| {
            Error::new(ErrorKind::Conflict, format!("the user {name} is just being deleted"))
        })
    }
}

fn missing(name: &Owner) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no user {name}"))
        .hint("`bhatti user list` shows those that are there")
}

impl Host {
    /// Who holds a key, if anybody does.
    #[must_use]
    pub fn key_holder(&self, key: &str) -> Option<KeyHolder> {
        self.inner.services.users.holder(key)
    }

    /// Everybody who may have something: the admin, the users, and who is left from an index that is gone.
    #[must_use]
    pub fn owners(&self) -> Vec<Owner> {
        let mut owners = self.inner.services.users.names();
        owners.push(Owner::admin());
        owners.extend(self.inner.registry.all().into_iter().map(|entry| entry.owner));
        owners.sort();
        owners.dedup();
        owners
    }

    /// Makes a user. The key is told this once.
    ///
    /// # Errors
    /// `Conflict` when there is one of that name.
    pub async fn user_create(&self, name: &Owner, quota: Quota) -> Result<(UserView, UserKey)> {
        let users = &self.inner.services.users;
        let _one = users.changes.lock().await;
        let taken = |what: &str| Error::new(ErrorKind::Conflict, what).hint("choose another name");
        if *name == Owner::admin() {
            return Err(taken("the name admin is that of whoever holds the admin key"));
        }
        if users.get(name).is_ok() {
            return Err(taken(&format!("there is a user {name} already"))
                .hint("choose another name; `bhatti user rotate-key` gives this one another key"));
        }
        let (key, now) = (UserKey::random()?, Timestamp::now());
        let user = User {
            key: key.hash(),
            quota,
            created_at: now,
            rotated_at: now,
            revoked: CancellationToken::new(),
            making: Arc::default(),
        };
        self.keep(name, user).await?;
        self.user_event("user.created", name);
        Ok((self.user(name).await?, key))
    }

    /// In the index, then in memory.
    async fn keep(&self, name: &Owner, user: User) -> Result<()> {
        let (services, row) = (&self.inner.services, user.row(name));
        services.tell_index(move |index| Ok(index.put_user(&row)?)).await?;
        services.users.write().insert(name.clone(), user);
        Ok(())
    }

    fn user_event(&self, kind: &'static str, name: &Owner) {
        self.inner.services.events.host(kind, &Owner::admin(), json!({ "user": name }));
    }

    /// The users, by name.
    ///
    /// # Errors
    /// When what they have cannot be counted.
    pub async fn users(&self) -> Result<Vec<UserView>> {
        let mut views = Vec::new();
        for name in self.inner.services.users.names() {
            match self.user(&name).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                view => views.push(view?),
            }
        }
        Ok(views)
    }

    /// One user.
    ///
    /// # Errors
    /// `NotFound`; when what they have cannot be counted.
    pub async fn user(&self, name: &Owner) -> Result<UserView> {
        let User { quota, created_at, rotated_at, .. } = self.inner.services.users.get(name)?;
        let used = self.used(name).await?;
        Ok(UserView { name: name.clone(), quota, used, created_at, rotated_at })
    }

    /// Changes what a user may have; what they have already stays. `None` takes a limit away.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn user_edit(&self, name: &Owner, limits: &[(Counted, Option<u64>)]) -> Result<UserView> {
        {
            let users = &self.inner.services.users;
            let _one = users.changes.lock().await;
            let mut user = users.get(name)?;
            for (what, most) in limits {
                *user.quota.most_mut(*what) = *most;
            }
            self.keep(name, user).await?;
        }
        self.user_event("user.edited", name);
        self.user(name).await
    }

    /// Gives a user another key. The old one opens nothing more, and what was opened with it is cut.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn user_rotate_key(&self, name: &Owner) -> Result<(UserView, UserKey)> {
        let key = UserKey::random()?;
        {
            let users = &self.inner.services.users;
            let _one = users.changes.lock().await;
            let old = users.get(name)?;
            let new = User {
                key: key.hash(),
                rotated_at: Timestamp::now(),
                revoked: CancellationToken::new(),
                ..old.clone()
            };
            self.keep(name, new).await?;
            old.revoked.cancel();
        }
        self.user_event("user.key_rotated", name);
        Ok((self.user(name).await?, key))
    }

    /// Takes a user and their key away. With `purge` everything that they have goes before; backups of volumes stay in
    /// their store.
    ///
    /// # Errors
    /// `NotFound`; `InUse` while they have something, unless `purge`; `Busy` while something is made for them.
    pub async fn user_delete(&self, name: &Owner, purge: bool) -> Result<()> {
        let (host, name) = (self.clone(), name.clone());
        self.to_the_end(async move {
            let services = &host.inner.services;
            let _one = services.users.changes.lock().await;
            let user = services.users.get(&name)?;
            let Ok(_nothing_new) = Arc::clone(&user.making).try_write_owned() else {
                return Err(Error::new(ErrorKind::Busy, format!("something is just being made for {name}"))
                    .hint("try again in a moment, or call its task off"));
            };
            if purge {
                host.purge(&name).await?;
            }
            if let Some(has) = host.possessions(&name).await? {
                return Err(Error::new(ErrorKind::InUse, format!("the user {name} has {has}"))
                    .hint("destroy and delete these first, or delete all of it with --purge"));
            }
            let gone = name.clone();
            services.tell_index(move |index| Ok(index.remove_user(&gone)?)).await?;
            {
                let mut table = services.users.write();
                table.by_name.remove(&name);
                table.by_key.remove(user.key.as_bytes());
            }
            user.revoked.cancel();
            host.user_event("user.deleted", &name);
            Ok(())
        })
        .await
    }

    /// What somebody has, for people.
    async fn possessions(&self, owner: &Owner) -> Result<Option<String>> {
        let names = |names: Vec<String>| match names.len() {
            0..=3 => names.join(", "),
            more => format!("{} and {} more", names[..3].join(", "), more - 3),
        };
        let mut has = Vec::new();
        let mut add = |what: &str, found: Vec<String>| {
            let count = found.len();
            let plural = if count == 1 {
                ""
            } else if what == "sandbox" {
                "es"
            } else {
                "s"
            };
            if count > 0 {
                has.push(format!("{count} {what}{plural} ({})", names(found)));
            }
        };
        let (store, whose) = (self.inner.services.store.clone(), owner.clone());
        let (volumes, snapshots, images) = blocking(move || {
            let volumes = store.volumes().of(&whose)?.into_iter().map(|(name, _)| name.to_string());
            let snapshots = store.snapshots().of(&whose)?.into_iter().map(|(name, _)| name.to_string());
            let images = store.images().list()?.into_iter();
            let images = images.filter(|record| record.owner.as_ref() == Some(&whose));
            let images = images.map(|record| record.name.to_string());
            Ok((volumes.collect(), snapshots.collect(), images.collect()))
        })
        .await?;
        let sandboxes = self.inner.registry.of_owner(owner).into_iter().map(|entry| entry.name.to_string());
        add("sandbox", sandboxes.collect());
        add("snapshot", snapshots);
        add("volume", volumes);
        add("image", images);
        add("secret", self.secrets(owner)?.into_iter().map(|secret| secret.name.to_string()).collect());
        Ok((!has.is_empty()).then(|| has.join(", ")))
    }

    /// Removes everything that somebody has: what uses something before what is used.
    async fn purge(&self, owner: &Owner) -> Result<()> {
        for entry in self.inner.registry.of_owner(owner) {
            self.destroy(owner, entry.id.as_str()).await?;
        }
        let (store, whose) = (self.inner.services.store.clone(), owner.clone());
        let (snapshots, volumes, images) = blocking(move || {
            let images: Vec<_> = store.images().list()?;
            Ok((store.snapshots().of(&whose)?, store.volumes().of(&whose)?, images))
        })
        .await?;
        for (name, _) in snapshots {
            self.snapshot_delete(owner, &name).await?;
        }
        for (name, _) in volumes {
            self.volume_delete(owner, &name).await?;
        }
        for record in images.into_iter().filter(|record| record.owner.as_ref() == Some(owner)) {
            self.image_delete(owner, &record.name).await?;
        }
        for secret in self.secrets(owner)? {
            self.delete_secret(owner, &secret.name, true).await?;
        }
        Ok(())
    }
}
