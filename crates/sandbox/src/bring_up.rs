//! From files on disk to a machine that runs: the way of every sandbox that does not boot.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use storage::{Manifest, MemoryImage, SandboxDir};
use tokio::task::JoinHandle;
use types::Bytes;
use vm::{GuestRam, Machine};

use crate::actor::Running;
use crate::attached;
use crate::error::{Error, ErrorKind, Result};
use crate::launch::{self, Frame, Greeting};
use crate::memory::Share;
use crate::network::{self, Plug, Wired};
use crate::ram::{Captured, DECODE_AHEAD, Decoded, Ram};
use crate::services::{Services, blocking};
use crate::spare;
use crate::timing::Stopwatch;

/// The pages that go on top of a RAM base.
#[derive(Debug, Clone)]
pub(crate) enum Pages {
    /// None: the base is all of it.
    Base,
    /// Those in a file.
    Stored(Arc<MemoryImage>),
    /// Those that were taken from a running guest.
    Captured(Arc<Captured>),
}

/// Pages that are being made ready while the VMM starts.
pub(crate) enum Ready {
    Base,
    Direct(Arc<MemoryImage>),
    Ahead(JoinHandle<Result<Decoded>>),
    Captured(Arc<Captured>),
}

impl Pages {
    /// Begins to decode what is small enough to be kept until there is a machine to take it.
    pub(crate) fn make_ready(self) -> Ready {
        match self {
            Self::Base => Ready::Base,
            Self::Captured(pages) => Ready::Captured(pages),
            Self::Stored(image) if image.stats().private > DECODE_AHEAD => Ready::Direct(image),
            Self::Stored(image) => Ready::Ahead(tokio::spawn(blocking(move || {
                let mut decoded = Decoded::default();
                image.load(&mut decoded)?;
                Ok(decoded)
            }))),
        }
    }
}

impl Ready {
    /// Writes the pages into a machine that waits for its device state.
    pub(crate) async fn write_to(self, machine: &Machine) -> Result<()> {
        let failed = |error| Error::new(ErrorKind::Vmm, "guest memory could not be written").source(error);
        let ram = || -> Result<GuestRam> { Ok(machine.ram()?) };
        match self {
            Self::Base => Ok(()),
            Self::Direct(image) => {
                let mut ram = Ram(ram()?);
                blocking(move || {
                    image.load(&mut ram)?;
                    Ok(())
                })
                .await
            }
            Self::Ahead(decoding) => {
                let lost = |error| Error::new(ErrorKind::Internal, "decoding memory failed").source(error);
                let (decoded, ram) = (decoding.await.map_err(lost)??, ram()?);
                blocking(move || decoded.write_to(&ram).map_err(failed)).await
            }
            Self::Captured(pages) => {
                let ram = ram()?;
                blocking(move || pages.write_to(&ram).map_err(failed)).await
            }
        }
    }
}

/// What a new sandbox's machine starts from, beside its manifest.
pub(crate) struct Origin {
    pub(crate) pages: Pages,
    pub(crate) devices: File,
    pub(crate) start: Start,
}

/// What a machine that is loaded is told when it goes on.
pub(crate) struct Start {
    pub(crate) identity: wire::Identity,
    /// Whether the agent may have been in the middle of a frame.
    pub(crate) pad: bool,
    /// Size of the root disk if it is larger than what it was cloned from.
    pub(crate) grow: Option<Bytes>,
    pub(crate) volumes: Volumes,
}

/// What the guest knows of the volumes that the manifest names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Volumes {
    /// It has them mounted.
    InMemory,
    /// Nothing: they are plugged in once it goes on, and mounted before anything of the sandbox's own runs.
    ToBePlugged,
}

/// Where a machine is started: its directory, and the lock that it is to hold.
pub(crate) struct At<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) lock: File,
    /// The sandbox whose directory it is, if it may become another one: that of a VMM which was started ahead.
    pub(crate) sandbox: Option<&'a SandboxDir>,
}

/// The machine of a sandbox that was cloned, with its own identity. The VMM is gone when this fails.
pub(crate) async fn bring_up(
    services: &Services,
    dir: &SandboxDir,
    manifest: &Manifest,
    origin: Origin,
    watch: &mut Stopwatch,
) -> Result<(Running, Vec<String>)> {
    let memory = services.room_for_machine(&manifest.owner, manifest.cpus, manifest.memory_mib).await?;
    let Origin { pages, devices, start } = origin;
    let locked = dir.clone();
    let lock = blocking(move || Ok(locked.lock_machine()?)).await?;
    let plugged = match start.volumes {
        Volumes::InMemory => attached::disks(manifest),
        Volumes::ToBePlugged => Vec::new(),
    };
    let at = At { dir: dir.path(), lock, sandbox: spare::is_common(manifest).then_some(dir) };
    let (machine, line) = load(services, at, manifest, pages, devices, plugged, Plug::Itself, watch).await?;
    let_go(services, manifest, (machine, memory, line), start, watch).await
}

/// A machine that is loaded and paused, with `plugged` of its volumes. The VMM is gone when this fails.
#[allow(clippy::too_many_arguments, reason = "what a machine is made of, each of another kind")]
pub(crate) async fn load(
    services: &Services,
    at: At<'_>,
    manifest: &Manifest,
    pages: Pages,
    devices: File,
    plugged: Vec<vm::VolumeDisk>,
    plug: Plug,
    watch: &mut Stopwatch,
) -> Result<(Machine, Wired)> {
    let ready = pages.make_ready();
    let qemu = services.qemu().await?;
    let (store, wanted) = (services.store.clone(), manifest.clone());
    let (kernel, base, below) = blocking(move || {
        Ok((
            store.kernel().by_id(&wanted.kernel)?,
            store.ram_base(&wanted.ram_base, wanted.memory_mib)?,
            store.layers().below(&wanted)?,
        ))
    })
    .await?;
    let spec = Frame { volumes: plugged, ..Frame::of(manifest, below) }.spec(
        qemu,
        &kernel,
        base,
        true,
        plug.has_line(manifest),
    );
    let (machine, line) = spare::vmm(services, at, manifest, &spec, plug).await?;
    watch.lap("spawn");
    let loaded = async {
        ready.write_to(&machine).await?;
        watch.lap("memory");
        machine.load_devices(devices).await?;
        watch.lap("devices");
        Ok(())
    };
    match loaded.await {
        Ok(()) => Ok((machine, line)),
        Err(error) => {
            machine.kill().await?;
            Err(error)
        }
    }
}

/// Lets a machine that is loaded go on as the sandbox that the manifest names. The VMM is gone when this fails.
pub(crate) async fn let_go(
    services: &Services,
    manifest: &Manifest,
    (machine, memory, line): (Machine, Share, Wired),
    start: Start,
    watch: &mut Stopwatch,
) -> Result<(Running, Vec<String>)> {
    let to_be_plugged = match start.volumes {
        Volumes::InMemory => Vec::new(),
        Volumes::ToBePlugged => attached::disks(manifest),
    };
    let going = async {
        machine.resume().await?;
        if let Some(size) = start.grow {
            // Disks are the VMM's to change only once the guest goes on; the agent has been told nothing yet.
            machine.resize_root(size).await?;
        }
        for disk in &to_be_plugged {
            let volume = manifest.volumes.iter().find(|volume| volume.port == disk.port);
            machine.plug_volume(disk).await.map_err(|error| match volume {
                Some(volume) => attached::plug_failed(error, &volume.name),
                None => error.into(),
            })?;
        }
        if !to_be_plugged.is_empty() {
            watch.lap("plug");
        }
        services.config.rates.hold(&machine, manifest).await?;
        let mounts = if to_be_plugged.is_empty() { Vec::new() } else { attached::mounts_of(manifest) };
        let timeout = services.config.boot_timeout;
        let (secrets, missing) = services.secrets_of(manifest).await?;
        let identity = Some(start.identity);
        let net = network::told(manifest);
        let greeting = Greeting { identity, pad: start.pad, grow: start.grow, mounts, secrets, net };
        let (guest, welcome) = launch::attach(&machine, greeting, timeout).await?;
        if let Some(why) = welcome.unmounted.into_iter().next() {
            return Err(Error::new(ErrorKind::GuestRefused, why).hint("attach it elsewhere, or leave it out"));
        }
        watch.lap("attach");
        Ok((guest, missing.into_iter().chain(welcome.warnings).chain(line.warning()).collect()))
    };
    match going.await {
        Ok((guest, warnings)) => Ok((Running::new(machine, guest, memory), warnings)),
        Err(error) => {
            machine.kill().await?;
            Err(error)
        }
    }
}
