//! A disk that fails under a verb: each system call that a verb makes on a file is found by watching it, and then fails with
//! EIO while the verb runs again. Either the verb works all the same, or it is refused in one line that says so;
//! guests that ran go on, what slept sleeps on with its memory, and nothing half made stays. `soak_io_errors` has all
//! calls, this one a part.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod io_errors;

#[test]
fn verbs_on_a_disk_that_fails_are_refused_and_lose_nothing() {
    io_errors::suffer(env!("CARGO_BIN_EXE_bhatti"), 4);
}
