//! Templates: one booted machine for each shape, made when it is first wanted, cloned ever after.
//!
//! # Crash order
//! A template boots in a staging directory and gets its name only when disk, RAM base and device state are durable
//! and its VMM is gone. Whatever ends the way there leaves a staging directory, which the next daemon removes.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;
use storage::{ImageRecord, ImageRef, KernelRecord, MachineRecord, Pin, TemplateRecord, TemplateSpec};
use types::{ContentId, Mebibytes, StorageLayout};
use vm::Machine;

use crate::error::{Error, ErrorKind, Result};
use crate::launch::{self, Frame};
use crate::ram::Ram;
use crate::services::{ROOM_FOR_A_TEMPLATE, Services, blocking};

/// Everything a template's key stands for.
#[derive(Debug, Clone)]
pub(crate) struct TemplateWish {
    pub(crate) image: ImageRecord,
    pub(crate) kernel: KernelRecord,
    pub(crate) layout: StorageLayout,
    pub(crate) cpus: u32,
    pub(crate) memory: Mebibytes,
    pub(crate) machine: MachineRecord,
    /// Keeps image, kernel and template until a manifest names them.
    pub(crate) pin: Option<Arc<Pin>>,
}

/// Up to which size a guest clears at its boot all the memory that it has, in order to clear what it frees from then on.
/// A larger one would take all of it from the host for the time of that boot, and make it longer by seconds.
const CLEARS_UP_TO: Mebibytes = Mebibytes(2048);

/// Has the kernel clear memory when it frees it, and not when it gives it out, as Debian's does otherwise: free pages
/// are then left out of memory images, and as much is cleared as before. See decision 0024.
const CLEAR_WHAT_IS_FREED: [&str; 2] = ["init_on_free=1", "init_on_alloc=0"];

impl TemplateWish {
    /// The key: a hash over all that decides what a booted machine looks like. The VMM's release is part of it, so
    /// that an older VMM never meets the device state of a newer one here.
    pub(crate) fn key(&self) -> ContentId {
        let release = self.machine.qemu_version.rsplit_once('.').map_or("", |(release, _)| release);
        let parts = json!({
            // 2: guests clear what they free. 3: without mitigations under emulation, without addresses. 4: cards that do
            // not have their guests announce themselves, and lead to the gateways.
            "version": 4,
            "image": self.image.id,
            "kernel": self.kernel.id,
            "layout": self.layout,
            "cpus": self.cpus,
            "memory_mib": self.memory,
            "machine_type": self.machine.machine_type,
            "cpu_model": self.machine.cpu_model,
            "accel": self.machine.accel,
            "vmm_release": release,
        });
        ContentId::from_hash(blake3::hash(parts.to_string().as_bytes()).as_bytes())
    }
}

/// Whether a template had to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    There,
    Made,
}

/// The template for `wish`; boots one when there is none, unless `strict`. One build a key at a time: who comes
/// meanwhile waits for it.
pub(crate) async fn find_or_make(
    services: &Services,
    wish: &TemplateWish,
    strict: bool,
) -> Result<(TemplateRecord, Found)> {
    let key = wish.key();
    if let Some(record) = find(services, &key).await? {
        return Ok((record, Found::There));
    }
    if strict {
        return Err(Error::new(
            ErrorKind::SlowPath,
            "there is no template of this shape yet, so this would boot one",
        )
        .hint("leave --strict away once, or make it with `bhatti setup`"));
    }
    let _one_at_a_time = services.builds.lock(&key).await;
    if let Some(record) = find(services, &key).await? {
        return Ok((record, Found::There));
    }
    make(services, wish, key).await.map(|record| (record, Found::Made))
}

/// The first call takes a tenth of a second and is made here, where waiting is allowed.
pub(crate) fn measure_clock() {
    let _known_from_now_on = vm::host_tsc_khz();
}

async fn find(services: &Services, key: &ContentId) -> Result<Option<TemplateRecord>> {
    let (store, key) = (services.store.clone(), key.clone());
    blocking(move || match store.templates().get(&key) {
        Err(error) if error.kind() == storage::ErrorKind::Corrupt => {
            // A damaged template is nobody's work: it is made anew.
            tracing::warn!(%error, %key, "a damaged template is removed");
            store.templates().remove(&key)?;
            Ok(None)
        }
        other => Ok(other?),
    })
    .await
}

async fn make(services: &Services, wish: &TemplateWish, key: ContentId) -> Result<TemplateRecord> {
    services.require_space(ROOM_FOR_A_TEMPLATE, "booting a template")?;
    tracing::info!(image = %wish.image.name, cpus = wish.cpus, memory = %wish.memory, "booting a template");
    let _memory = services.room_for(wish.memory).await?;
    let qemu = services.qemu().await?;
    let (store, ready) = (services.store.clone(), wish.clone());
    let (staged, lock, zero) = blocking(move || {
        let staged = store.templates().stage(&key, ready.layout)?;
        match ready.layout {
            StorageLayout::Overlay => image::qemu_img_create_overlay(
                &staged.root_disk_path(),
                &ready.image.path_from_machine_dir(),
                image::BackingFormat::Raw,
                ready.image.size,
            )?,
            StorageLayout::Reflink => {
                staged.clone_image(&ready.image)?;
            }
        }
        // The template's config drive is empty: what a clone finds on it is never in the template's memory.
        let env = std::collections::BTreeMap::new();
        let drive = image::ConfigDrive { env: &env, init: None, defaults: &Default::default(), files: &[] };
        image::config_drive(&staged.dir().join(storage::layout::CONFIG_DRIVE), &drive)?;
        let lock = staged.lock_root()?;
        measure_clock();
        let zero = store.zero_base(ready.memory)?;
        Ok((staged, lock, zero))
    })
    .await?;
    let frame = Frame {
        machine: &wish.machine,
        layout: wish.layout,
        below: Vec::new(),
        image: &wish.image.id,
        cpus: wish.cpus,
        memory: wish.memory,
        config: PathBuf::from(storage::layout::CONFIG_DRIVE),
        volumes: Vec::new(),
    };
    let mut spec = frame.spec(qemu, &wish.kernel, zero, false, false);
    if wish.memory <= CLEARS_UP_TO {
        spec.extra_cmdline.extend(CLEAR_WHAT_IS_FREED.map(str::to_owned));
    }
    let machine = Machine::launch(qemu, &spec, staged.dir(), lock).await?;
    let snapped = snap(services, &machine, staged).await;
    let killed = machine.kill().await;
    let (staged, detached) = snapped?;
    killed?;
    let spec = TemplateSpec {
        image: ImageRef { name: wish.image.name.clone(), id: wish.image.id.clone() },
        kernel: wish.kernel.id.clone(),
        layout: wish.layout,
        cpus: wish.cpus,
        memory_mib: wish.memory,
        machine: wish.machine.clone(),
        detached,
    };
    blocking(move || Ok(staged.commit(spec)?)).await
}

/// Waits for the booted guest, freezes it, and writes its RAM and device state.
async fn snap(
    services: &Services,
    machine: &Machine,
    mut staged: storage::StagedTemplate,
) -> Result<(storage::StagedTemplate, bool)> {
    let greeting =
        launch::Greeting { net: Some(crate::network::told_to_template()), ..launch::Greeting::plain(false) };
    let (guest, _welcome) = launch::attach(machine, greeting, services.config.boot_timeout).await?;
    warm_up(&guest).await?;
    guest.sync().await?;
    guest.detach(tokio::time::Instant::now() + launch::ATTACH_TIMEOUT).await?;
    drop(guest);
    machine.pause().await?;
    machine.save_devices(storage::layout::VM_SNAP).await?;
    let ram = Ram(machine.ram()?);
    let staged = blocking(move || {
        staged.write_ram(&ram)?;
        Ok(staged)
    })
    .await?;
    Ok((staged, true))
}

/// Runs what most first commands need, and looks at what a clone's agent does, so that every clone finds it in the
/// caches it was born with.
async fn warm_up(guest: &guest::Guest) -> Result<()> {
    let script = "true; id; ls -la /; cat /etc/os-release; bash -c true; sudo -n true; date; sleep 0; \
                  cat /etc/hostname /etc/hosts /etc/machine-id; ls /etc/ssh /var/lib/dbus";
    let root = || Some("root".to_owned());
    for user in [None, root()] {
        run_to_warm_up(guest, &["sh", "-c", script], user).await?;
    }
    // What the kernel puts off to a second after a boot, each clone would do in its first moments: it tells all that the
    // card is ready, and looks for parts of the disk that are still to be made.
    let settle = "left=30; \
                  until [ \"$(cat /sys/class/net/eth0/operstate)\" = up ] && ! grep -q ext4lazyinit /proc/[0-9]*/comm; \
                  do left=$((left - 1)); [ $left -gt 0 ] && sleep 0.1 || break; done";
    run_to_warm_up(guest, &["sh", "-c", settle], root()).await
}

/// Runs a command of which only that it ran is of use. An image may lack it: that makes a first command slower and
/// nothing else.
pub(crate) async fn run_to_warm_up(guest: &guest::Guest, argv: &[&str], user: Option<String>) -> Result<()> {
    let argv = argv.iter().map(|word| (*word).to_owned()).collect();
    let mut stream = guest.exec(wire::Exec { argv, user, ..wire::Exec::default() }).await?;
    while let Some(event) = stream.next().await {
        if let guest::ExecEvent::Failed(error) = event {
            tracing::debug!(%error, "the image has nothing to warm up with");
        }
    }
    Ok(())
}
