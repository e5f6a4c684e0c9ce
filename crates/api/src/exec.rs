//! Commands in a guest: whole, or event by event.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `POST /sandboxes/{id}/exec`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExecRequest {
    /// Program and arguments.
    pub cmd: Vec<String>,
    /// Seconds after which the whole process group is killed; none when missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_sec: Option<f64>,
    /// Added to the sandbox's environment.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Working directory; the user's home when empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cwd: String,
    /// User name or number; uid 1000 when empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Standard input, in base64.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stdin_base64: String,
    /// Start it as a session and answer at once.
    pub detach: bool,
    /// Input follows as binary messages (WebSocket only); /dev/null otherwise.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
    /// Give it a terminal of this size, which implies `stdin` (WebSocket only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tty: Option<TtySize>,
}

/// A terminal: its size in characters, and its kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TtySize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
    /// Value of `TERM`; `xterm-256color` when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<String>,
}

/// The buffered answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExecResponse {
    /// The guest's exit status; 128+n for a signal; 124 for a timeout; missing for a detached command.
    pub exit_code: Option<i32>,
    /// Standard output as text; what is no UTF-8 is replaced, see `stdout_base64`.
    pub stdout: String,
    /// Standard error as text.
    pub stderr: String,
    /// The exact bytes, only where `stdout` is not valid UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout_base64: Option<String>,
    /// The exact bytes, only where `stderr` is not valid UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_base64: Option<String>,
    /// Output past 10 MiB was dropped; the text ends with a marker.
    #[serde(default)]
    pub truncated: bool,
    /// The command was killed because its time was over.
    #[serde(default)]
    pub timed_out: bool,
    /// From start to exit as the host saw it, without a wake.
    pub duration_ms: f64,
    /// The session of a detached command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Process id in the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

/// A line of the streamed answer (`application/x-ndjson`), or a text message of the exec WebSocket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ExecEvent {
    /// The command runs.
    Started {
        /// Process id in the guest.
        pid: u32,
        /// Session of a detached command or shell.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<String>,
    },
    /// Standard output; exactly one of the two is there.
    Stdout {
        /// Valid UTF-8.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        data: Option<String>,
        /// Anything else, in base64.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        data_base64: Option<String>,
    },
    /// Standard error; exactly one of the two is there.
    Stderr {
        /// Valid UTF-8.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        data: Option<String>,
        /// Anything else, in base64.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        data_base64: Option<String>,
    },
    /// The command ended. Always the last event of a command that ran to its end.
    Exit {
        /// 128+n for a signal, 124 for a timeout.
        exit_code: i32,
        /// Killed because its time was over.
        #[serde(default)]
        timed_out: bool,
        /// From start to exit as the host saw it.
        duration_ms: f64,
    },
    /// The command could not run, or its stream broke off. Always the last event.
    Error {
        /// The same words as in [`crate::ErrorDetail`].
        code: String,
        /// One line.
        message: String,
        /// What to do; empty where nothing helps.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        hint: String,
        /// Exit status a shell would give (126, 127), or 1.
        exit_code: i32,
    },
}

/// A text message from the client on the shell and exec WebSockets; input itself is binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ShellControl {
    /// The terminal changed its size.
    Resize {
        /// Lines.
        rows: u16,
        /// Columns.
        cols: u16,
    },
    /// No more input.
    Eof,
    /// Send a signal to the process group.
    Signal {
        /// The signal's number.
        signal: i32,
    },
}
