//! Beginning what the host asks for.

use std::collections::BTreeMap;
use std::time::Instant;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::tcsetwinsize;
use sys::guest_process::{WorkerStreams, fork_worker};
use wire::{ErrorCode, Exec, Failure, Message, Reply, Request, Session, SessionKind};

use crate::channel::deadline_in;
use crate::connection::Connection;
use crate::failure::{failure, failure_io};
use crate::files::{self, Job};
use crate::info;
use crate::serve::{Agent, Owner, Stream};
use crate::spawn::{Launch, Wiring, non_blocking, start, window};
use crate::task::{Ends, Kind, Task};

/// How many streams may be open at once.
const MAX_STREAMS: usize = 512;

impl Agent {
    /// Begins what a stream asks for, or says why not.
    pub fn open(&mut self, stream: u32, request: Request) {
        let refused = if self.streams.contains_key(&stream) || stream == 0 {
            Err(failure(ErrorCode::BadRequest, format_args!("stream {stream}"), "is in use"))
        } else if self.streams.len() >= MAX_STREAMS {
            Err(failure(
                ErrorCode::TooMany,
                "streams",
                format_args!("{MAX_STREAMS} are open, which is as many as there may be"),
            ))
        } else {
            self.begin(stream, request)
        };
        if let Err(failed) = refused {
            self.outbox.push(stream, &Message::Failed(failed));
        }
    }

    fn begin(&mut self, stream: u32, request: Request) -> Result<(), Failure> {
        match request {
            Request::Exec(exec) if exec.detach => self.exec_detached(stream, &exec),
            Request::Exec(exec) => self.exec(stream, &exec),
            Request::Session(session) => self.session(stream, &session),
            Request::Sessions => {
                self.sessions.prune(Instant::now());
                let listed = Reply::Sessions(self.sessions.list());
                self.reply(stream, listed);
                Ok(())
            }
            Request::FileRead(read) => self.work(stream, Job::Read(read)),
            Request::FileWrite(write) => self.work(stream, Job::Write(write)),
            Request::FileStat(stat) => self.work(stream, Job::Stat(stat)),
            Request::FileList(list) => self.work(stream, Job::List(list.path)),
            Request::Sync => self.work(stream, Job::Sync),
            Request::Mount(volume) => self.work(stream, Job::Mount(volume)),
            Request::Unmount(volume) => self.work(stream, Job::Unmount(volume)),
            Request::GrowVolume(growth) => self.work(stream, Job::Grow(growth)),
            Request::Settle(volume) => self.work(stream, Job::Settle(volume)),
            Request::Info => {
                self.reply(stream, Reply::Info(info::read()));
                Ok(())
            }
            Request::Connect(connect) => {
                let connection = Connection::begin(stream, connect.port, &mut self.outbox, &self.poll)?;
                self.streams.insert(stream, Stream::Connection(Box::new(connection)));
                self.settle(stream);
                Ok(())
            }
            Request::Ports => self.work(stream, Job::Ports),
            Request::Poweroff => {
                self.reply(stream, Reply::Done);
                self.power_off = true;
                Ok(())
            }
        }
    }

    fn reply(&mut self, stream: u32, reply: Reply) {
        self.outbox.push(stream, &Message::Reply(Box::new(reply)));
    }

    fn say_started(&mut self, stream: u32, pid: rustix::process::Pid, session: Option<String>) {
        let pid = u32::try_from(pid.as_raw_nonzero().get()).unwrap_or(0);
        self.outbox.push(stream, &Message::Started(wire::Started { pid, session }));
    }

    fn exec(&mut self, stream: u32, exec: &Exec) -> Result<(), Failure> {
        let wiring = match &exec.tty {
            Some(tty) => Wiring::Terminal(tty),
            None => Wiring::Apart { stdin: exec.stdin },
        };
        let started = start(&self.launch(exec, wiring))?;
        let kind = Kind::Command {
            deadline: deadline_in(exec.timeout_ms),
            timed_out: false,
            terminal: exec.tty.is_some(),
        };
        let ends = Ends { feed: started.feed, stdout: started.stdout, stderr: started.stderr };
        let task = Task::new(stream, started.pid, kind, ends, &self.poll);
        self.owners.insert(started.pid, Owner::Stream(stream));
        self.streams.insert(stream, Stream::Task(Box::new(task)));
        self.say_started(stream, started.pid, None);
        Ok(())
    }

    fn launch<'a>(&'a self, exec: &'a Exec, wiring: Wiring<'a>) -> Launch<'a> {
        Launch {
            argv: Some(&exec.argv),
            env: &exec.env,
            sandbox_env: [&self.environment, &self.secrets],
            cwd: exec.cwd.as_deref(),
            user: exec.user.as_deref(),
            defaults: &self.defaults,
            wiring,
        }
    }

    fn exec_detached(&mut self, stream: u32, exec: &Exec) -> Result<(), Failure> {
        self.sessions.prune(Instant::now());
        self.sessions.check_room()?;
        let wiring = exec.tty.as_ref().map_or(Wiring::Together, Wiring::Terminal);
        let started = start(&self.launch(exec, wiring))?;
        let deadline = deadline_in(exec.timeout_ms);
        let number = self.add_session(SessionKind::Exec, exec.tty.is_some(), deadline, started);
        self.say_session_started(stream, number);
        self.reply(stream, Reply::Done);
        Ok(())
    }

    fn add_session(
        &mut self,
        kind: SessionKind,
        terminal: bool,
        deadline: Option<Instant>,
        started: crate::spawn::Started,
    ) -> u32 {
        let pid = started.pid;
        let number = self.sessions.insert(kind, terminal, deadline, started, &self.poll);
        self.owners.insert(pid, Owner::Session(number));
        number
    }

    fn say_session_started(&mut self, stream: u32, number: u32) {
        if let Some(session) = self.sessions.get_mut(number) {
            let (pid, id) = (session.pid(), session.id().to_string());
            self.say_started(stream, pid, Some(id));
        }
    }

    fn session(&mut self, stream: u32, wanted: &Session) -> Result<(), Failure> {
        self.sessions.prune(Instant::now());
        let existing = match &wanted.id {
            _ if wanted.new => None,
            Some(id) => Some(self.sessions.find(id).ok_or_else(|| {
                failure(ErrorCode::NotFound, format_args!("session {id}"), "there is none of that name")
            })?),
            None => self.sessions.idle_shell(),
        };
        let number = match existing {
            Some(number) => number,
            None => {
                self.sessions.check_room()?;
                let started = start(&Launch {
                    argv: wanted.argv.as_deref(),
                    env: &wanted.env,
                    sandbox_env: [&self.environment, &self.secrets],
                    cwd: wanted.cwd.as_deref(),
                    user: wanted.user.as_deref(),
                    defaults: &self.defaults,
                    wiring: Wiring::Terminal(&wanted.tty),
                })?;
                self.add_session(SessionKind::Shell, true, None, started)
            }
        };
        self.say_session_started(stream, number);
        if let Some(session) = self.sessions.get_mut(number) {
            if let Some(terminal) = session.terminal() {
                let _ = tcsetwinsize(terminal, window(wanted.tty.rows, wanted.tty.cols));
            }
            session.attach(stream, &self.poll);
            self.streams.insert(stream, Stream::Client(number));
        }
        Ok(())
    }

    /// Starts the sandbox's init command, as the default user.
    pub fn start_init(&mut self, command: &[String]) -> Result<(), Failure> {
        let started = start(&Launch {
            argv: Some(command),
            env: &BTreeMap::new(),
            sandbox_env: [&self.environment, &self.secrets],
            cwd: None,
            user: None,
            defaults: &self.defaults,
            wiring: Wiring::Together,
        })?;
        self.add_session(SessionKind::Init, false, None, started);
        Ok(())
    }

    /// Starts a worker for a file verb.
    fn work(&mut self, stream: u32, job: Job) -> Result<(), Failure> {
        let io_failure = |error: std::io::Error| failure_io("file worker", &error);
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|errno| io_failure(errno.into()));
        let ((stdin, feed), (stdout, stdout_writer), (notes, notes_writer)) = (pipe()?, pipe()?, pipe()?);
        let streams = WorkerStreams { stdin, stdout: stdout_writer, stderr: notes_writer };
        let takes_content = matches!(job, Job::Write(_));
        let pid = fork_worker(&self.sole, streams, || files::run(&job)).map_err(io_failure)?;
        let ends = Ends {
            feed: if takes_content { Some(non_blocking(feed).map_err(io_failure)?) } else { None },
            stdout: non_blocking(stdout).map_err(io_failure)?,
            stderr: Some(non_blocking(notes).map_err(io_failure)?),
        };
        let task = Task::new(stream, pid, Kind::Worker { notes: vec![] }, ends, &self.poll);
        self.owners.insert(pid, Owner::Stream(stream));
        self.streams.insert(stream, Stream::Task(Box::new(task)));
        Ok(())
    }
}
