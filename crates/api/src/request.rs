//! What may be asked of sandboxes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `POST /sandboxes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CreateRequest {
    /// Name; a free one is made up when it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Base image.
    pub image: String,
    /// Virtual processors.
    pub cpus: u32,
    /// Guest memory in MiB.
    pub memory_mb: u64,
    /// Root disk in MiB; the image's own size when missing. It only grows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_size_mb: Option<u64>,
    /// Environment of every command.
    pub env: BTreeMap<String, String>,
    /// Names of secrets to be given to the sandbox.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// How it reaches the world: `bridge` (through passt, and the other sandboxes of its owner by name), `user` (through
    /// passt) or `none`; as the daemon was told when missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net: Option<String>,
    /// What it may reach: `none` alone, or any of `public` (every address of the internet; so when missing), prefixes of
    /// addresses (`10.1.0.0/16`) and names (`pypi.org`, `*.debian.org`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Vec<String>>,
    /// How much its network may carry in a second in each direction: bytes and perhaps packets, such as `20M` or `20M:5000`,
    /// or `unlimited`; as the daemon was told when missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net_rate: Option<String>,
    /// How much its disks may read and write together in a second: bytes and perhaps operations, such as `100M:2000`, or
    /// `unlimited`; as the daemon was told when missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_rate: Option<String>,
    /// Files placed before the first command.
    pub files: Vec<FileSpec>,
    /// Volumes attached from the start.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeSpec>,
    /// Command line run at every boot, as a session named `init`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// Never put to sleep by itself.
    pub keep_hot: bool,
    /// Seconds without work after which it is paused, in place of the daemon's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_after_sec: Option<After>,
    /// Seconds without work after which it is put to sleep, in place of the daemon's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cold_after_sec: Option<After>,
    /// Whether that is done also while its guest is busy or a detached command runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sleep_busy: Option<bool>,
    /// Free-form labels.
    pub labels: BTreeMap<String, String>,
    /// Sandbox (name or id: a live copy of it is made) or snapshot to start from. Image, sizes of processor and memory,
    /// environment, files and init command come from there and cannot be given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Refuse (409) instead of taking a slow path.
    pub strict: bool,
}

impl Default for CreateRequest {
    fn default() -> Self {
        Self {
            name: None,
            image: "minimal".to_owned(),
            cpus: 1,
            memory_mb: 512,
            disk_size_mb: None,
            env: BTreeMap::new(),
            secrets: Vec::new(),
            net: None,
            egress: None,
            net_rate: None,
            disk_rate: None,
            files: Vec::new(),
            volumes: Vec::new(),
            init: None,
            keep_hot: false,
            warm_after_sec: None,
            cold_after_sec: None,
            sleep_busy: None,
            labels: BTreeMap::new(),
            from: None,
            strict: false,
        }
    }
}

/// Seconds (the largest number of 32 bits is never), or a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum After {
    /// So many seconds.
    Seconds(u32),
    /// No number.
    Word(AfterWord),
}

/// What can stand in place of a number of seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AfterWord {
    /// It is not done.
    Never,
    /// As the daemon was told.
    Default,
}

/// A file to be placed in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// Absolute path in the guest.
    pub path: String,
    /// The bytes, in base64.
    pub content_base64: String,
    /// Permission bits in octal, `0644` when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

/// A volume to be attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeSpec {
    /// Name of the volume.
    pub name: String,
    /// Where to mount it.
    pub mount: String,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
}

/// `PATCH /sandboxes/{id}`: what is missing stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EditRequest {
    /// A new name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether to stay hot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_hot: Option<bool>,
    /// Seconds without work after which it is paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_after_sec: Option<After>,
    /// Seconds without work after which it is put to sleep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cold_after_sec: Option<After>,
    /// Whether that is done also while its guest is busy or a detached command runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sleep_busy: Option<bool>,
    /// How much its network may carry, from its next start on: as at create, or `default` for what the daemon was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net_rate: Option<String>,
    /// How much its disks may read and write, at once: as at create, or `default` for what the daemon was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_rate: Option<String>,
    /// Labels to set; an empty value removes the label.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// `POST /sandboxes/{id}/start`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StartRequest {
    /// Boot from the disk and give up the memory image.
    pub discard_memory: bool,
    /// Refuse (409) instead of booting from the disk.
    pub strict: bool,
}

/// `POST /sandboxes/{id}/stop`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StopRequest {}
