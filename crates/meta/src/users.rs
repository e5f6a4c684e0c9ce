//! Users: a name, the hash of a key, and what they may have.
//!
//! # Durability
//! What a key may do must not come back with a power cut, so these verbs are synced, unlike the others.

use rusqlite::params;
use types::{Owner, Timestamp};

use crate::error::Result;
use crate::index::Index;

/// One user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserRow {
    /// The name, which is that of the owner of what they make.
    pub name: Owner,
    /// The hash of the key; the key itself is nowhere.
    pub key_hash: [u8; 32],
    /// What they may have, as JSON; the index does not look into it.
    pub quota_json: String,
    /// When they were made.
    pub created_at: Timestamp,
    /// When the key was made.
    pub rotated_at: Timestamp,
}

impl Index {
    /// Adds a user, or replaces the one of that name.
    ///
    /// # Errors
    /// `Conflict` when somebody else has that key.
    pub fn put_user(&mut self, row: &UserRow) -> Result<()> {
        self.transact_lasting("record a user", |transaction| {
            let sql = "INSERT INTO users (name, key_hash, quota_json, created_at_ms, rotated_at_ms) \
                       VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (name) DO UPDATE SET key_hash = excluded.key_hash, \
                       quota_json = excluded.quota_json, rotated_at_ms = excluded.rotated_at_ms";
            let hash: &[u8] = &row.key_hash;
            let values =
                params![row.name.as_str(), hash, row.quota_json, row.created_at.0, row.rotated_at.0];
            transaction.execute(sql, values).map(drop)
        })
    }

    /// Every user, by name.
    ///
    /// # Errors
    /// Those of the file.
    pub fn users(&self) -> Result<Vec<UserRow>> {
        let read = || {
            let mut statement = self.connection.prepare_cached(
                "SELECT name, key_hash, quota_json, created_at_ms, rotated_at_ms FROM users ORDER BY name",
            )?;
            let row = |row: &rusqlite::Row<'_>| {
                Ok(UserRow {
                    name: crate::row::parsed(row, 0)?,
                    key_hash: row.get(1)?,
                    quota_json: row.get(2)?,
                    created_at: Timestamp(row.get(3)?),
                    rotated_at: Timestamp(row.get(4)?),
                })
            };
            statement.query_map([], row)?.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(self.failed("list users"))
    }

    /// Forgets a user, and with them what happened to them: whoever has the name next is somebody else. Whether they
    /// were there.
    ///
    /// # Errors
    /// Those of the file.
    pub fn remove_user(&mut self, name: &Owner) -> Result<bool> {
        self.transact_lasting("forget a user", |transaction| {
            transaction.execute("DELETE FROM events WHERE owner = ?1", [name.as_str()])?;
            transaction.execute("DELETE FROM tasks WHERE owner = ?1", [name.as_str()])?;
            Ok(transaction.execute("DELETE FROM users WHERE name = ?1", [name.as_str()])? > 0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, NewEvent};

    fn user(name: &str, key: u8) -> UserRow {
        UserRow {
            name: name.parse().unwrap(),
            key_hash: [key; 32],
            quota_json: "{}".to_owned(),
            created_at: Timestamp(1),
            rotated_at: Timestamp(1),
        }
    }

    #[test]
    fn users_last_change_their_keys_and_are_forgotten_with_what_happened_to_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let mut index = Index::open(&path).unwrap();
        index.put_user(&user("alice", 1)).unwrap();
        index.put_user(&user("bob", 2)).unwrap();
        assert_eq!(index.put_user(&user("carol", 2)).unwrap_err().kind(), ErrorKind::Conflict);
        let rotated = UserRow { created_at: Timestamp(9), rotated_at: Timestamp(9), ..user("alice", 3) };
        index.put_user(&rotated).unwrap();
        for owner in ["alice", "bob"] {
            let event = NewEvent {
                at: Timestamp(5),
                owner: owner.parse().unwrap(),
                sandbox_id: None,
                sandbox_name: None,
                kind: "x".to_owned(),
                detail: serde_json::json!({}),
            };
            index.append_event(&event).unwrap();
        }
        drop(index);
        let mut index = Index::open(&path).unwrap();
        let alice = UserRow { created_at: Timestamp(1), ..rotated };
        assert_eq!(index.users().unwrap(), [alice.clone(), user("bob", 2)]);
        assert!(index.remove_user(&alice.name).unwrap() && !index.remove_user(&alice.name).unwrap());
        assert_eq!(index.users().unwrap(), [user("bob", 2)]);
        let left = index.events_since(0, 9, None).unwrap();
        assert!(left.len() == 1 && left[0].event.owner.as_str() == "bob");
    }
}
