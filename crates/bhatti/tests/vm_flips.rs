//! Damaged files are found before a guest runs on them, and the message says which and what can be done: two pieces of
//! damage for each kind of file. `soak_flips` has more.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod flips;

#[test]
fn damage_in_any_kind_of_file_is_found_or_harms_nothing() {
    flips::suffer(env!("CARGO_BIN_EXE_bhatti"), 40);
}
