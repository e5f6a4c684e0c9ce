//! What is asked and told of checks and of what nobody names.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::ErrorDetail;

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
    /// Findings of severity `error` that no repair has dealt with.
    pub errors: usize,
    /// Those of severity `warning`.
    pub warnings: usize,
    /// Those of severity `note`.
    pub notes: usize,
    /// What was found, the worst first.
    pub findings: Vec<Finding>,
    /// How much was looked at.
    pub checked: Checked,
}

/// How much was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Checked {
    /// Sandboxes.
    pub sandboxes: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Images' contents.
    pub images: u64,
    /// Kernels.
    pub kernels: u64,
    /// Templates.
    pub templates: u64,
    /// Frozen disk layers.
    pub layers: u64,
    /// RAM bases of sandboxes' own.
    pub bases: u64,
    /// Data that was read and compared with its checksum.
    pub bytes: u64,
}

/// A line of a check that is followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FsckEvent {
    /// It goes on.
    Progress {
        /// What is being read, for people.
        what: String,
        /// Bytes that were read.
        done_bytes: u64,
        /// Bytes that will have been read, about.
        total_bytes: u64,
    },
    /// It has ended; this is the last line.
    Report(Fsck),
    /// It failed; this is the last line.
    Error(ErrorDetail),
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
    /// What `repair` does about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair: Option<String>,
    /// What the repair did; begins with `failed: ` when it could not.
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
    /// `layer`, `base`, `template`, `image`, `kernel`, `blob` (a download) or `leftover`.
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
