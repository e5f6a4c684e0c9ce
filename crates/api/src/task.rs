//! What is told of long work.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::ErrorDetail;

/// Long work that outlives the request that asked for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Task {
    /// Id.
    pub id: String,
    /// Whose it is.
    pub owner: String,
    /// `image.pull`, `image.import`, `image.save` or `image.build`.
    pub kind: String,
    /// What it is about: the name of the image.
    pub subject: String,
    /// `queued`, `running`, `done`, `failed` or `cancelled`; the last three are for good.
    pub status: String,
    /// How far it is.
    pub progress: TaskProgress,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorDetail>,
    /// What it made, by kind: `image`, `warnings`; of a pull also `digest`, `moved_bytes`, `layers`, `reused_layers`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<serde_json::Value>,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339, once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
}

/// How far a task is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskProgress {
    /// What is being done, for people.
    pub what: String,
    /// Bytes that are done of this step.
    pub done_bytes: u64,
    /// Bytes of this step; 0 where nobody knows.
    pub total_bytes: u64,
}
