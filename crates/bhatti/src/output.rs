//! Writing to stdout, where whoever reads may leave at any time.

use std::io::{self, Write as _};

use serde::Serialize;

/// Exit status of a program that wrote to a pipe nobody reads: 128 + SIGPIPE, as a shell tells it.
const NOBODY_READS: i32 = 141;

/// Writes bytes as they are, at once.
pub fn bytes(bytes: &[u8]) {
    let mut stdout = io::stdout().lock();
    if let Err(error) = stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        gave_up(&error);
    }
}

/// Writes bytes to stderr as they are. That nobody reads stderr is no reason to end.
pub fn error_bytes(bytes: &[u8]) {
    let mut stderr = io::stderr().lock();
    let _nobody = stderr.write_all(bytes).and_then(|()| stderr.flush());
}

/// Writes a line.
pub fn line(text: impl std::fmt::Display) {
    bytes(format!("{text}\n").as_bytes());
}

/// Writes a JSON document.
pub fn document(value: &impl Serialize) {
    line(serde_json::to_string_pretty(value).unwrap_or_default());
}

/// Writes a JSON document on one line, for streams of them.
pub fn json_line(value: &impl Serialize) {
    line(serde_json::to_string(value).unwrap_or_default());
}

fn gave_up(error: &io::Error) -> ! {
    crate::terminal::restore();
    if error.kind() == io::ErrorKind::BrokenPipe {
        std::process::exit(NOBODY_READS);
    }
    eprintln!("error: standard output: {error}");
    std::process::exit(i32::from(crate::failure::FAILED));
}
