//! `volume`: what can be typed of disks that outlive sandboxes.

use std::str::FromStr;

use clap::{Args, Subcommand};
use types::VolumeName;

#[derive(Debug, Subcommand)]
pub enum Volume {
    /// Make a volume with an empty filesystem, or return the one of that name and size
    Create(VolumeCreate),
    /// List volumes and who has them
    #[command(visible_alias = "ls")]
    List,
    /// Tell everything about a volume
    Inspect(VolumeWhich),
    /// Attach a volume to a sandbox: plugged in and mounted while it runs. One that sleeps is woken
    Attach(VolumeAttach),
    /// Take a volume away from a sandbox: written out, unmounted, unplugged; refused while a process there uses it
    Detach(VolumeDetach),
    /// Make a volume larger, also while it is attached
    Resize(VolumeResize),
    /// Make a volume that is as another one is at this moment, attached or not
    Clone(VolumeClone),
    /// Back a volume up as it is at this moment, attached or not; only what the store lacks is sent
    Backup(VolumeBackup),
    /// List a volume's backups, also of one that is gone
    Backups(VolumeBackups),
    /// Put a volume back to what a backup holds: everything is compared before anything is replaced
    Restore(VolumeRestore),
    /// Remove backups of a volume
    BackupDelete(VolumeBackupDelete),
    /// Remove all but some backups of a volume
    BackupPrune(VolumeBackupPrune),
    /// Back a volume up by itself, or no more
    Schedule(VolumeSchedule),
    /// Remove volumes with all that is in them; refused while a sandbox has them
    #[command(visible_alias = "rm")]
    Delete(VolumeDelete),
}

#[derive(Debug, Args)]
pub struct VolumeCreate {
    /// Name
    #[arg(value_name = "V")]
    pub volume: VolumeName,
    /// Size in MiB, 8 or more. The volume is sparse: it takes what is written to it
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..))]
    pub size: u64,
}

#[derive(Debug, Args)]
pub struct VolumeWhich {
    /// Name
    #[arg(value_name = "V")]
    pub volume: VolumeName,
}

/// `/MOUNT[:ro]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountArg {
    pub path: String,
    pub read_only: bool,
}

impl FromStr for MountArg {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (path, read_only) = text.strip_suffix(":ro").map_or((text, false), |path| (path, true));
        Ok(Self { path: path.to_owned(), read_only })
    }
}

#[derive(Debug, Args)]
pub struct VolumeAttach {
    /// Name
    #[arg(value_name = "V")]
    pub volume: VolumeName,
    /// Name or id
    #[arg(value_name = "SB")]
    pub sandbox: String,
    /// Where to mount it; with `:ro` the guest may only read it, and several sandboxes may have it
    #[arg(value_name = "/MOUNT[:ro]")]
    pub mount: MountArg,
}

#[derive(Debug, Args)]
pub struct VolumeDetach {
    /// Name
    #[arg(value_name = "V")]
    pub volume: VolumeName,
    /// Name or id
    #[arg(value_name = "SB")]
    pub sandbox: String,
}

#[derive(Debug, Args)]
pub struct VolumeResize {
    /// Name
    #[arg(value_name = "V")]
    pub volume: VolumeName,
    /// Size in MiB; volumes only grow
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..))]
    pub size: u64,
}

#[derive(Debug, Args)]
pub struct VolumeClone {
    /// Name
    #[arg(value_name = "V")]
    pub volume: VolumeName,
    /// Name of the clone
    #[arg(long, value_name = "W")]
    pub name: VolumeName,
}

#[derive(Debug, Args)]
pub struct VolumeBackup {
    /// Name
    #[arg(value_name = "V")]
    pub volume: VolumeName,
    /// Another store than the daemon's: file:///directory or s3://bucket/prefix. For the admin only
    #[arg(long, value_name = "URL")]
    pub to: Option<String>,
}

#[derive(Debug, Args)]
pub struct VolumeBackups {
    /// Name
    #[arg(value_name = "V")]
    pub volume: VolumeName,
    /// Another store than the daemon's, by URL
    #[arg(long, value_name = "URL")]
    pub from: Option<String>,
}

#[derive(Debug, Args)]
pub struct VolumeRestore {
    /// Name; a volume that is gone is made again
    #[arg(value_name = "V")]
    pub volume: VolumeName,
    /// Id of the backup, as `volume backups` lists it
    #[arg(long, value_name = "ID")]
    pub backup: String,
    /// Another store than the daemon's, by URL
    #[arg(long, value_name = "URL")]
    pub from: Option<String>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct VolumeBackupDelete {
    /// Name
    #[arg(value_name = "V")]
    pub volume: VolumeName,
    /// Id of the backup (may be given more than once)
    #[arg(long = "backup", value_name = "ID", required = true)]
    pub backups: Vec<String>,
    /// Another store than the daemon's, by URL
    #[arg(long, value_name = "URL")]
    pub from: Option<String>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("wish").required(true).multiple(true).args(["keep", "daily", "weekly"]))]
pub struct VolumeBackupPrune {
    /// Name
    #[arg(value_name = "V")]
    pub volume: VolumeName,
    /// Keep the newest so many
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub keep: u32,
    /// Keep the newest of each of the newest so many days that have any (UTC)
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub daily: u32,
    /// Keep the newest of each of the newest so many weeks that have any
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub weekly: u32,
    /// Only say what would be removed
    #[arg(long)]
    pub dry_run: bool,
    /// Another store than the daemon's, by URL
    #[arg(long, value_name = "URL")]
    pub from: Option<String>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("when").required(true).args(["cron", "off"]))]
pub struct VolumeSchedule {
    /// Name
    #[arg(value_name = "V")]
    pub volume: VolumeName,
    /// Minute, hour, day, month and day of the week (UTC) as crontab(5) writes them, or @daily and the like
    #[arg(long, value_name = "EXPR")]
    pub cron: Option<String>,
    /// How many backups are kept
    #[arg(long, value_name = "N", default_value_t = 7)]
    pub keep: u32,
    /// Back it up by itself no more; its backups stay
    #[arg(long)]
    pub off: bool,
}

#[derive(Debug, Args)]
pub struct VolumeDelete {
    /// Names
    #[arg(value_name = "V", required = true)]
    pub volumes: Vec<VolumeName>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}
