//! As `vm_flips`, for as long as it takes.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod flips;

#[test]
fn damage_at_five_hundred_places_is_found_or_harms_nothing() {
    flips::suffer(env!("CARGO_BIN_EXE_bhatti"), 500);
}
