//! One VMM process and the verbs for it.

use std::fs::File;
use std::future::Future;
use std::path::Path;

use tokio::net::UnixStream;
use types::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::{GuestRam, MachineSpec, Qemu};

/// The VMM's control socket, in the directory it runs in.
pub const QMP_SOCKET: &str = "qmp.sock";
/// The socket behind the guest's `bhatti.agent` port, in the directory the VMM runs in.
pub const AGENT_SOCKET: &str = "agent.sock";
/// What the VMM wrote to its standard error, in the directory it runs in.
pub const VMM_LOG: &str = "vmm.log";

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Executing guest instructions.
    Running,
    /// Stopped, can go on.
    Paused,
    /// Waiting for a device state.
    Incoming,
    /// The guest powered off or asked for a reboot; cannot go on.
    Shutdown,
    /// The guest's kernel panicked; cannot go on.
    Panicked,
    /// The VMM gave up on the guest.
    Failed,
}

/// How a machine came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The guest powered off or asked for a reboot; the VMM is still there and answers.
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
    pid: u32,
}

const UNSUPPORTED: ErrorKind = ErrorKind::Refused;

impl Machine {
    /// Starts a VMM in `dir` and waits until it answers: with the guest running, or waiting for a device state when
    /// the spec says `incoming`. `lock` becomes its standard input, so a lock on that open file lasts as long as it.
    ///
    /// # Errors
    /// `Spawn`, `Died` with what it said, `Timeout`.
    pub async fn launch(_qemu: &Qemu, _spec: &MachineSpec, _dir: &Path, _lock: File) -> Result<Self> {
        Err(Error::new(UNSUPPORTED, "launching", ""))
    }

    /// Takes over the VMM that runs in `dir`, if there is one.
    ///
    /// # Errors
    /// It is there and does not answer.
    pub async fn adopt(_dir: &Path) -> Result<Option<Self>> {
        Ok(None)
    }

    /// The VMM's process id.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Stops the guest's processors and flushes its disks.
    ///
    /// # Errors
    /// The VMM refused or is gone.
    pub async fn pause(&self) -> Result<()> {
        Err(Error::new(UNSUPPORTED, "pausing", ""))
    }

    /// Lets the guest go on.
    ///
    /// # Errors
    /// The VMM refused or is gone.
    pub async fn resume(&self) -> Result<()> {
        Err(Error::new(UNSUPPORTED, "resuming", ""))
    }

    /// What the machine is doing, as the VMM says.
    ///
    /// # Errors
    /// The VMM is gone.
    pub async fn status(&self) -> Result<Status> {
        Err(Error::new(UNSUPPORTED, "asking for the status", ""))
    }

    /// Has the VMM write the device state, without RAM, to `file` in its directory; the machine must be paused. The
    /// file is not synced.
    ///
    /// # Errors
    /// The VMM refused, could not write, or is gone.
    pub async fn save_devices(&self, _file: &str) -> Result<()> {
        Err(Error::new(UNSUPPORTED, "saving the device state", ""))
    }

    /// Loads a device state into a machine launched with `incoming`, after its RAM was written. The machine is
    /// paused then.
    ///
    /// # Errors
    /// `SnapshotRefused` with what the VMM said; the VMM is gone then.
    pub async fn load_devices(&self, _state: File) -> Result<()> {
        Err(Error::new(UNSUPPORTED, "loading the device state", ""))
    }

    /// Makes the root disk larger, for the guest too.
    ///
    /// # Errors
    /// The VMM refused or is gone.
    pub async fn resize_root(&self, _size: Bytes) -> Result<()> {
        Err(Error::new(UNSUPPORTED, "resizing the root disk", ""))
    }

    /// The last bytes of the guest's console (at most 4 KiB), for messages. They are taken out of the VMM's buffer:
    /// a second call gives what came since.
    ///
    /// # Errors
    /// The VMM is gone.
    pub async fn console_tail(&self) -> Result<String> {
        Err(Error::new(UNSUPPORTED, "reading the console", ""))
    }

    /// Connects to the guest's `bhatti.agent` port. One connection at a time: drop the last one first.
    ///
    /// # Errors
    /// The VMM is gone.
    pub async fn open_channel(&self) -> Result<UnixStream> {
        Err(Error::new(UNSUPPORTED, "opening the channel", ""))
    }

    /// Ends the VMM at once and waits until its process is gone. Also right when it is gone already.
    ///
    /// # Errors
    /// It did not go.
    pub async fn kill(&self) -> Result<()> {
        Err(Error::new(UNSUPPORTED, "ending", ""))
    }

    /// Resolves when the VMM's process is gone.
    pub fn exited(&self) -> impl Future<Output = ()> + Send + 'static {
        std::future::pending()
    }

    /// Resolves when the guest powered off, rebooted or panicked, or the VMM's process is gone.
    pub fn ended(&self) -> impl Future<Output = End> + Send + 'static {
        std::future::pending()
    }

    /// The guest's RAM.
    ///
    /// # Errors
    /// `RamNotFound`, `NotPermitted`, or the process is gone.
    pub fn ram(&self) -> Result<GuestRam> {
        Err(Error::new(UNSUPPORTED, "finding the guest's RAM", ""))
    }
}
