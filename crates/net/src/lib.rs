//! The way of a sandbox to the world, and what stands in it.
//!
//! ```text
//!  guest ── virtio-net ── VMM ══ socket pair ══ relay ══ socket pair ══ passt ── sockets of the host ── world
//!                         fd 1                  fd 0                     fd 0
//! ```
//! The relay looks at every packet that the guest sends and lets through what its sandbox may reach; passt, which it
//! starts with the first of those (and again should it end), opens connections in the guest's place. Neither needs root, and neither knows more than this one sandbox, and in mode
//! `bridge` the names of its siblings, to whom the relay hands packets itself.
//!
//! # Invariants
//! - Who a packet is from is said by the socket that it came through, never by an address in it.
//! - The host's own addresses, loopback, link-local addresses and those of metadata services are reached by no rule
//!   whatever ([`reach`]).
//! - A packet reaches another sandbox only if both are of one owner, and only from the address that is its sender's.
//! - The relay ends when the socket to the VMM does, and so with the VMM, whatever becomes of the daemon, and passt
//!   when the relay does. Nothing of them is in any file but a name for siblings, which the daemon makes anew when it starts.

mod address;
mod error;
mod filter;
mod lane;
mod names;
mod pacer;
mod packet;
mod reach;
mod relay;
mod switch;
mod user;

pub use address::{Address, DNS, GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6};
pub use error::{Error, Result};
pub use lane::Lanes;
pub use relay::{Orders, relay};
pub use user::{FarEnd, Line, User, default_mode, host_has_v6, line};
