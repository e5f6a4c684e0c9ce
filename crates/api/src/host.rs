//! What is told of the host: health, version, events.

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
    /// Whose it is.
    pub owner: String,
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
