//! One stream: what the agent may say on it when, and what the consumer has not taken yet.
//!
//! ```text
//!   exec, session   Started ─► (Stdout | Stderr)* ─► Exit
//!   detached exec   Started ─► Reply(Done)
//!   file read       Meta ─► Stdout* ─► Reply(Read)
//!   file list       Stdout* ─► Reply(Listed)
//!   connection      Started ─► Stdout* ─► Eof ─► Reply(Done), not before our Eof
//!   file write      Reply(Stat), not before our Eof
//!   the others      Reply of their own kind
//! ```
//! `Failed` may come at any time instead of the rest, `Credit` at any time. After the end nothing counts.
//!
//! # Bounds
//! At most [`wire::WINDOW`] bytes wait in the inbox, in at most [`MAX_RUNS`] pieces however small the frames were,
//! besides one opening and one end whose texts are limited here.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Notify;
use wire::{
    ExitStatus, Failure, FileStat, Listener, MAX_LISTENERS, Message, Reply, Request, Started, WINDOW,
};

/// Pieces of output that wait at most. Past that, stdout and stderr no longer keep their order to each other, which
/// two pipes do not promise anyway.
const MAX_RUNS: usize = 16;

/// Longest text that a guest may give as a name or link target (PATH_MAX is 4096), or a session's name.
const MAX_TEXT: usize = 8 * 1024;

/// Return credit when the consumer has taken so much.
const CREDIT_STEP: u32 = WINDOW / 4;

/// What the agent did that it must not do.
pub(crate) type Breach = &'static str;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Process,
    Detached,
    Read,
    List,
    Write,
    Stat,
    Sessions,
    Info,
    Ports,
    Connection,
    Done,
}

impl Shape {
    fn of(request: &Request) -> Self {
        match request {
            Request::Exec(exec) if exec.detach => Self::Detached,
            Request::Exec(_) | Request::Session(_) => Self::Process,
            Request::FileRead(_) => Self::Read,
            Request::FileList(_) => Self::List,
            Request::FileWrite(_) => Self::Write,
            Request::FileStat(_) => Self::Stat,
            Request::Sessions => Self::Sessions,
            Request::Info => Self::Info,
            Request::Ports => Self::Ports,
            Request::Connect(_) => Self::Connection,
            Request::Sync
            | Request::Poweroff
            | Request::Mount(_)
            | Request::Unmount(_)
            | Request::GrowVolume(_)
            | Request::Settle(_) => Self::Done,
        }
    }

    /// Whether a `Started` or `Meta` comes before everything else.
    fn has_opening(self) -> bool {
        matches!(self, Self::Process | Self::Detached | Self::Read | Self::Connection)
    }
}

/// What the agent told on a stream, in the order in which it is taken.
#[derive(Debug)]
pub(crate) enum Told {
    Started(Started),
    Meta(FileStat),
    Stdout(Bytes),
    Stderr(Bytes),
    /// No more output; input may go on.
    Eof,
    Exit(ExitStatus),
    Reply(Reply),
    Failed(Failure),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pipe {
    Stdout,
    Stderr,
}

/// The state of one open stream.
#[derive(Debug)]
pub(crate) struct Stream {
    shape: Shape,
    opened: bool,
    opening: Option<Told>,
    runs: VecDeque<(Pipe, Vec<u8>)>,
    /// The agent has said `Eof`: whether, and whether it was taken.
    eof: Option<bool>,
    end: Option<Told>,
    ended: bool,
    eof_sent: bool,
    /// Bytes the agent may still send.
    receivable: u32,
    /// Bytes taken by the consumer and not granted again yet.
    consumed: u32,
    /// Bytes we may still send.
    sendable: u32,
    /// Wakes whoever waits for an answer or for credit on this stream.
    pub(crate) wake: Arc<Notify>,
}

impl Stream {
    pub(crate) fn new(request: &Request) -> Self {
        Self {
            shape: Shape::of(request),
            opened: false,
            opening: None,
            runs: VecDeque::new(),
            eof: None,
            end: None,
            ended: false,
            eof_sent: false,
            receivable: WINDOW,
            consumed: 0,
            sendable: WINDOW,
            wake: Arc::new(Notify::new()),
        }
    }

    /// Whether the agent has said its last word here.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// Takes in what the agent says.
    pub(crate) fn receive(&mut self, message: Message) -> Result<(), Breach> {
        if self.ended {
            return Ok(());
        }
        match message {
            Message::Started(started) => {
                if started.session.as_ref().is_some_and(|name| name.len() > MAX_TEXT) {
                    return Err("a session's name is too long");
                }
                let fits = matches!(self.shape, Shape::Process | Shape::Detached | Shape::Connection);
                self.open(fits, Told::Started(started))
            }
            Message::Meta(stat) => {
                check_stat(&stat)?;
                self.open(self.shape == Shape::Read, Told::Meta(*stat))
            }
            Message::Stdout(data) => self.data(Pipe::Stdout, data),
            Message::Stderr(data) => self.data(Pipe::Stderr, data),
            Message::Eof => {
                if self.shape != Shape::Connection || !self.opened || self.eof.is_some() {
                    return Err("an end where none belongs");
                }
                self.eof = Some(false);
                Ok(())
            }
            Message::Credit(bytes) => {
                let total = self.sendable.checked_add(bytes).filter(|total| *total <= WINDOW);
                self.sendable = total.ok_or("credit for more than was sent")?;
                Ok(())
            }
            Message::Exit(status) => {
                if self.shape != Shape::Process || !self.opened {
                    return Err("an exit status of nothing that was started");
                }
                self.finish(Told::Exit(status))
            }
            Message::Reply(reply) => {
                self.check_reply(&reply)?;
                self.finish(Told::Reply(*reply))
            }
            Message::Failed(failure) => {
                let message = crate::error::printable(&failure.message);
                self.finish(Told::Failed(Failure { message, ..failure }))
            }
            Message::Attach(_)
            | Message::Welcome(_)
            | Message::AttachFailed(_)
            | Message::Detach
            | Message::Detached
            | Message::Open(_)
            | Message::Data(_)
            | Message::Resize(_)
            | Message::Signal(_)
            | Message::Cancel => Err("a message that only the host sends, or that belongs to no stream"),
        }
    }

    fn open(&mut self, fits: bool, told: Told) -> Result<(), Breach> {
        if !fits || self.opened {
            return Err("an opening where none belongs");
        }
        self.opened = true;
        self.opening = Some(told);
        Ok(())
    }

    fn data(&mut self, pipe: Pipe, data: Vec<u8>) -> Result<(), Breach> {
        let fits = match self.shape {
            Shape::Process => true,
            Shape::Read | Shape::List => pipe == Pipe::Stdout,
            Shape::Connection => pipe == Pipe::Stdout && self.eof.is_none(),
            Shape::Detached
            | Shape::Write
            | Shape::Stat
            | Shape::Sessions
            | Shape::Info
            | Shape::Ports
            | Shape::Done => false,
        };
        if !fits || (self.shape.has_opening() && !self.opened) {
            return Err("data where none belongs");
        }
        let left = u32::try_from(data.len()).ok().and_then(|len| self.receivable.checked_sub(len));
        self.receivable = left.ok_or("more data than it has credit for")?;
        if data.is_empty() {
            return Ok(());
        }
        let last = self.runs.len().checked_sub(1);
        let same = last.filter(|at| self.runs[*at].0 == pipe);
        // Only two kinds alternate, so the run before the last is of the other kind than the last.
        let merged = if self.runs.len() >= MAX_RUNS { same.or(last.map(|at| at - 1)) } else { same };
        match merged {
            Some(at) => self.runs[at].1.extend_from_slice(&data),
            None => self.runs.push_back((pipe, data)),
        }
        Ok(())
    }

    fn check_reply(&self, reply: &Reply) -> Result<(), Breach> {
        if self.shape.has_opening() && !self.opened {
            return Err("a reply before the opening");
        }
        match (self.shape, reply) {
            (Shape::Write, Reply::Stat(_)) if !self.eof_sent => Err("a reply before the end of the data"),
            (Shape::Write | Shape::Stat, Reply::Stat(stat)) => check_stat(stat),
            (Shape::Connection, Reply::Done) if self.eof.is_none() => {
                Err("a reply before the end of its data")
            }
            (Shape::Ports, Reply::Ports(listeners)) => check_listeners(listeners),
            (Shape::Detached | Shape::Done | Shape::Connection, Reply::Done)
            | (Shape::Read, Reply::Read(_))
            | (Shape::List, Reply::Listed(_))
            | (Shape::Sessions, Reply::Sessions(_))
            | (Shape::Info, Reply::Info(_)) => Ok(()),
            _ => Err("a reply to another question"),
        }
    }

    fn finish(&mut self, told: Told) -> Result<(), Breach> {
        self.ended = true;
        self.end = Some(told);
        Ok(())
    }

    /// The next thing the agent told, and the credit to return to it if it is time for that.
    pub(crate) fn take(&mut self) -> Option<(Told, Option<u32>)> {
        if let Some(opening) = self.opening.take() {
            return Some((opening, None));
        }
        let Some((pipe, run)) = self.runs.pop_front() else {
            if self.eof == Some(false) {
                self.eof = Some(true);
                return Some((Told::Eof, None));
            }
            return self.end.take().map(|end| (end, None));
        };
        // A run is never longer than the window.
        self.consumed = self.consumed.saturating_add(u32::try_from(run.len()).unwrap_or(u32::MAX));
        let grant = (self.consumed >= CREDIT_STEP && !self.ended).then(|| {
            let grant = std::mem::take(&mut self.consumed);
            self.receivable = self.receivable.saturating_add(grant);
            grant
        });
        let run = Bytes::from(run);
        let told = match pipe {
            Pipe::Stdout => Told::Stdout(run),
            Pipe::Stderr => Told::Stderr(run),
        };
        Some((told, grant))
    }

    /// How much may be sent now; `None` when the agent takes nothing more.
    pub(crate) fn sendable(&self) -> Option<u32> {
        (!self.ended && !self.eof_sent).then_some(self.sendable)
    }

    /// Notes that so much was sent; never more than [`Stream::sendable`].
    pub(crate) fn sent(&mut self, len: u32) {
        self.sendable = self.sendable.saturating_sub(len);
    }

    /// Notes the end of our data; whether an `Eof` is to be sent.
    pub(crate) fn eof(&mut self) -> bool {
        !std::mem::replace(&mut self.eof_sent, true) && !self.ended
    }
}

fn check_stat(stat: &FileStat) -> Result<(), Breach> {
    let long = stat.name.len() > MAX_TEXT || stat.target.as_ref().is_some_and(|text| text.len() > MAX_TEXT);
    if long { Err("a file's name is too long") } else { Ok(()) }
}

fn check_listeners(listeners: &[Listener]) -> Result<(), Breach> {
    let long = |listener: &Listener| listener.process.as_ref().is_some_and(|name| name.len() > MAX_TEXT);
    if listeners.len() > MAX_LISTENERS || listeners.iter().any(long) {
        return Err("more listeners than there may be, or one with too long a name");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
