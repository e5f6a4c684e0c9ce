//! The host's side of the channel to a guest's agent: commands, sessions and files over one byte stream.
//!
//! [`Guest::attach`] takes the stream, greets the agent and starts two tasks, a reader and a writer. Every verb
//! after that is one `Open` frame and a stream of answers; nothing is spawned for it.
//!
//! ```text
//!   verbs ──► open ─┐                            ┌─► stream 1's inbox ──► ExecStream
//!   stdin ──► send ─┴─► out ─► writer ═► agent ═► reader ─► stream 2's inbox ──► FileReader
//!              ▲ waits for credit and room       └─► ...            │ taken: credit goes back
//!              └────────────────────────────────────────────────────┘
//! ```
//! Reading order: `attach` (the greeting), `channel` (the two tasks and what they share), `stream` (what the agent
//! may say when), `exec` and `file` (what callers hold).
//!
//! # Invariants
//! - The guest is not trusted. What it sends is counted against credit before it is kept; anything out of order, or
//!   more than was allowed, closes the channel with [`ErrorKind::Protocol`]. It can neither make the host keep more
//!   than about two windows a stream, nor make it panic.
//! - The reader never waits for a consumer, so one that stands still delays nobody else.
//! - When the channel breaks, every verb under way ends at once with [`ErrorKind::Closed`] (or `Protocol`).
//!   An answer that arrived whole before that is still delivered.
//! - Dropping a stream before its end tells the agent to `Cancel`; dropping the last handle closes the channel.
//! - One lock for a channel, never held across an await.

mod attach;
mod channel;
mod connection;
mod error;
mod exec;
mod file;
mod guest;
mod stream;

#[cfg(test)]
mod tests;

pub use attach::AttachOptions;
pub use connection::Connection;
pub use error::{Error, ErrorKind, Result};
pub use exec::{ExecEvent, ExecStream, StdinSender};
pub use file::{FileReader, FileWriter};
pub use guest::{Guest, MAX_LISTING, Quiet};
