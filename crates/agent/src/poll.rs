//! Waiting for many descriptors at once, with one valve for all output.
//!
//! Two epoll instances, one inside the other: what processes write is watched by the inner one, and closing the valve
//! takes that out of the outer one. So a host that does not read costs one system call to respect, not one for each
//! process, and the processes simply wait at their full pipes.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// What a descriptor is to the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// The port to the host.
    Port,
    /// The signal queue.
    Signals,
    /// Some output (the inner instance).
    Outputs,
    /// Stdout, or the content, of a stream's process.
    Stdout(u32),
    /// Stderr, or the notes, of a stream's process.
    Stderr(u32),
    /// Stdin of a stream's process takes bytes again.
    Feed(u32),
    /// Output of a session.
    Session(u32),
    /// A session's terminal takes bytes again.
    SessionFeed(u32),
    /// A connection has bytes or has ended.
    Connection(u32),
    /// A connection is made, or takes bytes again.
    ConnectionFeed(u32),
}

impl Token {
    fn encode(self) -> u64 {
        let (tag, id) = match self {
            Token::Port => (0, 0),
            Token::Signals => (1, 0),
            Token::Outputs => (2, 0),
            Token::Stdout(id) => (3, id),
            Token::Stderr(id) => (4, id),
            Token::Feed(id) => (5, id),
            Token::Session(id) => (6, id),
            Token::SessionFeed(id) => (7, id),
            Token::Connection(id) => (8, id),
            Token::ConnectionFeed(id) => (9, id),
        };
        tag << 32 | u64::from(id)
    }

    fn decode(bits: u64) -> Option<Token> {
        let id = u32::try_from(bits & u64::from(u32::MAX)).ok()?;
        Some(match bits >> 32 {
            0 => Token::Port,
            1 => Token::Signals,
            2 => Token::Outputs,
            3 => Token::Stdout(id),
            4 => Token::Stderr(id),
            5 => Token::Feed(id),
            6 => Token::Session(id),
            7 => Token::SessionFeed(id),
            8 => Token::Connection(id),
            9 => Token::ConnectionFeed(id),
            _ => return None,
        })
    }
}

/// The two epoll instances.
#[derive(Debug)]
pub struct Poll {
    all: OwnedFd,
    outputs: OwnedFd,
    valve_open: bool,
}

impl Poll {
    /// Nothing is watched yet, and the valve is open.
    pub fn new() -> io::Result<Poll> {
        let all = epoll::create(CreateFlags::CLOEXEC)?;
        let outputs = epoll::create(CreateFlags::CLOEXEC)?;
        let mut poll = Poll { all, outputs, valve_open: false };
        poll.set_valve(true)?;
        Ok(poll)
    }

    /// Lets output through, or not.
    pub fn set_valve(&mut self, open: bool) -> io::Result<()> {
        if open && !self.valve_open {
            epoll::add(
                &self.all,
                &self.outputs,
                EventData::new_u64(Token::Outputs.encode()),
                EventFlags::IN,
            )?;
        } else if !open && self.valve_open {
            epoll::delete(&self.all, &self.outputs)?;
        }
        self.valve_open = open;
        Ok(())
    }

    /// Watches the port: edge-triggered, because a port without a host says HUP for ever.
    pub fn add_port(&self, fd: impl AsFd) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        Ok(epoll::add(&self.all, fd, EventData::new_u64(Token::Port.encode()), flags)?)
    }

    /// Watches for something to read (or the end), whatever the valve.
    pub fn add_readable(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        Ok(epoll::add(&self.all, fd, EventData::new_u64(token.encode()), EventFlags::IN)?)
    }

    /// Watches for room to write.
    pub fn add_writable(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        Ok(epoll::add(&self.all, fd, EventData::new_u64(token.encode()), EventFlags::OUT)?)
    }

    /// Stops watching what [`Poll::add_readable`] or [`Poll::add_writable`] watched.
    pub fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.all, fd);
    }

    /// Watches output, behind the valve.
    pub fn add_output(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        Ok(epoll::add(&self.outputs, fd, EventData::new_u64(token.encode()), EventFlags::IN)?)
    }

    /// Stops watching output.
    pub fn remove_output(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.outputs, fd);
    }

    /// Waits until something happens or the time is over, and tells what, outputs included.
    pub fn wait(&self, timeout: Option<Duration>, ready: &mut Vec<Token>) {
        ready.clear();
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        collect(&self.all, timeout.as_ref(), ready);
        if ready.contains(&Token::Outputs) {
            collect(&self.outputs, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }), ready);
        }
    }
}

fn collect(epoll: &OwnedFd, timeout: Option<&Timespec>, ready: &mut Vec<Token>) {
    const NONE: Event = Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
    let mut events = [NONE; 32];
    // Interrupted, or broken beyond repair: either way the loop goes round once more.
    let count = epoll::wait(epoll, &mut events, timeout).unwrap_or(0);
    ready.extend(events[..count].iter().filter_map(|event| {
        let data = event.data;
        Token::decode(data.u64())
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::pipe;

    #[test]
    fn tokens_come_back_as_they_went_in() {
        for token in [Token::Port, Token::Signals, Token::Outputs, Token::Stdout(1), Token::Stderr(2)] {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
        for token in [Token::Feed(u32::MAX), Token::Session(0), Token::SessionFeed(9), Token::Connection(3)] {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
        assert_eq!(Token::decode(u64::MAX), None);
    }

    #[test]
    fn a_closed_valve_holds_outputs_back_and_nothing_else() {
        let mut poll = Poll::new().expect("made");
        let ((reader, writer), (other, other_writer)) = (pipe().expect("made"), pipe().expect("made"));
        poll.add_output(&reader, Token::Stdout(7)).expect("added");
        poll.add_readable(&other, Token::Session(8)).expect("added");
        rustix::io::write(&writer, b"x").expect("writes");
        rustix::io::write(&other_writer, b"x").expect("writes");
        let mut ready = vec![];
        poll.set_valve(false).expect("closed");
        poll.wait(Some(Duration::ZERO), &mut ready);
        assert_eq!(ready, [Token::Session(8)]);
        poll.set_valve(true).expect("opened");
        poll.wait(Some(Duration::ZERO), &mut ready);
        assert!(ready.contains(&Token::Stdout(7)) && ready.contains(&Token::Session(8)));
    }
}
