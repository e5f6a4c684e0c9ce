//! One VMM process and the verbs for it.
//!
//! ```text
//!  launch(incoming) ──► Incoming ── ram().write, load_devices ──► Paused ◄── pause ── Running ◄── launch
//!                                                                    └─── resume ───►  │
//!                                                     Shutdown, Panicked (ended()) ◄───┘
//! ```
//! From every state `kill`, and from every state the process may die by itself: `exited()`, `ended()`.

use std::ffi::OsString;
use std::fs::File;
use std::future::Future;
use std::io::Seek as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use serde_json::{Value, json};
use sys::host_pagemap::Pagemap;
use sys::host_process::{Pidfd, peer_pid};
use sys::host_socket::ProcFdPath;
use tokio::net::UnixStream;
use tokio::sync::watch;
use types::{Accel, Rate};

use crate::argv::{CONSOLE, CONSOLE_BYTES, RAM};
use crate::cgroup::{Cgroups, Limits};
use crate::disk::{Turns, has_fold};
use crate::error::{Error, ErrorKind, Result};
use crate::qmp::{Command, Facts, Qmp};
use crate::room::{Lent, Room, Whose};
use crate::{GuestRam, MachineSpec, Qemu, maps, process, ram};

/// The VMM's control socket, in the directory it runs in.
pub const QMP_SOCKET: &str = "qmp.sock";
/// The socket behind the guest's `bhatti.agent` port, in the directory the VMM runs in.
pub const AGENT_SOCKET: &str = "agent.sock";
/// What the VMM wrote to its standard error, in the directory it runs in.
pub const VMM_LOG: &str = "vmm.log";

/// How long a VMM may take to answer after its start, and to be gone after SIGKILL.
const PROCESS_LIMIT: Duration = Duration::from_secs(60);
/// How long reading a device state may take: less than a megabyte, already in the page cache.
const LOAD_LIMIT: Duration = Duration::from_secs(60);
/// How long a guest stands still after a write that found no room, before it is tried again.
const STALL: Duration = Duration::from_secs(1);
/// How much of the console goes into a message.
const CONSOLE_TAIL: usize = 4096;
/// How a Linux kernel's last words begin.
const PANIC: &str = "Kernel panic - not syncing";

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Executing guest instructions.
    Running,
    /// Stopped, can go on.
    Paused,
    /// Waiting for a device state.
    Incoming,
    /// The guest powered off or rebooted; cannot go on.
    Shutdown,
    /// The guest's kernel panicked; cannot go on.
    Panicked,
    /// The VMM gave up on the guest.
    Failed,
}

/// How a machine came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The guest powered off or rebooted; the VMM is still there and answers.
    Shutdown,
    /// The guest's kernel panicked; the VMM is still there and answers.
    Panicked,
    /// The VMM's process is gone.
    Gone,
}

/// A VMM process that answers. Dropping it leaves the VMM running: it outlives the daemon, and
/// [`Machine::adopt`] finds it again.
#[derive(Debug)]
pub struct Machine {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    dir: PathBuf,
    sockets: ProcFdPath,
    pub(crate) process: Pidfd,
    gone: watch::Receiver<bool>,
    pub(crate) qmp: Qmp,
    base: Base,
    /// What it sees of the data directory; `None` for all that its user sees.
    room: Option<Room>,
    pub(crate) disk: Turns,
    /// What its disks are held to; said again for each that is plugged in.
    pub(crate) disk_rate: Mutex<Rate>,
    /// Whether somebody here has stopped the guest; held by who stops it or lets it go on.
    held: tokio::sync::Mutex<bool>,
    // The VMM hands out each byte of its ring buffer once; what was taken is kept here. Held across the question, so
    // that pieces are put together in order.
    console: tokio::sync::Mutex<String>,
}

/// The file that RAM started as, as its mapping is recognised.
#[derive(Debug)]
struct Base {
    inode: u64,
    file_name: String,
    len: u64,
}

impl Base {
    fn of(dir: &Path, path: &Path, len: u64) -> Result<Self> {
        let path = dir.join(path);
        let inode = std::fs::metadata(&path)
            .map_err(|error| Error::io("looking at the RAM base", path.display().to_string(), error))?
            .ino();
        let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { inode, file_name, len })
    }
}

/// Puts the VMM into a group of its own, off everybody's way (moving a process waits for all processors), and removes that
/// when it has ended.
fn hold(cgroups: Arc<Cgroups>, dir: &Path, pid: u32, limits: Limits, mut gone: watch::Receiver<bool>) {
    let name =
        format!("{}-{pid}", dir.file_name().unwrap_or_default().to_string_lossy().trim_start_matches('.'));
    tokio::spawn(async move {
        let groups = Arc::clone(&cgroups);
        let held = tokio::task::spawn_blocking(move || groups.take_in(&name, pid, limits)).await;
        if let Ok(Err(error)) = held {
            tracing::warn!(%error, pid, "a VMM is not held to what it may take");
        }
        // An error would mean that the runtime ends, and then the next daemon sweeps.
        let _ = gone.wait_for(|gone| *gone).await;
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || cgroups.sweep()).await {
            tracing::warn!(%error, "empty control groups stay");
        }
    });
}

/// Lets the guest go on that the VMM has stopped because the host's disk is full (QEMU's `werror=enospc`), again
/// and again: its write waits in the VMM, so the guest sees nothing but time that passes, and is there again when there
/// is room. What was stopped on purpose stays so.
fn go_on_after_stalls(inner: &Arc<Inner>) {
    let (weak, mut facts, pid) = (Arc::downgrade(inner), inner.qmp.facts(), inner.process.pid());
    tokio::spawn(async move {
        let mut seen = 0;
        loop {
            let told = facts.wait_for(|facts| facts.stalls > seen || facts.closed).await;
            let Some(stalls) = told.ok().filter(|told| !told.closed).map(|told| told.stalls) else { return };
            if seen == 0 {
                tracing::warn!(
                    pid,
                    "a guest stands still: the host's disk is full; it goes on when there is room"
                );
            }
            seen = stalls;
            tokio::time::sleep(STALL).await;
            let Some(inner) = weak.upgrade() else { return };
            if let Err(error) = inner.go_on().await {
                tracing::warn!(%error, pid, "a guest that stood still did not go on");
            }
        }
    });
}

impl Inner {
    async fn go_on(&self) -> Result<()> {
        const OP: &str = "letting a guest go on that stood still";
        let held = self.held.lock().await;
        if *held {
            return Ok(());
        }
        let answer = self.call(OP, Command::plain("query-status")).await?;
        if answer.get("status").and_then(Value::as_str) == Some("io-error") {
            self.call(OP, Command::plain("cont")).await?;
        }
        Ok(())
    }
}

impl Machine {
    /// Starts a VMM in `dir` and waits until it answers: with the guest running, or waiting for a device state when
    /// the spec says `incoming`. `lock` becomes its standard input, so a lock on that open file lasts as long as it.
    /// When this fails, or the future is dropped, the process is killed.
    ///
    /// # Errors
    /// `Spawn`, `Died` with what it said, `Timeout`, `Refused` for paths that are not UTF-8.
    pub async fn launch(qemu: &Qemu, spec: &MachineSpec, dir: &Path, lock: File) -> Result<Self> {
        Self::launch_on_line(qemu, spec, dir, lock, None).await
    }

    /// As [`Machine::launch`], with the network card plugged into `line`, a stream socket for frames with their
    /// length before them (QEMU's `-netdev stream`). The VMM has the only copy of it from then on.
    ///
    /// # Errors
    /// As [`Machine::launch`].
    pub async fn launch_on_line(
        qemu: &Qemu,
        spec: &MachineSpec,
        dir: &Path,
        lock: File,
        line: Option<OwnedFd>,
    ) -> Result<Self> {
        Self::start(qemu, spec, spec.argv()?, dir, lock, line).await
    }

    /// As [`launch_on_line`](Self::launch_on_line), with a command line that was made from `spec`.
    pub(crate) async fn start(
        qemu: &Qemu,
        spec: &MachineSpec,
        argv: Vec<OsString>,
        dir: &Path,
        lock: File,
        line: Option<OwnedFd>,
    ) -> Result<Self> {
        const OP: &str = "starting the VMM";
        let launched = async {
            let base = Base::of(dir, &spec.ram_base, spec.memory.bytes().0)?;
            let sockets = open_directory(OP, dir)?;
            let (room, lent) = furnish(OP, qemu, spec, &sockets)?.unzip();
            let in_room = room.clone().map(|room| (room, spec.ram_base_writable));
            let mut starting = process::start(qemu, argv, dir, lock, line, in_room)?;
            starting.listening(dir).await?;
            let started: Result<_> = async {
                let (qmp, pid) = converse(OP, &sockets).await?;
                let mut commands = vec![Command::plain("qmp_capabilities")];
                if spec.incoming {
                    let events = json!({"capabilities": [{"capability": "events", "state": true}]});
                    commands.push(Command::with("migrate-set-capabilities", events));
                }
                qmp.call_all(OP, commands).await?;
                Ok((qmp, pid))
            }
            .await;
            let (qmp, pid) = started.map_err(|error| closed_means_died(error, dir))?;
            // All of it is open before a VMM answers anything.
            drop(lent);
            let (process, gone) = starting
                .settle(pid)
                .map_err(|error| Error::io(OP, format!("taking hold of process {pid}"), error))?;
            if let Some(cgroups) = &qemu.cgroups {
                hold(Arc::clone(cgroups), dir, pid, Limits::of(spec), gone.clone());
            }
            Ok(Self::new(sockets, process, gone, qmp, base, room))
        };
        tokio::time::timeout(PROCESS_LIMIT, launched).await.unwrap_or_else(|_elapsed| {
            let text = format!("it did not answer within {} s", PROCESS_LIMIT.as_secs());
            Err(Error::new(ErrorKind::Timeout, OP, text))
        })
    }

    /// Takes over the VMM that runs in `dir`, if there is one. Only one process may talk to it at a time.
    ///
    /// # Errors
    /// It is there and does not answer.
    pub async fn adopt(dir: &Path) -> Result<Option<Self>> {
        const OP: &str = "taking over the VMM";
        if !dir.join(QMP_SOCKET).exists() {
            return Ok(None);
        }
        let sockets = open_directory(OP, dir)?;
        let (qmp, pid) = match converse(OP, &sockets).await {
            Err(error) if error.kind() == ErrorKind::Died => return Ok(None),
            other => other?,
        };
        let property = |name: &str| {
            Command::with("qom-get", json!({"path": format!("/objects/{RAM}"), "property": name}))
        };
        let commands = vec![
            Command::plain("qmp_capabilities"),
            property("mem-path"),
            property("size"),
            Command::plain("query-status"),
            Command::plain("query-jobs"),
        ];
        let answers = qmp.call_all(OP, commands).await?;
        let odd = || Error::new(ErrorKind::Protocol, OP, "its memory object has no path and size");
        let base = Path::new(answers.get(1).and_then(Value::as_str).ok_or_else(odd)?);
        let len = answers.get(2).and_then(Value::as_u64).ok_or_else(odd)?;
        let base = Base::of(dir, base, len)?;
        let io = |error| Error::io(OP, format!("taking hold of process {pid}"), error);
        let process = Pidfd::open(pid).map_err(io)?;
        let gone = process::watch_exit(process.try_clone().map_err(io)?, None).map_err(io)?;
        let room = Room::find(sockets.path_of(""), pid)
            .map_err(|error| Error::io(OP, format!("looking at process {pid}"), error))?;
        let machine = Self::new(sockets, process, gone, qmp, base, room);
        // A fold of the daemon before this one: nobody waits for it, and it would be in the way.
        if answers.last().is_some_and(has_fold) {
            machine.inner.cancel_fold().await?;
        }
        Ok(Some(machine))
    }

    /// Ends what a daemon that died had just started in `dir`: a VMM that holds the lock of that directory, as its standard
    /// input, and may not have made its sockets yet. How many there were.
    ///
    /// # Errors
    /// What the system says.
    pub fn end_unheard(dir: &Path) -> Result<usize> {
        const OP: &str = "ending a VMM that was just started";
        process::end_who_reads(dir).map_err(|error| Error::io(OP, dir.display().to_string(), error))
    }

    fn new(
        sockets: ProcFdPath,
        process: Pidfd,
        gone: watch::Receiver<bool>,
        qmp: Qmp,
        base: Base,
        room: Option<Room>,
    ) -> Self {
        let (disk, console) = (Turns::default(), tokio::sync::Mutex::default());
        // By its descriptor: a directory may be given another name while a machine runs in it.
        let dir = sockets.path_of("");
        let disk_rate = Mutex::new(Rate::UNLIMITED);
        let held = tokio::sync::Mutex::default();
        let inner = Inner { dir, sockets, process, gone, qmp, base, room, disk, disk_rate, held, console };
        let inner = Arc::new(inner);
        go_on_after_stalls(&inner);
        Self { inner }
    }

    /// The VMM's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.inner.process.pid()
    }

    /// The processor time that the VMM's process has taken in all its life, to a hundredth of a second.
    ///
    /// # Errors
    /// The process is gone.
    pub fn cpu_time(&self) -> Result<Duration> {
        const OP: &str = "reading the VMM's processor time";
        let pid = self.pid();
        let io = |error| Error::io(OP, format!("process {pid}"), error);
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        // What was opened by number is the VMM's if the VMM still has the number now.
        if !self.inner.process.is_alive().map_err(io)? {
            return Err(process::died(OP, &self.inner.dir));
        }
        let ticks = process::cpu_ticks(&stat.map_err(io)?)
            .ok_or_else(|| Error::new(ErrorKind::Protocol, OP, "/proc/PID/stat has no times"))?;
        let rate = rustix::param::clock_ticks_per_second().max(1);
        Ok(Duration::from_millis(ticks.saturating_mul(1000) / rate))
    }

    async fn call(&self, op: &'static str, command: Command<'_>) -> Result<Value> {
        self.inner.call(op, command).await
    }

    /// Stops the guest's processors and flushes its disks. A fold of the root disk gives way: the disk's files stay as
    /// they are until something else is asked for.
    ///
    /// # Errors
    /// The VMM refused or is gone.
    pub async fn pause(&self) -> Result<()> {
        let _turn = self.inner.disk.take().await;
        let mut held = self.inner.held.lock().await;
        // Also when it fails: it may have happened all the same, and then nobody else may let the guest go on.
        *held = true;
        self.call("pausing the guest", Command::plain("stop")).await.map(drop)
    }

    /// Lets the guest go on.
    ///
    /// # Errors
    /// The VMM refused or is gone.
    pub async fn resume(&self) -> Result<()> {
        let mut held = self.inner.held.lock().await;
        self.call("resuming the guest", Command::plain("cont")).await?;
        *held = false;
        Ok(())
    }

    /// What the machine is doing, as the VMM says.
    ///
    /// # Errors
    /// The VMM is gone.
    pub async fn status(&self) -> Result<Status> {
        const OP: &str = "asking for the guest's status";
        let answer = self.call(OP, Command::plain("query-status")).await?;
        // qapi/run-state.json, RunState.
        match answer.get("status").and_then(Value::as_str).unwrap_or_default() {
            "running" => Ok(Status::Running),
            "paused" | "prelaunch" | "postmigrate" | "finish-migrate" | "save-vm" | "restore-vm"
            | "suspended" | "debug" | "io-error" => Ok(Status::Paused),
            "inmigrate" => Ok(Status::Incoming),
            "shutdown" => Ok(Status::Shutdown),
            "guest-panicked" => Ok(Status::Panicked),
            "internal-error" | "watchdog" | "colo" => Ok(Status::Failed),
            other => Err(Error::new(ErrorKind::Protocol, OP, format!("{other:?} is no status"))),
        }
    }

    /// Has the VMM write the device state, without RAM, to `file` in its directory; the machine must be paused. The
    /// file is not synced. The machine can be resumed afterwards.
    ///
    /// # Errors
    /// The VMM refused, could not write, or is gone.
    pub async fn save_devices(&self, file: &str) -> Result<()> {
        const OP: &str = "saving the device state";
        if let Some(room) = &self.inner.room {
            // It can make none itself.
            room.make_file(file).map_err(|error| Error::io(OP, file, error))?;
        }
        let (_told, _lent) = self.inner.lend(OP, Path::new(file), Whose::Its)?;
        // `live: false` leaves the disks open: flushed they are by the pause, and a resume needs them as they were.
        let arguments = json!({"filename": file, "live": false});
        self.call(OP, Command::with("xen-save-devices-state", arguments)).await.map(drop)
    }

    /// Loads a device state into a machine launched with `incoming`, after its RAM was written. The machine is
    /// paused then.
    ///
    /// # Errors
    /// `SnapshotRefused` with what the VMM said; the VMM is gone then.
    pub async fn load_devices(&self, mut state: File) -> Result<()> {
        const OP: &str = "loading the device state";
        let inner = &self.inner;
        state.rewind().map_err(|error| Error::io(OP, "the state's file", error))?;
        let mut facts = inner.qmp.facts();
        let commands = vec![
            Command { name: "getfd", arguments: json!({"fdname": "state"}), file: Some(&state) },
            Command::with("migrate-incoming", json!({"uri": "fd:state"})),
        ];
        let load = async {
            inner.qmp.call_all(OP, commands).await?;
            let done = |facts: &Facts| facts.closed || is_over(facts.migration.as_deref());
            let Ok(facts) = facts.wait_for(done).await else {
                return Err(Error::new(ErrorKind::Closed, OP, ""));
            };
            match facts.migration.as_deref() {
                Some("completed") => Ok(()),
                Some(word) if is_over(Some(word)) => {
                    Err(Error::new(ErrorKind::SnapshotRefused, OP, "the VMM could not use it"))
                }
                _ => Err(Error::new(ErrorKind::Closed, OP, "")),
            }
        };
        let loaded = tokio::time::timeout(LOAD_LIMIT, load).await.unwrap_or_else(|_elapsed| {
            let text = format!("it did not load within {} s", LOAD_LIMIT.as_secs());
            Err(Error::new(ErrorKind::Timeout, OP, text))
        });
        match loaded {
            Err(error) if matches!(error.kind(), ErrorKind::Closed | ErrorKind::SnapshotRefused) => {
                // A VMM that does not like a state says why and exits; its words are complete once it is gone.
                let _ = tokio::time::timeout(Duration::from_secs(1), self.exited()).await;
                let said = process::log_tail(&inner.dir);
                let detail = if said.is_empty() { error.detail().to_owned() } else { said };
                Err(Error::new(ErrorKind::SnapshotRefused, OP, detail))
            }
            other => other,
        }
    }

    /// The last bytes of the guest's console (at most 4 KiB), for messages.
    ///
    /// # Errors
    /// The VMM is gone.
    pub async fn console_tail(&self) -> Result<String> {
        self.inner.console_tail().await
    }

    /// Connects to the guest's `bhatti.agent` port. One connection at a time: drop the last one first.
    ///
    /// # Errors
    /// The VMM is gone.
    pub async fn open_channel(&self) -> Result<UnixStream> {
        UnixStream::connect(self.inner.sockets.path_of(AGENT_SOCKET))
            .await
            .map_err(|error| Error::io("opening the guest's channel", AGENT_SOCKET, error))
    }

    /// Ends the VMM at once and waits until its process is gone. Also right when it is gone already.
    ///
    /// # Errors
    /// It did not go.
    pub async fn kill(&self) -> Result<()> {
        const OP: &str = "ending the VMM";
        let pid = self.pid();
        self.inner.process.kill().map_err(|error| Error::io(OP, format!("process {pid}"), error))?;
        tokio::time::timeout(PROCESS_LIMIT, self.exited()).await.map_err(|_elapsed| {
            let text = format!("process {pid} is still there {} s after SIGKILL", PROCESS_LIMIT.as_secs());
            Error::new(ErrorKind::Timeout, OP, text)
        })?;
        let room = self.inner.room.as_ref();
        room.map_or(Ok(()), Room::remove).map_err(|error| Error::io(OP, "removing its room", error))
    }

    /// Resolves when the VMM's process is gone. Does not keep anything of this machine alive.
    pub fn exited(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut gone = self.inner.gone.clone();
        async move {
            // An error would mean that the watching task ended without a word, which only the end of the runtime does.
            let _ = gone.wait_for(|gone| *gone).await;
        }
    }

    /// Resolves when the guest powered off, rebooted or panicked, or the VMM's process is gone. Does not keep the
    /// conversation with the VMM alive: once the machine is dropped it waits for the process's end.
    pub fn ended(&self) -> impl Future<Output = End> + Send + 'static {
        let (exited, mut facts) = (self.exited(), self.inner.qmp.facts());
        let weak = Arc::downgrade(&self.inner);
        async move {
            let told = async move {
                let reason = facts
                    .wait_for(|facts| facts.shutdown.is_some())
                    .await
                    .ok()
                    .and_then(|it| it.shutdown.clone());
                match reason {
                    Some(reason) => how_it_ended(&weak, &reason).await,
                    // The conversation is over.
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = exited => End::Gone,
                end = told => end,
            }
        }
    }

    /// The guest's RAM.
    ///
    /// # Errors
    /// `RamNotFound`, `NotPermitted`, or the process is gone.
    pub fn ram(&self) -> Result<GuestRam> {
        const OP: &str = "finding the guest's RAM";
        let (process, base, pid) = (&self.inner.process, &self.inner.base, self.pid());
        let look = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                Error::new(ErrorKind::NotPermitted, OP, ram::not_permitted(pid).to_string())
            }
            _ => Error::io(OP, format!("process {pid}"), error),
        };
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"));
        let pagemap = Pagemap::open(pid);
        // What was opened by number is the VMM's if the VMM still has the number now.
        if !process.is_alive().map_err(look)? {
            return Err(process::died(OP, &self.inner.dir));
        }
        let (maps, pagemap) = (maps.map_err(look)?, pagemap.map_err(look)?);
        let areas = maps::find_ram(&maps, base.inode, &base.file_name, base.len).ok_or_else(|| {
            let text =
                format!("process {pid} does not map {} bytes of {} privately", base.len, base.file_name);
            Error::new(ErrorKind::RamNotFound, OP, text)
        })?;
        Ok(GuestRam::new(process.try_clone().map_err(look)?, pagemap, areas))
    }
}

impl Inner {
    /// Has the VMM find a file, by the path that comes back, as long as the other half of it is kept.
    pub(crate) fn lend(&self, op: &'static str, path: &Path, whose: Whose) -> Result<(PathBuf, Lent)> {
        match &self.room {
            Some(room) => room.lend(op, path, whose),
            None => Ok((path.to_owned(), Lent::default())),
        }
    }

    /// The same for the disks of a spec.
    pub(crate) fn lend_disks(&self, op: &'static str, spec: &MachineSpec) -> Result<Lent> {
        self.room.as_ref().map_or_else(|| Ok(Lent::default()), |room| room.lend_disks(op, spec))
    }

    pub(crate) async fn call(&self, op: &'static str, command: Command<'_>) -> Result<Value> {
        self.qmp.call(op, command).await.map_err(|error| self.told(error))
    }

    pub(crate) async fn call_all(&self, op: &'static str, commands: Vec<Command<'_>>) -> Result<Vec<Value>> {
        self.qmp.call_all(op, commands).await.map_err(|error| self.told(error))
    }

    /// The error with the VMM's last words, if it is that the VMM ended.
    pub(crate) fn told(&self, error: Error) -> Error {
        closed_means_died(error, &self.dir)
    }

    async fn console_tail(&self) -> Result<String> {
        let mut kept = self.console.lock().await;
        let arguments = json!({"device": CONSOLE, "size": CONSOLE_BYTES, "format": "utf8"});
        let read = self.qmp.call("reading the console", Command::with("ringbuf-read", arguments)).await;
        match read {
            Ok(more) => kept.push_str(more.as_str().unwrap_or_default()),
            // What was read before is still worth telling.
            Err(error) if kept.is_empty() => return Err(closed_means_died(error, &self.dir)),
            Err(_gone) => {}
        }
        let mut cut = kept.len().saturating_sub(CONSOLE_TAIL);
        while !kept.is_char_boundary(cut) {
            cut += 1;
        }
        kept.drain(..cut);
        Ok(kept.clone())
    }
}

/// A kernel that panics reboots at once (`panic=-1`), which looks like any other reboot but for its last words.
async fn how_it_ended(machine: &Weak<Inner>, reason: &str) -> End {
    match reason {
        "guest-panic" => End::Panicked,
        "guest-reset" => {
            let Some(inner) = machine.upgrade() else { return End::Shutdown };
            let console = inner.console_tail().await.unwrap_or_default();
            if console.contains(PANIC) { End::Panicked } else { End::Shutdown }
        }
        _ => End::Shutdown,
    }
}

pub(crate) fn is_over(migration: Option<&str>) -> bool {
    matches!(migration, Some("completed" | "failed" | "cancelled"))
}

/// The room of a VMM that is to be confined, with what it opens when it starts.
fn furnish(
    op: &'static str,
    qemu: &Qemu,
    spec: &MachineSpec,
    machine: &ProcFdPath,
) -> Result<Option<(Room, Lent)>> {
    let Some(confinement) = qemu.confinement.as_ref().filter(|it| it.has_rooms()) else { return Ok(None) };
    let user = confinement.next_user(spec.accel == Accel::Kvm);
    let room = Room::make(machine.path_of(""), user, spec.ram_base_writable)
        .map_err(|error| Error::io(op, "making its room", error))?;
    let lent = room.lend_all(op, spec)?;
    Ok(Some((room, lent)))
}

fn open_directory(op: &'static str, dir: &Path) -> Result<ProcFdPath> {
    ProcFdPath::open(dir).map_err(|error| Error::io(op, dir.display().to_string(), error))
}

/// Connects to QMP. `Died`: nobody listens.
async fn converse(op: &'static str, sockets: &ProcFdPath) -> Result<(Qmp, u32)> {
    let io = |error| Error::io(op, QMP_SOCKET, error);
    let socket = match UnixStream::connect(sockets.path_of(QMP_SOCKET)).await {
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Err(Error::new(ErrorKind::Died, op, "nobody listens").with_source(error));
        }
        other => other.map_err(io)?,
    };
    let pid = peer_pid(&socket).map_err(io)?;
    Ok((Qmp::begin(socket), pid))
}

/// A conversation that broke off by itself means that the VMM ended, and its log says why.
fn closed_means_died(error: Error, dir: &Path) -> Error {
    if error.kind() == ErrorKind::Closed { process::died(error.op(), dir) } else { error }
}
