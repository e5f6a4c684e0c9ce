//! A stream with a process of its own: a command, or a worker for a file verb.
//!
//! # When a command has ended
//! Its exit status is sent once its output has ended too. Output may be held open by a process it left behind: then
//! everything that was in the pipes when it ended is still sent, plus what comes until they are silent for
//! [`SILENCE`] or [`PATIENCE`] is over.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};
use wire::{ErrorCode, ExitStatus, MAX_PAYLOAD, Message, WINDOW};

use crate::failure::failure;
use crate::feed::{Feed, FeedState};
use crate::files::Note;
use crate::outbox::Outbox;
use crate::poll::{Poll, Token};

const SILENCE: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(1);

/// More notes than any worker writes.
const MAX_NOTES: usize = 256 * 1024;

/// What kind of process it is.
#[derive(Debug)]
pub enum Kind {
    /// A command.
    Command {
        /// When its time is over.
        deadline: Option<Instant>,
        /// Whether it was killed because of that.
        timed_out: bool,
        /// Whether it runs on a terminal.
        terminal: bool,
    },
    /// A worker, whose second output is notes.
    Worker {
        /// Notes that were not passed on yet.
        notes: Vec<u8>,
    },
}

/// Which of its two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Stdout.
    First,
    /// Stderr, or notes.
    Second,
}

#[derive(Debug)]
struct Source {
    fd: OwnedFd,
    watched: bool,
    /// Bytes that were in the pipe when the process ended and were not read yet.
    owed: u64,
}

#[derive(Debug, Clone, Copy)]
struct Ended {
    status: ExitStatus,
    silent_since: Instant,
    at: Instant,
}

/// One stream with its process.
#[derive(Debug)]
pub struct Task {
    stream: u32,
    pid: Pid,
    kind: Kind,
    feed: Feed,
    feed_watched: bool,
    sources: [Option<Source>; 2],
    credit: u32,
    ended: Option<Ended>,
}

/// Descriptors of a process, as the agent holds them.
#[derive(Debug)]
pub struct Ends {
    /// Into its stdin.
    pub feed: Option<OwnedFd>,
    /// Out of its stdout.
    pub stdout: OwnedFd,
    /// Out of its stderr.
    pub stderr: Option<OwnedFd>,
}

impl Task {
    /// Takes charge of a process and watches its output.
    pub fn new(stream: u32, pid: Pid, kind: Kind, ends: Ends, poll: &Poll) -> Task {
        let terminal = matches!(kind, Kind::Command { terminal: true, .. });
        let source = |fd| Source { fd, watched: false, owed: 0 };
        let mut task = Task {
            stream,
            pid,
            kind,
            feed: Feed::new(ends.feed, terminal),
            feed_watched: false,
            sources: [Some(source(ends.stdout)), ends.stderr.map(source)],
            credit: WINDOW,
            ended: None,
        };
        task.watch(poll);
        task
    }

    /// The process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its terminal.
    pub fn terminal(&self) -> Option<BorrowedFd<'_>> {
        match (&self.kind, &self.sources[0]) {
            (Kind::Command { terminal: true, .. }, Some(source)) => Some(source.fd.as_fd()),
            _ => None,
        }
    }

    /// Watches the outputs that may be read: notes always, the others only with credit.
    fn watch(&mut self, poll: &Poll) {
        let notes = matches!(self.kind, Kind::Worker { .. });
        for (index, source) in self.sources.iter_mut().enumerate() {
            let Some(source) = source else { continue };
            let may_read = self.credit > 0 || (notes && index == 1);
            let token = if index == 0 { Token::Stdout(self.stream) } else { Token::Stderr(self.stream) };
            if may_read && !source.watched {
                source.watched = poll.add_output(&source.fd, token).is_ok();
            } else if !may_read && source.watched {
                poll.remove_output(&source.fd);
                source.watched = false;
            }
        }
    }

    /// The host may be sent more.
    pub fn grant(&mut self, bytes: u32, poll: &Poll) {
        self.credit = self.credit.saturating_add(bytes);
        self.watch(poll);
    }

    /// Bytes for its stdin.
    pub fn take_data(&mut self, bytes: &[u8], outbox: &mut Outbox, poll: &Poll) {
        let state = self.feed.push(bytes);
        self.after_feed(state, outbox, poll);
    }

    /// The end of its stdin.
    pub fn take_eof(&mut self, outbox: &mut Outbox, poll: &Poll) {
        let state = self.feed.end();
        self.after_feed(state, outbox, poll);
    }

    /// Its stdin takes bytes again.
    pub fn feed_ready(&mut self, outbox: &mut Outbox, poll: &Poll) {
        let state = self.feed.flush();
        self.after_feed(state, outbox, poll);
    }

    fn after_feed(&mut self, state: FeedState, outbox: &mut Outbox, poll: &Poll) {
        let blocked = state == FeedState::Blocked;
        if let Some(target) = self.feed.target() {
            if blocked && !self.feed_watched {
                self.feed_watched = poll.add_writable(target, Token::Feed(self.stream)).is_ok();
            } else if !blocked && self.feed_watched {
                poll.remove(target);
                self.feed_watched = false;
            }
        }
        if state == FeedState::Ended {
            self.feed.close();
        }
        if let Some(bytes) = self.feed.grant() {
            outbox.push(self.stream, &Message::Credit(bytes));
        }
    }

    /// Sends a signal to its process group, or to the one in its terminal's foreground.
    pub fn signal(&self, signal: Signal) {
        if self.ended.is_none() {
            let foreground = self.terminal().and_then(|terminal| rustix::termios::tcgetpgrp(terminal).ok());
            let _ = kill_process_group(foreground.unwrap_or(self.pid), signal);
        }
    }

    /// Kills what still runs of it, and lets go of everything: the stream is over. A worker that has all of a
    /// file is left to finish, so that its temporary name cannot stay behind.
    pub fn abandon(&mut self, poll: &Poll) {
        let finishing = matches!(self.kind, Kind::Worker { .. }) && self.feed.has_ended();
        if self.ended.is_none() && !finishing {
            let _ = kill_process_group(self.pid, Signal::KILL);
        }
        self.release(poll);
    }

    /// Stops watching everything. Explicit, because a worker forked just now may hold copies of the descriptors for a
    /// moment, and epoll forgets a descriptor only with its last copy.
    pub fn release(&mut self, poll: &Poll) {
        for source in self.sources.iter_mut().filter_map(Option::take) {
            if source.watched {
                poll.remove_output(&source.fd);
            }
        }
        if let (Some(target), true) = (self.feed.target(), self.feed_watched) {
            poll.remove(target);
        }
        self.feed.close();
    }

    /// An output has bytes or has ended: reads once.
    pub fn source_ready(&mut self, which: Which, scratch: &mut [u8], outbox: &mut Outbox, poll: &Poll) {
        // A note comes before the content that it announces.
        if matches!(self.kind, Kind::Worker { .. }) {
            while self.read(Which::Second, scratch, outbox, poll) {}
            self.pass_meta(outbox);
        }
        if which == Which::First || matches!(self.kind, Kind::Command { .. }) {
            self.read(which, scratch, outbox, poll);
        }
    }

    /// Reads once from one output; whether there may be more.
    fn read(&mut self, which: Which, scratch: &mut [u8], outbox: &mut Outbox, poll: &Poll) -> bool {
        let (index, is_second) = if which == Which::First { (0, false) } else { (1, true) };
        let notes = match &mut self.kind {
            Kind::Worker { notes } if is_second => Some(notes),
            _ => None,
        };
        let Some(source) = &mut self.sources[index] else { return false };
        let credit =
            if notes.is_some() { usize::MAX } else { usize::try_from(self.credit).unwrap_or(usize::MAX) };
        let room = scratch.len().min(MAX_PAYLOAD).min(credit);
        if room == 0 {
            self.watch(poll);
            return false;
        }
        match rustix::io::read(&source.fd, &mut scratch[..room]) {
            Ok(len @ 1..) => {
                source.owed = source.owed.saturating_sub(u64::try_from(len).unwrap_or(u64::MAX));
                match notes {
                    Some(notes) if notes.len() < MAX_NOTES => notes.extend_from_slice(&scratch[..len]),
                    Some(_) => {}
                    None => {
                        outbox.push_output(self.stream, is_second, [&scratch[..len], &[]]);
                        self.credit = self.credit.saturating_sub(u32::try_from(len).unwrap_or(u32::MAX));
                        if self.credit == 0 {
                            self.watch(poll);
                        }
                    }
                }
                if let Some(ended) = &mut self.ended {
                    ended.silent_since = Instant::now();
                }
                true
            }
            Err(Errno::AGAIN) => {
                source.owed = 0;
                false
            }
            Err(Errno::INTR) => true,
            // The end: 0, or EIO from a terminal that nobody has open any more.
            Ok(_) | Err(_) => {
                if let Some(source) = self.sources[index].take()
                    && source.watched
                {
                    poll.remove_output(&source.fd);
                }
                false
            }
        }
    }

    /// The process has ended.
    pub fn has_ended(&mut self, status: ExitStatus, scratch: &mut [u8], outbox: &mut Outbox, poll: &Poll) {
        let now = Instant::now();
        self.ended = Some(Ended { status, silent_since: now, at: now });
        for source in self.sources.iter_mut().flatten() {
            source.owed = rustix::io::ioctl_fionread(&source.fd).unwrap_or(0);
        }
        if matches!(self.kind, Kind::Worker { .. }) {
            while self.read(Which::Second, scratch, outbox, poll) {}
            self.pass_meta(outbox);
        }
        for which in [Which::First, Which::Second] {
            while !outbox.is_full() && self.read(which, scratch, outbox, poll) {}
        }
    }

    /// Whether the stream is over; the last message has then been queued.
    pub fn settle(&mut self, now: Instant, outbox: &mut Outbox) -> bool {
        let Some(ended) = self.ended else { return false };
        let open = self.sources.iter().flatten().count();
        let owed: u64 = self.sources.iter().flatten().map(|source| source.owed).sum();
        let patient = now < ended.silent_since + SILENCE && now < ended.at + PATIENCE;
        if open > 0 && (owed > 0 || patient) {
            return false;
        }
        let last = match &mut self.kind {
            Kind::Command { timed_out, terminal, .. } => Message::Exit(ExitStatus {
                timed_out: *timed_out,
                // A terminal whose leader has ended is hung up: nothing of it is held.
                output_held: open > 0 && !*terminal,
                ..ended.status
            }),
            Kind::Worker { notes } => match last_note(notes) {
                Some(Note::Reply(reply)) => Message::Reply(reply),
                Some(Note::Failed(failed)) => Message::Failed(failed),
                Some(Note::Meta(_)) | None => {
                    let why = format!("ended without an answer (status {})", ended.status.shell_code());
                    Message::Failed(failure(ErrorCode::Io, "file worker", why))
                }
            },
        };
        outbox.push(self.stream, &last);
        true
    }

    /// Passes a leading `Meta` note on.
    fn pass_meta(&mut self, outbox: &mut Outbox) {
        let Kind::Worker { notes } = &mut self.kind else { return };
        let Some(newline) = notes.iter().position(|byte| *byte == b'\n') else { return };
        if let Ok(Note::Meta(meta)) = serde_json::from_slice(&notes[..newline]) {
            outbox.push(self.stream, &Message::Meta(meta));
            notes.drain(..=newline);
        }
    }

    /// When to look again, if nothing happens before.
    pub fn next_look(&self) -> Option<Instant> {
        let owes = self.sources.iter().flatten().any(|source| source.owed > 0);
        match (&self.ended, &self.kind) {
            // Credit, or room in the outbox, will come first.
            (Some(_), _) if owes => None,
            (Some(ended), _) => Some((ended.silent_since + SILENCE).min(ended.at + PATIENCE)),
            (None, Kind::Command { deadline, timed_out: false, .. }) => *deadline,
            (None, _) => None,
        }
    }

    /// Kills the process group if its time is over.
    pub fn enforce_deadline(&mut self, now: Instant) {
        if let (None, Kind::Command { deadline: Some(deadline), timed_out, .. }) =
            (&self.ended, &mut self.kind)
            && now >= *deadline
            && !*timed_out
        {
            *timed_out = true;
            let _ = kill_process_group(self.pid, Signal::KILL);
        }
    }
}

fn last_note(notes: &[u8]) -> Option<Note> {
    let line = notes.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty())?;
    serde_json::from_slice(line).ok()
}
