//! What is told of sandboxes, their sessions and their files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::request::VolumeSpec;

/// A sandbox as everybody sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Sandbox {
    /// 16 hex digits.
    pub id: String,
    /// Name, unique for its owner.
    pub name: String,
    /// Whose it is.
    pub owner: String,
    /// Base image's name.
    pub image: String,
    /// Virtual processors.
    pub cpus: u32,
    /// Guest memory in MiB.
    pub memory_mb: u64,
    /// Root disk in MiB.
    pub disk_size_mb: u64,
    /// `running`, `stopped` or `error`.
    pub status: String,
    /// `hot`, `warm` or `cold`.
    pub thermal: String,
    /// Exempt from going to sleep by itself.
    pub keep_hot: bool,
    /// Seconds without work after which it is paused; never when null.
    pub warm_after_sec: Option<u32>,
    /// Seconds without work after which it is put to sleep; never when null.
    pub cold_after_sec: Option<u32>,
    /// Whether that is done also while its guest is busy or a detached command runs.
    pub sleep_busy: bool,
    /// What was last decided about it by itself, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_decision: Option<LastDecision>,
    /// Free-form labels.
    pub labels: BTreeMap<String, String>,
    /// The volumes that are attached, in the order of their ports.
    pub volumes: Vec<VolumeSpec>,
    /// The secrets that it is given, by name.
    #[serde(default)]
    pub secrets: Vec<String>,
    /// How it reaches the world: `bridge`, `user` or `none`.
    pub net: String,
    /// What it may reach.
    pub egress: Vec<String>,
    /// How much its network may carry in a second in each direction (`20M:5000`: bytes, packets), or `unlimited`.
    pub net_rate: String,
    /// How much its disks may read and write together in a second (`100M:2000`: bytes, operations), or `unlimited`.
    pub disk_rate: String,
    /// Its own IPv4 address, on a line that it is alone on; null without a network.
    pub ip: Option<String>,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub last_active_at: String,
    /// How often its disk was handed to a machine.
    pub generation: u64,
    /// How the present (or last) run began: `template`, `standby`, `cold_boot`, `resume` or `fork`.
    pub boot: String,
    /// How its root disk was made: `overlay`, `reflink` or `sparse_copy`.
    pub clone: String,
    /// `kvm` or `tcg`.
    pub accel: String,
    /// Why it is in `error`; what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The last change of state and what it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition: Option<LastTransition>,
}

/// Whether it was left alone, paused or put to sleep by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastDecision {
    /// `stay`, `pause` or `sleep`.
    pub action: String,
    /// Why, for people.
    pub reason: String,
    /// Since when; RFC 3339.
    pub at: String,
}

/// A change of state that was made: create, start (wake), stop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LastTransition {
    /// `create`, `start` or `stop`.
    pub verb: String,
    /// RFC 3339.
    pub at: String,
    /// Milliseconds of each phase, and `total`.
    pub timings_ms: BTreeMap<String, f64>,
    /// Bytes of memory image: `private` (in the guest) and `stored` (on disk), after a stop.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bytes: BTreeMap<String, u64>,
}

/// Reply of the verbs that make or move a sandbox: the sandbox, and what this call took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SandboxReply {
    /// The sandbox after the call.
    #[serde(flatten)]
    pub sandbox: Sandbox,
    /// Whether this call changed anything.
    pub changed: bool,
    /// Milliseconds of each phase of this call, and `total`; empty for a no-op. Of a fork also `pause`, a part of
    /// `capture`: how long the source stood still.
    pub timings_ms: BTreeMap<String, f64>,
    /// What the caller should know, one line each (e.g. that memory was lost and the disk booted).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A session in the guest: a shell, the init command or a detached command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Session {
    /// Id within the sandbox.
    pub id: String,
    /// `init`, `exec` or `shell`.
    pub kind: String,
    /// What runs in it.
    pub command: Vec<String>,
    /// Process id in the guest.
    pub pid: u32,
    /// RFC 3339, by the guest's clock.
    pub started_at: String,
    /// Whether somebody looks at it.
    pub attached: bool,
    /// Exit status once it ended (128+n for a signal).
    pub exit_code: Option<i32>,
}

/// One name in a directory of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileEntry {
    /// Name within the directory.
    pub name: String,
    /// What it is.
    #[serde(flatten)]
    pub stat: FileStat,
}

/// What a file in the guest is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileStat {
    /// `file`, `directory`, `symlink` or `other`.
    pub kind: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Permission bits in octal, such as `0644`.
    pub mode: String,
    /// Owner's user id.
    pub uid: u32,
    /// Owner's group id.
    pub gid: u32,
    /// RFC 3339.
    pub modified_at: String,
    /// Where a symlink points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}
