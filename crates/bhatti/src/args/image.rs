//! `image`: what can be typed about what sandboxes start from.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use types::ImageName;

#[derive(Debug, Subcommand)]
pub enum Image {
    /// List base images
    #[command(visible_alias = "ls")]
    List,
    /// Tell everything about an image
    Inspect(ImageWhich),
    /// Build a declared image. Ctrl-C calls it off, as with all that follow
    Build(ImageBuild),
    /// Fetch an image from a registry; only layers that are not here yet are moved
    Pull(ImagePull),
    /// Make an image of an archive: docker save or an OCI layout, as it is or with gzip or zstd
    Import(ImageImport),
    /// Make an image of a sandbox's root disk as it is now; a running one goes on
    Save(ImageSave),
    /// Remove images; refused while sandboxes or snapshots were made from them
    #[command(visible_alias = "rm")]
    Delete(ImageDelete),
}

#[derive(Debug, Args)]
pub struct ImageWhich {
    /// Name of the image
    #[arg(value_name = "N")]
    pub image: ImageName,
}

#[derive(Debug, Args)]
pub struct ImageBuild {
    /// Which of the declared images: minimal, dev, browser, docker or computer
    #[arg(value_name = "TIER")]
    pub tier: String,
    /// Name of the image [default: the tier's]
    #[arg(long, value_name = "N")]
    pub name: Option<ImageName>,
}

#[derive(Debug, Args)]
pub struct ImagePull {
    /// `[http://]REGISTRY[:PORT]/NAME[:TAG|@DIGEST]`; a short name is Docker Hub's. Registries on this host need no http://
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Name of the image here; one that exists is replaced when the new one is whole
    #[arg(long, value_name = "N")]
    pub name: ImageName,
    /// Credentials for the registry
    #[arg(long, value_name = "USER:TOKEN", env = "BHATTI_REGISTRY_AUTH", hide_env_values = true)]
    pub auth: Option<String>,
}

#[derive(Debug, Args)]
pub struct ImageImport {
    /// The archive, or - for stdin
    #[arg(long, value_name = "FILE")]
    pub tar: PathBuf,
    /// Name of the image; one that exists is replaced when the new one is whole
    #[arg(long, value_name = "N")]
    pub name: ImageName,
}

#[derive(Debug, Args)]
pub struct ImageSave {
    /// Name or id
    #[arg(value_name = "SB")]
    pub sandbox: String,
    /// Name of the image; one that exists is replaced when the new one is whole
    #[arg(long, value_name = "N")]
    pub name: ImageName,
}

#[derive(Debug, Args)]
pub struct ImageDelete {
    /// Names of the images
    #[arg(value_name = "N", required = true)]
    pub images: Vec<ImageName>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}
