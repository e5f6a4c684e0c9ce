//! As `vm_flips`, for as long as it takes; `BHATTI_FLIPS` has another number of them.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod flips;

#[test]
fn damage_at_five_hundred_places_is_found_or_harms_nothing() {
    let flips = std::env::var("BHATTI_FLIPS").map_or(500, |text| text.parse().expect("a number"));
    flips::suffer(env!("CARGO_BIN_EXE_bhatti"), flips);
}
