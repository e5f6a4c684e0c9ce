//! The verbs.

use std::sync::Arc;

use tokio::time::Instant;
use wire::{
    Connect, Exec, FileList, FileRead, FileStat, FileWrite, Info, Listener, Reply, Request, Session,
    SessionInfo, Started, StatRequest, VolumeGrowth, VolumeMount,
};

use crate::channel::{Core, Handle, Hush};
use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::exec::{ExecEvent, ExecStream, unexpected};
use crate::file::{FileReader, FileWriter};
use crate::stream::Told;

/// The longest directory listing that is taken in, in bytes of JSON: about 100,000 names.
pub const MAX_LISTING: usize = 16 * 1024 * 1024;

/// A guest whose agent has been greeted. Cheap to clone; when the last clone and the last stream are dropped, the
/// channel closes.
#[derive(Debug, Clone)]
pub struct Guest(Arc<Core>);

/// A guest to which nothing is said: the agent has taken in everything before, and what verbs say meanwhile waits
/// here. Its answers are heard all the same. Dropped, everything goes on.
#[derive(Debug)]
#[must_use = "dropped, everything goes on"]
pub struct Quiet {
    _hush: Hush,
}

impl Guest {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self(core)
    }

    /// Ends the session in an orderly way and closes the channel: no half frame is left on either side, commands
    /// are killed, sessions go on unattached. Streams still open end with `Closed`. Doing it again is harmless.
    ///
    /// # Errors
    /// `Timeout`, or `Closed`/`Protocol` when the channel broke first. The channel is closed in any case.
    pub async fn detach(&self, deadline: Instant) -> Result<()> {
        self.0.detach(deadline).await
    }

    /// Waits until the agent has taken in everything that was said so far, as whole frames, and says nothing more
    /// until the value is dropped. A copy of the guest that is made meanwhile holds no half frame, whose missing end
    /// the padding of an attach would fill with zero bytes: to a terminal's stream, these would look like typed.
    /// Verbs and streams go on, and wait for what they need the agent for.
    ///
    /// # Errors
    /// `Timeout` when the agent does not answer (it may have stopped listening because nobody takes its answers):
    /// a copy is sound all the same, but for what was just being typed. `Closed`, `Protocol`.
    pub async fn quiet(&self, deadline: Instant) -> Result<Quiet> {
        const OP: &str = "let the guest take in what was said";
        let hushed = tokio::time::timeout_at(deadline, self.0.hush(OP)).await;
        let hush = hushed.unwrap_or_else(|_| Err(Error::new(ErrorKind::Timeout, OP)))?;
        Ok(Quiet { _hush: hush })
    }

    /// Resolves with the reason once the channel is closed, for whatever reason, and the byte stream is dropped.
    pub async fn closed(&self) -> Error {
        self.0.closed("serve the guest").await
    }

    /// Whether the channel is closed; [`Guest::closed`] tells why.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Runs a command. Returns as soon as the request is queued; whether it could be started is the first event.
    ///
    /// # Errors
    /// `TooLarge` for more than 1 MiB of arguments and environment; `Closed` or `Protocol`.
    pub async fn exec(&self, exec: Exec) -> Result<ExecStream> {
        let takes_input = (exec.stdin || exec.tty.is_some()) && !exec.detach;
        let handle = self.0.open("run a command", Request::Exec(exec)).await?;
        Ok(ExecStream::new(handle, takes_input))
    }

    /// Runs a command as a session that nobody is attached to, and returns when it runs.
    ///
    /// # Errors
    /// `Refused` when it could not be started, and those of [`Guest::exec`].
    pub async fn exec_detached(&self, exec: Exec) -> Result<Started> {
        let mut stream = self.exec(Exec { detach: true, ..exec }).await?;
        let started = match stream.next().await {
            Some(ExecEvent::Started(started)) => started,
            Some(ExecEvent::Failed(error)) => return Err(error),
            _ => return Err(unexpected("run a command")),
        };
        // Not cancelled by being dropped too early: the agent's last word first.
        match stream.next().await {
            Some(ExecEvent::Failed(error)) => Err(error),
            _ => Ok(started),
        }
    }

    /// Attaches to a session, making it if need be.
    ///
    /// # Errors
    /// Those of [`Guest::exec`].
    pub async fn session(&self, session: Session) -> Result<ExecStream> {
        let handle = self.0.open("attach to a session", Request::Session(session)).await?;
        Ok(ExecStream::new(handle, true))
    }

    /// Lists the sessions.
    ///
    /// # Errors
    /// `Refused`, `Closed`, `Protocol`.
    pub async fn sessions(&self) -> Result<Vec<SessionInfo>> {
        const OP: &str = "list sessions";
        match self.ask(OP, Request::Sessions).await? {
            Reply::Sessions(sessions) => Ok(sessions),
            _ => Err(unexpected(OP)),
        }
    }

    /// Opens a file for reading and waits for its attributes.
    ///
    /// # Errors
    /// `Refused` (no such file, a directory), `Closed`, `Protocol`.
    pub async fn file_read(&self, read: FileRead) -> Result<FileReader> {
        FileReader::begin(self.0.open("read a file", Request::FileRead(read)).await?).await
    }

    /// Begins to write a file. Returns at once; a refusal is told by the next call on the writer.
    ///
    /// # Errors
    /// `Closed`, `Protocol`.
    pub async fn file_write(&self, write: FileWrite) -> Result<FileWriter> {
        self.0.open("write a file", Request::FileWrite(write)).await.map(FileWriter::new)
    }

    /// A file's attributes.
    ///
    /// # Errors
    /// `Refused`, `Closed`, `Protocol`.
    pub async fn file_stat(&self, stat: StatRequest) -> Result<FileStat> {
        const OP: &str = "look at a file";
        match self.ask(OP, Request::FileStat(stat)).await? {
            Reply::Stat(stat) => Ok(stat),
            _ => Err(unexpected(OP)),
        }
    }

    /// What is in a directory, in the agent's order.
    ///
    /// # Errors
    /// `Refused`, `Closed`, `Protocol`; `TooLarge` past [`MAX_LISTING`].
    pub async fn file_list(&self, list: FileList) -> Result<Vec<FileStat>> {
        const OP: &str = "list a directory";
        let mut handle = self.0.open(OP, Request::FileList(list)).await?;
        let mut text = Vec::new();
        let count = loop {
            match handle.next().await? {
                Told::Stdout(data) => text.extend_from_slice(&data),
                Told::Reply(Reply::Listed(count)) => break count,
                Told::Failed(failure) => return Err(Error::refused(OP, &failure)),
                _ => return Err(unexpected(OP)),
            }
            if text.len() > MAX_LISTING {
                return Err(Error::new(ErrorKind::TooLarge, OP));
            }
        };
        let lines = serde_json::Deserializer::from_slice(&text).into_iter::<FileStat>();
        let files: Vec<FileStat> = lines
            .collect::<serde_json::Result<_>>()
            .map_err(|e| Error::because(ErrorKind::Protocol, OP, e))?;
        if files.len() as u64 != count {
            let why = format!("{} lines of a listing of {count}", files.len());
            return Err(Error::because(ErrorKind::Protocol, OP, why));
        }
        Ok(files)
    }

    /// How the guest is doing.
    ///
    /// # Errors
    /// `Refused`, `Closed`, `Protocol`.
    pub async fn info(&self) -> Result<Info> {
        const OP: &str = "ask how the guest is doing";
        match self.ask(OP, Request::Info).await? {
            Reply::Info(info) => Ok(info),
            _ => Err(unexpected(OP)),
        }
    }

    /// What listens for TCP connections there.
    ///
    /// # Errors
    /// `Refused` (an agent of before this verb), `Closed`, `Protocol`.
    pub async fn ports(&self) -> Result<Vec<Listener>> {
        const OP: &str = "look at the guest's ports";
        match self.ask(OP, Request::Ports).await? {
            Reply::Ports(listeners) => Ok(listeners
                .into_iter()
                .map(|listener| Listener {
                    process: listener.process.map(|name| crate::error::printable(&name)),
                    ..listener
                })
                .collect()),
            _ => Err(unexpected(OP)),
        }
    }

    /// Connects to a TCP port of the guest's loopback.
    ///
    /// # Errors
    /// `Refused` with `not_listening` or `timed_out`, `Closed`, `Protocol`.
    pub async fn connect(&self, port: u16) -> Result<Connection> {
        Connection::begin(
            self.0.open("connect to a port of the guest", Request::Connect(Connect { port })).await?,
        )
        .await
    }

    /// Has the guest write everything to its disks.
    ///
    /// # Errors
    /// `Refused`, `Closed`, `Protocol`.
    pub async fn sync(&self) -> Result<()> {
        self.ask("sync the guest's disks", Request::Sync).await.map(drop)
    }

    /// Mounts a volume whose disk was plugged in.
    ///
    /// # Errors
    /// `Refused`, `Closed`, `Protocol`.
    pub async fn mount(&self, volume: VolumeMount) -> Result<()> {
        self.ask("mount a volume", Request::Mount(volume)).await.map(drop)
    }

    /// Writes a volume out and unmounts it.
    ///
    /// # Errors
    /// `Refused` (as busy, naming who uses it), `Closed`, `Protocol`.
    pub async fn unmount(&self, volume: VolumeMount) -> Result<()> {
        self.ask("unmount a volume", Request::Unmount(volume)).await.map(drop)
    }

    /// Lets a volume's file system grow to its disk.
    ///
    /// # Errors
    /// `Refused`, `Closed`, `Protocol`.
    pub async fn grow_volume(&self, growth: VolumeGrowth) -> Result<()> {
        self.ask("grow a volume", Request::GrowVolume(growth)).await.map(drop)
    }

    /// Plays back the journal of a clone whose disk was plugged in, without showing it to anybody.
    ///
    /// # Errors
    /// `Refused`, `Closed`, `Protocol`.
    pub async fn settle(&self, volume: VolumeMount) -> Result<()> {
        self.ask("settle a volume", Request::Settle(volume)).await.map(drop)
    }

    /// Asks for an orderly end of the guest. Returns when the agent has agreed; that it is off, the machine tells.
    ///
    /// # Errors
    /// `Refused`, `Closed`, `Protocol`.
    pub async fn poweroff(&self) -> Result<()> {
        self.ask("power the guest off", Request::Poweroff).await.map(drop)
    }

    async fn ask(&self, op: &'static str, request: Request) -> Result<Reply> {
        let mut handle: Handle = self.0.open(op, request).await?;
        match handle.next().await? {
            Told::Reply(reply) => Ok(reply),
            Told::Failed(failure) => Err(Error::refused(op, &failure)),
            _ => Err(unexpected(op)),
        }
    }
}
