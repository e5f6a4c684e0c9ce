//! Stopping: pages and device state become durable, then the VMM ends.
//!
//! # Crash order of a stop
//! 1. The agent detaches; the processors stop; the guest's disks are flushed.
//! 2. Pages and device state are written under staging names.
//! 3. They and the manifest that names them are committed (see `storage`). Any failure before this commit lets the
//!    guest go on and is reported.
//! 4. Only now the VMM ends.

use std::time::Duration;

use serde_json::json;
use storage::{Manifest, MemoryHeader, MemoryStats, OWN_BASE_ABOVE, PageSource, TRIM_ABOVE, Unchanged};
use tokio::time::Instant;
use types::Bytes;
use vm::Machine;

use crate::actor::{Actor, Running};
use crate::capture::unreadable;
use crate::error::{Error, ErrorKind, Result};
use crate::launch::{self, ATTACH_TIMEOUT};
use crate::ram::Ram;
use crate::services::{blocking, devices_not_saved};
use crate::state::{Happening, State};
use crate::timing::Stopwatch;
use crate::view::{Report, Timings};

/// Level of zstd for memory images: the fastest one.
pub(crate) const COMPRESSION_LEVEL: i32 = 1;

/// How long a guest may take to write its volumes out.
const SYNC_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a guest may take to let go of its streams. One that does not is put to sleep all the same.
const DETACH_TIMEOUT: Duration = Duration::from_secs(5);

impl Actor {
    /// Puts the sandbox to sleep: no VMM, memory on disk.
    pub(crate) async fn stop(&mut self) -> Result<Report> {
        self.settle_freeze().await?;
        self.settle_disks().await?;
        let Some(running) = self.running.take() else {
            return match self.state {
                State::Gone => {
                    Err(Error::new(ErrorKind::NotFound, format!("{} was destroyed", self.manifest.name)))
                }
                _ => Ok(self.report(false, Timings::default(), Vec::new())),
            };
        };
        let mut watch = Stopwatch::start();
        self.write_volumes_out(&running).await;
        let (manifest, stats) = match self.freeze(&running, &mut watch).await {
            Ok(frozen) => frozen,
            Err(error) => return Err(self.thaw(running, error).await),
        };
        let before = std::mem::replace(&mut self.manifest, manifest);
        drop(running.guest);
        let ended = running.machine.kill().await;
        watch.lap("end");
        if before.ram_base != self.manifest.ram_base {
            self.release(before);
        }
        self.trouble = None;
        self.enter(Happening::Slept)?;
        let timings = watch.finish();
        self.record("stop", &timings, &[("private", stats.private), ("stored", stats.stored)]);
        self.index();
        self.event(
            "stopped",
            json!({
                "generation": self.manifest.generation,
                "total_ms": timings.total_ms(),
                "private_bytes": stats.private,
                "stored_bytes": stats.stored,
            }),
        );
        // Its memory is safe on disk whatever became of the VMM, which holds the disk's lock as long as it lives.
        ended?;
        Ok(self.report(true, timings, Vec::new()))
    }

    /// What its guest has written to volumes goes to their disks: a sandbox that sleeps may be destroyed, and its volumes
    /// are to have everything then. Its root disk goes with its memory, and need not wait for this.
    async fn write_volumes_out(&self, running: &Running) {
        if self.state != State::Hot || self.manifest.volumes.iter().all(|volume| volume.read_only) {
            return;
        }
        let written = tokio::time::timeout(SYNC_TIMEOUT, running.guest.sync()).await;
        if !matches!(written, Ok(Ok(()))) {
            tracing::warn!(sandbox = %self.manifest.name, "what it wrote to volumes last is in its memory only");
        }
    }

    /// Everything up to and with the commit.
    async fn freeze(&self, running: &Running, watch: &mut Stopwatch) -> Result<(Manifest, MemoryStats)> {
        let detached = self.state == State::Hot
            && match running.guest.detach(Instant::now() + DETACH_TIMEOUT).await {
                Ok(()) => true,
                Err(error) => {
                    tracing::warn!(%error, sandbox = %self.manifest.name, "the agent did not detach");
                    false
                }
            };
        watch.lap("detach");
        running.machine.pause().await?;
        watch.lap("pause");
        // The memory image belongs to the generation that the commit will name.
        let mut manifest = self.manifest.clone();
        manifest.machine.qemu_version = self.services.qemu().await?.version.to_string();
        let (dir, store, ram) = (self.dir.clone(), self.services.store.clone(), Ram(running.machine.ram()?));
        let (memory, manifest, pin, stats) = blocking(move || {
            let pages = ram.private_runs().map_err(unreadable)?;
            let private = Bytes(pages.iter().map(|run| run.len.0).sum());
            let header = |manifest: &Manifest| MemoryHeader {
                generation: manifest.generation,
                base: manifest.ram_base.id(),
            };
            let trimmed =
                (private > TRIM_ABOVE).then(|| store.trimmed(&manifest.ram_base, &ram)).transpose()?;
            let (kept, source): (Bytes, &dyn PageSource) = match &trimmed {
                Some(trimmed) => (trimmed.kept(), trimmed),
                None => (private, &ram),
            };
            if kept <= OWN_BASE_ABOVE {
                let memory = dir.stage_memory(source, header(&manifest), COMPRESSION_LEVEL)?;
                let (pin, stats) = (store.pin(&manifest), MemoryStats { private, ..memory.stats() });
                return Ok((memory, manifest, pin, stats));
            }
            // So much is kept as a base: the next wake maps it, and the next stop writes what changed since.
            let (base, written, _until_pinned) =
                store.write_own_base(&manifest.ram_base, manifest.memory_mib, source)?;
            manifest.ram_base = base;
            let pin = store.pin(&manifest);
            let unchanged = Unchanged(manifest.memory_mib.bytes());
            let memory = dir.stage_memory(&unchanged, header(&manifest), COMPRESSION_LEVEL)?;
            let stats = MemoryStats {
                private,
                zero: Bytes(0),
                stored: Bytes(written.private.0 + memory.stats().stored.0),
            };
            Ok((memory, manifest, pin, stats))
        })
        .await?;
        watch.lap("memory");
        self.save_devices(&running.machine).await?;
        watch.lap("devices");
        let dir = self.dir.clone();
        let manifest = blocking(move || Ok(dir.commit_cold(memory, manifest, detached)?)).await?;
        drop(pin);
        watch.lap("commit");
        Ok((manifest, stats))
    }

    async fn save_devices(&self, machine: &Machine) -> Result<()> {
        let dir = self.dir.clone();
        let path = blocking(move || Ok(dir.stage_devices()?)).await?;
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Err(error) = machine.save_devices(name).await {
            let error = devices_not_saved(&self.services.store, error);
            crate::capture::drop_devices(&self.dir).await;
            return Err(error);
        }
        Ok(())
    }

    /// After a failed stop: the guest goes on as if nothing had been. Only when the commit could be neither confirmed
    /// nor taken back must it stay paused, or it would run ahead of a memory image that may count.
    async fn thaw(&mut self, mut running: Running, error: Error) -> Error {
        let name = self.manifest.name.clone();
        self.event("stop_failed", json!({ "why": error.with_causes() }));
        if error.undecided() {
            self.running = Some(running);
            // Paused, and told so.
            if self.state == State::Hot
                && let Err(impossible) = self.enter(Happening::Paused)
            {
                return impossible;
            }
            return error.hint(format!("{name} is paused; stop it again when the disk works"));
        }
        if self.state == State::Hot {
            if let Err(resume) = running.machine.resume().await {
                tracing::error!(error = %resume, sandbox = %name, "the guest could not be resumed");
            }
            match launch::attach(&running.machine, launch::Greeting::plain(true), ATTACH_TIMEOUT).await {
                Ok((guest, _welcome)) => running.guest = guest,
                Err(attach) => {
                    tracing::error!(error = %attach, sandbox = %name, "the agent could not be reached")
                }
            }
        }
        self.running = Some(running);
        error.hint(format!("{name} goes on running; see `bhatti inspect {name}`"))
    }
}

impl Timings {
    /// The whole, in milliseconds with three decimals.
    pub(crate) fn total_ms(&self) -> f64 {
        (self.total.as_secs_f64() * 1e6).round() / 1e3
    }
}
