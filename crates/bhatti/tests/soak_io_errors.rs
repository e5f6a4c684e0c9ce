//! As `vm_io_errors`, each call.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod io_errors;

#[test]
fn verbs_on_a_disk_that_fails_at_any_call_are_refused_and_lose_nothing() {
    io_errors::suffer(env!("CARGO_BIN_EXE_bhatti"), usize::MAX);
}
