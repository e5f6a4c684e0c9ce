//! The JSON that crosses HTTP: what is asked and what is told, for server and client alike.
//!
//! Requests refuse unknown fields, so that a misspelt option is an error and not a surprise. Everything here is
//! shape only: checking what a request means is the server's part.

mod backup;
mod error;
mod exec;
mod host;
mod image;
mod metrics;
mod request;
mod sandbox;
mod secret;
mod snapshot;
mod task;
mod traffic;
mod upkeep;
mod usage;
mod user;
mod volume;

pub use backup::{
    Backup, BackupEvent, BackupProgress, BackupPruneReply, BackupPruneRequest, BackupReply, BackupRequest,
    RestoreEvent, RestoreReply, RestoreRequest, Schedule, ScheduleRequest,
};
pub use error::{ErrorBody, ErrorDetail};
pub use exec::{ExecEvent, ExecRequest, ExecResponse, ShellControl, TtySize};
pub use host::{Event, Health, Version};
pub use image::{BuildRequest, ImageConfig, ImageObject, PullRequest, SaveRequest};
pub use metrics::{MetricBucket, MetricFamily, MetricHistogram, MetricSample, Metrics};
pub use request::{
    After, AfterWord, CreateRequest, EditRequest, FileSpec, StartRequest, StopRequest, VolumeSpec,
};
pub use sandbox::{FileEntry, FileStat, LastDecision, LastTransition, Sandbox, SandboxReply, Session};
pub use secret::{Secret, SecretRequest};
pub use snapshot::{ForkReply, ForkRequest, ResumeRequest, Snapshot, SnapshotReply, SnapshotRequest};
pub use task::{Task, TaskProgress};
pub use traffic::{Port, Publication, PublishRequest};
pub use upkeep::{Checked, Finding, Fsck, FsckEvent, FsckRequest, Gc, GcItem, GcRequest};
pub use usage::{FileUsage, ObjectUsage, OwnerUsage, SandboxUsage, SnapshotUsage, Usage, UsageFigures};
pub use user::{User, UserCreateRequest, UserEditRequest, UserUsed, UserWithKey};
pub use volume::{
    Volume, VolumeAttachRequest, VolumeAttachment, VolumeCloneRequest, VolumeCreateRequest,
    VolumeDetachRequest, VolumeReply, VolumeResizeRequest,
};

/// Name of the header that carries a file's mode in octal on `GET` and `HEAD` of `/files`.
pub const FILE_MODE_HEADER: &str = "x-bhatti-mode";
/// Name of the header that carries a file's full size in bytes on `GET` and `HEAD` of `/files`.
pub const FILE_SIZE_HEADER: &str = "x-bhatti-size";
/// Name of the header that tells that `max_bytes` cut a read short.
pub const FILE_TRUNCATED_HEADER: &str = "x-bhatti-truncated";
