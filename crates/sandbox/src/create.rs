//! Creating: a clone of a template gets its own disk, its own identity, and a name.
//!
//! # Crash order
//! Disk and config drive are made in a staging directory, which becomes the sandbox's own, with its manifest, before
//! its VMM starts: so a VMM never runs on files that nobody would know. If the guest then does not come up, all of it is
//! removed again, for nobody was told of it.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use serde_json::json;
use storage::{ImageRecord, ImageRef, KernelRecord, Manifest, RunState, SandboxDir, TemplateRecord};
use types::{
    Arch, Boot, CloneMethod, CommandDefaults, GuestFile, Mebibytes, SandboxId, SandboxSpec, StorageLayout,
    Timestamp,
};
use vm::Machine;

use crate::actor::{Actor, Shared};
use crate::bring_up::{self, Origin, Pages, Volumes, bring_up, let_go};
use crate::error::{Error, ErrorKind, Result};
use crate::launch;
use crate::lease::Activity;
use crate::memory::Share;
use crate::network::Wired;
use crate::services::{ROOM_FOR_A_SANDBOX, Services, blocking};
use crate::standby::Standby;
use crate::state::{Happening, State};
use crate::template::{self, Found, TemplateWish};
use crate::timing::Stopwatch;
use crate::view::Timings;

/// Makes the sandbox and its running machine. What was made is removed again when any step fails.
pub(crate) async fn create(
    services: &Arc<Services>,
    spec: SandboxSpec,
) -> Result<(Actor, Timings, Vec<String>)> {
    let _at_work = services.bustle.enter();
    let mut watch = Stopwatch::start();
    services.require_space(ROOM_FOR_A_SANDBOX, "a sandbox")?;
    spec.thermal.check(services.config.thermal.times)?;
    let wish = wish(services, &spec).await?;
    let disk_size = disk_size(&spec, &wish)?;
    check_disk_size(services, disk_size)?;
    let (template, found) = template::find_or_make(services, &wish, spec.strict).await?;
    services.metrics.template(found);
    watch.lap(match found {
        Found::There => "template",
        Found::Made => "template_boot",
    });
    let net = services.network.plan(&spec)?;
    let given = Given::of(&spec, &wish.image);
    // Before one that stands by is taken, which is charged to nobody.
    let charge = services.charge(&spec.owner, spec.cpus, spec.memory)?;
    let (seat, standby) = match services.standbys.take(&wish.key()).await {
        Some(standby) => match services.network.claim(&spec.owner, standby.id.clone(), net.as_ref()) {
            Some(seat) => (Some(seat), Some(standby)),
            None => {
                standby.end().await;
                (None, None)
            }
        },
        None => (None, None),
    };
    let seat = seat.map_or_else(|| services.network.draw(&spec.owner, net.as_ref()), Ok)?;
    let manifest = Manifest { net, ..manifest(&seat.id, &spec, &wish, &template, disk_size)? };
    let (dir, cloned, machine) = match standby {
        Some(mut standby) => {
            standby.memory = standby.memory.charged(charge);
            let (dir, cloned, machine) = dress(services, &given, manifest.clone(), standby).await?;
            (dir, cloned, Some(machine))
        }
        None => {
            drop(charge);
            let (dir, cloned) = stage(services, &given, &template, manifest.clone()).await?;
            (dir, cloned, None)
        }
    };
    watch.lap("disk");
    let grow = disk_size > image_size(&wish);
    let boot = if machine.is_some() { Boot::Standby } else { Boot::Template };
    let mut start = start(&manifest, &template, grow, inline(&given));
    // Its agent has let go of the daemon since.
    start.pad &= machine.is_none();
    let made = async {
        match machine {
            Some(machine) => let_go(services, &manifest, machine, start, &mut watch).await,
            None => {
                let origin = origin(services, &template, start).await?;
                bring_up(services, &dir, &manifest, origin, &mut watch).await
            }
        }
    };
    let (running, warnings) = match made.await {
        Ok(made) => made,
        Err(error) => {
            let gone = blocking(move || Ok(dir.destroy()?)).await;
            if let Err(left) = gone {
                tracing::error!(error = %left, id = %manifest.id, "a sandbox that failed to start could not be removed");
            }
            return Err(error);
        }
    };
    let timings = watch.finish();
    let clone = match manifest.layout {
        // The overlay's own few pages are copied either way; what matters is that the base is not.
        StorageLayout::Overlay => CloneMethod::Overlay,
        StorageLayout::Reflink => cloned,
    };
    seat.keep();
    crate::standby::refill(services, wish, template, spec);
    let mut actor = actor(services, dir, manifest, clone, Timestamp::now());
    actor.running = Some(running);
    actor.boot = boot;
    actor.enter(Happening::Booted)?;
    actor.record("create", &timings, &[]);
    actor.index();
    let detail = json!({ "template": found == Found::Made, "clone": clone, "total_ms": timings.total_ms() });
    actor.event("created", detail);
    Ok((actor, timings, warnings))
}

/// An owner for a sandbox that is on disk and has no machine.
pub(crate) fn actor(
    services: &Arc<Services>,
    dir: SandboxDir,
    manifest: Manifest,
    clone: CloneMethod,
    last_active_at: Timestamp,
) -> Actor {
    let activity = Activity::new(last_active_at, Arc::clone(&services.bustle));
    let state = crate::actor::resting_state(&manifest);
    let boot = if state == State::Cold { Boot::Resume } else { Boot::ColdBoot };
    let view = crate::view::SandboxView {
        id: manifest.id.clone(),
        name: manifest.name.clone(),
        owner: manifest.owner.clone(),
        image: manifest.image.name.clone(),
        cpus: manifest.cpus,
        memory: manifest.memory_mib,
        disk_size: manifest.disk_size_mib,
        status: crate::view::Status::Stopped,
        thermal: types::Thermal::Cold,
        keep_hot: manifest.keep_hot,
        rule: manifest.thermal,
        times: manifest.thermal.over(services.config.thermal.times),
        last_decision: None,
        labels: manifest.labels.clone(),
        volumes: crate::actor::volumes_of(&manifest),
        secrets: manifest.secrets.clone(),
        net: crate::actor::net_of(&manifest),
        net_rate: services.config.rates.of_net(&manifest),
        disk_rate: services.config.rates.of_disk(&manifest),
        created_at: manifest.created_at,
        last_active_at: activity.last_active(),
        generation: manifest.generation,
        boot,
        clone,
        accel: manifest.machine.accel,
        last_transition: None,
        vmm_pid: None,
    };
    Actor {
        services: Arc::clone(services),
        dir,
        manifest,
        state,
        running: None,
        pending_freeze: None,
        trouble: None,
        breaker: crate::breaker::Breaker::default(),
        boot,
        clone,
        last_transition: None,
        watch: crate::tick::Watch::default(),
        shared: Arc::new(Shared { view: RwLock::new(view), activity }),
    }
}

/// The template that the spec asks for.
pub(crate) async fn wish(services: &Services, spec: &SandboxSpec) -> Result<TemplateWish> {
    let qemu = services.qemu().await?;
    let accel = services.accel().await?;
    let machine = launch::machine_record(qemu, accel);
    let (store, spec) = (services.store.clone(), spec.clone());
    let layout = services.layout().await?;
    blocking(move || {
        loop {
            let (image, kernel) = parts(&store, &spec)?;
            let (cpus, memory, machine) = (spec.cpus, spec.memory, machine.clone());
            let mut wish = TemplateWish { image, kernel, layout, cpus, memory, machine, pin: None };
            wish.pin = Some(Arc::new(store.pin_parts(&wish.image.id, &wish.kernel.id, &wish.key())));
            // What was found may have been collected before it was pinned; its name then means something else by now.
            if parts(&store, &spec)? == (wish.image.clone(), wish.kernel.clone()) {
                return Ok(wish);
            }
        }
    })
    .await
}

/// The image that its owner calls so, and today's kernel.
fn parts(store: &storage::Store, spec: &SandboxSpec) -> Result<(ImageRecord, KernelRecord)> {
    let kernel = store.kernel().get(Arch::host()).map_err(|error| {
        if error.kind() == storage::ErrorKind::NotFound {
            Error::new(ErrorKind::NotReady, "there is no guest kernel here yet").hint("run `bhatti setup`")
        } else {
            error.into()
        }
    })?;
    let image = &spec.image;
    let record = store.images().resolve_for(&spec.owner, image, Arch::host()).map_err(|error| {
        if error.kind() == storage::ErrorKind::NotFound {
            Error::new(ErrorKind::NotFound, format!("there is no image {:?}", image.as_str()))
                .hint("`bhatti image list` shows those that are there; `bhatti setup` makes `minimal`")
        } else {
            error.into()
        }
    })?;
    Ok((record, kernel))
}

/// The image's size, rounded up: the least a root disk can have.
pub(crate) fn image_size(wish: &TemplateWish) -> Mebibytes {
    Mebibytes(wish.image.size.0.div_ceil(1 << 20))
}

fn disk_size(spec: &SandboxSpec, wish: &TemplateWish) -> Result<Mebibytes> {
    let least = image_size(wish);
    match spec.disk_size {
        Some(size) if size < least => Err(Error::new(
            ErrorKind::BadRequest,
            format!("a disk of {size} is smaller than the image {}, which has {least}", wish.image.name),
        )
        .hint(format!("disks only grow: use {} or more", least.0))),
        Some(size) => Ok(size),
        None => Ok(least),
    }
}

/// Refuses a disk that the host could not hold even if it were empty. Below that, disks are thin.
pub(crate) fn check_disk_size(services: &Services, size: Mebibytes) -> Result<()> {
    let most = services.store.space()?.total;
    if size.bytes() <= most {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::BadRequest,
        format!(
            "a disk of {size} is larger than the filesystem it would lie on, which has {}",
            most.floor_mib()
        ),
    )
    .hint("ask for a smaller one, or keep the data directory on a larger filesystem"))
}

pub(crate) fn manifest(
    id: &SandboxId,
    spec: &SandboxSpec,
    wish: &TemplateWish,
    template: &TemplateRecord,
    disk_size: Mebibytes,
) -> Result<Manifest> {
    let manifest = Manifest {
        id: id.clone(),
        name: spec.name.clone(),
        owner: spec.owner.clone(),
        generation: 1,
        state: RunState::Running,
        layout: wish.layout,
        image: ImageRef { name: wish.image.name.clone(), id: wish.image.id.clone() },
        kernel: wish.kernel.id.clone(),
        cpus: spec.cpus,
        memory_mib: spec.memory,
        disk_size_mib: disk_size,
        labels: spec.labels.clone(),
        keep_hot: spec.keep_hot,
        thermal: spec.thermal,
        created_at: Timestamp::now(),
        layers: Vec::new(),
        ram_base: template.ram_base(),
        volumes: Vec::new(),
        secrets: spec.secrets.clone(),
        net: None,
        net_rate: spec.net_rate,
        disk_rate: spec.disk_rate,
        machine: template.spec.machine.clone(),
        memory: None,
    };
    spec.volumes.iter().try_fold(manifest, crate::attached::with_volume)
}

/// Disk, config drive and manifest, under their final name.
async fn stage(
    services: &Services,
    given: &Given,
    template: &TemplateRecord,
    manifest: Manifest,
) -> Result<(SandboxDir, CloneMethod)> {
    let store = services.store.clone();
    let (given, template) = (given.clone(), template.clone());
    blocking(move || {
        let staged = store.stage_sandbox(&manifest.id)?;
        let cloned = staged.clone_root_from_template(&template)?;
        image::config_drive(&staged.config_path(), &given.drive())?;
        Ok((staged.commit(&manifest)?, cloned.method))
    })
    .await
}

/// What a guest finds on its config drive.
#[derive(Debug, Clone)]
struct Given {
    env: BTreeMap<String, String>,
    init: Option<String>,
    defaults: CommandDefaults,
    files: Vec<GuestFile>,
}

impl Given {
    /// What the image wants, and over it what was asked for.
    fn of(spec: &SandboxSpec, image: &ImageRecord) -> Self {
        let config = image.config.clone().unwrap_or_default();
        let mut defaults = CommandDefaults::of(&config);
        if spec.init.is_some() {
            defaults.init.clear();
        }
        let mut env = config.env;
        env.extend(spec.env.clone());
        Self { env, init: spec.init.clone(), defaults, files: spec.files.clone() }
    }

    fn drive(&self) -> image::ConfigDrive<'_> {
        let Self { env, init, defaults, files } = self;
        image::ConfigDrive { env, init: init.as_deref(), defaults, files }
    }
}

/// Makes a machine that stood by the sandbox's own, as far as files go; the guest has not run yet. The VMM is gone
/// when this fails.
async fn dress(
    services: &Services,
    given: &Given,
    manifest: Manifest,
    standby: Standby,
) -> Result<(SandboxDir, CloneMethod, (Machine, Share, Wired))> {
    let Standby { staged, machine, memory, far, clone, .. } = standby;
    let of = manifest.clone();
    let given = given.clone();
    let named = blocking(move || {
        // Written over the empty one that the VMM has open; the guest has read nothing of it.
        image::config_drive(&staged.config_path(), &given.drive())?;
        Ok(staged.commit(&manifest)?)
    });
    match named.await {
        Ok(dir) => {
            let line = far.map_or_else(Wired::default, |far| services.connect(&of, far, dir.path()));
            Ok((dir, clone, (machine, memory, line)))
        }
        Err(error) => {
            machine.kill().await?;
            Err(error)
        }
    }
}

/// What of the config drive is told in the first message: all of it, unless it has files or is long.
fn inline(given: &Given) -> Option<wire::InlineConfig> {
    const MOST: usize = 64 << 10;
    let Given { env, init, defaults, files } = given;
    let length: usize = env.iter().map(|(key, value)| key.len() + value.len()).sum();
    let command: usize = defaults.init.iter().map(String::len).sum();
    let short = length + command + init.as_ref().map_or(0, String::len) <= MOST;
    (files.is_empty() && short).then(|| wire::InlineConfig {
        env: env.clone(),
        init: init.clone(),
        defaults: wire::CommandDefaults {
            cwd: defaults.cwd.clone(),
            user: defaults.user.clone(),
            init: defaults.init.clone(),
        },
    })
}

/// What the machine of a new sandbox is told when it goes on.
fn start(
    manifest: &Manifest,
    template: &TemplateRecord,
    grow: bool,
    inline: Option<wire::InlineConfig>,
) -> bring_up::Start {
    let mut identity = launch::identity(&manifest.id, &manifest.name, true);
    identity.config = inline;
    bring_up::Start {
        identity,
        pad: !template.spec.detached,
        grow: grow.then(|| manifest.disk_size_mib.bytes()),
        volumes: Volumes::ToBePlugged,
    }
}

/// What the machine of a new sandbox starts from: the template as it is.
async fn origin(services: &Services, template: &TemplateRecord, start: bring_up::Start) -> Result<Origin> {
    let (store, record) = (services.store.clone(), template.clone());
    let devices = blocking(move || Ok(store.templates().open_devices(&record)?)).await?;
    Ok(Origin { pages: Pages::Base, devices, start })
}
