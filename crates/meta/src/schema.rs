//! The schema and its versions, counted by SQLite's `user_version`.
//!
//! A change of the schema is one more entry in `MIGRATIONS`; entries that were released are never changed, and
//! `tests/golden/schema-N.sql` keeps the text of each.

use std::path::Path;

use rusqlite::Connection;

use crate::error::{Error, ErrorKind, Result};

/// `MIGRATIONS[n]` takes a file from version n to n + 1.
const MIGRATIONS: [&str; 5] = [
    include_str!("schema.sql"),
    include_str!("schema-2.sql"),
    include_str!("schema-3.sql"),
    include_str!("schema-4.sql"),
    include_str!("schema-5.sql"),
];

/// The version that this program reads and writes.
pub const SCHEMA_VERSION: usize = MIGRATIONS.len();

/// Brings the file to [`SCHEMA_VERSION`]; a newer one is refused before anything is written to it.
pub(crate) fn migrate(connection: &mut Connection, path: &Path) -> Result<()> {
    let failed = |e| Error::sqlite("read its schema version", path, e);
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
    let Ok(found) = usize::try_from(found) else {
        return Err(Error::new(
            ErrorKind::Corrupt,
            "open it",
            path,
            format!("its schema version is {found}"),
        ));
    };
    if found > SCHEMA_VERSION {
        let why = format!("its schema is version {found}, this bhatti knows up to {SCHEMA_VERSION}");
        return Err(Error::new(ErrorKind::NewerSchema, "open it", path, why));
    }
    for (version, sql) in MIGRATIONS.iter().enumerate().skip(found) {
        let apply = |connection: &mut Connection| {
            let transaction = connection.transaction()?;
            transaction.execute_batch(sql)?;
            transaction.execute_batch(&format!("PRAGMA user_version = {}", version + 1))?;
            transaction.commit()
        };
        apply(connection).map_err(|e| Error::sqlite("bring its schema up to date", path, e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELEASED: [&str; 5] = [
        include_str!("../tests/golden/schema-1.sql"),
        include_str!("../tests/golden/schema-2.sql"),
        include_str!("../tests/golden/schema-3.sql"),
        include_str!("../tests/golden/schema-4.sql"),
        include_str!("../tests/golden/schema-5.sql"),
    ];

    fn tables(connection: &Connection) -> Vec<String> {
        let mut statement = connection
            .prepare("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY name")
            .unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(|sql| sql.unwrap()).collect()
    }

    #[test]
    fn every_released_schema_migrates_to_the_present_one() {
        let path = Path::new("memory");
        let mut fresh = Connection::open_in_memory().unwrap();
        migrate(&mut fresh, path).unwrap();
        for (index, sql) in RELEASED.iter().enumerate() {
            let mut old = Connection::open_in_memory().unwrap();
            old.execute_batch(sql).unwrap();
            old.execute_batch(&format!("PRAGMA user_version = {}", index + 1)).unwrap();
            migrate(&mut old, path).unwrap();
            assert_eq!(tables(&old), tables(&fresh), "from version {}", index + 1);
        }
        assert_eq!(RELEASED.len(), SCHEMA_VERSION);
    }

    #[test]
    fn a_released_schema_is_never_changed() {
        for (index, released) in RELEASED.iter().enumerate() {
            assert_eq!(MIGRATIONS[..=index].join("\n"), *released);
        }
    }
}
