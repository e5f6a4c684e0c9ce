//! All sessions of this guest.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use wire::{ErrorCode, Failure, SessionInfo, SessionKind};

use crate::failure::failure;
use crate::poll::Poll;
use crate::session::{Origin, Session};
use crate::spawn::Started;

/// How many may run at once.
const MAX_RUNNING: usize = 128;
/// How many that have ended are still listed, and for how long.
const MAX_ENDED: usize = 32;
const ENDED_LISTED_FOR: Duration = Duration::from_secs(600);

/// The table of sessions, by number.
#[derive(Debug, Default)]
pub struct Sessions {
    table: BTreeMap<u32, Session>,
    last: u32,
}

impl Sessions {
    /// Refuses one more where there are too many.
    pub fn check_room(&self) -> Result<(), Failure> {
        let running = self.table.values().filter(|session| session.over_since().is_none()).count();
        if running < MAX_RUNNING {
            return Ok(());
        }
        Err(failure(
            ErrorCode::TooMany,
            "sessions",
            format_args!("{running} are running, which is as many as there may be"),
        ))
    }

    /// Takes a new one in and gives its number.
    pub fn insert(
        &mut self,
        kind: SessionKind,
        terminal: bool,
        deadline: Option<Instant>,
        started: Started,
        poll: &Poll,
    ) -> u32 {
        self.last += 1;
        let number = self.last;
        let id = match kind {
            SessionKind::Init => "init".to_string(),
            SessionKind::Exec => format!("x{number}"),
            SessionKind::Shell => format!("s{number}"),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let started_unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let origin = Origin { number, id, kind, terminal, started_unix_ms, deadline };
        self.table.insert(number, Session::new(origin, started, poll));
        number
    }

    /// One by its number.
    pub fn get_mut(&mut self, number: u32) -> Option<&mut Session> {
        self.table.get_mut(&number)
    }

    /// One by its name; the newest, if a name was used again.
    pub fn find(&self, id: &str) -> Option<u32> {
        self.table.iter().rev().find(|(_, session)| session.id() == id).map(|(number, _)| *number)
    }

    /// The newest running shell that nobody looks at.
    pub fn idle_shell(&self) -> Option<u32> {
        self.table.iter().rev().find(|(_, session)| session.is_idle_shell()).map(|(number, _)| *number)
    }

    /// All, oldest first.
    pub fn list(&self) -> Vec<SessionInfo> {
        self.table.values().map(Session::info).collect()
    }

    /// All of them, to do something to each.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        self.table.values_mut()
    }

    /// Forgets those that ended long ago, or are the oldest of too many.
    pub fn prune(&mut self, now: Instant) {
        let mut ended: Vec<(Instant, u32)> = self
            .table
            .iter()
            .filter_map(|(number, session)| Some((session.over_since()?, *number)))
            .collect();
        ended.sort();
        let too_many = ended.len().saturating_sub(MAX_ENDED);
        for (place, (at, number)) in ended.into_iter().enumerate() {
            if place < too_many || now >= at + ENDED_LISTED_FOR {
                self.table.remove(&number);
            }
        }
    }
}
