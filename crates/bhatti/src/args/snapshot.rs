//! `snapshot`, `fork`: what can be typed to keep and to copy a sandbox.

use clap::{Args, Subcommand};
use types::{SandboxName, SnapshotName};

use super::Pair;

#[derive(Debug, Subcommand)]
pub enum Snapshot {
    /// Keep a sandbox as it is now under a name; one that runs goes on. Ctrl-C does not call it off: the daemon finishes it
    Create(SnapshotCreate),
    /// List snapshots
    #[command(visible_alias = "ls")]
    List,
    /// Tell everything about a snapshot
    Inspect(SnapshotWhich),
    /// Make a sandbox that goes on where the snapshot's source was; as often, and as many at once, as wanted
    Resume(SnapshotResume),
    /// Remove snapshots; sandboxes made from them keep what they need
    #[command(visible_alias = "rm")]
    Delete(SnapshotDelete),
}

#[derive(Debug, Args)]
pub struct SnapshotCreate {
    /// Name or id
    #[arg(value_name = "SB")]
    pub sandbox: String,
    /// Name of the snapshot
    #[arg(long)]
    pub name: SnapshotName,
    /// Only the disk: what is resumed from it boots
    #[arg(long)]
    pub disk_only: bool,
}

#[derive(Debug, Args)]
pub struct SnapshotWhich {
    /// Name of the snapshot
    #[arg(value_name = "N")]
    pub snapshot: SnapshotName,
}

#[derive(Debug, Args)]
pub struct SnapshotResume {
    /// Name of the snapshot
    #[arg(value_name = "N")]
    pub snapshot: SnapshotName,
    /// Name of the sandbox [default: one is made up]
    #[arg(long, value_name = "SB")]
    pub name: Option<SandboxName>,
    #[command(flatten)]
    pub copy: Copied,
}

#[derive(Debug, Args)]
pub struct SnapshotDelete {
    /// Names of the snapshots
    #[arg(value_name = "N", required = true)]
    pub snapshots: Vec<SnapshotName>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct Fork {
    /// Name or id
    #[arg(value_name = "SB")]
    pub sandbox: String,
    /// Name of the copy; of several: N-1, N-2 and so on [default: one is made up]
    #[arg(long, value_name = "N")]
    pub name: Option<SandboxName>,
    /// How many copies, at most 64; all of them are made, or none
    #[arg(long, default_value_t = 1, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub count: u32,
    #[command(flatten)]
    pub copy: Copied,
}

/// What a copy has of its own.
#[derive(Debug, Args)]
pub struct Copied {
    /// Label it, beside the labels of what it is made from
    #[arg(long, value_name = "K=V")]
    pub label: Vec<Pair>,
    /// Never put it to sleep by itself
    #[arg(long)]
    pub keep_hot: bool,
    /// Root disk in MiB, larger than that of what it is made from [default: the same]
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..))]
    pub disk_size: Option<u64>,
    /// Refuse instead of taking the slow path
    #[arg(long)]
    pub strict: bool,
}
