//! The whole channel against scripted agents.

mod attach;
mod bad_guests;
mod connections;
mod files;
mod peer;
mod quiet;
mod streams;
