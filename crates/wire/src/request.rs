//! What the host asks of the guest, and the answers that are not a process's output.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::message::ExitStatus;

/// The payload of an `Open`: one verb with all that it needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Run a command: `Started`, `Stdout`/`Stderr`..., `Exit`. With `detach`: `Started`, `Reply(Done)`.
    Exec(Exec),
    /// Attach to a session, made if need be: `Started`, its scrollback and then its output as `Stdout`, `Exit`.
    Session(Session),
    /// List the sessions: `Reply(Sessions)`.
    Sessions,
    /// Read a file: `Meta`, `Stdout`..., `Reply(Read)`.
    FileRead(FileRead),
    /// Replace a file by what is sent as `Data` up to `Eof`: `Reply(Stat)`. Without an `Eof` nothing changes.
    FileWrite(FileWrite),
    /// Look at a file: `Reply(Stat)`.
    FileStat(StatRequest),
    /// List a directory: one [`FileStat`] as a line of JSON each in `Stdout`, then `Reply(Listed)`.
    FileList(FileList),
    /// How the guest is doing: `Reply(Info)`.
    Info,
    /// Write everything to the disks: `Reply(Done)`.
    Sync,
    /// Mount a volume whose disk is there or about to be: `Reply(Done)`. One that is mounted there already is as good.
    Mount(VolumeMount),
    /// Write a volume out and unmount it: `Reply(Done)`. One that is not mounted is as good. Refused as `busy` while a
    /// process uses it, with its name.
    Unmount(VolumeMount),
    /// Let a mounted volume's file system grow to its disk: `Reply(Done)`.
    GrowVolume(VolumeGrowth),
    /// Connect to a TCP port of the guest's loopback: `Started` (with pid 0) once it is connected, what comes from there
    /// as `Stdout`, `Eof` when no more will, and `Reply(Done)` when both directions have ended. What the host sends as
    /// `Data` goes there, up to `Eof`.
    Connect(Connect),
    /// What listens for TCP connections: `Reply(Ports)`.
    Ports,
    /// Play back the journal of a file system whose disk was plugged in, a clone's, by mounting it for a moment out of
    /// sight; the path is not used: `Reply(Done)`.
    Settle(VolumeMount),
    /// `Reply(Done)` at once, then an orderly end of everything and of the guest.
    Poweroff,
}

/// Where to connect to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    /// The port on 127.0.0.1, or else on `::1`.
    pub port: u16,
}

/// Something that listens for TCP connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// The port.
    pub port: u16,
    /// The address that it listens on.
    pub address: IpAddr,
    /// Who listens, where that could be found out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// That process's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
}

/// A volume in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// What people call it, for messages.
    pub name: String,
    /// The serial number of its disk.
    pub serial: String,
    /// Where it is mounted: absolute, without `.`, `..` and links on the way.
    pub path: String,
    /// Whether it is only read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// A volume whose disk has become larger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeGrowth {
    /// Which one.
    pub volume: VolumeMount,
    /// What the disk has, or is about to have in the eyes of the guest's kernel.
    pub bytes: u64,
}

/// A command to run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Exec {
    /// The program, searched in the command's own PATH if it has no slash, and its arguments.
    pub argv: Vec<String>,
    /// Laid over the default environment and the sandbox's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The working directory; the user's home if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// A user's name or number; uid 1000 (or root, if there is none) if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// After this much guest time the whole process group is killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Whether `Data` will be sent; stdin is /dev/null otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
    /// Run on a terminal of this shape; stdout and stderr are then one, and `stdin` is implied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<Tty>,
    /// Run as a session nobody is attached to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detach: bool,
}

/// A terminal's shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tty {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
    /// The value of TERM.
    pub term: String,
}

/// Which session to attach to, or how to make it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// The session to attach to. If not given: the latest running shell that nobody is attached to, else a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Make a new one in any case (`id` is then ignored).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub new: bool,
    /// What a new session runs; the user's login shell if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// As in [`Exec`], for a new session.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// As in [`Exec`], for a new session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// As in [`Exec`], for a new session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The client's terminal, to which the session's is set.
    pub tty: Tty,
}

/// What began a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionKind {
    /// The sandbox's init command.
    Init,
    /// A detached exec.
    Exec,
    /// A shell.
    Shell,
}

/// One session, as listed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// Its name in this guest: `init`, or a letter and a number.
    pub id: String,
    /// What began it.
    pub kind: SessionKind,
    /// What it runs, cut to a few hundred bytes.
    pub argv: Vec<String>,
    /// The process at its head.
    pub pid: u32,
    /// When it began.
    pub started_unix_ms: u64,
    /// Whether somebody is attached.
    pub attached: bool,
    /// How it ended, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitStatus>,
}

/// Which part of which file to read. Bytes and lines exclude each other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FileRead {
    /// An absolute path.
    pub path: String,
    /// Bytes to skip.
    #[serde(default)]
    pub offset: u64,
    /// Bytes to read at most: what was asked for, not a truncation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Lines instead of bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<LineRange>,
    /// A cap on the bytes sent; reaching it is told as [`ReadSummary::truncated`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
}

/// A range of lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineRange {
    /// Lines to skip.
    pub offset: u64,
    /// Lines to read at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// Which file to write.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FileWrite {
    /// An absolute path.
    pub path: String,
    /// Permission bits; those of an existing file are kept if not given, a new one gets 0644.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Make missing parent directories.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mkdirs: bool,
}

/// Which file to look at.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatRequest {
    /// An absolute path.
    pub path: String,
    /// Look at what a symbolic link points to.
    #[serde(default)]
    pub follow: bool,
}

/// Which directory to list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FileList {
    /// An absolute path.
    pub path: String,
}

/// What a name in a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, a pipe or a socket.
    #[serde(other)]
    Other,
}

/// A file's attributes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileStat {
    /// The last part of its path; a name that is not UTF-8 has its bad bytes replaced.
    pub name: String,
    /// What it is.
    pub kind: FileKind,
    /// Its length.
    pub size_bytes: u64,
    /// Permission bits (no type bits).
    pub mode: u32,
    /// The owner's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// When its content last changed; 0 if that was before 1970.
    pub modified_unix_ms: u64,
    /// Where a symbolic link points to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// How a read ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadSummary {
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Whether `max_bytes` cut the answer short.
    pub truncated: bool,
}

/// How the guest is doing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// Guest time since its kernel started.
    pub uptime_ms: u64,
    /// Memory the kernel has.
    pub memory_total_bytes: u64,
    /// Memory that programs could still get.
    pub memory_available_bytes: u64,
    /// Load average over 1, 5 and 15 minutes, in thousandths.
    pub load_milli: [u64; 3],
    /// Size of the root file system.
    pub root_total_bytes: u64,
    /// What is free of it.
    pub root_free_bytes: u64,
}

/// An answer that ends its stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", content = "value", rename_all = "snake_case")]
pub enum Reply {
    /// It is done, and there is nothing to tell.
    Done,
    /// All sessions.
    Sessions(Vec<SessionInfo>),
    /// A file's attributes.
    Stat(FileStat),
    /// The end of a read.
    Read(ReadSummary),
    /// The end of a listing: how many lines were sent.
    Listed(u64),
    /// How the guest is doing.
    Info(Info),
    /// What listens, at most [`crate::MAX_LISTENERS`] of them.
    Ports(Vec<Listener>),
}
