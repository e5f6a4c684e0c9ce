//! The program: daemon, client and host set-up.
//!
//! `args` is what can be typed, `serve` the composition root of the daemon, `verbs` one file for each group of verbs,
//! `client` the way to a daemon, `failure` how all of it fails.

mod args;
mod client;
mod failure;
mod notify;
mod output;
mod progress;
mod reference;
mod serve;
mod socket;
mod table;
mod terminal;
mod verbs;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;

use crate::args::Cli;
use crate::failure::{FAILED, Failure};

fn main() -> ExitCode {
    terminal::restore_on_panic();
    // Nothing else is needed for it, and there is one for each sandbox that runs.
    if std::env::args_os().nth(1).is_some_and(|word| word == serve::NET_RELAY) {
        return net_relay();
    }
    sys::host_heap::return_freed_memory();
    let wants_json = std::env::args_os().skip(1).take_while(|arg| arg != "--").any(|arg| arg == "--json");
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(help)
            if matches!(
                help.kind(),
                ErrorKind::DisplayHelp
                    | ErrorKind::DisplayVersion
                    | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            ) =>
        {
            let status = u8::try_from(help.exit_code()).unwrap_or(FAILED);
            return if help.print().is_ok() { ExitCode::from(status) } else { ExitCode::FAILURE };
        }
        Err(error) => {
            let words = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
            return fail(&failure::usage(&error, words), wants_json);
        }
    };
    let json = cli.global.json;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&Failure::io("starting", &error), json),
    };
    let outcome = runtime.block_on(verbs::run(cli));
    // A thread that still reads a terminal must not hold the program back.
    runtime.shutdown_background();
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(failure) => fail(&failure, json),
    }
}

/// Lets through, between standard input and output, what the orders in the arguments allow.
fn net_relay() -> ExitCode {
    let mut words = std::env::args_os().skip(2);
    let passt = PathBuf::from(words.next().unwrap_or_default());
    let words: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    let relayed = net::Orders::from_words(&words).and_then(|orders| {
        net::relay(&passt, orders).map_err(|error| match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        })
    });
    match relayed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("net-relay: {error}");
            ExitCode::FAILURE
        }
    }
}

fn fail(failure: &Failure, json: bool) -> ExitCode {
    if json {
        output::document(&failure.document());
    }
    eprintln!("{failure}");
    ExitCode::from(failure.exit)
}
