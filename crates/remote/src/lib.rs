//! Backups of volumes in one object store: a directory or an S3 bucket.
//!
//! A [`Store`] is opened once; a [`Shelf`] is one volume's part of it, with the verbs: [`Shelf::backup`],
//! [`Shelf::list`], [`Shelf::restore`], [`Shelf::verify`], [`Shelf::delete`], [`Shelf::prune`]. Files come in and go
//! out as open descriptors; nothing here knows a path of the data root.
//!
//! # Layout
//! ```text
//! <owner>/<volume>/backups/<id>.json     one manifest a backup: what the volume held, as a list of chunks
//! <owner>/<volume>/chunks/<aa>/<hash>    one zstd frame each, named by the BLAKE3 of what is in it
//! <owner>/<volume>/lock.json             while somebody writes or removes; see `lock`
//! ```
//!
//! # Crash order
//! A backup: 1. the lock; 2. chunks that no readable manifest names; 3. the manifest; 4. the lock is removed. Until 3
//! there is no backup, only chunks that nothing names, and the next prune removes them. A removal: 1. the lock; 2. the
//! manifest; 3. the chunks that no manifest names any more. Manifests are the truth; a chunk counts while one names it.
//!
//! # Invariants
//! - A chunk is named by its content and never written with another.
//! - If one manifest of a shelf cannot be read, no chunk of it is removed: it may name anything.
//! - What a restore calls good has been compared twice: each chunk with its name, and the file as written with the
//!   manifest's root.

mod backup;
mod chunk;
mod error;
mod id;
mod lock;
mod manifest;
mod plan;
mod prune;
mod record;
mod restore;
mod scan;
mod shelf;
mod store;
mod watch;

pub use backup::BackupReport;
pub use error::{Error, ErrorKind, Result};
pub use id::{BackupId, BackupIdError};
pub use manifest::Summary;
pub use plan::{Keep, PrunePlan, plan_prune};
pub use prune::PruneReport;
pub use restore::{RestoreReport, VerifyReport};
pub use shelf::{Listed, Shelf};
pub use store::{Store, StoreOptions};
pub use watch::{Cancel, Progress, Watch};
