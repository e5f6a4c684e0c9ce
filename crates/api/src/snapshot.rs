//! What is asked and told of named snapshots and forks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::sandbox::SandboxReply;

/// A named snapshot as everybody sees it: a sandbox as it was at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// Name, unique for its owner.
    pub name: String,
    /// Whose it is.
    pub owner: String,
    /// Id of the sandbox that it was made of, which may be gone.
    pub source_id: String,
    /// That sandbox's name then.
    pub source_name: String,
    /// RFC 3339.
    pub created_at: String,
    /// Whether it has no memory, so that what is resumed from it boots.
    pub disk_only: bool,
    /// Base image's name.
    pub image: String,
    /// Virtual processors.
    pub cpus: u32,
    /// Guest memory in MiB.
    pub memory_mb: u64,
    /// Root disk in MiB.
    pub disk_size_mb: u64,
    /// The source's labels then.
    pub labels: BTreeMap<String, String>,
    /// `kvm` or `tcg`: what executed the source.
    pub accel: String,
    /// How long the guest stood still for it, in milliseconds; 0 if it did not run.
    pub pause_ms: f64,
    /// Bytes of memory that the guest had of its own.
    pub private_bytes: u64,
    /// Bytes that these take on disk.
    pub stored_bytes: u64,
}

/// Reply of `POST /sandboxes/{id}/snapshots`: the snapshot, and what this call took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotReply {
    /// The snapshot.
    #[serde(flatten)]
    pub snapshot: Snapshot,
    /// Milliseconds of each phase, and `total`; `pause` is how long the guest stood still.
    pub timings_ms: BTreeMap<String, f64>,
    /// What the caller should know, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// `POST /sandboxes/{id}/snapshots`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRequest {
    /// Name, free among the owner's snapshots.
    pub name: String,
    /// Only the disk, synced before: what is resumed from it boots.
    #[serde(default)]
    pub disk_only: bool,
}

/// `POST /snapshots/{name}/resume`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResumeRequest {
    /// Name of the sandbox; a free one is made up when it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Labels beside the snapshot's, which they replace where the key is the same.
    pub labels: BTreeMap<String, String>,
    /// Never put to sleep by itself.
    pub keep_hot: bool,
    /// Root disk in MiB; the snapshot's size when missing. It only grows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_size_mb: Option<u64>,
    /// Refuse (409) instead of taking a slow path.
    pub strict: bool,
}

/// `POST /sandboxes/{id}/fork`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ForkRequest {
    /// Name of the copy, or of several: NAME-1, NAME-2 and so on. A free one is made up when it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How many copies: 1 to 64.
    pub count: u32,
    /// Labels beside the source's, which they replace where the key is the same.
    pub labels: BTreeMap<String, String>,
    /// Never put to sleep by themselves.
    pub keep_hot: bool,
    /// Root disks in MiB; the source's size when missing. They only grow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_size_mb: Option<u64>,
    /// Refuse (409) instead of taking a slow path.
    pub strict: bool,
}

impl Default for ForkRequest {
    fn default() -> Self {
        Self {
            name: None,
            count: 1,
            labels: BTreeMap::new(),
            keep_hot: false,
            disk_size_mb: None,
            strict: false,
        }
    }
}

/// Reply of `POST /sandboxes/{id}/fork`: the first copy at the top, as a create would tell it, and all of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ForkReply {
    /// The first copy.
    #[serde(flatten)]
    pub first: SandboxReply,
    /// All copies, in the order of their names' numbers.
    pub sandboxes: Vec<SandboxReply>,
}
