//! What is told of the host: health, version, events, images.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`.
    pub status: String,
    /// The daemon's version.
    pub version: String,
}

/// `GET /version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// The daemon's version.
    pub version: String,
    /// The VMM's version.
    pub vmm: String,
    /// `kvm` or `tcg`.
    pub accel: String,
    /// Whether guests are kept apart by hardware; false under `tcg`.
    pub security_boundary: bool,
    /// Where the data is.
    pub data_dir: String,
}

/// One thing that happened; `GET /events` streams them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Grows by one or more from event to event.
    pub seq: u64,
    /// RFC 3339.
    pub at: String,
    /// Such as `sandbox.created`, `sandbox.stopped`, `sandbox.cold_boot`.
    pub kind: String,
    /// The sandbox's id, when it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// The sandbox's name, when it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Details by kind.
    #[serde(default)]
    pub detail: serde_json::Value,
}

/// A base image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageObject {
    /// Name.
    pub name: String,
    /// `amd64` or `arm64`.
    pub arch: String,
    /// BLAKE3 of its content, 64 hex digits.
    pub id: String,
    /// Logical size in bytes.
    pub size_bytes: u64,
    /// Allocated bytes.
    pub allocated_bytes: u64,
    /// RFC 3339.
    pub created_at: String,
    /// Where it came from.
    pub source: String,
}
