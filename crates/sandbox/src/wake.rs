//! Starting: resume what is paused, wake what sleeps, boot what has no memory.
//!
//! # Crash order of a wake
//! 1. The VMM starts over the RAM base; memory and device state are loaded. The guest has executed nothing: whatever
//!    fails up to here ends the VMM and leaves the sandbox cold with its memory good.
//! 2. The manifest says `running` in the next generation, durably. From here on the memory image is consumed: whoever
//!    finds the sandbox without a VMM boots it from the disk.
//! 3. The guest goes on. The consumed files are removed.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use storage::{Manifest, RamBase};
use tokio::time::Instant;
use types::Boot;
use vm::Machine;

use crate::actor::{Actor, Running, Start};
use crate::attached;
use crate::bring_up::{At, Pages};
use crate::error::{Error, ErrorKind, Result};
use crate::launch::{self, ATTACH_TIMEOUT, Frame};
use crate::network::{self, Plug, Wired, Wiring};
use crate::prefetch;
use crate::services::blocking;
use crate::spare;
use crate::state::{Happening, State};
use crate::timing::Stopwatch;
use crate::view::Timings;

/// How long the process of a VMM whose sockets are closed may take to go.
const END_LIMIT: Duration = Duration::from_secs(2);

/// Whether anything changed, what it took, and what the caller should know.
type Started = (bool, Timings, Vec<String>);

impl Actor {
    /// Makes the sandbox hot, whatever it is.
    pub(crate) async fn ensure_hot(&mut self, start: Start) -> Result<Started> {
        self.ensure_hot_for(Instant::now(), start).await
    }

    /// Makes the sandbox hot for somebody who asked at `asked`, which counts when there is a queue.
    pub(crate) async fn ensure_hot_for(&mut self, asked: Instant, start: Start) -> Result<Started> {
        self.settle_freeze().await?;
        match self.state {
            State::Off | State::Cold => {}
            State::Hot | State::Warm => match self.make_hot(start).await {
                // It ended while it was asked: it is started as what it now is.
                Err(_) if self.has_ended().await => {}
                made => return made,
            },
            State::Broken | State::Gone => return self.make_hot(start).await,
        }
        if start.discard_memory {
            self.breaker.reset();
        }
        self.breaker.check(self.manifest.name.as_str(), Instant::now())?;
        let services = Arc::clone(&self.services);
        let _turn = services.turn_to_wake(asked).await?;
        let started = self.make_hot(start).await;
        self.breaker.note(&started, Instant::now());
        started
    }

    async fn make_hot(&mut self, start: Start) -> Result<Started> {
        match self.state {
            State::Hot => self.check_channel().await,
            State::Warm => self.resume().await,
            State::Cold if start.discard_memory => {
                self.discard_memory().await?;
                self.cold_boot().await
            }
            State::Cold => self.wake().await,
            State::Off if start.strict => Err(Error::new(
                ErrorKind::SlowPath,
                format!("{} has no memory to wake from and would boot from its disk", self.manifest.name),
            )
            .hint("leave --strict away to boot it")),
            State::Off => self.cold_boot().await,
            State::Broken if start.discard_memory => {
                self.discard_memory().await?;
                self.cold_boot().await
            }
            State::Broken => {
                let why = self.trouble.clone().unwrap_or_default();
                Err(Error::new(ErrorKind::Corrupt, format!("{} cannot be woken: {why}", self.manifest.name))
                    .hint(self.discard_hint()))
            }
            State::Gone => {
                Err(Error::new(ErrorKind::NotFound, format!("{} was destroyed", self.manifest.name)))
            }
        }
    }

    /// Whether a machine that does not answer is one that ends. A VMM closes its sockets before its process is gone.
    async fn has_ended(&mut self) -> bool {
        let Some(running) = &mut self.running else { return false };
        match tokio::time::timeout(END_LIMIT, running.ended()).await {
            Ok(end) => {
                self.on_end(end).await;
                true
            }
            Err(_elapsed) => false,
        }
    }

    fn discard_hint(&self) -> String {
        format!("boot it from its disk with `bhatti start {} --discard-memory`", self.manifest.name)
    }

    /// Hot already; makes sure that the agent still listens.
    async fn check_channel(&mut self) -> Result<Started> {
        let Some(running) = self.running.as_mut().filter(|running| running.guest.is_closed()) else {
            return Ok((false, Timings::default(), Vec::new()));
        };
        let (guest, _welcome) =
            launch::attach(&running.machine, launch::Greeting::plain(true), ATTACH_TIMEOUT).await?;
        running.guest = guest;
        Ok((
            false,
            Timings::default(),
            vec!["the channel to the guest had broken off and was made anew".to_owned()],
        ))
    }

    async fn resume(&mut self) -> Result<Started> {
        let mut watch = Stopwatch::start();
        if let Some(running) = &self.running {
            running.machine.resume().await?;
        }
        watch.lap("resume");
        self.enter(Happening::Resumed)?;
        self.check_channel().await?;
        watch.lap("attach");
        let timings = watch.finish();
        self.services.metrics.changed("resume", &timings);
        Ok((true, timings, Vec::new()))
    }

    async fn discard_memory(&mut self) -> Result<()> {
        let (dir, manifest) = (self.dir.clone(), self.manifest.clone());
        self.manifest = blocking(move || Ok(dir.discard_memory(manifest)?)).await?;
        self.enter(Happening::MemoryDiscarded)?;
        self.trouble = Some("its memory was discarded on request".to_owned());
        self.event("memory_discarded", json!({ "generation": self.manifest.generation }));
        Ok(())
    }

    /// The memory of its machine.
    async fn room(&self) -> Result<crate::memory::Share> {
        let manifest = &self.manifest;
        self.services.room_for_machine(&manifest.owner, manifest.cpus, manifest.memory_mib).await
    }

    async fn wake(&mut self) -> Result<Started> {
        let mut watch = Stopwatch::start();
        let memory = self.room().await?;
        let version = self.services.qemu().await?.version.to_string();
        // Before its memory is consumed: what cannot be opened must not cost more than this wake.
        let (secrets, missing) = self.services.secrets_of(&self.manifest).await?;
        let ahead = prefetch::begin(self.services.config.prefetch, &self.dir);
        let (machine, line) = match self.load(&mut watch).await {
            Ok(machine) => machine,
            Err(error) => return Err(self.wake_failed(error)),
        };
        let detached = self.manifest.memory.as_ref().is_some_and(|memory| memory.detached);
        let mut running = self.manifest.clone().into_running();
        running.machine.qemu_version = version;
        if let Err(error) = self.commit(running).await {
            // Nothing ran: the VMM ends and the memory stays good.
            machine.kill().await?;
            return Err(error);
        }
        watch.lap("commit");
        let guest = match self.let_go(&machine, !detached, secrets).await {
            Ok(guest) => guest,
            Err(error) => {
                // Its memory is consumed: what is left is the disk, whatever becomes of the VMM.
                self.trouble = Some("it did not come back from its sleep, so its memory is lost".to_owned());
                self.enter(Happening::Woken)?;
                self.enter(Happening::Ended)?;
                machine.kill().await?;
                self.commit(self.manifest.clone().into_off()).await?;
                self.event("wake_failed", json!({ "why": error.with_causes() }));
                return Err(error);
            }
        };
        watch.lap("attach");
        ahead.note_later(&self.services, &machine, &self.dir);
        self.running = Some(Running::new(machine, guest, memory));
        self.boot = Boot::Resume;
        self.enter(Happening::Woken)?;
        let timings = watch.finish();
        self.record("start", &timings, &[]);
        self.event(
            "woken",
            json!({ "generation": self.manifest.generation, "total_ms": timings.total_ms() }),
        );
        // Off the caller's path: the files mean nothing any more, and the next stop replaces them.
        let (dir, name) = (self.dir.clone(), self.manifest.name.clone());
        self.services.background.spawn_blocking(move || {
            if let Err(error) = dir.drop_consumed_memory() {
                tracing::warn!(%error, sandbox = %name, "consumed memory files stay until the next stop");
            }
        });
        Ok((true, timings, missing.into_iter().chain(line.warning()).collect()))
    }

    /// A VMM with the sleeping guest loaded into it, paused.
    async fn load(&self, watch: &mut Stopwatch) -> Result<(Machine, Wired)> {
        let manifest = &self.manifest;
        let qemu = self.services.qemu().await?;
        let saved_by = vm::Version::parse(&manifest.machine.qemu_version)
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, "the manifest names no VMM version"))?;
        qemu.check_loads(saved_by)?;
        let (store, dir, wanted) = (self.services.store.clone(), self.dir.clone(), manifest.clone());
        let (memory, devices, base, kernel, below, lock) = blocking(move || {
            let memory = dir.open_memory(&wanted)?;
            let devices = dir.open_devices(&wanted)?;
            dir.check_root(&wanted)?;
            let base = store.ram_base(&wanted.ram_base, wanted.memory_mib)?;
            let kernel = store.kernel().by_id(&wanted.kernel)?;
            let below = store.layers().below(&wanted)?;
            let lock = dir.lock_machine()?;
            dir.clear_sockets()?;
            Ok((memory, devices, base, kernel, below, lock))
        })
        .await?;
        watch.lap("verify");
        let line = Plug::Itself.has_line(manifest);
        let spec = Frame::of(manifest, below).spec(qemu, &kernel, base, true, line);
        let ready = Pages::Stored(Arc::new(memory)).make_ready();
        let at = At { dir: self.dir.path(), lock, sandbox: spare::is_common(manifest).then_some(&self.dir) };
        let (machine, line) = spare::vmm(&self.services, at, manifest, &spec, Plug::Itself).await?;
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

    /// A wake that failed before the guest ran: cold as before, or broken when a file is damaged.
    fn wake_failed(&mut self, error: Error) -> Error {
        if error.kind() != ErrorKind::Corrupt {
            return error;
        }
        self.trouble = Some(error.with_causes());
        self.event("damaged", json!({ "why": error.with_causes() }));
        match self.enter(Happening::Damaged) {
            Ok(()) => error.hint(self.discard_hint()),
            Err(impossible) => impossible,
        }
    }

    async fn let_go(
        &self,
        machine: &Machine,
        pad: bool,
        secrets: Option<wire::Secrets>,
    ) -> Result<guest::Guest> {
        self.services.config.rates.hold(machine, &self.manifest).await?;
        machine.resume().await?;
        let net = network::told(&self.manifest);
        let greeting = launch::Greeting { secrets, net, ..launch::Greeting::plain(pad) };
        let (guest, _welcome) = launch::attach(machine, greeting, ATTACH_TIMEOUT).await?;
        Ok(guest)
    }

    /// Boots from the disk.
    async fn cold_boot(&mut self) -> Result<Started> {
        let mut watch = Stopwatch::start();
        let memory = self.room().await?;
        let (secrets, missing) = self.services.secrets_of(&self.manifest).await?;
        let lost = self.trouble.take();
        let (machine, line) = match self.boot(&mut watch).await {
            Ok(booted) => booted,
            Err(error) => {
                self.trouble = lost;
                return Err(error);
            }
        };
        let identity = launch::identity(&self.manifest.id, &self.manifest.name, false);
        let timeout = self.services.config.boot_timeout;
        let greeting = launch::Greeting {
            identity: Some(identity),
            pad: false,
            grow: Some(self.manifest.disk_size_mib.bytes()),
            mounts: attached::mounts_of(&self.manifest),
            secrets,
            net: network::told(&self.manifest),
        };
        let (guest, unmounted) = match launch::attach(&machine, greeting, timeout).await {
            Ok((guest, welcome)) => (guest, welcome.unmounted),
            Err(error) => {
                machine.kill().await?;
                self.trouble = lost;
                self.commit(self.manifest.clone().into_off()).await?;
                return Err(error);
            }
        };
        watch.lap("attach");
        self.running = Some(Running::new(machine, guest, memory));
        self.boot = Boot::ColdBoot;
        self.enter(Happening::Booted)?;
        let timings = watch.finish();
        self.record("start", &timings, &[]);
        let generation = self.manifest.generation;
        self.event(
            "cold_boot",
            json!({ "generation": generation, "why": lost, "total_ms": timings.total_ms() }),
        );
        let warning = lost.map(|why| format!("{} was booted from its disk: {why}", self.manifest.name));
        Ok((
            true,
            timings,
            warning.into_iter().chain(missing).chain(unmounted).chain(line.warning()).collect(),
        ))
    }

    /// A VMM that boots the sandbox's disk; the manifest says so before the VMM opens the disk.
    async fn boot(&mut self, watch: &mut Stopwatch) -> Result<(Machine, Wired)> {
        let qemu = self.services.qemu().await?.clone();
        let accel = self.services.accel().await?;
        let store = self.services.store.clone();
        let mut manifest: Manifest = self.manifest.clone().into_running();
        let dir = self.dir.clone();
        let (manifest, base, kernel, below, smaller, lock) = blocking(move || {
            // The kernel of today where the one that it was created with is no longer kept.
            let kernel = match store.kernel().by_id(&manifest.kernel) {
                Err(error) if error.kind() == storage::ErrorKind::NotFound => {
                    store.kernel().get(types::Arch::host())?
                }
                other => other?,
            };
            crate::template::measure_clock();
            manifest.kernel = kernel.id.clone();
            manifest.ram_base = RamBase::Zero;
            manifest.machine =
                attached::machine_with_volumes(launch::machine_record(&qemu, accel), &manifest.volumes);
            let base = store.zero_base(manifest.memory_mib)?;
            let below = store.layers().below(&manifest)?;
            let lock = dir.lock_machine()?;
            dir.clear_sockets()?;
            // A copy that was asked for with a larger disk, or a daemon that died before it had grown it.
            let smaller = dir.disk_size(&manifest)? < manifest.disk_size_mib.bytes();
            Ok((manifest, base, kernel, below, smaller, lock))
        })
        .await?;
        watch.lap("verify");
        self.commit(manifest).await?;
        watch.lap("commit");
        let qemu = self.services.qemu().await?;
        let Wiring { vmm, line } = self.services.wire(&self.manifest, self.dir.path())?;
        let spec = Frame::of(&self.manifest, below).spec(qemu, &kernel, base, false, vmm.is_some());
        let machine = Machine::launch_on_line(qemu, &spec, self.dir.path(), lock, vmm).await?;
        let made_ready = async {
            if smaller {
                machine.resize_root(self.manifest.disk_size_mib.bytes()).await?;
            }
            self.services.config.rates.hold(&machine, &self.manifest).await
        };
        if let Err(error) = made_ready.await {
            machine.kill().await?;
            return Err(error);
        }
        watch.lap("spawn");
        Ok((machine, line))
    }
}
