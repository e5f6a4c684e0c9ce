//! Tasks: long work that outlives the request that asked for it, with a state that anybody can follow.
//!
//! ```text
//! queued ──► running ──► done
//!    │          ├──────► failed      also: the daemon ended, or was found to have ended
//!    └──────────┴──────► cancelled
//! ```
//!
//! # Crash order
//! A task is in the index before its work begins, and its work commits before the index says `done`. So a daemon that is
//! started again finds every task that had not ended, and says of it that it failed; what the work itself had made is
//! either whole or a leftover that is removed, except for downloads, which the next pull goes on with.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use image::{Cancel, Progress};
use meta::TaskRow;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use types::{Owner, TaskId, Timestamp};

use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::services::Services;

/// How many tasks work at the same time: they are bound by the disk and the network.
const AT_ONCE: usize = 2;

/// Where a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskStatus {
    /// It waits for others to end.
    Queued,
    /// It is at work.
    Running,
    /// It has done what was asked.
    Done,
    /// It has not, and left nothing half-made.
    Failed,
    /// Somebody did not want it any more.
    Cancelled,
}

impl TaskStatus {
    /// The word in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing will come any more.
    #[must_use]
    pub const fn is_final(self) -> bool {
        match self {
            Self::Queued | Self::Running => false,
            Self::Done | Self::Failed | Self::Cancelled => true,
        }
    }
}

/// How far a task is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskProgress {
    /// For people.
    pub what: String,
    /// Bytes that are done of this step.
    pub done_bytes: u64,
    /// Bytes of this step; 0 where nobody knows.
    pub total_bytes: u64,
}

/// Why a task failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskError {
    /// A stable word.
    pub code: String,
    /// What failed and why.
    pub message: String,
    /// What to do; may be empty.
    pub hint: String,
}

/// A task as it is at one moment, and as the index keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Id.
    pub id: TaskId,
    /// Whose it is.
    pub owner: Owner,
    /// Such as `image.pull`.
    pub kind: String,
    /// What it is about: an image's name.
    pub subject: String,
    /// Where it is.
    pub status: TaskStatus,
    /// How far it is.
    pub progress: TaskProgress,
    /// Why it failed.
    pub error: Option<TaskError>,
    /// What it made.
    pub result: Option<serde_json::Value>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

/// The tasks that have not ended.
#[derive(Debug)]
pub(crate) struct Tasks {
    live: Mutex<HashMap<TaskId, Live>>,
    slots: Arc<Semaphore>,
    /// The daemon ends: what is called off now did not fail by its own doing.
    ending: CancellationToken,
}

#[derive(Debug)]
struct Live {
    state: watch::Sender<TaskRecord>,
    stop: Stop,
}

/// A wish to stop, for work that waits and work that computes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop {
    pub(crate) flag: Cancel,
    pub(crate) token: CancellationToken,
}

impl Stop {
    fn now(&self) {
        self.flag.cancel();
        self.token.cancel();
    }
}

/// What a task's work has at hand.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    pub(crate) stop: Stop,
    state: watch::Sender<TaskRecord>,
}

impl Work {
    /// Tells how far it is.
    pub(crate) fn at(&self, what: impl Into<String>, done_bytes: u64, total_bytes: u64) {
        let progress = TaskProgress { what: what.into(), done_bytes, total_bytes };
        self.state.send_modify(|task| task.progress = progress);
    }

    /// As [`Work::at`], for the rooms below.
    pub(crate) fn progress(&self, progress: Progress) {
        self.at(progress.step, progress.done, progress.total);
    }

    /// As [`Work::progress`], for work that counts steps instead of bytes.
    pub(crate) fn step(&self, progress: Progress) {
        let Progress { step, done, total } = progress;
        let text =
            if total > 0 { format!("{step} (step {} of {total})", (done + 1).min(total)) } else { step };
        self.at(text, 0, 0);
    }
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            live: Mutex::default(),
            slots: Arc::new(Semaphore::new(AT_ONCE)),
            ending: CancellationToken::new(),
        }
    }
}

impl Tasks {
    fn live(&self) -> MutexGuard<'_, HashMap<TaskId, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls off everything, because the daemon ends.
    pub(crate) fn end(&self) {
        self.ending.cancel();
        for live in self.live().values() {
            live.stop.now();
        }
    }
}

/// Tells of every task that had not ended when an earlier daemon did that it failed.
pub(crate) fn bury(services: &Services) -> Result<()> {
    let mut index = services.index();
    for row in index.tasks()?.into_iter().filter(|row| !row.finished) {
        let Ok(mut task) = serde_json::from_str::<TaskRecord>(&row.record_json) else { continue };
        task.status = TaskStatus::Failed;
        task.finished_at = Some(Timestamp::now());
        task.error = Some(restarted());
        index.put_task(&self::row(&task))?;
    }
    Ok(())
}

fn restarted() -> TaskError {
    TaskError {
        code: ErrorKind::ShuttingDown.code().to_owned(),
        message: "the daemon was restarted".to_owned(),
        hint: "try again".to_owned(),
    }
}

fn row(task: &TaskRecord) -> TaskRow {
    TaskRow {
        id: task.id.clone(),
        owner: task.owner.clone(),
        finished: task.status.is_final(),
        record_json: serde_json::to_string(task).unwrap_or_default(),
        created_at: task.created_at,
    }
}

impl Host {
    /// Begins work that outlives its request.
    pub(crate) fn begin<W>(
        &self,
        owner: &Owner,
        kind: &'static str,
        subject: String,
        work: impl FnOnce(Work) -> W + Send + 'static,
    ) -> Result<TaskRecord>
    where
        W: Future<Output = Result<serde_json::Value>> + Send,
    {
        let task = TaskRecord {
            id: TaskId::random(),
            owner: owner.clone(),
            kind: kind.to_owned(),
            subject,
            status: TaskStatus::Queued,
            progress: TaskProgress::default(),
            error: None,
            result: None,
            created_at: Timestamp::now(),
            finished_at: None,
        };
        let tasks = &self.inner.tasks;
        if tasks.ending.is_cancelled() {
            return Err(Error::new(ErrorKind::ShuttingDown, "the daemon is shutting down"));
        }
        // Before anything is done, so that no crash loses it.
        self.inner.services.index().put_task(&row(&task))?;
        let (state, _) = watch::channel(task.clone());
        let stop = Stop::default();
        tasks.live().insert(task.id.clone(), Live { state: state.clone(), stop: stop.clone() });
        let host = self.clone();
        self.inner.owners.spawn(async move {
            let done =
                run(&host.inner.tasks.slots, Work { stop: stop.clone(), state: state.clone() }, work).await;
            host.conclude(&state, &stop, done);
        });
        Ok(task)
    }

    fn conclude(&self, state: &watch::Sender<TaskRecord>, stop: &Stop, done: Result<serde_json::Value>) {
        let mut task = state.borrow().clone();
        task.finished_at = Some(Timestamp::now());
        match done {
            Ok(result) => {
                task.status = TaskStatus::Done;
                task.result = Some(result);
            }
            Err(_) if self.inner.tasks.ending.is_cancelled() && stop.token.is_cancelled() => {
                task.status = TaskStatus::Failed;
                task.error = Some(restarted());
            }
            Err(_) if stop.token.is_cancelled() => task.status = TaskStatus::Cancelled,
            Err(error) => {
                task.status = TaskStatus::Failed;
                task.error = Some(TaskError {
                    code: error.kind().code().to_owned(),
                    message: error.with_causes(),
                    hint: error.way_out().to_owned(),
                });
            }
        }
        if let Err(error) = self.inner.services.index().put_task(&row(&task)) {
            tracing::error!(%error, id = %task.id, "how a task ended could not be kept");
        }
        let detail = serde_json::json!({
            "task": task.id,
            "subject": task.subject,
            "error": task.error.as_ref().map(|error| &error.message),
        });
        let kind = match task.status {
            TaskStatus::Done => "task.done",
            TaskStatus::Cancelled => "task.cancelled",
            TaskStatus::Queued | TaskStatus::Running | TaskStatus::Failed => "task.failed",
        };
        self.inner.services.events.host(kind, &task.owner, detail);
        // Kept first, forgotten last: whoever looks finds it in the one place or the other.
        let id = task.id.clone();
        state.send_replace(task);
        self.inner.tasks.live().remove(&id);
    }

    /// The owner's tasks, or everybody's, the newest first.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn tasks(&self, owner: Option<&Owner>) -> Result<Vec<TaskRecord>> {
        let rows = self.inner.services.index().tasks()?;
        let live = self.inner.tasks.live();
        let tasks =
            rows.iter().rev().filter(|row| owner.is_none_or(|owner| row.owner == *owner)).filter_map(|row| {
                match live.get(&row.id) {
                    Some(live) => Some(live.state.borrow().clone()),
                    None => serde_json::from_str(&row.record_json).ok(),
                }
            });
        let tasks = tasks.collect();
        Ok(tasks)
    }

    /// A task to be followed: its states until the last.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn follow_task(&self, owner: &Owner, id: &str) -> Result<watch::Receiver<TaskRecord>> {
        let missing = || {
            Error::new(ErrorKind::NotFound, format!("there is no task {id:?}"))
                .hint("tasks that ended long ago are forgotten; GET /tasks lists the others")
        };
        let id: TaskId = id.parse().map_err(|_| missing())?;
        if let Some(live) = self.inner.tasks.live().get(&id) {
            return if live.state.borrow().owner == *owner {
                Ok(live.state.subscribe())
            } else {
                Err(missing())
            };
        }
        let rows = self.inner.services.index().tasks()?;
        let row = rows.into_iter().find(|row| row.id == id && row.owner == *owner).ok_or_else(missing)?;
        let task = serde_json::from_str(&row.record_json).map_err(|error| {
            Error::new(ErrorKind::Corrupt, "a task's record makes no sense").source(error)
        })?;
        Ok(watch::channel(task).1)
    }

    /// Calls a task off; one that has ended stays as it is. Gives it as it is when it has ended.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn cancel_task(&self, owner: &Owner, id: &str) -> Result<TaskRecord> {
        let mut state = self.follow_task(owner, id)?;
        let key = state.borrow().id.clone();
        if let Some(live) = self.inner.tasks.live().get(&key) {
            live.stop.now();
        }
        // Its sender goes away only after the last state.
        let ended = state.wait_for(|task| task.status.is_final()).await;
        let task = match ended {
            Ok(task) => task.clone(),
            Err(_) => return Err(Error::new(ErrorKind::Internal, "a task went away without an end")),
        };
        Ok(task)
    }
}

async fn run<W>(slots: &Semaphore, work: Work, begin: impl FnOnce(Work) -> W) -> Result<serde_json::Value>
where
    W: Future<Output = Result<serde_json::Value>>,
{
    let called_off = || Error::new(ErrorKind::Cancelled, "it was called off");
    let _slot = tokio::select! {
        biased;
        () = work.stop.token.cancelled() => return Err(called_off()),
        slot = slots.acquire() => slot,
    };
    work.state.send_modify(|task| task.status = TaskStatus::Running);
    begin(work).await
}
