//! What is done to this repository: `cargo xtask check` holds the house rules, `cargo xtask test` runs all tests.

mod check;
mod graph;
mod links;
mod loops;
mod sources;
mod step;
mod test;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::step::Steps;

#[derive(Parser)]
#[command(name = "cargo xtask", about)]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Format, lints, docs, the crate graph, sizes and names.
    Check,
    /// The house rules, then all tests: without guests, then files and guests on ext4, btrfs and xfs.
    Test(test::Options),
}

fn main() -> ExitCode {
    let args = Args::parse();
    let root = workspace();
    let steps = match Steps::new(&root) {
        Ok(steps) => steps,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    match args.task {
        Task::Check => check::run(&steps),
        Task::Test(options) => test::run(&steps, &options),
    }
    steps.finish()
}

/// The workspace's root, two levels above this package.
fn workspace() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    package.parent().and_then(Path::parent).map_or(package.clone(), Path::to_path_buf)
}
