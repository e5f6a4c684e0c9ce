//! What is asked and told of secrets; never their values.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `POST /secrets`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretRequest {
    /// Letters, digits and `_`, not beginning with a digit: the name of the variable in guests.
    pub name: String,
    /// What it is from now on, at most 32 KiB.
    pub value: String,
}

impl fmt::Debug for SecretRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretRequest").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A secret without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Secret {
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub owner: String,
    /// When the name was first set; RFC 3339.
    pub created_at: String,
    /// When it was last set; RFC 3339.
    pub updated_at: String,
    /// The sandboxes that it is given to, by name.
    pub used_by: Vec<String>,
}
