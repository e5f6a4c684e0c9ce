//! Commands and sessions as their callers hold them.

use bytes::Bytes;
use wire::{ExitStatus, Message, Started, WindowSize};

use crate::channel::{Handle, Input};
use crate::error::{Error, ErrorKind, Result};
use crate::stream::Told;

/// What a command or session tells.
#[derive(Debug)]
pub enum ExecEvent {
    /// It runs. Always first, unless it failed.
    Started(Started),
    /// Bytes of its stdout or terminal.
    Stdout(Bytes),
    /// Bytes of its stderr.
    Stderr(Bytes),
    /// It has ended. The last event.
    Exit(ExitStatus),
    /// It could not be started (`Refused`), or how it went on is not known (`Closed`, `Protocol`). The last event.
    Failed(Error),
}

/// A command or an attached session. Dropped before its end, a command's process group is killed and a session is
/// detached from.
#[derive(Debug)]
pub struct ExecStream {
    handle: Handle,
    takes_input: bool,
    over: bool,
}

impl ExecStream {
    pub(crate) fn new(handle: Handle, takes_input: bool) -> Self {
        Self { handle, takes_input, over: false }
    }

    /// The next event; `None` after the last. A detached command's last is `Started`. What is not taken is held back
    /// in the guest, 256 KiB at most wait here. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<ExecEvent> {
        if self.over {
            return None;
        }
        let event = match self.handle.next().await {
            Ok(Told::Started(started)) => return Some(ExecEvent::Started(started)),
            Ok(Told::Stdout(data)) => return Some(ExecEvent::Stdout(data)),
            Ok(Told::Stderr(data)) => return Some(ExecEvent::Stderr(data)),
            Ok(Told::Exit(status)) => Some(ExecEvent::Exit(status)),
            Ok(Told::Failed(failure)) => Some(ExecEvent::Failed(Error::refused(self.handle.op(), &failure))),
            Ok(Told::Reply(_) | Told::Meta(_) | Told::Eof) => None,
            Err(error) => Some(ExecEvent::Failed(error)),
        };
        self.over = true;
        event
    }

    /// The way to its stdin or terminal; `None` if the request had neither.
    #[must_use]
    pub fn stdin(&self) -> Option<StdinSender> {
        self.takes_input.then(|| StdinSender(self.handle.input()))
    }

    /// Sends a signal to its process group; nothing happens if it has ended.
    ///
    /// # Errors
    /// `Closed` or `Protocol` when the channel is gone.
    pub fn signal(&self, number: i32) -> Result<()> {
        self.handle.input().tell(Message::Signal(number))
    }

    /// Changes the size of its terminal; nothing happens if it has ended.
    ///
    /// # Errors
    /// `Closed` or `Protocol` when the channel is gone.
    pub fn resize(&self, rows: u16, cols: u16) -> Result<()> {
        self.handle.input().tell(Message::Resize(WindowSize { rows, cols }))
    }
}

/// Writes to a command's stdin or terminal, also while somebody else reads its output. Dropping it does not end the
/// input: only [`StdinSender::eof`] does, so that half an input is never taken for a whole one.
#[derive(Debug, Clone)]
pub struct StdinSender(Input);

impl StdinSender {
    /// Sends all of `data`, waiting while the command does not read. Dropped on the way, a part may have been sent.
    ///
    /// # Errors
    /// `Ended` after the command's end or [`StdinSender::eof`]; `Closed` or `Protocol` when the channel is gone.
    pub async fn send(&self, data: Bytes) -> Result<()> {
        self.0.send(&data).await
    }

    /// Says that the input is complete. On a terminal this does nothing a user would not type: send `\x04` there.
    ///
    /// # Errors
    /// `Closed` or `Protocol` when the channel is gone.
    pub fn eof(&self) -> Result<()> {
        self.0.eof()
    }

    /// As [`ExecStream::signal`].
    ///
    /// # Errors
    /// As there.
    pub fn signal(&self, number: i32) -> Result<()> {
        self.0.tell(Message::Signal(number))
    }

    /// As [`ExecStream::resize`].
    ///
    /// # Errors
    /// As there.
    pub fn resize(&self, rows: u16, cols: u16) -> Result<()> {
        self.0.tell(Message::Resize(WindowSize { rows, cols }))
    }
}

/// The error for an answer that `stream` lets through and no caller asks for.
pub(crate) fn unexpected(op: &'static str) -> Error {
    Error::because(ErrorKind::Protocol, op, "an answer to another question")
}
