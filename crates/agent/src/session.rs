//! A command that outlives its clients: it has a scrollback, and any number of streams look at it.
//!
//! # Reading
//! Without clients its output is always read, and the oldest is forgotten. With clients it is read only as far as the
//! slowest of them has room in the scrollback, so that a client that is attached misses nothing; a command whose
//! client does not read waits, as it would on a real terminal.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};
use wire::{ExitStatus, MAX_PAYLOAD, Message, SessionInfo, SessionKind, WINDOW};

use crate::feed::{Feed, FeedState};
use crate::outbox::Outbox;
use crate::poll::{Poll, Token};
use crate::ring::{CAPACITY, Ring};
use crate::spawn::Started;

/// How long output is still read after the command has ended, if somebody else holds it open.
const SILENCE: Duration = Duration::from_millis(100);

/// How much of a command line a listing shows.
const SHOWN_ARGV: usize = 256;

/// One stream that looks at a session.
#[derive(Debug)]
struct Client {
    stream: u32,
    position: u64,
    credit: u32,
}

/// One session.
#[derive(Debug)]
pub struct Session {
    number: u32,
    info: SessionInfo,
    pid: Pid,
    output: Option<std::os::fd::OwnedFd>,
    watched: bool,
    feed: Feed,
    feed_watched: bool,
    terminal: bool,
    ring: Ring,
    clients: Vec<Client>,
    deadline: Option<Instant>,
    timed_out: bool,
    ended_at: Option<Instant>,
}

/// What a new session is called, and why it exists.
#[derive(Debug)]
pub struct Origin {
    /// Its place in the table.
    pub number: u32,
    /// Its name.
    pub id: String,
    /// What began it.
    pub kind: SessionKind,
    /// Whether it runs on a terminal.
    pub terminal: bool,
    /// When it began.
    pub started_unix_ms: u64,
    /// When its time is over.
    pub deadline: Option<Instant>,
}

impl Session {
    /// Takes charge of a process.
    pub fn new(origin: Origin, started: Started, poll: &Poll) -> Session {
        let pid = u32::try_from(started.pid.as_raw_nonzero().get()).unwrap_or(0);
        let mut session = Session {
            number: origin.number,
            info: SessionInfo {
                id: origin.id,
                kind: origin.kind,
                argv: shorten(started.argv),
                pid,
                started_unix_ms: origin.started_unix_ms,
                attached: false,
                exit: None,
            },
            pid: started.pid,
            output: Some(started.stdout),
            watched: false,
            feed: Feed::new(started.feed, origin.terminal),
            feed_watched: false,
            terminal: origin.terminal,
            ring: Ring::default(),
            clients: vec![],
            deadline: origin.deadline,
            timed_out: false,
            ended_at: None,
        };
        session.watch(poll);
        session
    }

    /// As listed.
    pub fn info(&self) -> SessionInfo {
        SessionInfo { attached: !self.clients.is_empty(), ..self.info.clone() }
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.info.id
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether it is a running shell that nobody looks at.
    pub fn is_idle_shell(&self) -> bool {
        self.info.kind == SessionKind::Shell && self.info.exit.is_none() && self.clients.is_empty()
    }

    /// When it ended, once everything it wrote was read.
    pub fn over_since(&self) -> Option<Instant> {
        self.ended_at.filter(|_| self.output.is_none())
    }

    /// Its terminal, while it has one.
    pub fn terminal(&self) -> Option<BorrowedFd<'_>> {
        self.output.as_ref().filter(|_| self.terminal).map(AsFd::as_fd)
    }

    /// A stream begins to look, from the oldest remembered byte on.
    pub fn attach(&mut self, stream: u32, poll: &Poll) {
        self.clients.push(Client { stream, position: self.ring.start(), credit: WINDOW });
        self.watch(poll);
    }

    /// A stream looks no more.
    pub fn detach(&mut self, stream: u32, poll: &Poll) {
        self.clients.retain(|client| client.stream != stream);
        self.watch(poll);
    }

    /// Nobody looks any more.
    pub fn detach_all(&mut self, poll: &Poll) {
        self.clients.clear();
        self.watch(poll);
    }

    /// A client may be sent more.
    pub fn grant(&mut self, stream: u32, bytes: u32) {
        if let Some(client) = self.clients.iter_mut().find(|client| client.stream == stream) {
            client.credit = client.credit.saturating_add(bytes);
        }
    }

    /// Bytes from a client.
    pub fn take_data(&mut self, stream: u32, bytes: &[u8], outbox: &mut Outbox, poll: &Poll) {
        let state = self.feed.push(bytes);
        self.after_feed(state, Some(stream), outbox, poll);
    }

    /// Its terminal takes bytes again.
    pub fn feed_ready(&mut self, outbox: &mut Outbox, poll: &Poll) {
        let state = self.feed.flush();
        let stream = self.clients.first().map(|client| client.stream);
        self.after_feed(state, stream, outbox, poll);
    }

    fn after_feed(&mut self, state: FeedState, stream: Option<u32>, outbox: &mut Outbox, poll: &Poll) {
        let blocked = state == FeedState::Blocked;
        if let Some(target) = self.feed.target() {
            if blocked && !self.feed_watched {
                self.feed_watched = poll.add_writable(target, Token::SessionFeed(self.number)).is_ok();
            } else if !blocked && self.feed_watched {
                poll.remove(target);
                self.feed_watched = false;
            }
        }
        if let (Some(bytes), Some(stream)) = (self.feed.grant(), stream) {
            outbox.push(stream, &Message::Credit(bytes));
        }
    }

    /// Sends a signal to the group in the foreground of its terminal, or to its own.
    pub fn signal(&self, signal: Signal) {
        if self.info.exit.is_none() {
            let foreground = self.terminal().and_then(|terminal| rustix::termios::tcgetpgrp(terminal).ok());
            let _ = kill_process_group(foreground.unwrap_or(self.pid), signal);
        }
    }

    fn may_read(&self) -> bool {
        let chunk = u64::try_from(MAX_PAYLOAD).unwrap_or(u64::MAX);
        let capacity = u64::try_from(CAPACITY).unwrap_or(u64::MAX);
        self.clients
            .iter()
            .all(|client| self.ring.end() - client.position.min(self.ring.end()) + chunk <= capacity)
    }

    fn watch(&mut self, poll: &Poll) {
        let may_read = self.may_read();
        let Some(output) = &self.output else { return };
        if may_read && !self.watched {
            self.watched = poll.add_readable(output, Token::Session(self.number)).is_ok();
        } else if !may_read && self.watched {
            poll.remove(output);
            self.watched = false;
        }
    }

    fn close_output(&mut self, poll: &Poll) {
        if let Some(output) = self.output.take() {
            if self.watched {
                poll.remove(&output);
            }
            if let (Some(target), true) = (self.feed.target(), self.feed_watched) {
                poll.remove(target);
            }
            self.feed.close();
        }
        self.watched = false;
    }

    /// Its output has bytes or has ended: reads once; whether there may be more.
    pub fn read(&mut self, scratch: &mut [u8], poll: &Poll) -> bool {
        let Some(output) = &self.output else { return false };
        let room = scratch.len().min(MAX_PAYLOAD);
        match rustix::io::read(output, &mut scratch[..room]) {
            Ok(len @ 1..) => {
                self.ring.push(&scratch[..len]);
                true
            }
            Err(Errno::AGAIN) => false,
            Err(Errno::INTR) => true,
            Ok(_) | Err(_) => {
                self.close_output(poll);
                false
            }
        }
    }

    /// Its command has ended.
    pub fn has_ended(&mut self, status: ExitStatus) {
        self.info.exit = Some(ExitStatus { timed_out: self.timed_out, ..status });
        self.ended_at = Some(Instant::now());
    }

    /// Sends clients what they have room for, and their `Exit` behind the last byte. The streams whose last
    /// message this was are named.
    pub fn pump(&mut self, now: Instant, scratch: &mut [u8], outbox: &mut Outbox, poll: &Poll) -> Vec<u32> {
        if self.ended_at.is_some_and(|at| now >= at + SILENCE) && self.output.is_some() && self.may_read() {
            while self.may_read() && self.read(scratch, poll) {}
            if self.may_read() {
                self.close_output(poll);
            }
        }
        for client in &mut self.clients {
            while client.position < self.ring.end() && client.credit > 0 && !outbox.is_full() {
                let limit = MAX_PAYLOAD.min(usize::try_from(client.credit).unwrap_or(usize::MAX));
                let (head, tail, next) = self.ring.read(client.position, limit);
                outbox.push_output(client.stream, false, [head, tail]);
                let sent = u32::try_from(head.len() + tail.len()).unwrap_or(u32::MAX);
                client.credit = client.credit.saturating_sub(sent);
                client.position = next;
            }
        }
        self.watch(poll);
        let (Some(exit), None) = (self.info.exit, &self.output) else { return vec![] };
        let done = |client: &Client| client.position >= self.ring.end();
        let finished: Vec<u32> =
            self.clients.iter().filter(|client| done(client)).map(|client| client.stream).collect();
        for stream in &finished {
            outbox.push(*stream, &Message::Exit(exit));
        }
        self.clients.retain(|client| !finished.contains(&client.stream));
        finished
    }

    /// When to look again, if nothing happens before.
    pub fn next_look(&self) -> Option<Instant> {
        match (self.ended_at, &self.output) {
            // A client that does not read comes first; it wakes the loop by its credit.
            (Some(_), Some(_)) if !self.may_read() => None,
            (Some(at), Some(_)) => Some(at + SILENCE),
            (Some(_), None) => None,
            (None, _) => self.deadline,
        }
    }

    /// Kills the process group if its time is over.
    pub fn enforce_deadline(&mut self, now: Instant) {
        if self.info.exit.is_none() && self.deadline.is_some_and(|deadline| now >= deadline) {
            (self.deadline, self.timed_out) = (None, true);
            let _ = kill_process_group(self.pid, Signal::KILL);
        }
    }
}

/// Cuts a command line for listings.
fn shorten(argv: Vec<String>) -> Vec<String> {
    let mut room = SHOWN_ARGV;
    let mut shown = vec![];
    for mut argument in argv {
        if argument.len() > room {
            argument.truncate((0..=room).rev().find(|at| argument.is_char_boundary(*at)).unwrap_or(0));
            argument.push('…');
            shown.push(argument);
            break;
        }
        room -= argument.len();
        shown.push(argument);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_command_line_is_cut_between_characters() {
        let short = vec!["echo".to_string(), "hi".to_string()];
        assert_eq!(shorten(short.clone()), short);
        let long = shorten(vec!["ä".repeat(300), "more".to_string()]);
        assert_eq!(long, [format!("{}…", "ä".repeat(128))]);
    }
}
