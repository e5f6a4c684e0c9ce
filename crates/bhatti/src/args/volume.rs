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
pub struct VolumeDelete {
    /// Names
    #[arg(value_name = "V", required = true)]
    pub volumes: Vec<VolumeName>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}
