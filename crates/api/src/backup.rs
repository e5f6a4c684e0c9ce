//! What is asked and told of backups of volumes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ErrorDetail, Volume};

/// A backup of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Backup {
    /// Its id, such as `20261125t192352-1a2b3c4d`; ids sort by time.
    pub id: String,
    /// The volume's name.
    pub volume: String,
    /// As of when; RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// The volume's size then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// What of it was not zeros.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_bytes: Option<u64>,
    /// What this backup added to the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_bytes: Option<u64>,
    /// Why it cannot be read; it then says nothing else of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// `POST /volumes/{name}/backups`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackupRequest {
    /// Another store than this host's, by URL: `file:///directory` or `s3://bucket/prefix`. For the admin only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// Reply of a backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BackupReply {
    /// The backup.
    #[serde(flatten)]
    pub backup: Backup,
    /// The store's URL.
    pub store: String,
    /// Chunks that are not zeros.
    pub chunks: u64,
    /// Those that the store did not have.
    pub new_chunks: u64,
    /// All that went to or came from the store.
    pub moved_bytes: u64,
    /// How the copy was made that was backed up: `reflink` or `sparse_copy`.
    pub clone: String,
    /// How long a guest's writes were held for the copy; missing where no guest could write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall_ms: Option<f64>,
    /// Milliseconds of each phase, and `total`.
    pub timings_ms: BTreeMap<String, f64>,
}

/// A line of a backup that is followed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BackupEvent {
    /// It goes on.
    Progress(BackupProgress),
    /// It is there; this is the last line.
    Backup(BackupReply),
    /// It failed, and there is no backup; this is the last line.
    Error(ErrorDetail),
}

/// How far a backup or a restore is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackupProgress {
    /// How much of the volume has been looked at.
    pub done_bytes: u64,
    /// The volume's size.
    pub total_bytes: u64,
    /// What was moved for it.
    pub moved_bytes: u64,
}

/// `POST /volumes/{name}/restore`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreRequest {
    /// Id of the backup.
    pub backup: String,
    /// Another store than this host's, by URL. For the admin only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

/// Reply of a restore.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RestoreReply {
    /// The volume afterwards.
    #[serde(flatten)]
    pub volume: Volume,
    /// The backup that it is as.
    pub backup: Backup,
    /// Whether there was no such volume before.
    pub created: bool,
    /// What was read of the store.
    pub moved_bytes: u64,
    /// Milliseconds of each phase, and `total`.
    pub timings_ms: BTreeMap<String, f64>,
}

/// A line of a restore that is followed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RestoreEvent {
    /// It goes on.
    Progress(BackupProgress),
    /// It is done; this is the last line.
    Restored(Box<RestoreReply>),
    /// It failed, and the volume is as before; this is the last line.
    Error(ErrorDetail),
}

/// `POST /volumes/{name}/backups/prune`. A backup stays when one of the three numbers wants it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackupPruneRequest {
    /// Keep the newest so many.
    #[serde(default)]
    pub last: u32,
    /// Keep the newest of each of the newest so many days that have any (UTC).
    #[serde(default)]
    pub daily: u32,
    /// Keep the newest of each of the newest so many weeks that have any.
    #[serde(default)]
    pub weekly: u32,
    /// Only say what would be removed.
    #[serde(default)]
    pub dry_run: bool,
    /// Another store than this host's, by URL. For the admin only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

/// What a removal of backups did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackupPruneReply {
    /// Whether it was only to be told.
    pub dry_run: bool,
    /// Ids of the backups that stay.
    pub kept: Vec<String>,
    /// Ids of the backups that are gone, or would be.
    pub removed: Vec<String>,
    /// Chunks that were removed because nothing names them any more.
    pub removed_chunks: u64,
    /// Their length in the store.
    pub freed_bytes: u64,
    /// Backups that cannot be read; while there are any, no chunk is removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<String>,
}

/// `PUT /volumes/{name}/schedule`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScheduleRequest {
    /// Minute, hour, day of the month, month, day of the week, as crontab(5) writes them, or `@daily` and the like; UTC.
    pub cron: String,
    /// How many backups are kept.
    pub keep: u32,
}

/// When a volume is backed up by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Schedule {
    /// When, as crontab(5) writes it; UTC.
    pub cron: String,
    /// How many backups are kept.
    pub keep: u32,
    /// When the next one is due; RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_at: Option<String>,
    /// Why the last one did not come to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}
