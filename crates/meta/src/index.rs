//! The verbs of the index.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, Transaction, params};
use types::{Alias, Owner, SandboxId, Timestamp};

use crate::error::{Error, ErrorKind, Result};
use crate::row::{Event, NewEvent, PublicationRow, SandboxRow};
use crate::schema;

/// How many of the newest events stay.
pub const EVENTS_KEPT: u64 = 100_000;

/// The open index. One connection; share it behind a `Mutex`.
#[derive(Debug)]
pub struct Index {
    pub(crate) connection: Connection,
    path: PathBuf,
    events_kept: u64,
}

impl Index {
    /// Opens the index, making it or bringing its schema up to date where needed, and checks its structure.
    ///
    /// # Errors
    /// `NewerSchema` (the file is left as it was), `Corrupt`, `Busy`, `Io`, `NoSpace`.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |e| Error::sqlite("open it", path, e);
        let mut connection = Connection::open(path).map_err(failed)?;
        schema::migrate(&mut connection, path)?;
        connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).map_err(failed)?;
        connection.execute_batch("PRAGMA synchronous = NORMAL").map_err(failed)?;
        let verdict: String =
            connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(failed)?;
        if verdict != "ok" {
            return Err(Error::new(ErrorKind::Corrupt, "open it", path, verdict));
        }
        Ok(Self { connection, path: path.to_owned(), events_kept: EVENTS_KEPT })
    }

    /// Moves a damaged index (file, log and shared memory) to `<path>.damaged*`, so that the next [`Index::open`]
    /// makes a new one; an earlier one that was set aside is replaced. Must not be called while it is open.
    ///
    /// # Errors
    /// `Io` when a file is there and cannot be renamed.
    pub fn set_aside(path: &Path) -> Result<PathBuf> {
        let named = |suffix: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        // The log first: a log left beside a new file would be replayed into it.
        for suffix in ["-wal", "-shm", ""] {
            match std::fs::rename(named(suffix), named(&format!(".damaged{suffix}"))) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::new(ErrorKind::Io, "set it aside", path, e));
                }
                _ => {}
            }
        }
        Ok(named(".damaged"))
    }

    pub(crate) fn failed(&self, op: &'static str) -> impl Fn(rusqlite::Error) -> Error + use<> {
        let path = self.path.clone();
        move |e| Error::sqlite(op, &path, e)
    }

    /// Adds a sandbox or replaces the row with its id.
    ///
    /// # Errors
    /// `Conflict` when another sandbox has the owner and name.
    pub fn put_sandbox(&mut self, row: &SandboxRow) -> Result<()> {
        put(&self.connection, row).map_err(self.failed("record a sandbox"))
    }

    /// Removes a sandbox and what is published of it; whether it was there.
    ///
    /// # Errors
    /// Those of the file.
    pub fn remove_sandbox(&mut self, id: &SandboxId) -> Result<bool> {
        self.transact("remove a sandbox", |transaction| {
            transaction.execute("DELETE FROM publications WHERE sandbox_id = ?1", [id.as_str()])?;
            Ok(transaction.execute("DELETE FROM sandboxes WHERE id = ?1", [id.as_str()])? > 0)
        })
    }

    /// Every sandbox, oldest first.
    ///
    /// # Errors
    /// Those of the file.
    pub fn all_sandboxes(&self) -> Result<Vec<SandboxRow>> {
        let sql = format!("SELECT {} FROM sandboxes ORDER BY created_at_ms, id", SandboxRow::COLUMNS);
        let read = || {
            let mut statement = self.connection.prepare_cached(&sql)?;
            statement.query_map([], SandboxRow::read)?.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(self.failed("list sandboxes"))
    }

    /// Notes when sandboxes were last active. Time never goes back, and an id that is gone is passed over.
    ///
    /// # Errors
    /// Those of the file; then none was noted.
    pub fn touch(&mut self, seen: &[(SandboxId, Timestamp)]) -> Result<()> {
        self.transact("note activity", |transaction| {
            let mut statement = transaction.prepare_cached(
                "UPDATE sandboxes SET last_active_at_ms = max(last_active_at_ms, ?2) WHERE id = ?1",
            )?;
            for (id, at) in seen {
                statement.execute(params![id.as_str(), at.0])?;
            }
            Ok(())
        })
    }

    /// Makes `rows` the only sandboxes: how the index is rebuilt from the manifests.
    ///
    /// # Errors
    /// `Conflict` when two rows have one id or one owner and name; then the old rows stay.
    pub fn replace_all(&mut self, rows: &[SandboxRow]) -> Result<()> {
        self.transact("rebuild from the manifests", |transaction| {
            transaction.execute("DELETE FROM sandboxes", [])?;
            rows.iter().try_for_each(|row| put(transaction, row))
        })
    }

    /// Publishes a port under an alias.
    ///
    /// # Errors
    /// `Conflict` when the alias is taken.
    pub fn put_publication(&mut self, row: &PublicationRow) -> Result<()> {
        let sql = "INSERT INTO publications (alias, owner, sandbox_id, port, created_at_ms) VALUES (?1, ?2, ?3, ?4, ?5)";
        let values = params![
            row.alias.as_str(),
            row.owner.as_str(),
            row.sandbox_id.as_str(),
            row.port,
            row.created_at.0
        ];
        self.transact_lasting("publish a port", |transaction| transaction.execute(sql, values).map(drop))
    }

    /// Takes an alias back; whether it was there.
    ///
    /// # Errors
    /// Those of the file.
    pub fn remove_publication(&mut self, alias: &Alias) -> Result<bool> {
        self.transact_lasting("take an alias back", |transaction| {
            let sql = "DELETE FROM publications WHERE alias = ?1";
            Ok(transaction.execute(sql, [alias.as_str()])? > 0)
        })
    }

    /// Everything that is published, by alias.
    ///
    /// # Errors
    /// Those of the file.
    pub fn all_publications(&self) -> Result<Vec<PublicationRow>> {
        let sql = format!("SELECT {} FROM publications ORDER BY alias", PublicationRow::COLUMNS);
        let read = || {
            let mut statement = self.connection.prepare_cached(&sql)?;
            statement.query_map([], PublicationRow::read)?.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(self.failed("list what is published"))
    }

    /// Stores an event under the next number and forgets those past [`EVENTS_KEPT`].
    ///
    /// # Errors
    /// Those of the file.
    pub fn append_event(&mut self, new: &NewEvent) -> Result<Event> {
        let kept = self.events_kept;
        let seq = self.transact("record an event", |transaction| {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO events (at_ms, owner, sandbox_id, sandbox_name, kind, detail_json) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6) RETURNING seq",
            )?;
            let values = params![
                new.at.0,
                new.owner.as_str(),
                new.sandbox_id.as_ref().map(SandboxId::as_str),
                new.sandbox_name.as_ref().map(types::SandboxName::as_str),
                new.kind,
                new.detail.to_string(),
            ];
            let seq: u64 = insert.query_row(values, |row| row.get(0))?;
            transaction
                .prepare_cached("DELETE FROM events WHERE seq <= ?1")?
                .execute([seq.saturating_sub(kept)])?;
            Ok(seq)
        })?;
        Ok(Event { seq, event: new.clone() })
    }

    /// At most `limit` events with numbers above `seq`, in order; of one owner, or of all.
    ///
    /// # Errors
    /// Those of the file.
    pub fn events_since(&self, seq: u64, limit: u32, owner: Option<&Owner>) -> Result<Vec<Event>> {
        // Numbers past i64 cannot have been given; there is nothing after them.
        let after = i64::try_from(seq).unwrap_or(i64::MAX);
        let (condition, owner) = match owner {
            Some(owner) => ("owner = ?3", owner.as_str()),
            None => ("?3 = ''", ""),
        };
        let sql = format!(
            "SELECT {} FROM events WHERE seq > ?1 AND {condition} ORDER BY seq LIMIT ?2",
            Event::COLUMNS
        );
        let read = || {
            let mut statement = self.connection.prepare_cached(&sql)?;
            statement
                .query_map(params![after, limit, owner], Event::read)?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(self.failed("read events"))
    }

    /// The number that all events from `at` on are above; 0 when none came before.
    ///
    /// # Errors
    /// Those of the file.
    pub fn last_event_before(&self, at: Timestamp) -> Result<u64> {
        // By number and not by time: the host's clock may have been set back.
        let sql = "SELECT COALESCE((SELECT MIN(seq) - 1 FROM events WHERE at_ms >= ?1), (SELECT MAX(seq) FROM events), 0)";
        let read = || self.connection.prepare_cached(sql)?.query_row([at.0], |row| row.get(0));
        read().map_err(self.failed("read events"))
    }

    /// A setting's value.
    ///
    /// # Errors
    /// Those of the file.
    pub fn get_setting(&self, key: &str) -> Result<Option<String>> {
        let found = self
            .connection
            .query_row("SELECT value FROM settings WHERE key = ?1", [key], |row| row.get(0))
            .optional();
        found.map_err(self.failed("read a setting"))
    }

    /// Stores a setting.
    ///
    /// # Errors
    /// Those of the file.
    pub fn set_setting(&mut self, key: &str, value: &str) -> Result<()> {
        let sql = "INSERT INTO settings (key, value) VALUES (?1, ?2) \
                   ON CONFLICT (key) DO UPDATE SET value = excluded.value";
        self.transact_lasting("store a setting", |transaction| {
            transaction.execute(sql, [key, value]).map(drop)
        })
    }

    /// As [`Index::transact`], and a power cut does not undo it: for what no manifest has.
    pub(crate) fn transact_lasting<T>(
        &mut self,
        op: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T> {
        self.connection.execute_batch("PRAGMA synchronous = FULL").map_err(self.failed(op))?;
        let done = self.transact(op, work);
        self.connection.execute_batch("PRAGMA synchronous = NORMAL").map_err(self.failed(op))?;
        done
    }

    pub(crate) fn transact<T>(
        &mut self,
        op: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let failed = self.failed(op);
        let run = |connection: &mut Connection| {
            let transaction = connection.transaction()?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        run(&mut self.connection).map_err(failed)
    }
}

fn put(connection: &Connection, row: &SandboxRow) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO sandboxes (id, owner, name, record_json, created_at_ms, last_active_at_ms) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
         ON CONFLICT (id) DO UPDATE SET owner = excluded.owner, name = excluded.name, \
         record_json = excluded.record_json, created_at_ms = excluded.created_at_ms, \
         last_active_at_ms = excluded.last_active_at_ms",
    )?;
    let values = params![
        row.id.as_str(),
        row.owner.as_str(),
        row.name.as_str(),
        row.record_json,
        row.created_at.0,
        row.last_active_at.0
    ];
    statement.execute(values).map(drop)
}

#[cfg(test)]
mod tests;
