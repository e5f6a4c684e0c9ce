//! `user`: what can be typed of users.

use std::str::FromStr;

use clap::{Args, Subcommand};
use types::Owner;

#[derive(Debug, Subcommand)]
pub enum User {
    /// Make a user; the key is shown this once
    Create(UserCreate),
    /// List users, what they have and what they may have
    #[command(visible_alias = "ls")]
    List,
    /// Change what a user may have; what they have already stays
    Edit(UserEdit),
    /// Give a user another key, which is shown this once; the old one opens nothing more
    RotateKey(UserWhich),
    /// Delete a user and their key
    #[command(visible_alias = "rm")]
    Delete(UserDelete),
}

/// A limit, or that there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(pub Option<u64>);

impl FromStr for Limit {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        text.parse().map(|most| Self(Some(most))).map_err(|_| "use a number, or `none`".to_owned())
    }
}

#[derive(Debug, Args)]
pub struct Limits {
    /// Sandboxes, whatever they do, or `none` for no limit
    #[arg(long, value_name = "N")]
    pub max_sandboxes: Option<Limit>,
    /// Memory in MiB of the machines that exist (hot and warm sandboxes) together
    #[arg(long, value_name = "MB")]
    pub max_memory: Option<Limit>,
    /// Processors of the machines that exist
    #[arg(long, value_name = "N")]
    pub max_cpus: Option<Limit>,
    /// Place on the disk in MiB, as `du` counts it (physical); looked at when something is made
    #[arg(long, value_name = "MB")]
    pub max_disk: Option<Limit>,
    /// Volumes
    #[arg(long, value_name = "N")]
    pub max_volumes: Option<Limit>,
    /// Named snapshots
    #[arg(long, value_name = "N")]
    pub max_snapshots: Option<Limit>,
    /// Images of their own
    #[arg(long, value_name = "N")]
    pub max_images: Option<Limit>,
}

#[derive(Debug, Args)]
pub struct UserCreate {
    /// Name: 1 to 63 of a-z, 0-9 and -
    #[arg(value_name = "NAME")]
    pub name: Owner,
    #[command(flatten)]
    pub limits: Limits,
}

#[derive(Debug, Args)]
pub struct UserEdit {
    /// Name
    #[arg(value_name = "NAME")]
    pub name: Owner,
    #[command(flatten)]
    pub limits: Limits,
}

#[derive(Debug, Args)]
pub struct UserWhich {
    /// Name
    #[arg(value_name = "NAME")]
    pub name: Owner,
}

#[derive(Debug, Args)]
pub struct UserDelete {
    /// Name
    #[arg(value_name = "NAME")]
    pub name: Owner,
    /// With everything that they have, but for backups in their store
    #[arg(long)]
    pub purge: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}
