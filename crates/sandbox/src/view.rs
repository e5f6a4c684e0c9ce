//! What the verbs tell: a sandbox as it is, and what a verb did to it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use types::{
    Accel, Boot, Bytes, CloneMethod, Egress, ImageName, Labels, Mebibytes, NetMode, Owner, SandboxId,
    SandboxName, SecretName, SnapshotName, Thermal, ThermalRule, ThermalTimes, Timestamp, VolumeMount,
};

/// A sandbox as it is at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxView {
    /// Id.
    pub id: SandboxId,
    /// Name.
    pub name: SandboxName,
    /// Whose it is.
    pub owner: Owner,
    /// Base image.
    pub image: ImageName,
    /// Virtual processors.
    pub cpus: u32,
    /// Guest memory.
    pub memory: Mebibytes,
    /// Root disk.
    pub disk_size: Mebibytes,
    /// Running, stopped or broken.
    pub status: Status,
    /// Hot, warm or cold.
    pub thermal: Thermal,
    /// Exempt from going to sleep by itself.
    pub keep_hot: bool,
    /// When it is paused and put to sleep, where it says so itself.
    pub rule: ThermalRule,
    /// When it is paused and put to sleep.
    pub times: ThermalTimes,
    /// What was last decided about it, and why.
    pub last_decision: Option<DecisionView>,
    /// Labels.
    pub labels: Labels,
    /// Its volumes, in the order of their ports.
    pub volumes: Vec<VolumeMount>,
    /// The secrets that its guest is told.
    pub secrets: Vec<SecretName>,
    /// How it reaches the world, if it does.
    pub net: Option<NetView>,
    /// How much its network may carry in each direction.
    pub net_rate: types::Rate,
    /// How much its disks may read and write together.
    pub disk_rate: types::Rate,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last used.
    pub last_active_at: Timestamp,
    /// How often its disk was handed to a machine.
    pub generation: u64,
    /// How the present (or last) run began.
    pub boot: Boot,
    /// How its root disk was made.
    pub clone: CloneMethod,
    /// What executes it.
    pub accel: Accel,
    /// The last change of state.
    pub last_transition: Option<Transition>,
    /// The VMM's process id, while there is one.
    pub vmm_pid: Option<u32>,
}

/// How a sandbox reaches the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetView {
    /// By what.
    pub mode: NetMode,
    /// What it may reach.
    pub egress: Egress,
    /// Its own address, on a line that it is alone on.
    pub ip: Ipv4Addr,
}

/// What was decided about a sandbox by itself: whether it was left alone, paused or put to sleep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecisionView {
    /// `stay`, `pause` or `sleep`.
    pub action: &'static str,
    /// Why, for people.
    pub reason: String,
    /// When it was first decided so.
    pub at: Timestamp,
}

/// What users are told a sandbox is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// A machine exists: hot or warm.
    Running,
    /// On disk only.
    Stopped,
    /// It cannot be used as it is; the line says why and what to do.
    Error(String),
}

impl Status {
    /// The word in JSON.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Error(_) => "error",
        }
    }
}

/// How long each phase of a verb took, in the order they happened. Each ends where the next begins, so they add up to
/// the total.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Timings {
    /// Name and duration of each phase.
    pub phases: Vec<(&'static str, Duration)>,
    /// From request to reply.
    pub total: Duration,
}

/// A change of state that was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    /// `create`, `start` or `stop`.
    pub verb: &'static str,
    /// When it was done.
    pub at: Timestamp,
    /// What it took.
    pub timings: Timings,
    /// Byte counts by name (`private`, `stored`).
    pub bytes: BTreeMap<&'static str, Bytes>,
}

/// What a verb did.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The sandbox afterwards.
    pub view: SandboxView,
    /// Whether it was made by this call (create only).
    pub created: bool,
    /// Whether this call changed anything.
    pub changed: bool,
    /// What this call took.
    pub timings: Timings,
    /// How long the source of a fork stood still for it.
    pub pause: Option<Duration>,
    /// What the caller should know.
    pub warnings: Vec<String>,
}

/// Something that happened, as kept and as sent to listeners.
#[derive(Debug, Clone, PartialEq)]
pub struct EventView {
    /// Position in the order of events.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// Such as `sandbox.created`.
    pub kind: String,
    /// Which sandbox, if any.
    pub sandbox: Option<(SandboxId, String)>,
    /// Whose it is.
    pub owner: Owner,
    /// Details by kind.
    pub detail: serde_json::Value,
}

/// What this host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostInfo {
    /// The VMM's version.
    pub vmm: String,
    /// What executes guests here.
    pub accel: Accel,
    /// Where the data is.
    pub data_dir: std::path::PathBuf,
}

/// A named snapshot: a sandbox as it was at one moment, to be resumed as often as wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotView {
    /// Name, unique for its owner.
    pub name: SnapshotName,
    /// Whose it is.
    pub owner: Owner,
    /// The sandbox it was made of, which may be gone.
    pub source_id: SandboxId,
    /// That sandbox's name then.
    pub source_name: SandboxName,
    /// When it was made.
    pub created_at: Timestamp,
    /// Whether it has no memory, so that what is resumed from it boots.
    pub disk_only: bool,
    /// Base image.
    pub image: ImageName,
    /// Virtual processors.
    pub cpus: u32,
    /// Guest memory.
    pub memory: Mebibytes,
    /// Root disk.
    pub disk_size: Mebibytes,
    /// The source's labels then.
    pub labels: Labels,
    /// What executed the source.
    pub accel: Accel,
    /// How long the guest stood still for it; zero if it did not run.
    pub pause: Duration,
    /// Memory that the source had changed.
    pub private: Bytes,
    /// What that takes in `mem.snap`.
    pub stored: Bytes,
}

/// What making a snapshot did.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotReport {
    /// The snapshot.
    pub view: SnapshotView,
    /// What this call took; `pause` is the guest's.
    pub timings: Timings,
    /// What the caller should know.
    pub warnings: Vec<String>,
}
