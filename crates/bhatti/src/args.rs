//! What can be typed: every verb and flag, and nothing of what they do.

mod image;
mod secret;
mod serve;
mod setup;
mod snapshot;
mod traffic;
mod user;
mod volume;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use types::{After, ImageName, NetMode, Owner, Rate, SandboxName, SecretName};

pub use image::{Image, ImageDelete, ImageImport};
pub use secret::{Secret, SecretDelete, SecretSet};
pub use serve::{Confine, Groups, Listen, Net, ReadAhead, Serve};
pub use setup::{Setup, Storage};
pub use snapshot::{Copied, Fork, Snapshot, SnapshotCreate, SnapshotDelete, SnapshotResume, SnapshotWhich};
pub use traffic::{Forward, Publish, Unpublish};
pub use user::{Limit, Limits, User, UserCreate, UserDelete, UserEdit};
pub use volume::{
    MountArg, Volume, VolumeAttach, VolumeBackup, VolumeBackupDelete, VolumeBackupPrune, VolumeBackups,
    VolumeClone, VolumeCreate, VolumeDelete, VolumeDetach, VolumeResize, VolumeRestore, VolumeSchedule,
    VolumeWhich,
};

/// Many Linux microVMs on one host: created in a blink, asleep for the price of what they changed.
#[derive(Debug, Parser)]
#[command(
    name = "bhatti",
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Flags of every verb, before or after it.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Print one JSON document on stdout and nothing else
    #[arg(long, global = true)]
    pub json: bool,
    /// Where the daemon is: http://HOST:PORT, https://HOST:PORT or unix:/PATH [default: the data directory's socket, then http://127.0.0.1:8080]
    #[arg(long, global = true, env = "BHATTI_URL", value_name = "URL")]
    pub url: Option<String>,
    /// Key for a daemon over TCP [default: the data directory's admin.key, for a daemon on this host]
    #[arg(long, global = true, env = "BHATTI_TOKEN", value_name = "KEY", hide_env_values = true)]
    pub token: Option<String>,
    /// Trust the certificate in this PEM file, in place of those that this host trusts, for https
    #[arg(long, global = true, env = "BHATTI_CACERT", value_name = "FILE")]
    pub cacert: Option<PathBuf>,
    /// Act for this user; for the admin only. Lists show everybody's things without
    #[arg(long, global = true, env = "BHATTI_OWNER", value_name = "USER")]
    pub owner: Option<Owner>,
    /// Where everything is kept [default: /var/lib/bhatti for root, $XDG_DATA_HOME/bhatti otherwise]
    #[arg(long, global = true, env = "BHATTI_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make this host ready: guest kernel, image, accelerator. Safe to run again
    Setup(Setup),
    /// Tell what this host can do, what is missing, and how to mend it
    Doctor(Doctor),
    /// Run the daemon
    Serve(Serve),
    /// Measure this host: each figure beside its reference, from one run
    Bench(Bench),
    /// Create a sandbox, or return the one that has this name already
    Create(Create),
    /// List sandboxes
    #[command(visible_alias = "ls")]
    List(List),
    /// Tell everything about a sandbox
    Inspect(Which),
    /// Change a sandbox's name, labels or keep-hot
    Edit(Edit),
    /// Destroy sandboxes with everything they own
    #[command(visible_alias = "rm")]
    Destroy(Destroy),
    /// Run a command in a sandbox, waking it if need be
    Exec(Exec),
    /// Open a shell that survives disconnects; Ctrl+\ detaches
    Shell(Shell),
    /// List the sessions of a sandbox: its init command, shells, detached commands
    Ps(Which),
    /// Put sandboxes to sleep: memory to disk, machine gone
    Stop(Stop),
    /// Wake sandboxes
    Start(Start),
    /// Keep sandboxes under names, and make sandboxes of what was kept
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Disks that outlive sandboxes
    #[command(subcommand)]
    Volume(Volume),
    /// Make live copies of a sandbox, which goes on. Ctrl-C does not call it off: the daemon finishes them
    Fork(Fork),
    /// List what listens for TCP connections in a sandbox, waking it
    Ports(Which),
    /// Listen on this host's loopback for a port of a sandbox, which each connection wakes
    Forward(Forward),
    /// Serve a port of a sandbox under an alias to whoever knows it, or list what is
    Publish(Publish),
    /// Take back what is published; open connections are cut
    Unpublish(Unpublish),
    /// Values that sandboxes are given by name, encrypted where they are kept
    #[command(subcommand)]
    Secret(Secret),
    /// Who may ask over TCP, with which key, and what they may have
    #[command(subcommand)]
    User(User),
    /// Tell where the bytes are: apparent, referenced, physical, exclusive
    Du(Du),
    /// Check everything that is stored: manifests, checksums, bases, layers, references
    Fsck(Fsck),
    /// Remove what nothing names any more
    Gc(Gc),
    /// Read, write and list files of a sandbox
    #[command(subcommand)]
    File(File),
    /// Base images: fetched, imported, built, saved, removed
    #[command(subcommand)]
    Image(Image),
    /// Tell what happened, and what happens
    Events(Events),
    /// Tell of the host in numbers, as Prometheus reads them
    Metrics,
    /// Print a completion script for a shell
    Completion(Completion),
    /// Tell the versions of this program and of the daemon
    Version,
    /// Print this program's reference
    #[command(hide = true)]
    Docs(Docs),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchSuite {
    /// Create, stop and wake, against a cold boot and QEMU's own migration
    Create,
    /// Wakes with hot and cold page cache and under traffic, against the least a wake can be
    Wake,
    /// A command on a hot sandbox, against the same inside the guest
    Exec,
    /// Bytes on disk and in the page cache
    Density,
    /// Named snapshots, forks and resumes, on ext4, btrfs and xfs: a part of `storage`
    Snapshot,
    /// Clones, snapshots, forks and where the bytes are, on ext4, btrfs and xfs
    Storage,
    /// Stop, wake, create, disk, caches and the daemon against what they might grow with
    Scaling,
    /// What a second pull moves, and an import against tar and mke2fs
    Images,
    /// All of them
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchFilesystem {
    /// The one that the data directory is on
    Here,
    /// Made for the bench, in a file; so are the others
    Ext4,
    /// With `compress=zstd:1`
    Btrfs,
    /// With reflinks
    Xfs,
}

#[derive(Debug, Args)]
pub struct Bench {
    /// Which table
    #[arg(long, value_enum, default_value_t = BenchSuite::All)]
    pub suite: BenchSuite,
    /// Filesystems for the suites storage and snapshot [default: ext4,btrfs,xfs as root, else here]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "FS,...")]
    pub on: Vec<BenchFilesystem>,
    /// Write performance.md, performance.json and plots (SVG; PNG where rsvg-convert is) into this directory, too
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Compare with the performance.json of an earlier run on this host
    #[arg(long, value_name = "FILE")]
    pub against: Option<PathBuf>,
    /// How often each figure is taken
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub runs: u16,
}

#[derive(Debug, Args)]
pub struct Doctor {
    /// VMM to look at [default: qemu-system-x86_64 or qemu-system-aarch64 in PATH]
    #[arg(long, value_name = "PATH")]
    pub qemu: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Layout {
    /// What measured better on this filesystem
    Auto,
    /// Overlays on the one base image, which share its page cache
    Overlay,
    /// Raw clones of the base image: FICLONE, else sparse copies
    Reflink,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Accelerator {
    /// KVM where a guest was seen to boot under it, else TCG
    Auto,
    /// Hardware virtualisation
    Kvm,
    /// Software emulation; no security boundary
    Tcg,
}

/// `KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair(pub String, pub String);

impl FromStr for Pair {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self(key.to_owned(), value.to_owned())),
            _ => Err("use KEY=VALUE".to_owned()),
        }
    }
}

/// `LOCAL:GUEST[:MODE]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileArg {
    pub local: PathBuf,
    pub guest: String,
    /// Octal; the local file's when missing.
    pub mode: Option<String>,
}

impl FromStr for FileArg {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || "use LOCAL:/GUEST/PATH or LOCAL:/GUEST/PATH:MODE, such as run.sh:/root/run.sh:0755".to_owned();
        // The guest's path begins at the last ":/", so that a local path may have a colon.
        let (local, guest) = text.rsplit_once(":/").ok_or_else(wrong)?;
        let (guest, mode) = match guest.rsplit_once(':') {
            Some((guest, mode)) => (guest, Some(octal(mode)?)),
            None => (guest, None),
        };
        if local.is_empty() || guest.is_empty() {
            return Err(wrong());
        }
        Ok(Self { local: local.into(), guest: format!("/{guest}"), mode })
    }
}

fn octal(text: &str) -> Result<String, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is not an octal mode such as 0644")),
    }
}

/// `NAME:/MOUNT[:ro]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeArg {
    pub name: String,
    pub mount: String,
    pub read_only: bool,
}

impl FromStr for VolumeArg {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (rest, read_only) = text.strip_suffix(":ro").map_or((text, false), |rest| (rest, true));
        match rest.split_once(':') {
            Some((name, mount)) if !name.is_empty() && mount.starts_with('/') => {
                Ok(Self { name: name.to_owned(), mount: mount.to_owned(), read_only })
            }
            _ => Err("use NAME:/MOUNT or NAME:/MOUNT:ro".to_owned()),
        }
    }
}

#[derive(Debug, Args)]
pub struct Create {
    /// Name [default: one is made up]
    #[arg(long)]
    pub name: Option<SandboxName>,
    /// Base image
    #[arg(long, default_value = "minimal")]
    pub image: ImageName,
    /// Virtual processors
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub cpus: u32,
    /// Memory in MiB
    #[arg(long, default_value_t = 512, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..))]
    pub memory: u64,
    /// Root disk in MiB [default: the image's size]
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..))]
    pub disk_size: Option<u64>,
    /// Environment of every command
    #[arg(long, value_name = "K=V")]
    pub env: Vec<Pair>,
    /// Give it a secret, as a variable of that name in every command
    #[arg(long, value_name = "NAME")]
    pub secret: Vec<SecretName>,
    /// How it reaches the world: `bridge` (through passt, and siblings by name), `user` (through passt) or `none`
    /// [default: as the daemon was told]
    #[arg(long, value_name = "MODE")]
    pub net: Option<NetMode>,
    /// What it may reach: `none` alone, or `public`, names (pypi.org, *.debian.org) and prefixes (10.1.0.0/16) [default:
    /// public]
    #[arg(long, value_name = "RULE", num_args = 1..)]
    pub egress: Vec<String>,
    /// What its network may carry in a second each way: bytes, and perhaps packets (20M, 20M:5000), or `unlimited` [default:
    /// as the daemon was told]
    #[arg(long, value_name = "RATE")]
    pub net_rate: Option<Rate>,
    /// What its disks may read and write together in a second: bytes, and perhaps operations (100M:2000), or `unlimited`
    /// [default: as the daemon was told]
    #[arg(long, value_name = "RATE")]
    pub disk_rate: Option<Rate>,
    /// Place a file before the first command
    #[arg(long, value_name = "LOCAL:GUEST[:MODE]")]
    pub file: Vec<FileArg>,
    /// Attach a volume, which is made with 1024 MiB where there is none of that name
    #[arg(long, value_name = "NAME:/MOUNT[:ro]")]
    pub volume: Vec<VolumeArg>,
    /// Command line to run at every boot, as session `init`
    #[arg(long, value_name = "CMD")]
    pub init: Option<String>,
    /// Never put it to sleep by itself
    #[arg(long)]
    pub keep_hot: bool,
    #[command(flatten)]
    pub idle: Idle,
    /// Label it
    #[arg(long, value_name = "K=V")]
    pub label: Vec<Pair>,
    /// Start from a sandbox (a live copy of it) or a snapshot, which give image, processors, memory, environment and files
    #[arg(
        long,
        value_name = "SANDBOX|SNAPSHOT",
        conflicts_with_all = ["image", "cpus", "memory", "env", "secret", "net", "egress", "net_rate", "disk_rate", "file", "volume", "init"]
    )]
    pub from: Option<String>,
    /// Refuse instead of taking the slow path
    #[arg(long)]
    pub strict: bool,
}

/// What one sandbox says in place of its host.
#[derive(Debug, Clone, Copy, Args)]
pub struct Idle {
    /// Seconds without work after which it is paused, `never`, or `default` for what the daemon was told
    #[arg(long, value_name = "SECONDS")]
    pub warm_after: Option<AfterArg>,
    /// Seconds without work after which it is put to sleep, `never`, or `default`
    #[arg(long, value_name = "SECONDS")]
    pub cold_after: Option<AfterArg>,
    /// Do so also while its guest is busy by itself or a detached command runs
    #[arg(long, overrides_with = "no_sleep_busy")]
    pub sleep_busy: bool,
    /// Leave it alone while its guest is busy by itself or a detached command runs
    #[arg(long, overrides_with = "sleep_busy")]
    pub no_sleep_busy: bool,
}

impl Idle {
    /// What was said of busy guests.
    pub fn busy(&self) -> Option<bool> {
        match (self.sleep_busy, self.no_sleep_busy) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            (false, false) => None,
        }
    }
}

/// A number of seconds, `never` or `default`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AfterArg(pub Option<After>);

impl AfterArg {
    /// As it is asked of the daemon.
    pub fn asked(self) -> api::After {
        match self.0.map(After::as_seconds) {
            None => api::After::Word(api::AfterWord::Default),
            Some(None) => api::After::Word(api::AfterWord::Never),
            Some(Some(seconds)) => api::After::Seconds(seconds),
        }
    }
}

impl FromStr for AfterArg {
    type Err = types::InvalidSpec;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "default" { Ok(Self(None)) } else { text.parse().map(|after| Self(Some(after))) }
    }
}

#[derive(Debug, Args)]
pub struct List {
    /// Only those with this label; all must match
    #[arg(long, value_name = "K=V")]
    pub label: Vec<Pair>,
}

#[derive(Debug, Args)]
pub struct Which {
    /// Name or id
    #[arg(value_name = "SB")]
    pub sandbox: String,
}

#[derive(Debug, Args)]
pub struct Edit {
    /// Name or id
    #[arg(value_name = "SB")]
    pub sandbox: String,
    /// New name
    #[arg(long)]
    pub name: Option<SandboxName>,
    /// Never put it to sleep by itself
    #[arg(long, overrides_with = "no_keep_hot")]
    pub keep_hot: bool,
    /// Put it to sleep when it is idle
    #[arg(long, overrides_with = "keep_hot")]
    pub no_keep_hot: bool,
    #[command(flatten)]
    pub idle: Idle,
    /// What its network may carry in a second each way, from its next start on (see `create`), or `default`
    #[arg(long, value_name = "RATE")]
    pub net_rate: Option<RateArg>,
    /// What its disks may read and write together in a second, at once (see `create`), or `default`
    #[arg(long, value_name = "RATE")]
    pub disk_rate: Option<RateArg>,
    /// Set a label; an empty value removes it
    #[arg(long, value_name = "K=V")]
    pub label: Vec<Pair>,
}

/// A rate, or `default`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateArg(Option<Rate>);

impl fmt::Display for RateArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(rate) => rate.fmt(f),
            None => f.write_str("default"),
        }
    }
}

impl FromStr for RateArg {
    type Err = types::InvalidSpec;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "default" { Ok(Self(None)) } else { text.parse().map(|rate| Self(Some(rate))) }
    }
}

#[derive(Debug, Args)]
pub struct Destroy {
    /// Names or ids
    #[arg(value_name = "SB", required = true)]
    pub sandboxes: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct Exec {
    /// Name or id
    #[arg(value_name = "SB")]
    pub sandbox: String,
    /// Seconds after which the command is killed (exit status 124)
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub timeout: Option<f64>,
    /// Environment of this command
    #[arg(long, value_name = "K=V")]
    pub env: Vec<Pair>,
    /// Working directory [default: the user's home]
    #[arg(long, value_name = "D")]
    pub cwd: Option<String>,
    /// User name or number [default: uid 1000]
    #[arg(long, value_name = "U")]
    pub user: Option<String>,
    /// Start it as a session, print the session's id and return
    #[arg(long, conflicts_with_all = ["tty", "stdin"])]
    pub detach: bool,
    /// Give it a terminal
    #[arg(long, short = 't', conflicts_with = "json")]
    pub tty: bool,
    /// Send it this program's standard input
    #[arg(long, short = 'i')]
    pub stdin: bool,
    /// Program and arguments
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    pub command: Vec<String>,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 2_592_000.0 => Ok(seconds),
        _ => Err("use more than 0 and at most 2592000 seconds".to_owned()),
    }
}

#[derive(Debug, Args)]
pub struct Shell {
    /// Name or id
    #[arg(value_name = "SB")]
    pub sandbox: String,
    /// Begin a new session even if one is free
    #[arg(long, conflicts_with = "session")]
    pub new: bool,
    /// Attach to this session; `bhatti ps SB` lists them
    #[arg(long, value_name = "ID")]
    pub session: Option<String>,
    /// User of a new session [default: uid 1000]
    #[arg(long, value_name = "U")]
    pub user: Option<String>,
}

#[derive(Debug, Args)]
pub struct Stop {
    /// Names or ids
    #[arg(value_name = "SB", required = true)]
    pub sandboxes: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Start {
    /// Names or ids
    #[arg(value_name = "SB", required = true)]
    pub sandboxes: Vec<String>,
    /// Give up the memory image and boot from the disk
    #[arg(long, conflicts_with = "strict")]
    pub discard_memory: bool,
    /// Refuse instead of booting from the disk
    #[arg(long)]
    pub strict: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DuSort {
    /// What would be free without it
    Exclusive,
    /// What lies on the disk
    Physical,
    /// Without holes
    Referenced,
    /// What `ls` says
    Apparent,
    /// Alphabetically
    Name,
}

#[derive(Debug, Args)]
pub struct Du {
    /// Only this one, file by file
    #[arg(value_name = "SB")]
    pub sandbox: Option<String>,
    /// What comes first
    #[arg(long, value_enum, default_value_t = DuSort::Exclusive)]
    pub sort: DuSort,
    /// Compare with compsize, and with what is free before and after files were made; off by more than 1% is a failure
    #[arg(long, conflicts_with = "sandbox")]
    pub verify: bool,
}

#[derive(Debug, Args)]
pub struct Fsck {
    /// Mend what can be mended without losing anything; what cannot is moved to quarantine/ in the data directory
    #[arg(long)]
    pub repair: bool,
    /// Only tell what a repair would do
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct Gc {
    /// Only tell what would be removed
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub enum File {
    /// Write a file of a sandbox to stdout
    Read(FileRead),
    /// Replace a file of a sandbox by stdin or a local file
    Write(FileWrite),
    /// List a directory of a sandbox
    Ls(FilePath),
    /// Tell of a file of a sandbox
    Stat(FilePath),
}

#[derive(Debug, Args)]
pub struct FilePath {
    /// Name or id
    #[arg(value_name = "SB")]
    pub sandbox: String,
    /// Absolute path in the sandbox
    pub path: String,
}

#[derive(Debug, Args)]
pub struct FileRead {
    #[command(flatten)]
    pub file: FilePath,
    /// Bytes to skip
    #[arg(long, value_name = "BYTES", conflicts_with = "lines")]
    pub offset: Option<u64>,
    /// Bytes to read at most
    #[arg(long, value_name = "BYTES", conflicts_with = "lines")]
    pub limit: Option<u64>,
    /// Lines to read, the first being 1
    #[arg(long, value_name = "FROM:COUNT")]
    pub lines: Option<Lines>,
    /// Cap on what is read; reaching it is told on stderr
    #[arg(long, value_name = "BYTES")]
    pub max_bytes: Option<u64>,
}

/// `FROM:COUNT`, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lines {
    pub from: u64,
    pub count: u64,
}

impl FromStr for Lines {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "use FROM:COUNT with FROM of at least 1, such as 10:5".to_owned();
        let (from, count) = text.split_once(':').ok_or_else(wrong)?;
        let (from, count) = (from.parse().map_err(|_| wrong())?, count.parse().map_err(|_| wrong())?);
        if from == 0 { Err(wrong()) } else { Ok(Self { from, count }) }
    }
}

#[derive(Debug, Args)]
pub struct FileWrite {
    #[command(flatten)]
    pub file: FilePath,
    /// Local file [default: stdin]
    pub local: Option<PathBuf>,
    /// Permission bits in octal [default: those of the old file, else 0644]
    #[arg(long, value_parser = octal)]
    pub mode: Option<String>,
    /// Make missing parent directories
    #[arg(long)]
    pub mkdirs: bool,
}

#[derive(Debug, Args)]
pub struct Events {
    /// Only events after this number, or from this time on (such as 2026-11-25T19:00:00Z)
    #[arg(long, value_name = "SEQ|TIME")]
    pub since: Option<types::Since>,
    /// Go on with what happens from now on; with --json a document a line
    #[arg(long, short = 'f')]
    pub follow: bool,
}

#[derive(Debug, Args)]
pub struct Completion {
    /// The shell
    pub shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub struct Docs {
    #[command(subcommand)]
    pub which: Reference,
}

#[derive(Debug, Subcommand)]
pub enum Reference {
    /// All verbs, as Markdown
    Cli,
    /// A manual page for each verb, as files in a directory
    Man {
        /// The directory, which is there
        dir: PathBuf,
    },
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
