//! A command's stream as every route sees it: events until exactly one ending.

use std::time::Instant;

use bytes::Bytes;
use sandbox::{ErrorKind, ExecEvent, ExecStream, Leased, StdinSender, wire};
use tokio_util::task::AbortOnDropHandle;

use crate::refusal::Refusal;
use crate::tell;

/// Something that a command did.
#[derive(Debug)]
pub(crate) enum Happening {
    Started { pid: u32, session: Option<String> },
    Stdout(Bytes),
    Stderr(Bytes),
    Ended(Ending),
}

/// How a command ended.
#[derive(Debug)]
pub(crate) enum Ending {
    Exit { exit_code: i32, timed_out: bool },
    Failed(sandbox::Error),
}

/// A running command. Dropping it before its ending kills the command's process group (or detaches the session).
pub(crate) struct Command {
    stream: Leased<ExecStream>,
    began: Instant,
    _stdin: Option<AbortOnDropHandle<()>>,
}

impl Command {
    /// Follows `stream`; the clock of `duration_ms` starts here, after any wake.
    pub(crate) fn new(stream: Leased<ExecStream>) -> Self {
        Self { stream, began: Instant::now(), _stdin: None }
    }

    /// Sends `bytes` as the whole standard input, beside everything else: a command may write before it reads.
    pub(crate) fn feed(&mut self, bytes: Vec<u8>) {
        let Some(stdin) = self.stream.stdin() else { return };
        self._stdin = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            // A command that does not read to the end is no failure.
            if stdin.send(Bytes::from(bytes)).await.is_ok() {
                let _closed = stdin.eof();
            }
        })));
    }

    /// The way to its input; `None` when the request had none.
    pub(crate) fn stdin(&self) -> Option<StdinSender> {
        self.stream.stdin()
    }

    pub(crate) fn control(&self, control: api::ShellControl) {
        let done = match control {
            api::ShellControl::Resize { rows, cols } => self.stream.resize(rows, cols),
            api::ShellControl::Signal { signal } => self.stream.signal(signal),
            // Input and its end go through the sender, in the order in which they came.
            api::ShellControl::Eof => Ok(()),
        };
        // A channel that broke is told by the next event.
        if let Err(error) = done {
            tracing::debug!(%error, "a control message found no guest");
        }
    }

    pub(crate) fn duration_ms(&self) -> f64 {
        tell::milliseconds(self.began.elapsed())
    }

    /// What happens next. After an ending it must not be called again.
    pub(crate) async fn next(&mut self) -> Happening {
        match self.stream.next().await {
            Some(ExecEvent::Started(wire::Started { pid, session })) => Happening::Started { pid, session },
            Some(ExecEvent::Stdout(bytes)) => Happening::Stdout(bytes),
            Some(ExecEvent::Stderr(bytes)) => Happening::Stderr(bytes),
            Some(ExecEvent::Exit(exit)) => Happening::Ended(Ending::Exit {
                exit_code: tell::exit_code(&exit),
                timed_out: exit.timed_out,
            }),
            Some(ExecEvent::Failed(error)) => Happening::Ended(Ending::Failed(error.into())),
            None => Happening::Ended(Ending::Failed(sandbox::Error::new(
                ErrorKind::StreamBroken,
                "the stream to the guest broke off: the sandbox was stopped, destroyed or died",
            ))),
        }
    }
}

/// The exit status that a shell would give for a command that could not be run.
pub(crate) const fn shell_status(kind: ErrorKind) -> Option<i32> {
    match kind {
        ErrorKind::CommandNotFound => Some(127),
        ErrorKind::NotExecutable => Some(126),
        _ => None,
    }
}

/// The last event of a stream that did not end with an exit status.
pub(crate) fn error_event(error: sandbox::Error) -> api::ExecEvent {
    let exit_code = shell_status(error.kind()).unwrap_or(1);
    refusal_event(Refusal::from(error), exit_code)
}

/// The only event of a stream that did not come about.
pub(crate) fn refusal_event(refusal: Refusal, exit_code: i32) -> api::ExecEvent {
    let api::ErrorDetail { code, message, hint } = refusal.detail();
    api::ExecEvent::Error { code, message, hint, exit_code }
}
