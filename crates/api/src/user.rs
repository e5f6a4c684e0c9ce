//! What is asked and told of users; a key is told once, by what makes it.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

/// Body of `POST /users`. A limit that is missing is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserCreateRequest {
    /// Name: 1 to 63 of `a-z`, `0-9` and `-`.
    pub name: String,
    /// Sandboxes, whatever they do.
    #[serde(default)]
    pub max_sandboxes: Option<u64>,
    /// Memory of the machines that exist (hot and warm sandboxes) together, in MiB.
    #[serde(default)]
    pub max_memory_mb: Option<u64>,
    /// Processors of the machines that exist.
    #[serde(default)]
    pub max_cpus: Option<u64>,
    /// What takes place on the disk, in MiB, as `GET /usage` counts it (`physical_bytes`). Looked at when something is made.
    #[serde(default)]
    pub max_disk_mb: Option<u64>,
    /// Volumes.
    #[serde(default)]
    pub max_volumes: Option<u64>,
    /// Named snapshots.
    #[serde(default)]
    pub max_snapshots: Option<u64>,
    /// Images of their own.
    #[serde(default)]
    pub max_images: Option<u64>,
}

/// Body of `PATCH /users/{name}`: a limit that is missing stays, `null` takes it away.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserEditRequest {
    /// As at the creation.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    #[schema(value_type = Option<u64>)]
    pub max_sandboxes: Option<Option<u64>>,
    /// As at the creation.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    #[schema(value_type = Option<u64>)]
    pub max_memory_mb: Option<Option<u64>>,
    /// As at the creation.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    #[schema(value_type = Option<u64>)]
    pub max_cpus: Option<Option<u64>>,
    /// As at the creation.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    #[schema(value_type = Option<u64>)]
    pub max_disk_mb: Option<Option<u64>>,
    /// As at the creation.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    #[schema(value_type = Option<u64>)]
    pub max_volumes: Option<Option<u64>>,
    /// As at the creation.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    #[schema(value_type = Option<u64>)]
    pub max_snapshots: Option<Option<u64>>,
    /// As at the creation.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    #[schema(value_type = Option<u64>)]
    pub max_images: Option<Option<u64>>,
}

/// `null` is told apart from nothing.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// A user without their key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct User {
    /// Name; `owner` of what is theirs.
    pub name: String,
    /// Sandboxes, whatever they do; missing limits are none.
    pub max_sandboxes: Option<u64>,
    /// Memory of the machines that exist, in MiB.
    pub max_memory_mb: Option<u64>,
    /// Processors of the machines that exist.
    pub max_cpus: Option<u64>,
    /// What takes place on the disk, in MiB.
    pub max_disk_mb: Option<u64>,
    /// Volumes.
    pub max_volumes: Option<u64>,
    /// Named snapshots.
    pub max_snapshots: Option<u64>,
    /// Images of their own.
    pub max_images: Option<u64>,
    /// What they have of it; `GET /usage?owner=NAME` tells of the disk.
    pub used: UserUsed,
    /// RFC 3339.
    pub created_at: String,
    /// When the key was made; RFC 3339.
    pub key_created_at: String,
}

/// What a user has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UserUsed {
    /// Sandboxes.
    pub sandboxes: u64,
    /// Memory of the machines that exist, in MiB.
    pub memory_mb: u64,
    /// Processors of the machines that exist.
    pub cpus: u64,
    /// Volumes.
    pub volumes: u64,
    /// Named snapshots.
    pub snapshots: u64,
    /// Images of their own.
    pub images: u64,
}

/// A user, and the key that is told this once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UserWithKey {
    /// The user.
    #[serde(flatten)]
    pub user: User,
    /// `bht_` and 64 hex digits.
    pub key: String,
}

impl fmt::Debug for UserWithKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserWithKey").field("user", &self.user).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_null_is_taken_away_and_one_that_is_missing_stays() {
        let read = |text: &str| serde_json::from_str::<UserEditRequest>(text).unwrap();
        assert_eq!(read("{}"), UserEditRequest::default());
        let asked = read(r#"{"max_cpus":null,"max_volumes":3}"#);
        assert_eq!((asked.max_cpus, asked.max_volumes), (Some(None), Some(Some(3))));
        assert_eq!(serde_json::to_string(&asked).unwrap(), r#"{"max_cpus":null,"max_volumes":3}"#);
    }
}
