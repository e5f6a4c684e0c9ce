//! What is asked and told of ports, and of what is published.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Something in a sandbox that listens for TCP connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Port {
    /// The port.
    pub port: u16,
    /// The address that it listens on.
    pub address: String,
    /// `tcp` or `tcp6`.
    pub protocol: String,
    /// Who listens, where that could be found out.
    pub pid: Option<u32>,
    /// That process's name.
    pub process: Option<String>,
}

/// Body of `POST /sandboxes/{id}/publish`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishRequest {
    /// The port on the sandbox's loopback.
    pub port: u16,
    /// A DNS label; one that cannot be guessed is made when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
}

/// A port of a sandbox under an alias.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Publication {
    /// The alias.
    pub alias: String,
    /// Whose it is.
    pub owner: String,
    /// The sandbox's name.
    pub sandbox: String,
    /// Its id.
    pub sandbox_id: String,
    /// The port.
    pub port: u16,
    /// Where it is served, when the daemon listens for that (`serve --publish-listen`).
    pub url: Option<String>,
    /// RFC 3339.
    pub created_at: String,
}
