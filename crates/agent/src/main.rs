//! The guest's first process: boots the rest of the guest, then serves the host over one virtio-serial port, for ever.
//!
//! # Reading order
//! [`boot`] makes a root file system, [`serve`] is the loop, [`channel`] hears the host, [`open`] begins what it asks
//! for, [`task`] and [`session`] are the two things a stream can be about, [`files`] is what workers do.
//!
//! # Invariants
//! - One thread. Nothing in the loop waits for a disk or a process; what must, is a process of its own.
//! - No error ends the loop or loses the port. The guest ends when the host says so, or when it cannot boot.
//! - Only what an attach may wait for (entropy, clock, volumes, identity, config drive) is done in the loop itself, before any
//!   command of that session runs.

mod boot;
mod channel;
mod config;
mod connection;
mod console;
mod failure;
mod feed;
mod files;
mod identity;
mod info;
mod lines;
mod listeners;
mod modules;
mod network;
mod open;
mod outbox;
mod poll;
mod port;
mod power;
mod replace;
mod ring;
mod serve;
mod session;
mod sessions;
mod spawn;
mod task;
mod users;
mod volumes;

use rustix::process::{Resource, Rlimit, getpid, setrlimit};

/// Enough for all streams, and for what commands inherit: more than 1,024 only matters to those that open so many.
const OPEN_FILES: Rlimit = Rlimit { current: Some(65_536), maximum: Some(524_288) };

fn main() {
    if !getpid().is_init() {
        eprintln!(
            "bhatti-agent {} runs as the first process of a bhatti guest only",
            env!("CARGO_PKG_VERSION")
        );
        std::process::exit(2);
    }
    let root_disk = boot::boot();
    if let Err(error) = setrlimit(Resource::Nofile, OPEN_FILES) {
        console::say(format_args!("limit of open files: {error}"));
    }
    let agent = port::open().and_then(|port| serve::Agent::new(port, root_disk));
    match agent {
        Ok(agent) => agent.run(),
        Err(error) => console::fatal(format_args!("the port to the host: {error}")),
    }
}
