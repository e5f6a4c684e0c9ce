//! What the index stores, with the types of the words it is made of.

use std::str::FromStr;

use rusqlite::Row;
use rusqlite::types::Type;
use types::{Alias, Owner, SandboxId, SandboxName, Timestamp};

/// One sandbox as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxRow {
    /// The key.
    pub id: SandboxId,
    /// Whose it is; unique together with `name`.
    pub owner: Owner,
    /// Unique together with `owner`.
    pub name: SandboxName,
    /// What the conductor wants to see again, as JSON; the index does not look into it.
    pub record_json: String,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it last did something for somebody. Kept apart from the record so that it is cheap to change.
    pub last_active_at: Timestamp,
}

/// A port of a sandbox under an alias.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicationRow {
    /// The key.
    pub alias: Alias,
    /// Whose it is.
    pub owner: Owner,
    /// The sandbox.
    pub sandbox_id: SandboxId,
    /// The port on its loopback.
    pub port: u16,
    /// When it was published.
    pub created_at: Timestamp,
}

/// Something that happened, before it has a number.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    /// When.
    pub at: Timestamp,
    /// Who may see it.
    pub owner: Owner,
    /// The sandbox, where it is about one.
    pub sandbox_id: Option<SandboxId>,
    /// The name that the sandbox had then.
    pub sandbox_name: Option<SandboxName>,
    /// A word such as `created`.
    pub kind: String,
    /// The rest, as JSON.
    pub detail: serde_json::Value,
}

/// A numbered event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its number: greater than that of every earlier event.
    pub seq: u64,
    /// What happened.
    pub event: NewEvent,
}

pub(crate) fn parsed<T: FromStr>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text = row.get_ref(column)?.as_str()?;
    text.parse().map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(e)))
}

fn parsed_or_null<T: FromStr>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    if row.get_ref(column)?.data_type() == Type::Null { Ok(None) } else { parsed(row, column).map(Some) }
}

impl SandboxRow {
    /// The columns that [`SandboxRow::read`] expects, in its order.
    pub(crate) const COLUMNS: &str = "id, owner, name, record_json, created_at_ms, last_active_at_ms";

    pub(crate) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: parsed(row, 0)?,
            owner: parsed(row, 1)?,
            name: parsed(row, 2)?,
            record_json: row.get(3)?,
            created_at: Timestamp(row.get(4)?),
            last_active_at: Timestamp(row.get(5)?),
        })
    }
}

impl PublicationRow {
    /// The columns that [`PublicationRow::read`] expects, in its order.
    pub(crate) const COLUMNS: &str = "alias, owner, sandbox_id, port, created_at_ms";

    pub(crate) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            alias: parsed(row, 0)?,
            owner: parsed(row, 1)?,
            sandbox_id: parsed(row, 2)?,
            port: row.get(3)?,
            created_at: Timestamp(row.get(4)?),
        })
    }
}

impl Event {
    /// The columns that [`Event::read`] expects, in its order.
    pub(crate) const COLUMNS: &str = "seq, at_ms, owner, sandbox_id, sandbox_name, kind, detail_json";

    pub(crate) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            seq: row.get(0)?,
            event: NewEvent {
                at: Timestamp(row.get(1)?),
                owner: parsed(row, 2)?,
                sandbox_id: parsed_or_null(row, 3)?,
                sandbox_name: parsed_or_null(row, 4)?,
                kind: row.get(5)?,
                detail: parsed(row, 6)?,
            },
        })
    }
}
