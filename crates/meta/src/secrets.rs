//! Secrets: sealed bytes by owner and name. Whoever has only the index learns names, sizes and times.

use rusqlite::{OptionalExtension as _, params};
use types::{Owner, SecretName, Timestamp};

use crate::error::Result;
use crate::index::Index;

/// One secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretRow {
    /// Its name, unique for its owner.
    pub name: SecretName,
    /// Its value, sealed.
    pub sealed: Vec<u8>,
    /// When the name was first set.
    pub created_at: Timestamp,
    /// When it was last set.
    pub updated_at: Timestamp,
}

impl Index {
    /// Sets a secret at `at`, new or in place of its last value; whether it is new.
    ///
    /// # Errors
    /// Those of the file.
    pub fn put_secret(
        &mut self,
        owner: &Owner,
        name: &SecretName,
        sealed: &[u8],
        at: Timestamp,
    ) -> Result<bool> {
        let (mut new, key) = (false, params![owner.as_str(), name.as_str(), sealed, at.0]);
        self.transact_lasting("set a secret", |transaction| {
            let there = "SELECT 1 FROM secrets WHERE owner = ?1 AND name = ?2";
            let there = transaction.query_row(there, params![owner.as_str(), name.as_str()], |_| Ok(()));
            new = there.optional()?.is_none();
            let sql = "INSERT INTO secrets (owner, name, sealed, created_at_ms, updated_at_ms) \
                       VALUES (?1, ?2, ?3, ?4, ?4) ON CONFLICT (owner, name) DO UPDATE \
                       SET sealed = excluded.sealed, updated_at_ms = excluded.updated_at_ms";
            transaction.execute(sql, key).map(drop)
        })?;
        Ok(new)
    }

    /// The owner's secrets, by name.
    ///
    /// # Errors
    /// Those of the file.
    pub fn secrets(&self, owner: &Owner) -> Result<Vec<SecretRow>> {
        let read = || {
            let mut statement = self.connection.prepare_cached(
                "SELECT name, sealed, created_at_ms, updated_at_ms FROM secrets WHERE owner = ?1 ORDER BY name",
            )?;
            let row = |row: &rusqlite::Row<'_>| {
                Ok(SecretRow {
                    name: crate::row::parsed(row, 0)?,
                    sealed: row.get(1)?,
                    created_at: Timestamp(row.get(2)?),
                    updated_at: Timestamp(row.get(3)?),
                })
            };
            statement.query_map([owner.as_str()], row)?.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(self.failed("list secrets"))
    }

    /// Forgets a secret; whether it was there.
    ///
    /// # Errors
    /// Those of the file.
    pub fn remove_secret(&mut self, owner: &Owner, name: &SecretName) -> Result<bool> {
        self.transact_lasting("forget a secret", |transaction| {
            let sql = "DELETE FROM secrets WHERE owner = ?1 AND name = ?2";
            Ok(transaction.execute(sql, params![owner.as_str(), name.as_str()])? > 0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_set_again_in_place_and_belongs_to_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let mut index = Index::open(&dir.path().join("db")).unwrap();
        let (admin, other) = (Owner::admin(), "other".parse::<Owner>().unwrap());
        let name: SecretName = "KEY".parse().unwrap();
        assert!(index.put_secret(&admin, &name, b"one", Timestamp(1)).unwrap());
        assert!(index.put_secret(&other, &name, b"theirs", Timestamp(2)).unwrap());
        assert!(!index.put_secret(&admin, &name, b"two", Timestamp(3)).unwrap());
        let row = SecretRow {
            name: name.clone(),
            sealed: b"two".to_vec(),
            created_at: Timestamp(1),
            updated_at: Timestamp(3),
        };
        assert_eq!(index.secrets(&admin).unwrap(), [row]);
        assert!(index.remove_secret(&admin, &name).unwrap());
        assert!(!index.remove_secret(&admin, &name).unwrap());
        assert_eq!(index.secrets(&other).unwrap().len(), 1);
    }
}
