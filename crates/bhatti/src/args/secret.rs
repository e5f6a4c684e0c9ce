//! `secret`: what can be typed of secrets.

use clap::{Args, Subcommand};
use types::SecretName;

#[derive(Debug, Subcommand)]
pub enum Secret {
    /// Set a secret, new or in place of its last value
    Set(SecretSet),
    /// List secrets, never their values
    #[command(visible_alias = "ls")]
    List,
    /// Delete a secret
    #[command(visible_alias = "rm")]
    Delete(SecretDelete),
}

#[derive(Args)]
pub struct SecretSet {
    /// Name, which is that of the variable in guests
    #[arg(value_name = "NAME")]
    pub name: SecretName,
    /// Value; others on this host can see it among the arguments [default: what comes on stdin, without its last newline]
    #[arg(value_name = "VALUE", allow_hyphen_values = true)]
    pub value: Option<String>,
}

impl std::fmt::Debug for SecretSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretSet").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Debug, Args)]
pub struct SecretDelete {
    /// Name
    #[arg(value_name = "NAME")]
    pub name: SecretName,
    /// Also while sandboxes use it, which then go on without it
    #[arg(long)]
    pub force: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}
