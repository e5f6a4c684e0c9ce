//! What is asked and told of checks and of what nobody names.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `POST /fsck`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FsckRequest {
    /// Mend what can be mended without losing anything, and move away what cannot.
    pub repair: bool,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Fsck {
    /// Whether nothing is damaged, or no longer.
    pub clean: bool,
    /// Whether it went to the end.
    pub complete: bool,
    /// What was found, the worst first.
    pub findings: Vec<Finding>,
    /// Bytes that were read and compared with their checksums.
    pub checked_bytes: u64,
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// `error`, `warning` or `note`.
    pub severity: String,
    /// `sandbox`, `snapshot`, `image`, `kernel`, `template`, `layer`, `base` or `stray`.
    pub kind: String,
    /// What people call it, or its id.
    pub name: String,
    /// The file or directory, from the data directory.
    pub path: String,
    /// What is wrong with it.
    pub what: String,
    /// What to do.
    pub way_out: String,
    /// The sandboxes and snapshots that need it.
    pub needed_by: Vec<String>,
    /// Whether `repair` does something about it.
    pub repairable: bool,
    /// What the repair did, or why it could not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
}

/// `POST /gc`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GcRequest {
    /// Only tell what would be removed.
    pub dry_run: bool,
}

/// What was removed, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Gc {
    /// Whether nothing was removed yet.
    pub dry_run: bool,
    /// What is gone, or would be.
    pub removed: Vec<GcItem>,
    /// What nobody names and stays all the same, with the reason.
    pub kept: Vec<GcItem>,
    /// Records that cannot be read, so that what they may name stays.
    pub unreadable: Vec<String>,
    /// What could not be removed.
    pub failed: Vec<String>,
    /// What is free by it.
    pub freed_bytes: u64,
}

/// Something that nobody names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GcItem {
    /// `layer`, `base`, `template`, `image`, `kernel` or `leftover`.
    pub kind: String,
    /// Its id, or its path.
    pub name: String,
    /// Why nobody can want it, or why it stays.
    pub why: String,
    /// What it occupies.
    pub allocated_bytes: u64,
    /// What of that is free without it.
    pub frees_bytes: u64,
}
