//! How a refusal looks: `{"error":{"code":...,"message":...,"hint":...}}`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The body of every reply with a status of 400 or above.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// The refusal.
    pub error: ErrorDetail,
}

/// A refusal: a word for programs, a line for people, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorDetail {
    /// A stable word such as `not_found`.
    pub code: String,
    /// What failed and why, one line.
    pub message: String,
    /// What to do; empty where nothing helps.
    #[serde(default)]
    pub hint: String,
}
