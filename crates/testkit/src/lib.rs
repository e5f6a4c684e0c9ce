//! A host for one test: a data directory of its own, a daemon, the command line, and the end of all of it.
//!
//! Tests that boot guests take the kernel, the image and the templates from a data directory that was set up once
//! (`BHATTI_TEST_DATA`, on the filesystem under test), by hard links: those files are never written again. Everything
//! else is the test's own and is gone with it, the daemon and the VMMs by their process ids.

#![expect(clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]

mod choices;
mod cut;
mod daemon;
mod exposition;
mod faults;
mod host;
mod http;
mod lab;
mod small;
mod terminal;
mod tier;

pub use choices::{Choices, seed};
pub use daemon::Daemon;
pub use exposition::Exposition;
pub use faults::{Call, Faults};
pub use host::{Outcome, TestHost};
pub use http::Events;
pub use lab::Lab;
pub use terminal::Terminal;
