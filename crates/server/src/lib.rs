//! HTTP and WebSocket in front of the sandbox's verbs.
//!
//! A request goes one way: [`listen`] takes the connection, [`auth`] says who asks, a route module (`host`,
//! `sandboxes`, `snapshots`, `volumes`, `exec`, `shell`, `files`, `events`, `traffic`, `publish`) reads it, [`ask`] turns it into a validated order, the verb of
//! `sandbox` carries it out, [`tell`] turns the answer into JSON. Whatever goes wrong on the way is a [`Refusal`].
//!
//! # Invariants
//! - Nothing here touches a file, a process or a machine: only verbs of `sandbox`.
//! - A client that went away takes its stream with it: every stream is owned by the future or the body that answers
//!   the request, so dropping that one cancels the command in the guest.
//! - Memory per request is bounded: JSON bodies by [`JSON_LIMIT`], buffered output by [`exec::OUTPUT_LIMIT`], streams
//!   by the guest channel's credit.
//!
//! [`JSON_LIMIT`]: extract::JSON_LIMIT

mod ask;
mod auth;
mod backups;
mod cord;
mod events;
mod exec;
mod extract;
mod files;
mod forward;
mod host;
mod images;
mod listen;
mod metrics;
mod openapi;
mod pace;
mod pipe;
mod publish;
mod refusal;
mod router;
mod sandboxes;
mod secrets;
mod shell;
mod snapshots;
mod stream;
mod tasks;
mod tell;
mod tls;
mod traffic;
mod upkeep;
mod usage;
mod users;
mod volumes;
mod websocket;

pub use auth::AdminKey;
pub use listen::{Listeners, Published, serve};
pub use openapi::openapi_json;
pub use pace::UserPace;
pub use publish::Site;
pub use refusal::Refusal;
pub use router::{Door, router};
pub use tls::Tls;
pub use upkeep::{fsck_reply, gc_reply};
