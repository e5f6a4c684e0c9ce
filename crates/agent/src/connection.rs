//! A stream that is a connection to a TCP port of this guest's loopback.
//!
//! ```text
//!  Connecting ──► Open ──► both directions have ended: Reply(Done)
//!       └───────────┴────► refused, reset, too slow: Failed
//! ```
//! Either direction may end first: `Eof` from the host becomes a shutdown of the socket's writing side, and what the
//! service says goes on until it ends its own. Nothing here waits; what cannot be written is kept within the credit
//! that was granted, what may not be sent stays in the socket.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Shutdown, SocketFlags, SocketType, connect, shutdown, socket_with, sockopt,
};
use wire::{ErrorCode, Failure, MAX_PAYLOAD, Message, Reply, Started, WINDOW};

use crate::failure::failure;
use crate::feed::{Feed, FeedState};
use crate::outbox::Outbox;
use crate::poll::{Poll, Token};

/// How long a service may take to accept, when its queue is full.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// One connection.
#[derive(Debug)]
pub struct Connection {
    stream: u32,
    port: u16,
    socket: OwnedFd,
    /// Until when it must be made, while it is not.
    connecting: Option<Instant>,
    /// IPv6 was not tried yet.
    other_left: bool,
    feed: Feed,
    feed_watched: bool,
    source_watched: bool,
    /// The service has said all it will.
    source_ended: bool,
    credit: u32,
    failed: Option<Failure>,
}

impl Connection {
    /// Begins to connect, on IPv4 and, where nobody listens there, on IPv6.
    pub fn begin(stream: u32, port: u16, outbox: &mut Outbox, poll: &Poll) -> Result<Connection, Failure> {
        let until = Instant::now() + CONNECT_WITHIN;
        let first = dial(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let (dialled, other_left) = match first {
            Err(Errno::CONNREFUSED) => (dial_other(port), false),
            first => (first, true),
        };
        let (socket, connected) = dialled.map_err(|errno| refused(port, errno))?;
        let mut connection = Connection {
            stream,
            port,
            feed: feed_into(&socket).map_err(|errno| refused(port, errno))?,
            socket,
            connecting: Some(until),
            other_left,
            feed_watched: false,
            source_watched: false,
            source_ended: false,
            credit: WINDOW,
            failed: None,
        };
        if connected {
            connection.opened(outbox, poll);
        } else {
            connection.watch_feed(true, poll);
        }
        Ok(connection)
    }

    fn opened(&mut self, outbox: &mut Outbox, poll: &Poll) {
        self.connecting = None;
        // Somebody waits for each piece.
        let _ = sockopt::set_tcp_nodelay(&self.socket, true);
        outbox.push(self.stream, &Message::Started(Started { pid: 0, session: None }));
        self.watch_source(poll);
    }

    fn watch_feed(&mut self, wanted: bool, poll: &Poll) {
        let Some(target) = self.feed.target() else { return };
        if wanted && !self.feed_watched {
            self.feed_watched = poll.add_writable(target, Token::ConnectionFeed(self.stream)).is_ok();
        } else if !wanted && self.feed_watched {
            poll.remove(target);
            self.feed_watched = false;
        }
    }

    fn watch_source(&mut self, poll: &Poll) {
        let wanted = self.connecting.is_none() && !self.source_ended && self.credit > 0;
        if wanted && !self.source_watched {
            self.source_watched = poll.add_output(&self.socket, Token::Connection(self.stream)).is_ok();
        } else if !wanted && self.source_watched {
            poll.remove_output(&self.socket);
            self.source_watched = false;
        }
    }

    /// The connection is made or has failed, or takes bytes again.
    pub fn writable(&mut self, outbox: &mut Outbox, poll: &Poll) {
        if self.connecting.is_some() {
            match sockopt::socket_error(&self.socket) {
                Ok(Ok(())) => self.opened(outbox, poll),
                Ok(Err(Errno::CONNREFUSED)) if self.other_left => return self.try_other(outbox, poll),
                Ok(Err(errno)) | Err(errno) => {
                    self.failed = Some(refused(self.port, errno));
                    return;
                }
            }
        }
        let state = self.feed.flush();
        self.after_feed(state, outbox, poll);
    }

    /// Nobody listens on IPv4: tries IPv6.
    fn try_other(&mut self, outbox: &mut Outbox, poll: &Poll) {
        self.other_left = false;
        self.release(poll);
        let dialled = dial_other(self.port).and_then(|(socket, connected)| {
            self.feed = feed_into(&socket)?;
            self.socket = socket;
            Ok(connected)
        });
        match dialled {
            Ok(true) => self.opened(outbox, poll),
            Ok(false) => self.watch_feed(true, poll),
            Err(errno) => self.failed = Some(refused(self.port, errno)),
        }
    }

    /// Bytes for the service.
    pub fn take_data(&mut self, bytes: &[u8], outbox: &mut Outbox, poll: &Poll) {
        let state = self.feed.push(bytes);
        self.after_feed(state, outbox, poll);
    }

    /// The host sends no more.
    pub fn take_eof(&mut self, outbox: &mut Outbox, poll: &Poll) {
        let state = self.feed.end();
        self.after_feed(state, outbox, poll);
    }

    fn after_feed(&mut self, state: FeedState, outbox: &mut Outbox, poll: &Poll) {
        self.watch_feed(state == FeedState::Blocked || self.connecting.is_some(), poll);
        if state == FeedState::Ended {
            self.feed.close();
            // A service that has closed it all already has nothing to be told.
            let _ = shutdown(&self.socket, Shutdown::Write);
        }
        if let Some(bytes) = self.feed.grant() {
            outbox.push(self.stream, &Message::Credit(bytes));
        }
    }

    /// The host may be sent more.
    pub fn grant(&mut self, bytes: u32, poll: &Poll) {
        self.credit = self.credit.saturating_add(bytes);
        self.watch_source(poll);
    }

    /// The service has said something, or its end: reads once.
    pub fn read(&mut self, scratch: &mut [u8], outbox: &mut Outbox, poll: &Poll) {
        let room = scratch.len().min(MAX_PAYLOAD).min(usize::try_from(self.credit).unwrap_or(usize::MAX));
        if room > 0 && !self.source_ended {
            match rustix::io::read(&self.socket, &mut scratch[..room]) {
                Ok(0) => {
                    self.source_ended = true;
                    outbox.push(self.stream, &Message::Eof);
                }
                Ok(len) => {
                    outbox.push_output(self.stream, false, [&scratch[..len], &[]]);
                    self.credit = self.credit.saturating_sub(u32::try_from(len).unwrap_or(u32::MAX));
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => self.failed = Some(refused(self.port, errno)),
            }
        }
        self.watch_source(poll);
    }

    /// Whether the stream is over; the last message has then been queued.
    pub fn settle(&mut self, outbox: &mut Outbox, poll: &Poll) -> bool {
        let last = match self.failed.take() {
            Some(failed) => Message::Failed(failed),
            None if self.source_ended && self.feed.target().is_none() => {
                Message::Reply(Box::new(Reply::Done))
            }
            None => return false,
        };
        outbox.push(self.stream, &last);
        self.release(poll);
        true
    }

    /// Stops watching, before the socket is closed.
    pub fn release(&mut self, poll: &Poll) {
        self.watch_feed(false, poll);
        if self.source_watched {
            poll.remove_output(&self.socket);
            self.source_watched = false;
        }
        self.feed.close();
    }

    /// Whether [`Connection::settle`] would end it without anything more happening.
    pub fn is_over(&self) -> bool {
        self.failed.is_some()
    }

    /// When to look again, if nothing happens before.
    pub fn next_look(&self) -> Option<Instant> {
        self.connecting
    }

    /// Gives a connection up that took too long to be made.
    pub fn enforce_deadline(&mut self, now: Instant) {
        if self.connecting.is_some_and(|until| now >= until) {
            self.failed = Some(refused(self.port, Errno::TIMEDOUT));
        }
    }
}

/// A socket that is connected, or about to be.
fn dial(address: SocketAddr) -> Result<(OwnedFd, bool), Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match connect(&socket, &address) {
        Ok(()) => Ok((socket, true)),
        Err(Errno::INPROGRESS) => Ok((socket, false)),
        Err(errno) => Err(errno),
    }
}

/// As [`dial`], on IPv6; a guest without it refuses as if nobody listened.
fn dial_other(port: u16) -> Result<(OwnedFd, bool), Errno> {
    dial(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).map_err(|_| Errno::CONNREFUSED)
}

fn feed_into(socket: &OwnedFd) -> Result<Feed, Errno> {
    Ok(Feed::new(Some(rustix::io::fcntl_dupfd_cloexec(socket, 0)?), false))
}

fn refused(port: u16, errno: Errno) -> Failure {
    let subject = format_args!("port {port}");
    match errno {
        Errno::CONNREFUSED => failure(ErrorCode::NotListening, subject, "nobody listens there"),
        Errno::TIMEDOUT => failure(ErrorCode::TimedOut, subject, "who listens there does not accept"),
        other => failure(ErrorCode::Io, subject, std::io::Error::from(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use wire::{Decoder, Frame};

    fn said(outbox: &mut Outbox) -> Vec<Message> {
        let (mut theirs, ours) = std::os::unix::net::UnixStream::pair().expect("made");
        outbox.flush(&ours);
        assert!(outbox.is_empty());
        drop(ours);
        let mut bytes = Vec::new();
        theirs.read_to_end(&mut bytes).expect("read");
        let mut decoder = Decoder::new();
        decoder.push(&bytes);
        let mut messages = Vec::new();
        while let Some(Frame { stream, message }) = decoder.next().expect("frames") {
            assert_eq!(stream, 7);
            messages.push(message);
        }
        messages
    }

    /// Goes on as the agent does until the connection has said something.
    fn hear(connection: &mut Connection, outbox: &mut Outbox, poll: &Poll) -> Vec<Message> {
        let (mut ready, mut scratch) = (vec![], vec![0; MAX_PAYLOAD]);
        while outbox.is_empty() {
            poll.wait(Some(Duration::from_secs(10)), &mut ready);
            assert!(!ready.is_empty(), "nothing happens");
            for token in ready.drain(..) {
                match token {
                    Token::Connection(7) => connection.read(&mut scratch, outbox, poll),
                    Token::ConnectionFeed(7) => connection.writable(outbox, poll),
                    Token::Outputs => {}
                    other => panic!("{other:?}"),
                }
            }
            if connection.is_over() {
                assert!(connection.settle(outbox, poll));
            }
        }
        said(outbox)
    }

    /// A connection that is made, with its service's end.
    fn connected(outbox: &mut Outbox, poll: &Poll, address: &str) -> (Connection, std::net::TcpStream) {
        let listener = TcpListener::bind(address).expect("bound");
        let port = listener.local_addr().expect("an address").port();
        let mut connection = Connection::begin(7, port, outbox, poll).expect("begins");
        assert!(matches!(hear(&mut connection, outbox, poll)[..], [Message::Started(_)]));
        (connection, listener.accept().expect("accepted").0)
    }

    #[test]
    fn each_direction_ends_by_itself_and_the_second_end_is_the_streams() {
        let (mut outbox, poll) = (Outbox::default(), Poll::new().expect("made"));
        let (mut connection, mut service) = connected(&mut outbox, &poll, "127.0.0.1:0");
        connection.take_data(b"question", &mut outbox, &poll);
        connection.take_eof(&mut outbox, &poll);
        assert!(!connection.settle(&mut outbox, &poll), "the answer is still to come");
        let mut question = String::new();
        service.read_to_string(&mut question).expect("up to the end");
        assert_eq!(question, "question");
        service.write_all(b"answer").expect("still open");
        assert_eq!(hear(&mut connection, &mut outbox, &poll), [Message::Stdout(b"answer".to_vec())]);
        drop(service);
        assert_eq!(hear(&mut connection, &mut outbox, &poll), [Message::Eof]);
        assert!(connection.settle(&mut outbox, &poll));
        assert_eq!(said(&mut outbox), [Message::Reply(Box::new(Reply::Done))]);
    }

    #[test]
    fn without_credit_nothing_is_read_and_the_service_waits() {
        let (mut outbox, poll) = (Outbox::default(), Poll::new().expect("made"));
        let (mut connection, mut service) = connected(&mut outbox, &poll, "127.0.0.1:0");
        connection.credit = 3;
        service.write_all(b"abcdef").expect("written");
        assert_eq!(hear(&mut connection, &mut outbox, &poll), [Message::Stdout(b"abc".to_vec())]);
        let mut ready = vec![];
        poll.wait(Some(Duration::ZERO), &mut ready);
        assert!(ready.is_empty(), "{ready:?}");
        connection.grant(100, &poll);
        assert_eq!(hear(&mut connection, &mut outbox, &poll), [Message::Stdout(b"def".to_vec())]);
    }

    #[test]
    fn a_port_that_nobody_listens_on_is_refused_by_its_number() {
        let port = {
            let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
            listener.local_addr().expect("an address").port()
        };
        let (mut outbox, poll) = (Outbox::default(), Poll::new().expect("made"));
        // Some kernels refuse at once, others a moment later.
        let refused = match Connection::begin(7, port, &mut outbox, &poll) {
            Err(refused) => refused,
            Ok(mut begun) => match hear(&mut begun, &mut outbox, &poll).pop() {
                Some(Message::Failed(refused)) => refused,
                other => panic!("{other:?}"),
            },
        };
        assert_eq!(refused.code, ErrorCode::NotListening);
        assert!(refused.message.contains(&port.to_string()), "{}", refused.message);
    }

    #[test]
    fn a_service_on_ipv6_only_is_found_too() {
        let (mut outbox, poll) = (Outbox::default(), Poll::new().expect("made"));
        let (mut connection, mut service) = connected(&mut outbox, &poll, "[::1]:0");
        service.write_all(b"six").expect("written");
        assert_eq!(hear(&mut connection, &mut outbox, &poll), [Message::Stdout(b"six".to_vec())]);
    }
}
