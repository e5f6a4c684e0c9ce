//! What the host says: seeking, attaching, and handing frames to the streams they are for.
//!
//! ```text
//!            magic                 Attach, answered by Welcome
//!  Seeking ─────────► Introduced ───────────────────────────────► Framed
//!     ▲                    │ anything else, or refused               │ Detach, or bytes that are no frame
//!     └────────────────────┴─────────────────────────────────────────┘
//! ```

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustix::termios::tcsetwinsize;
use wire::{
    Attach, AttachFailed, Decoder, ErrorCode, Failure, Frame, Message, PROTOCOL, Scanner, WELCOME_MAGIC,
    Welcome, WindowSize,
};

use crate::config;
use crate::console::say;
use crate::identity;
use crate::network;
use crate::serve::{Agent, Stream, random_nonce};
use crate::spawn::window;
use crate::volumes;

/// Where the agent is in a session with a host.
#[derive(Debug)]
pub enum Phase {
    /// Skipping bytes up to the magic.
    Seeking(Scanner),
    /// The magic was seen; an `Attach` must follow.
    Introduced(Decoder),
    /// Attached.
    Framed(Decoder),
}

impl Phase {
    /// Where it begins.
    pub fn seeking() -> Phase {
        Phase::Seeking(Scanner::for_attach())
    }
}

/// What to do after a frame.
enum Next {
    Go,
    /// The session is over; seek in what follows.
    Seek,
}

impl Agent {
    /// Takes bytes from the port.
    pub fn receive(&mut self, bytes: &[u8]) {
        let mut rest = bytes.to_vec();
        loop {
            match &mut self.phase {
                Phase::Seeking(scanner) => {
                    let Some(found) = scanner.push(&rest) else { return };
                    rest = found.to_vec();
                    self.phase = Phase::Introduced(Decoder::new());
                }
                Phase::Introduced(decoder) | Phase::Framed(decoder) => {
                    decoder.push(&rest);
                    match self.take_frames() {
                        Some(unread) => rest = unread,
                        None => return,
                    }
                }
            }
        }
    }

    /// Handles whole frames. `None`: all are handled; otherwise the bytes in which to seek on.
    fn take_frames(&mut self) -> Option<Vec<u8>> {
        loop {
            let (Phase::Introduced(decoder) | Phase::Framed(decoder)) = &mut self.phase else {
                return Some(vec![]);
            };
            let next = match decoder.next() {
                Ok(None) => return None,
                Ok(Some(frame)) => self.take_frame(frame),
                Err(wire::WireError::Malformed { stream, open, .. }) => {
                    if open {
                        let code = ErrorCode::BadRequest;
                        let message = "this guest's agent does not know that request".to_string();
                        self.outbox.push(stream, &Message::Failed(Failure { code, message }));
                    }
                    Next::Go
                }
                Err(_) => Next::Seek,
            };
            if let Next::Seek = next {
                let (Phase::Introduced(decoder) | Phase::Framed(decoder)) = &mut self.phase else {
                    return Some(vec![]);
                };
                let rest = decoder.take_rest();
                self.end_session();
                self.phase = Phase::seeking();
                return Some(rest);
            }
        }
    }

    fn take_frame(&mut self, frame: Frame) -> Next {
        let Frame { stream, message } = frame;
        if let Phase::Introduced(decoder) = &mut self.phase {
            let Message::Attach(attach) = message else { return Next::Seek };
            let decoder = std::mem::take(decoder);
            self.phase = Phase::Framed(decoder);
            return self.attach(&attach);
        }
        match message {
            Message::Open(request) => self.open(stream, *request),
            Message::Data(bytes) => self.take_data(stream, &bytes),
            Message::Eof => self.take_eof(stream),
            Message::Credit(bytes) => self.take_credit(stream, bytes),
            Message::Resize(size) => self.resize(stream, size),
            Message::Signal(number) => self.signal(stream, number),
            Message::Cancel => self.cancel(stream),
            Message::Detach => {
                self.end_session();
                self.outbox.push(0, &Message::Detached);
                return Next::Seek;
            }
            // Only an Attach behind its magic begins a session, and the others are for the host to hear.
            Message::Attach(_)
            | Message::Welcome(_)
            | Message::AttachFailed(_)
            | Message::Detached
            | Message::Started(_)
            | Message::Stdout(_)
            | Message::Stderr(_)
            | Message::Meta(_)
            | Message::Reply(_)
            | Message::Exit(_)
            | Message::Failed(_) => return Next::Seek,
        }
        Next::Go
    }

    /// Begins a session: what was said to an earlier host is forgotten, and this guest becomes what it is told to be.
    fn attach(&mut self, attach: &Attach) -> Next {
        self.end_session();
        self.outbox.clear();
        let (mut warnings, mut unmounted) = (vec![], vec![]);
        let became = self.become_what_is_told(attach, &mut warnings, &mut unmounted);
        self.outbox.push_raw(&WELCOME_MAGIC);
        self.outbox.push_raw(&attach.nonce.0);
        match became {
            Ok(()) => {
                let welcome = Welcome {
                    protocol: PROTOCOL,
                    agent_version: env!("CARGO_PKG_VERSION").to_string(),
                    boot_nonce: self.boot_nonce,
                    configured: self.sandbox_id.is_some(),
                    sandbox_id: self.sandbox_id.clone(),
                    warnings,
                    unmounted,
                    secrets: attach.secrets.is_some(),
                };
                self.outbox.push(0, &Message::Welcome(Box::new(welcome)));
                Next::Go
            }
            Err(message) => {
                say(format_args!("attach refused: {message}"));
                self.outbox.push(0, &Message::AttachFailed(AttachFailed { message }));
                Next::Seek
            }
        }
    }

    /// In this order: randomness before anything that draws on it, time before files get their dates, disks and names
    /// before files and commands that look at them. A clone of a guest that ran already goes the same way, with
    /// nothing to read: environment, init command and sessions are in its memory.
    fn become_what_is_told(
        &mut self,
        attach: &Attach,
        warnings: &mut Vec<String>,
        unmounted: &mut Vec<String>,
    ) -> Result<(), String> {
        if attach.protocol != PROTOCOL {
            return Err(format!(
                "the agent in this guest speaks protocol {PROTOCOL}, the host {}; stop the sandbox with the bhatti \
                 that started it, or start it with --discard-memory",
                attach.protocol
            ));
        }
        identity::add_entropy(&attach.entropy)?;
        identity::set_clock(attach.now_unix_ns, warnings);
        if let Some(bytes) = attach.grow_root_to {
            identity::grow_root(&self.root_disk, bytes, warnings);
        }
        for volume in &attach.volumes {
            if let Err(failed) = volumes::mount(volume) {
                unmounted.push(failed.message);
            }
        }
        // Before the init command, which is to find them; a copy never keeps those of its source.
        match &attach.secrets {
            Some(secrets) => self.secrets.clone_from(&secrets.0),
            None if attach.identity.is_some() => self.secrets.clear(),
            None => {}
        }
        self.take_network(attach, warnings);
        let Some(own) = &attach.identity else { return Ok(()) };
        self.boot_nonce = random_nonce();
        identity::assume(Path::new("/"), own, warnings);
        let config = match &own.config {
            Some(inline) => Some(inline.clone()),
            None if own.read_config => Some(config::read(own.first_boot, warnings)?),
            None => None,
        };
        if let Some(config) = config {
            self.environment = config.env;
            self.defaults = config.defaults;
            let command = match config.init {
                Some(line) => vec!["/bin/sh".to_string(), "-c".to_string(), line],
                None => self.defaults.init.clone(),
            };
            if !command.is_empty() && !self.init_started {
                match self.start_init(&command) {
                    Ok(()) => self.init_started = true,
                    Err(failed) => warnings.push(format!("init command: {}", failed.message)),
                }
            }
        }
        self.sandbox_id = Some(own.sandbox_id.clone());
        Ok(())
    }

    /// What it was told already it keeps as it is: a guest that wakes goes on where it was, whatever its user has made
    /// of the card since.
    fn take_network(&mut self, attach: &Attach, warnings: &mut Vec<String>) {
        match &attach.net {
            Some(told) if self.net.as_ref() == Some(told) => {}
            Some(told) => network::assume(Path::new("/"), self.net.as_ref(), told, warnings),
            None if attach.identity.is_some() && self.net.is_some() => network::forget(warnings),
            None => return,
        }
        self.net.clone_from(&attach.net);
    }

    /// Ends the session with a host: its commands are killed, its looks at sessions end, nothing else changes.
    fn end_session(&mut self) {
        for stream in std::mem::take(&mut self.streams).into_values() {
            match stream {
                Stream::Task(mut task) => {
                    self.owners.remove(&task.pid());
                    task.abandon(&self.poll);
                }
                Stream::Connection(mut connection) => connection.release(&self.poll),
                Stream::Client(_) => {}
            }
        }
        for session in self.sessions.iter_mut() {
            session.detach_all(&self.poll);
        }
    }

    fn take_data(&mut self, stream: u32, bytes: &[u8]) {
        match self.streams.get_mut(&stream) {
            Some(Stream::Task(task)) => task.take_data(bytes, &mut self.outbox, &self.poll),
            Some(Stream::Connection(connection)) => {
                connection.take_data(bytes, &mut self.outbox, &self.poll);
                self.settle(stream);
            }
            Some(Stream::Client(number)) => {
                if let Some(session) = self.sessions.get_mut(*number) {
                    session.take_data(stream, bytes, &mut self.outbox, &self.poll);
                }
            }
            None => {}
        }
    }

    fn take_eof(&mut self, stream: u32) {
        match self.streams.get_mut(&stream) {
            Some(Stream::Task(task)) => task.take_eof(&mut self.outbox, &self.poll),
            Some(Stream::Connection(connection)) => {
                connection.take_eof(&mut self.outbox, &self.poll);
                self.settle(stream);
            }
            // A session's terminal stays open for others.
            Some(Stream::Client(_)) | None => {}
        }
    }

    fn take_credit(&mut self, stream: u32, bytes: u32) {
        match self.streams.get_mut(&stream) {
            Some(Stream::Task(task)) => task.grant(bytes, &self.poll),
            Some(Stream::Connection(connection)) => connection.grant(bytes, &self.poll),
            Some(Stream::Client(number)) => {
                if let Some(session) = self.sessions.get_mut(*number) {
                    session.grant(stream, bytes);
                }
            }
            None => {}
        }
    }

    fn resize(&mut self, stream: u32, size: WindowSize) {
        let terminal = match self.streams.get_mut(&stream) {
            Some(Stream::Task(task)) => task.terminal(),
            Some(Stream::Client(number)) => {
                self.sessions.get_mut(*number).and_then(|session| session.terminal())
            }
            Some(Stream::Connection(_)) | None => None,
        };
        if let Some(terminal) = terminal {
            let _ = tcsetwinsize(terminal, window(size.rows, size.cols));
        }
    }

    fn signal(&mut self, stream: u32, number: i32) {
        let Some(signal) = Signal::from_named_raw(number) else { return };
        match self.streams.get_mut(&stream) {
            Some(Stream::Task(task)) => task.signal(signal),
            Some(Stream::Client(number)) => {
                if let Some(session) = self.sessions.get_mut(*number) {
                    session.signal(signal);
                }
            }
            Some(Stream::Connection(_)) | None => {}
        }
    }

    fn cancel(&mut self, stream: u32) {
        match self.streams.remove(&stream) {
            Some(Stream::Task(mut task)) => {
                self.owners.remove(&task.pid());
                task.abandon(&self.poll);
            }
            Some(Stream::Client(number)) => {
                if let Some(session) = self.sessions.get_mut(number) {
                    session.detach(stream, &self.poll);
                }
            }
            Some(Stream::Connection(mut connection)) => connection.release(&self.poll),
            None => {}
        }
    }
}

/// A deadline so far from now, none if that is beyond all clocks.
pub fn deadline_in(timeout_ms: Option<u64>) -> Option<Instant> {
    Instant::now().checked_add(Duration::from_millis(timeout_ms?))
}
