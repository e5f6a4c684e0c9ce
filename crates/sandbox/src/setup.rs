//! Setting a host up: kernel, initramfs, image, accelerator, and the template of the default size.
//!
//! Every step is skipped when what it would be made from has not changed; each ends with something durable, so a
//! set-up that was cut off goes on where it was.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use image::{Build, Cancel, Progress};
use types::{Accel, Arch, ImageName, Labels, Mebibytes, Owner, SandboxSpec};

use crate::accel;
use crate::create;
use crate::error::{Error, ErrorKind, Result};
use crate::services::{HostConfig, Services, blocking};
use crate::storage_layout;
use crate::template::{self, Found};

/// What to set up.
#[derive(Debug, Clone)]
pub struct SetupConfig {
    /// The host to be.
    pub host: HostConfig,
    /// The static agent for the guest.
    pub agent: &'static [u8],
    /// The agent's version.
    pub agent_version: &'static str,
    /// A kernel to use instead of the distribution's, with its `lib/modules/<version>` directory.
    pub kernel: Option<(PathBuf, PathBuf)>,
    /// Make everything anew.
    pub force: bool,
}

/// A report on the way: which step, what it does, how far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetupStep {
    /// A step begins.
    Begin {
        /// What it makes.
        what: &'static str,
    },
    /// A step goes on.
    Progress(Progress),
    /// A step ended.
    End {
        /// What it made.
        what: &'static str,
        /// `made` or `there already`, and which.
        result: String,
        /// How long it took.
        took: Duration,
    },
}

/// What a host has after its set-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetupReport {
    /// The guest kernel's release.
    pub kernel: String,
    /// The image's id.
    pub image: String,
    /// What executes guests.
    pub accel: Accel,
    /// Why it is not KVM; empty when it is.
    pub why_not_kvm: String,
    /// The steps that changed something.
    pub changed: Vec<&'static str>,
}

/// Makes a data directory ready for `create`. May be run again at any time, and beside a running daemon.
///
/// # Errors
/// `NotReady` names what is missing; what was made before the error stays and is used by the next run.
pub async fn setup(
    config: SetupConfig,
    cancel: Cancel,
    report: impl Fn(SetupStep) + Send + Sync + 'static,
) -> Result<SetupReport> {
    let report: Arc<dyn Fn(SetupStep) + Send + Sync> = Arc::new(report);
    let host = config.host.clone();
    let services = blocking(move || Services::open(host)).await?;
    // Before the long work, so that a missing VMM is said at once.
    services.qemu().await?;
    let store = services.store.clone();
    let _alone = blocking(move || Ok(store.lock_setup()?)).await?;
    let mut changed = Vec::new();

    let kernel = step(&report, "kernel and initramfs", &mut changed, {
        let (services, config, cancel, report) =
            (Arc::clone(&services), config.clone(), cancel.clone(), Arc::clone(&report));
        blocking(move || kernel(&services, &config, &cancel, &*report))
    })
    .await?;
    let image = step(&report, "image minimal", &mut changed, {
        let (services, force, cancel, report) =
            (Arc::clone(&services), config.force, cancel.clone(), Arc::clone(&report));
        blocking(move || minimal(&services, force, &cancel, &*report))
    })
    .await?;
    let proof = step(&report, "accelerator", &mut changed, async {
        let proof = match config.host.accel {
            Some(accel) => accel::forced(accel),
            None => accel::prove(&services, config.force).await?,
        };
        let text = if proof.why_not_kvm.is_empty() {
            proof.accel.to_string()
        } else {
            format!("{} ({})", proof.accel, proof.why_not_kvm)
        };
        Ok((proof, text, false))
    })
    .await?;
    step(&report, "storage layout", &mut changed, async {
        let settled = settle_images(&services).await?;
        let words = match config.host.layout {
            Some(asked) => format!("{asked}, as asked for"),
            None => storage_layout::measure(&services, config.force || settled > 0).await?.words(),
        };
        Ok((
            (),
            if settled > 0 { format!("{settled} images written anew; {words}") } else { words },
            settled > 0,
        ))
    })
    .await?;
    step(&report, "template of the default size", &mut changed, async {
        let wish = create::wish(&services, &default_spec()?).await?;
        let (record, found) = template::find_or_make(&services, &wish, false).await?;
        let text = format!("{} of RAM base", record.ram_private_bytes);
        Ok(((), text, found == Found::Made))
    })
    .await?;
    Ok(SetupReport {
        kernel: kernel.version,
        image: image.id.to_string(),
        accel: proof.accel,
        why_not_kvm: proof.why_not_kvm,
        changed,
    })
}

/// Images that came here with a copy of the whole data directory may lie in a way that makes their clones dear.
async fn settle_images(services: &Services) -> Result<usize> {
    let store = services.store.clone();
    blocking(move || {
        let mut settled = 0;
        for image in store.images().list()? {
            settled += usize::from(store.images().settle(&image)?);
        }
        Ok(settled)
    })
    .await
}

/// Runs one step between its begin and its end. The work gives what it made, words for it, and whether it is new.
async fn step<T>(
    report: &Arc<dyn Fn(SetupStep) + Send + Sync>,
    what: &'static str,
    changed: &mut Vec<&'static str>,
    work: impl Future<Output = Result<(T, String, bool)>>,
) -> Result<T> {
    let began = std::time::Instant::now();
    report(SetupStep::Begin { what });
    let (value, text, new) = work.await?;
    if new {
        changed.push(what);
    }
    let result = if new { format!("made: {text}") } else { format!("ready: {text}") };
    report(SetupStep::End { what, result, took: began.elapsed() });
    Ok(value)
}

type Report<'a> = &'a (dyn Fn(SetupStep) + Send + Sync);

fn kernel(
    services: &Services,
    config: &SetupConfig,
    cancel: &Cancel,
    report: Report<'_>,
) -> Result<(storage::KernelRecord, String, bool)> {
    let kernels = services.store.kernel();
    let arch = Arch::host();
    let agent = blake3::hash(config.agent).to_hex();
    let origin = match &config.kernel {
        Some((kernel, modules)) => format!("{} {}", kernel.display(), modules.display()),
        None => "distribution".to_owned(),
    };
    let source = format!("agent {} kernel {origin}", &agent[..16]);
    match kernels.get(arch) {
        // A kernel that was given by path may have changed under its name; the distribution's is kept until --force.
        Ok(record) if record.source == source && config.kernel.is_none() && !config.force => {
            return Ok((record.clone(), format!("Linux {}", record.version), false));
        }
        Ok(_) => {}
        Err(error) if error.kind() == storage::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%error, "the kernel's record is damaged and is made anew"),
    }
    let staged = kernels.stage()?;
    let progress = |progress| report(SetupStep::Progress(progress));
    let build = Build { work_dir: staged.dir(), progress: &progress, cancel };
    let tree = match &config.kernel {
        Some((kernel, modules)) => image::kernel_from_paths(kernel, modules)?,
        None => image::fetch_kernel(&build, arch)?,
    };
    storage::clone_file(&tree.vmlinuz, &staged.vmlinuz_path())?;
    image::build_initramfs(config.agent, &tree.modules, &staged.initramfs_path())?;
    let before = kernels.get(arch).ok().map(|record| record.id);
    let record = staged.commit(arch, &tree.version, config.agent_version, &source)?;
    let new = before.as_ref() != Some(&record.id);
    Ok((record.clone(), format!("Linux {}", record.version), new))
}

fn minimal(
    services: &Services,
    force: bool,
    cancel: &Cancel,
    report: Report<'_>,
) -> Result<(storage::ImageRecord, String, bool)> {
    let images = services.store.images();
    let arch = Arch::host();
    let name: ImageName = "minimal".parse().map_err(internal)?;
    let recipe = image::minimal_recipe_id(arch);
    match images.resolve(&name, arch) {
        Ok(record) if record.source.ends_with(recipe.short()) && !force => {
            return Ok((record.clone(), describe(&record), false));
        }
        Ok(_) => {}
        Err(error) if error.kind() == storage::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%error, "the image's record is damaged and is made anew"),
    }
    let staged = images.stage()?;
    let progress = |progress| report(SetupStep::Progress(progress));
    let scratch = services.store.scratch()?;
    let build = Build { work_dir: scratch.path(), progress: &progress, cancel };
    let built = image::build_minimal(&build, arch, staged.path())?;
    let record = staged.commit(&name, arch, &built.source)?;
    Ok((record.clone(), describe(&record), true))
}

fn describe(record: &storage::ImageRecord) -> String {
    format!("{}, {} in use of {}", record.source, record.allocated, record.size)
}

/// What a `create` without options asks for: the template of this shape is made ahead of time.
fn default_spec() -> Result<SandboxSpec> {
    Ok(SandboxSpec {
        name: "template".parse().map_err(internal)?,
        owner: Owner::admin(),
        image: "minimal".parse().map_err(internal)?,
        cpus: 1,
        memory: Mebibytes(512),
        disk_size: None,
        env: Default::default(),
        secrets: Vec::new(),
        net: None,
        egress: None,
        net_rate: None,
        disk_rate: None,
        files: Vec::new(),
        volumes: Vec::new(),
        init: None,
        labels: Labels::new(),
        keep_hot: false,
        thermal: types::ThermalRule::default(),
        strict: false,
    })
}

fn internal(error: types::NameError) -> Error {
    Error::new(ErrorKind::Internal, "a built-in name is no name").source(error)
}
