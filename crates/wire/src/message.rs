//! The frames, as values.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::request::{FileStat, Reply, Request, VolumeMount};
use crate::{Entropy, Hex, Nonce};

/// One message on one stream. Messages about the session itself are on stream 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// The stream.
    pub stream: u32,
    /// What is said on it.
    pub message: Message,
}

/// What a frame says. `host` and `guest` tell who may say it.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// host: begin a session (right after the magic).
    Attach(Box<Attach>),
    /// guest: the session has begun (right after magic and nonce).
    Welcome(Box<Welcome>),
    /// guest: the session was refused.
    AttachFailed(AttachFailed),
    /// host: end the session.
    Detach,
    /// guest: the session is over; nothing follows.
    Detached,
    /// host: open a stream.
    Open(Box<Request>),
    /// host: bytes for stdin, a terminal, or a file.
    Data(Vec<u8>),
    /// host: no more `Data`. guest, on a connection: no more `Stdout`, and `Data` may go on.
    Eof,
    /// both: this many more data bytes may be sent.
    Credit(u32),
    /// host: the client's terminal has another shape now.
    Resize(WindowSize),
    /// host: send this signal to the process group.
    Signal(i32),
    /// host: the client is gone. Kills the process group of an exec, detaches from a session.
    Cancel,
    /// guest: the process runs.
    Started(Started),
    /// guest: bytes of stdout, of a terminal, or of a file.
    Stdout(Vec<u8>),
    /// guest: bytes of stderr.
    Stderr(Vec<u8>),
    /// guest: the file about to be sent.
    Meta(Box<FileStat>),
    /// guest: the answer; ends the stream.
    Reply(Box<Reply>),
    /// guest: the process has ended; ends the stream.
    Exit(ExitStatus),
    /// guest: it could not be done; ends the stream.
    Failed(Failure),
}

/// The host's first message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attach {
    /// [`crate::PROTOCOL`] of the host.
    pub protocol: u32,
    /// Fresh for each attach; the answer repeats it.
    pub nonce: Nonce,
    /// What time it is.
    pub now_unix_ns: u64,
    /// Mixed into the guest's random pool and credited, before anything else runs.
    pub entropy: Entropy,
    /// On first boots, cold boots and clones, of templates and of running guests: who this guest is from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// Let the root file system grow to its disk, which has this many bytes, or is about to: a disk that was resized a
    /// moment ago is not yet larger in the eyes of the guest's kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grow_root_to: Option<u64>,
    /// Volumes to be mounted before any command of the sandbox runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeMount>,
    /// Laid over the environment of every command from now on, in place of those that were told before. `None` leaves
    /// them; with an identity it means that there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<Secrets>,
    /// How the guest reaches the world. With an identity, `None` means that it does not; otherwise it leaves what it
    /// was told before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<Net>,
}

/// What a guest's network card is to be set to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Net {
    /// Its hardware address.
    pub mac: Hex<6>,
    /// Its largest packet.
    pub mtu: u32,
    /// Its addresses; no neighbours are reached but the gateways.
    pub addresses: Vec<IpAddr>,
    /// Who leads to the world: at most one a family.
    pub gateways: Vec<IpAddr>,
    /// Who answers questions about names.
    pub dns: Vec<IpAddr>,
}

/// Variables with values that nobody else is to see.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secrets(pub BTreeMap<String, String>);

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Who a guest is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// The sandbox's id.
    pub sandbox_id: String,
    /// The host name.
    pub hostname: String,
    /// 32 hex digits for /etc/machine-id.
    pub machine_id: String,
    /// Whether there is a config drive to read. False for a clone of a guest that runs already: environment and init
    /// command are in its memory.
    pub read_config: bool,
    /// Whether this guest never ran under this identity before: only then are the config drive's files placed, so
    /// that a later boot does not undo what was changed in them.
    #[serde(default)]
    pub first_boot: bool,
    /// What the config drive says, where that is all it says: the guest then need not mount it, which a fresh clone
    /// would spend most of its time on. A boot from the disk always reads the drive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<InlineConfig>,
}

/// A config drive without files, in a message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InlineConfig {
    /// The sandbox's environment.
    pub env: BTreeMap<String, String>,
    /// The command to run as the session `init`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// What the sandbox's image wants.
    #[serde(default, skip_serializing_if = "CommandDefaults::is_empty")]
    pub defaults: CommandDefaults,
}

/// What commands get that say nothing themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandDefaults {
    /// The working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// The user, perhaps with `:` and a group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Program and arguments of the session `init`, where [`InlineConfig::init`] has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub init: Vec<String>,
}

impl CommandDefaults {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The agent's first message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// [`crate::PROTOCOL`] of the agent.
    pub protocol: u32,
    /// The agent's version.
    pub agent_version: String,
    /// Kept in guest memory only: made when the guest's kernel started the agent, and again whenever an identity is
    /// applied. The same over a sleep proves that the guest was resumed, not rebooted.
    pub boot_nonce: Nonce,
    /// Whether an identity has ever been applied.
    pub configured: bool,
    /// The sandbox whose identity was applied last. A clone of a running guest is configured before it was told who
    /// it is, as its source; `None` also from agents of before this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// What did not go well, but not badly enough to refuse.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Volumes that could not be mounted, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unmounted: Vec<String>,
    /// Whether secrets that were told are known now; false also from agents of before this field.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub secrets: bool,
}

/// Why a session was refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttachFailed {
    /// For people.
    pub message: String,
}

/// A terminal's new shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// A process that runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Started {
    /// Its number in the guest, which is also that of its process group.
    pub pid: u32,
    /// The session it belongs to, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

/// How a process ended: `code` or `signal`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// What it returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// The signal that killed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Killed because its time was over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
    /// Another process still held its output open, so more may have been written since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub output_held: bool,
}

impl ExitStatus {
    /// The number a shell would give: the code, or 128 + the signal.
    pub fn shell_code(&self) -> i32 {
        match (self.code, self.signal) {
            (Some(code), _) => code,
            (None, Some(signal)) => 128_i32.saturating_add(signal),
            (None, None) => 1,
        }
    }
}

/// Why a stream failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// The kind, for programs.
    pub code: ErrorCode,
    /// For people; names the thing.
    pub message: String,
}

/// The kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// No such file, directory or session.
    NotFound,
    /// A directory where a file was needed.
    IsDirectory,
    /// No directory where one was needed.
    NotDirectory,
    /// Not allowed, or a read-only file system.
    Permission,
    /// The disk is full.
    NoSpace,
    /// It is there already.
    Exists,
    /// The command is there and cannot be executed.
    NotExecutable,
    /// There is no such command.
    CommandNotFound,
    /// There is no such user.
    NoSuchUser,
    /// The request makes no sense to this agent.
    BadRequest,
    /// Somebody uses it.
    Busy,
    /// Nobody listens there.
    NotListening,
    /// It did not answer in time.
    TimedOut,
    /// A file system whose journal is to be played back first, which takes a disk that can be written.
    Unclean,
    /// Too many streams or sessions at once.
    TooMany,
    /// Anything else, and what a newer agent may invent.
    #[serde(other)]
    Io,
}

impl ErrorCode {
    /// The exit status by which a shell would tell of this failure, where it has one.
    pub fn shell_code(self) -> Option<i32> {
        match self {
            ErrorCode::CommandNotFound => Some(127),
            ErrorCode::NotExecutable => Some(126),
            ErrorCode::NotFound
            | ErrorCode::IsDirectory
            | ErrorCode::NotDirectory
            | ErrorCode::Permission
            | ErrorCode::NoSpace
            | ErrorCode::Exists
            | ErrorCode::NoSuchUser
            | ErrorCode::BadRequest
            | ErrorCode::Busy
            | ErrorCode::NotListening
            | ErrorCode::TimedOut
            | ErrorCode::Unclean
            | ErrorCode::TooMany
            | ErrorCode::Io => None,
        }
    }
}
