//! What is asked and told of volumes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A volume as everybody sees it: a disk that outlives sandboxes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// Name, unique for its owner.
    pub name: String,
    /// Whose it is.
    pub owner: String,
    /// What the guest sees, in MiB.
    pub size_mb: u64,
    /// What it takes on the host's disk; a volume is sparse.
    pub allocated_bytes: u64,
    /// RFC 3339.
    pub created_at: String,
    /// The sandboxes that it is attached to, running or not: one, or several that only read.
    pub attached_to: Vec<VolumeAttachment>,
    /// Id of the copy of a sandbox that it was cloned for. It is deleted with that sandbox, unless it is detached before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_for: Option<String>,
    /// When it is backed up by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<crate::Schedule>,
}

/// A sandbox that has a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeAttachment {
    /// The sandbox's name.
    pub sandbox: String,
    /// Its id.
    pub id: String,
    /// Where it is mounted in the guest.
    pub mount: String,
    /// Whether the guest may only read it.
    pub read_only: bool,
}

/// Reply of the verbs on volumes: the volume, and what this call did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VolumeReply {
    /// The volume after the call.
    #[serde(flatten)]
    pub volume: Volume,
    /// Whether this call changed anything.
    pub changed: bool,
    /// How it was cloned: `reflink` or `sparse_copy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone: Option<String>,
    /// How long a guest's writes to the source had to wait for the clone; missing where no guest could write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall_ms: Option<f64>,
    /// Milliseconds of each phase of this call, and `total`; empty for a no-op.
    pub timings_ms: BTreeMap<String, f64>,
    /// What the caller should know, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// `POST /volumes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeCreateRequest {
    /// Name, free among the owner's volumes.
    pub name: String,
    /// What the guest is to see, in MiB; 8 or more.
    pub size_mb: u64,
}

/// `POST /volumes/{name}/attach`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeAttachRequest {
    /// Name or id of the sandbox.
    pub sandbox: String,
    /// Where to mount it: absolute, and not over what the system needs. The directory is made.
    pub mount: String,
    /// Whether the guest may only read it; several sandboxes may then have it.
    #[serde(default)]
    pub read_only: bool,
}

/// `POST /volumes/{name}/detach`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeDetachRequest {
    /// Name or id of the sandbox.
    pub sandbox: String,
}

/// `POST /volumes/{name}/resize`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeResizeRequest {
    /// What the guest is to see, in MiB; volumes only grow.
    pub size_mb: u64,
}

/// `POST /volumes/{name}/clone`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeCloneRequest {
    /// Name of the clone, free among the owner's volumes.
    pub name: String,
}
