//! What is asked and told of images.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A base image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageObject {
    /// Name.
    pub name: String,
    /// Whose alone it is; missing for one that all may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
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
    /// What it wants of its sandboxes; missing for images that were built here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ImageConfig>,
}

/// What an image wants of its sandboxes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ImageConfig {
    /// Environment of every command; that of `create` and of a command wins.
    pub env: BTreeMap<String, String>,
    /// Where commands begin that say nothing else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Whose commands are that say nothing else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// With `cmd` what runs as the session `init`, unless it is a shell alone or `create` was given an `init`.
    pub entrypoint: Vec<String>,
    /// See `entrypoint`.
    pub cmd: Vec<String>,
}

/// `POST /images/pull`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PullRequest {
    /// `[http://]registry[:port]/name[:tag|@digest]`; a short name is Docker Hub's.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Name of the image here. One that exists is replaced when the new one is whole.
    pub name: String,
    /// `USER:TOKEN` for the registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<String>,
}

impl std::fmt::Debug for PullRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Credentials are not for logs.
        f.debug_struct("PullRequest")
            .field("reference", &self.reference)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// `POST /images/save`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SaveRequest {
    /// Name or id of the sandbox.
    pub sandbox: String,
    /// Name of the image. One that exists is replaced when the new one is whole.
    pub name: String,
}

/// `POST /images/build`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BuildRequest {
    /// Which of the declared images.
    pub tier: String,
    /// Name of the image; the tier's when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}
