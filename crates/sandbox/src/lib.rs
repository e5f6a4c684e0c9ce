//! The conductor: what can be done with sandboxes, each verb from the request to the report.
//!
//! This is the only room that knows two subsystems. [`Host`] finds the sandbox; its owner task (one for each sandbox)
//! serialises everything that changes it; the rooms below do the work.
//!
//! # Invariants
//! - A memory image is consumed before the guest executes its first instruction after a wake: RAM never meets a newer
//!   disk (see `wake`).
//! - A VMM is ended only after what it leaves is durable (see `sleep`), or when its sandbox is destroyed.
//! - Nothing here reads or writes a file, starts a process, or speaks HTTP or SQL itself.

mod accel;
mod actor;
mod attached;
mod backups;
mod breaker;
mod bring_up;
mod bucket;
mod capture;
mod convert;
mod copies;
mod create;
mod doctor;
mod error;
mod events;
mod guest_verbs;
mod host;
mod images;
mod keyed;
mod launch;
mod lease;
mod loop_plan;
mod loop_setup;
mod memory;
mod metrics;
mod moment;
mod network;
mod prefetch;
mod publish;
mod quota;
mod ram;
mod rates;
mod registry;
mod relief;
mod reopen;
mod schedule;
mod secrets;
mod services;
mod setup;
mod sleep;
mod snapshots;
mod spare;
mod standby;
mod state;
mod storage_layout;
mod tasks;
mod template;
mod thermal;
mod tick;
mod timing;
mod traffic;
mod upkeep;
mod usage;
mod users;
mod view;
mod volumes;
mod wake;

pub use accel::AccelProof;
pub use actor::{Edit, Start};
pub use backups::{BackupPlace, BackupReport, RestoreReport};
pub use bucket::{Bucket, Pace};
pub use doctor::{Check, DoctorReport, Verdict, doctor};
pub use error::{Error, ErrorKind, Result};
pub use guest::{Connection, ExecEvent, ExecStream, FileReader, FileWriter, StdinSender};
pub use host::Host;
pub use image::{Cancel, Progress};
pub use images::{PullWish, Upload};
pub use lease::Leased;
pub use loop_plan::LoopWish;
pub use loop_setup::{LoopConfig, LoopReport, loop_advice, loop_storage};
pub use metrics::{Family, Histogram, Sample, SampleValue};
pub use network::NetDefault;
pub use prefetch::Prefetch;
pub use publish::{Admitted, Publication, PublishLimits};
pub use rates::Rates;
pub use remote::{
    BackupId, BackupIdError, Keep, Listed, Progress as BackupProgress, PrunePlan, PruneReport, Summary,
};
pub use secrets::{SecretView, SecretsKeyText};
pub use services::HostConfig;
pub use setup::{SetupConfig, SetupReport, SetupStep, setup};
pub use snapshots::{Fork, Resume, SnapshotWish};
pub use storage::{
    Figures, FileUsage, Finding, FsckProgress, FsckReport, GcItem, ImageRecord, Outcome, OwnCertificate,
    Severity, Trial, Usage,
};
pub use tasks::{TaskError, TaskProgress, TaskRecord, TaskStatus};
pub use thermal::ThermalConfig;
pub use upkeep::{Gc, Upkeep};
pub use usage::UsageCheck;
pub use users::{KeyHolder, UserKey, UserView};
pub use view::{
    DecisionView, EventView, HostInfo, NetView, Report, SandboxView, SnapshotReport, SnapshotView, Status,
    Timings, Transition,
};
pub use volumes::{VolumeReport, VolumeUser, VolumeView};
pub use wire;
