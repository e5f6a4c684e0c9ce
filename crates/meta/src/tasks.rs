//! Tasks: long work, as the index remembers it.

use rusqlite::params;
use types::{Owner, TaskId, Timestamp};

use crate::error::Result;
use crate::index::Index;

/// How many of the newest finished tasks stay.
pub const TASKS_KEPT: u32 = 200;

/// One task. The index looks into nothing but whether it is finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskRow {
    /// The key.
    pub id: TaskId,
    /// Whose it is.
    pub owner: Owner,
    /// Whether it has ended, in whatever way.
    pub finished: bool,
    /// What the conductor wants to see again, as JSON.
    pub record_json: String,
    /// When it was begun.
    pub created_at: Timestamp,
}

impl Index {
    /// Adds a task or replaces the one with its id, and forgets finished ones past [`TASKS_KEPT`].
    ///
    /// # Errors
    /// Those of the file.
    pub fn put_task(&mut self, row: &TaskRow) -> Result<()> {
        self.transact("record a task", |transaction| {
            transaction
                .prepare_cached(
                    "INSERT INTO tasks (id, owner, finished, record_json, created_at_ms) VALUES (?1, ?2, ?3, ?4, ?5) \
                     ON CONFLICT (id) DO UPDATE SET finished = excluded.finished, record_json = excluded.record_json",
                )?
                .execute(params![
                    row.id.as_str(),
                    row.owner.as_str(),
                    row.finished,
                    row.record_json,
                    row.created_at.0
                ])?;
            transaction
                .prepare_cached(
                    "DELETE FROM tasks WHERE finished AND id NOT IN \
                     (SELECT id FROM tasks WHERE finished ORDER BY created_at_ms DESC, id LIMIT ?1)",
                )?
                .execute([TASKS_KEPT])
                .map(drop)
        })
    }

    /// Every task, oldest first.
    ///
    /// # Errors
    /// Those of the file.
    pub fn tasks(&self) -> Result<Vec<TaskRow>> {
        let read = || {
            let mut statement = self.connection.prepare_cached(
                "SELECT id, owner, finished, record_json, created_at_ms FROM tasks ORDER BY created_at_ms, id",
            )?;
            let row = |row: &rusqlite::Row<'_>| {
                Ok(TaskRow {
                    id: crate::row::parsed(row, 0)?,
                    owner: crate::row::parsed(row, 1)?,
                    finished: row.get(2)?,
                    record_json: row.get(3)?,
                    created_at: Timestamp(row.get(4)?),
                })
            };
            statement.query_map([], row)?.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(self.failed("list tasks"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_replaced_by_its_later_self_and_old_finished_ones_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let mut index = Index::open(&dir.path().join("db")).unwrap();
        let task = |at: i64, finished| TaskRow {
            id: TaskId::random(),
            owner: Owner::admin(),
            finished,
            record_json: "{}".to_owned(),
            created_at: Timestamp(at),
        };
        let mut running = task(-1, false);
        index.put_task(&running).unwrap();
        for at in 0..i64::from(TASKS_KEPT) + 5 {
            index.put_task(&task(at, true)).unwrap();
        }
        let tasks = index.tasks().unwrap();
        assert_eq!(tasks.len(), usize::try_from(TASKS_KEPT).unwrap() + 1);
        assert_eq!(tasks[0], running, "what runs is never forgotten");
        assert_eq!(tasks[1].created_at, Timestamp(5));
        running.finished = true;
        running.record_json = "{\"a\":1}".to_owned();
        index.put_task(&running).unwrap();
        assert!(!index.tasks().unwrap().contains(&running), "it is the oldest finished one now");
    }
}
