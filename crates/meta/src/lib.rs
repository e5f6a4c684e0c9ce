//! The index: one SQLite file that makes lists and events fast.
//!
//! # Invariants
//! - The manifests in the sandbox directories are the truth; what the index says about a sandbox can be made again
//!   from them with [`Index::replace_all`]. Nothing is decided about a guest's files by reading the index alone.
//! - What is published, who the users are, their secrets and the settings are known from here alone: a rebuild keeps
//!   them, a damaged file loses them.
//! - An event's number is never given twice. The newest [`EVENTS_KEPT`] are kept.
//! - Every verb is one transaction: it happened or it did not.
//!
//! # Durability
//! WAL with `synchronous=NORMAL`: a process that dies loses nothing, a power cut may lose the last transactions but
//! never tears the file. That is enough for an index, and it spares every `create` and `exec` an fsync. What is known
//! from here alone is synced before a verb returns.
//!
//! # Concurrency
//! Synchronous, one connection, one owner: share it behind a `Mutex`.

mod error;
mod index;
mod row;
mod schema;
mod secrets;
mod tasks;
mod users;

pub use error::{Error, ErrorKind, Result};
pub use index::{EVENTS_KEPT, Index};
pub use row::{Event, NewEvent, PublicationRow, SandboxRow};
pub use schema::SCHEMA_VERSION;
pub use secrets::SecretRow;
pub use tasks::{TASKS_KEPT, TaskRow};
pub use users::UserRow;
