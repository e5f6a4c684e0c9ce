//! The loop: one thread that waits for the host, for processes and for time, and never for a disk.
//!
//! Each round takes what is ready, queues frames, and writes them out once at its end. Read [`Agent::run`] first; what
//! the host says is taken apart in [`crate::channel`], and what it asks for is begun in [`crate::open`].

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use sys::guest_process::{GuestSignal, SignalQueue, SoleThread};
use wire::{ExitStatus, MAX_PAYLOAD, Nonce};

use crate::channel::Phase;
use crate::connection::Connection;
use crate::outbox::Outbox;
use crate::poll::{Poll, Token};
use crate::port;
use crate::power;
use crate::sessions::Sessions;
use crate::task::{Task, Which};

/// How many reads of the port may follow each other before everybody else has a turn.
const READS_A_ROUND: usize = 16;

/// Whose process it is.
#[derive(Debug, Clone, Copy)]
pub enum Owner {
    /// A stream's.
    Stream(u32),
    /// A session's.
    Session(u32),
}

/// What a stream is about.
#[derive(Debug)]
pub enum Stream {
    /// A process of its own.
    Task(Box<Task>),
    /// It looks at the session of that number.
    Client(u32),
    /// A connection to a port of this guest.
    Connection(Box<Connection>),
}

/// Everything there is.
#[derive(Debug)]
pub struct Agent {
    pub(crate) port: File,
    pub(crate) poll: Poll,
    pub(crate) phase: Phase,
    pub(crate) outbox: Outbox,
    pub(crate) streams: BTreeMap<u32, Stream>,
    pub(crate) sessions: Sessions,
    pub(crate) owners: HashMap<Pid, Owner>,
    pub(crate) sole: SoleThread,
    pub(crate) scratch: Vec<u8>,
    pub(crate) boot_nonce: Nonce,
    /// Whose identity it has, if it was given one. A clone has its source's until it is told its own.
    pub(crate) sandbox_id: Option<String>,
    pub(crate) init_started: bool,
    pub(crate) environment: BTreeMap<String, String>,
    /// Laid over it; told with each session anew.
    pub(crate) secrets: BTreeMap<String, String>,
    /// What the network card was set to.
    pub(crate) net: Option<wire::Net>,
    /// What commands get that say nothing themselves.
    pub(crate) defaults: wire::CommandDefaults,
    pub(crate) power_off: bool,
    /// The device whose size the root file system may grow to.
    pub(crate) root_disk: String,
    signals: SignalQueue,
    /// The port may have more to read: it is watched edge-triggered.
    readable: bool,
}

impl Agent {
    /// An agent that seeks a host at `port`.
    pub fn new(port: File, root_disk: String) -> io::Result<Agent> {
        let poll = Poll::new()?;
        poll.add_port(&port)?;
        let signals = SignalQueue::new()?;
        poll.add_readable(&signals, Token::Signals)?;
        Ok(Agent {
            port,
            poll,
            phase: Phase::seeking(),
            outbox: Outbox::default(),
            streams: BTreeMap::new(),
            sessions: Sessions::default(),
            owners: HashMap::new(),
            sole: SoleThread::prove()?,
            scratch: vec![0; MAX_PAYLOAD],
            boot_nonce: random_nonce(),
            sandbox_id: None,
            init_started: false,
            environment: BTreeMap::new(),
            secrets: BTreeMap::new(),
            net: None,
            defaults: wire::CommandDefaults::default(),
            power_off: false,
            root_disk,
            signals,
            readable: true,
        })
    }

    /// Serves for ever, or until the guest is to end.
    pub fn run(mut self) -> ! {
        let mut ready = Vec::new();
        loop {
            let timeout = if self.wants_to_read() { Some(Duration::ZERO) } else { self.time_to_next_look() };
            self.poll.wait(timeout, &mut ready);
            for token in ready.drain(..) {
                self.dispatch(token);
            }
            self.read_port();
            self.look_at_clocks();
            self.outbox.flush(&self.port);
            let _ = self.poll.set_valve(!self.outbox.is_full());
            if self.power_off {
                self.say_goodbye();
                power::shut_down();
            }
        }
    }

    fn dispatch(&mut self, token: Token) {
        match token {
            Token::Port => self.readable = true,
            Token::Signals => self.take_signals(),
            Token::Outputs => {}
            Token::Stdout(id) => self.source_ready(id, Which::First),
            Token::Stderr(id) => self.source_ready(id, Which::Second),
            Token::Feed(id) => {
                if let Some(Stream::Task(task)) = self.streams.get_mut(&id) {
                    task.feed_ready(&mut self.outbox, &self.poll);
                }
            }
            Token::Session(number) => {
                if let Some(session) = self.sessions.get_mut(number) {
                    session.read(&mut self.scratch, &self.poll);
                }
            }
            Token::Connection(id) => {
                if let Some(Stream::Connection(connection)) = self.streams.get_mut(&id) {
                    connection.read(&mut self.scratch, &mut self.outbox, &self.poll);
                    self.settle(id);
                }
            }
            Token::ConnectionFeed(id) => {
                if let Some(Stream::Connection(connection)) = self.streams.get_mut(&id) {
                    connection.writable(&mut self.outbox, &self.poll);
                    self.settle(id);
                }
            }
            Token::SessionFeed(number) => {
                if let Some(session) = self.sessions.get_mut(number) {
                    session.feed_ready(&mut self.outbox, &self.poll);
                }
            }
        }
    }

    fn wants_to_read(&self) -> bool {
        self.readable && !self.outbox.is_flooded()
    }

    fn read_port(&mut self) {
        let mut buffer = std::mem::take(&mut self.scratch);
        for _ in 0..READS_A_ROUND {
            if !self.wants_to_read() {
                break;
            }
            match port::read(&self.port, &mut buffer) {
                // What is being handled may need the scratch buffer itself.
                Some(len) => {
                    let bytes = buffer[..len].to_vec();
                    self.scratch = buffer;
                    self.receive(&bytes);
                    buffer = std::mem::take(&mut self.scratch);
                }
                None => self.readable = false,
            }
        }
        self.scratch = buffer;
    }

    fn source_ready(&mut self, id: u32, which: Which) {
        if let Some(Stream::Task(task)) = self.streams.get_mut(&id) {
            task.source_ready(which, &mut self.scratch, &mut self.outbox, &self.poll);
            self.settle(id);
        }
    }

    /// Ends a stream whose process or connection has said all it will.
    pub(crate) fn settle(&mut self, id: u32) {
        let over = match self.streams.get_mut(&id) {
            Some(Stream::Task(task)) => {
                let over = task.settle(Instant::now(), &mut self.outbox);
                if over {
                    task.release(&self.poll);
                }
                over
            }
            Some(Stream::Connection(connection)) => connection.settle(&mut self.outbox, &self.poll),
            Some(Stream::Client(_)) | None => false,
        };
        if over {
            self.streams.remove(&id);
        }
    }

    fn take_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.next() {
            match signal {
                GuestSignal::Child => self.reap(),
                GuestSignal::Terminate => self.power_off = true,
            }
        }
    }

    /// Takes every ended child in: those of streams and sessions get their status, orphans are just buried.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let Some(owner) = self.owners.remove(&pid) else { continue };
            let status = exit_status(status);
            match owner {
                Owner::Stream(id) => {
                    if let Some(Stream::Task(task)) = self.streams.get_mut(&id)
                        && task.pid() == pid
                    {
                        task.has_ended(status, &mut self.scratch, &mut self.outbox, &self.poll);
                        self.settle(id);
                    }
                }
                Owner::Session(number) => {
                    if let Some(session) = self.sessions.get_mut(number) {
                        session.has_ended(status);
                    }
                }
            }
        }
    }

    fn look_at_clocks(&mut self) {
        let now = Instant::now();
        let due: Vec<u32> = self
            .streams
            .iter_mut()
            .filter_map(|(id, stream)| match stream {
                Stream::Task(task) => {
                    task.enforce_deadline(now);
                    task.next_look().is_some_and(|at| at <= now).then_some(*id)
                }
                Stream::Connection(connection) => {
                    connection.enforce_deadline(now);
                    connection.is_over().then_some(*id)
                }
                Stream::Client(_) => None,
            })
            .collect();
        for id in due {
            self.settle(id);
        }
        for session in self.sessions.iter_mut() {
            session.enforce_deadline(now);
            for stream in session.pump(now, &mut self.scratch, &mut self.outbox, &self.poll) {
                self.streams.remove(&stream);
            }
        }
    }

    fn time_to_next_look(&mut self) -> Option<Duration> {
        let tasks = self.streams.values().filter_map(|stream| match stream {
            Stream::Task(task) => task.next_look(),
            Stream::Connection(connection) => connection.next_look(),
            Stream::Client(_) => None,
        });
        let first = tasks.min();
        let first = self.sessions.iter_mut().filter_map(|session| session.next_look()).chain(first).min();
        first.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Gives the last answer a moment to leave.
    fn say_goodbye(&mut self) {
        for _ in 0..100 {
            self.outbox.flush(&self.port);
            if self.outbox.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn exit_status(status: WaitStatus) -> ExitStatus {
    ExitStatus { code: status.exit_status(), signal: status.terminating_signal(), ..ExitStatus::default() }
}

/// A random number. Drawn again after entropy was added, because clones share what they drew before.
pub fn random_nonce() -> Nonce {
    let mut bytes = [0; 16];
    // Cannot fail for so few bytes, but may wait for the pool's first filling.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    wire::Hex(bytes)
}
