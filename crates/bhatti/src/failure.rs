//! How this program fails: one line on stderr, an error document with `--json`, and an exit status.

use std::fmt;

use clap::CommandFactory as _;
use serde_json::json;

/// Refused or failed.
pub const FAILED: u8 = 1;
/// Wrong usage.
pub const USAGE: u8 = 2;

/// Called off by a signal: 128 + SIGINT, as a shell tells it.
pub const INTERRUPTED: u8 = 130;

/// A failure: `error: <what>: <why>; <what to do>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// A stable word for programs.
    pub code: String,
    /// What failed and why.
    pub message: String,
    /// What to do; may be empty.
    pub hint: String,
    /// This program's exit status.
    pub exit: u8,
}

pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), hint: String::new(), exit: FAILED }
    }

    /// A local operation that failed: what it was about, and the system's reason.
    pub fn io(what: impl fmt::Display, error: &std::io::Error) -> Self {
        Self::new("io", format!("{what}: {error}"))
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// As the daemon told it.
    pub fn told(detail: api::ErrorDetail) -> Self {
        Self { code: detail.code, message: detail.message, hint: detail.hint, exit: FAILED }
    }

    /// The document for `--json`.
    pub fn document(&self) -> serde_json::Value {
        json!({ "error": { "code": self.code, "message": self.message, "hint": self.hint } })
    }
}

impl From<sandbox::Error> for Failure {
    fn from(error: sandbox::Error) -> Self {
        Self::new(error.kind().code(), error.with_causes()).hint(error.way_out())
    }
}

impl fmt::Display for Failure {
    /// One line, whatever the parts were made of.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", one_line(&self.message))?;
        if !self.hint.is_empty() {
            write!(f, "; {}", one_line(&self.hint))?;
        }
        Ok(())
    }
}

fn one_line(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join(" | ").chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// What clap found wrong with `words`, as one line that ends in where to look.
pub fn usage(error: &clap::Error, words: impl Iterator<Item = String>) -> Failure {
    let text = error.render().to_string();
    let said: Vec<_> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    let message = said.join(" ");
    let message = message.strip_prefix("error: ").unwrap_or(&message).to_owned();
    Failure { exit: USAGE, ..Failure::new("usage", message).hint(format!("see `{} --help`", verb_of(words))) }
}

/// The command whose help tells more: the subcommands among `words`, as deep as they go.
fn verb_of(words: impl Iterator<Item = String>) -> String {
    let mut command = crate::args::Cli::command();
    let mut name = command.get_name().to_owned();
    for word in words {
        if let Some(verb) = command.find_subcommand(&word).cloned() {
            name = format!("{name} {}", verb.get_name());
            command = verb;
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_whatever_it_quotes() {
        let failure =
            Failure::new("vmm_failed", "guest \"a\": did not boot: Kernel panic\n\n  not syncing\x1b[0m\n")
                .hint("see `bhatti doctor`");
        assert_eq!(
            failure.to_string(),
            "error: guest \"a\": did not boot: Kernel panic | not syncing\u{fffd}[0m; see `bhatti doctor`"
        );
        assert_eq!(failure.document()["error"]["code"], "vmm_failed");
    }
}
