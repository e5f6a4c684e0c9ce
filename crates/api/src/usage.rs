//! What is told of where the bytes are.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The bytes of something.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct UsageFigures {
    /// Lengths of its files: what `ls -l` says.
    pub apparent_bytes: u64,
    /// The same without holes: what a copy would have to write.
    pub referenced_bytes: u64,
    /// Each shared extent once, before compression.
    pub unique_bytes: u64,
    /// What lies on the disk: each shared extent once, after compression.
    pub physical_bytes: u64,
    /// The part of that which nothing else refers to: what is free when this alone is removed.
    pub exclusive_bytes: u64,
    /// Referenced over unique bytes.
    pub dedup_ratio: f64,
    /// Unique over physical bytes.
    pub compression_ratio: f64,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FileUsage {
    /// `root_disk`, `config`, `memory`, `device_state`, `record`, `image`, `layer`, `base`, `kernel`, `volume`, `database`,
    /// `log`, `staging`, `quarantine`, `directory` or `other`.
    pub kind: String,
    /// Path below the data directory.
    pub path: String,
    /// Its bytes.
    #[serde(flatten)]
    pub figures: UsageFigures,
}

/// All that an owner has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OwnerUsage {
    /// Who; null for what cannot be read.
    pub owner: Option<String>,
    /// Its bytes.
    #[serde(flatten)]
    pub figures: UsageFigures,
}

/// What is in a sandbox's own directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SandboxUsage {
    /// 16 hex digits.
    pub id: String,
    /// Its name; null when its manifest cannot be read.
    pub name: Option<String>,
    /// Whose it is; null when its manifest cannot be read.
    pub owner: Option<String>,
    /// Its bytes.
    #[serde(flatten)]
    pub figures: UsageFigures,
    /// Its files.
    pub files: Vec<FileUsage>,
    /// Paths of the shared objects that it lies on.
    pub lies_on: Vec<String>,
}

/// What is in a named snapshot's own directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotUsage {
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub owner: Option<String>,
    /// Its bytes.
    #[serde(flatten)]
    pub figures: UsageFigures,
    /// Its files.
    pub files: Vec<FileUsage>,
    /// Paths of the shared objects that it lies on.
    pub lies_on: Vec<String>,
}

/// Anything else: what sandboxes share, volumes, and what the daemon keeps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ObjectUsage {
    /// `image`, `layer`, `base`, `template`, `kernel`, `volume`, `database`, `log`, `staging` (being made or removed),
    /// `quarantine` (put aside by fsck), `directory` or `other`.
    pub kind: String,
    /// What people call it.
    pub name: String,
    /// Path below the data directory: of its one file, or of its directory.
    pub path: String,
    /// Whose it is; null for what is shared.
    pub owner: Option<String>,
    /// Its bytes.
    #[serde(flatten)]
    pub figures: UsageFigures,
    /// Its files.
    pub files: Vec<FileUsage>,
}

/// `GET /usage` and `GET /sandboxes/{id}/usage`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Whether every figure is what it is called; if not, `note` says which are bounds.
    pub exact: bool,
    /// What the reader should know.
    pub note: Option<String>,
    /// Where the figures come from: `btrfs_extents`, `fiemap` or `blocks`.
    pub method: String,
    /// All of it; of one sandbox, what is its own.
    pub total: UsageFigures,
    /// By owner.
    pub owners: Vec<OwnerUsage>,
    /// By sandbox.
    pub sandboxes: Vec<SandboxUsage>,
    /// By named snapshot.
    pub snapshots: Vec<SnapshotUsage>,
    /// Everything else; of one sandbox, what it lies on.
    pub objects: Vec<ObjectUsage>,
}
