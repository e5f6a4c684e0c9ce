//! The doctor: what this host is, what is missing, what that costs, and how to mend it.

use types::{Accel, Arch};

use crate::accel;
use crate::error::{ErrorKind, Result};
use crate::services::{HostConfig, Services, blocking};
use crate::storage_layout;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works, at a cost.
    Warn,
    /// Sandboxes cannot run until this is mended.
    Fail,
}

impl Verdict {
    /// The word in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What it costs; empty when nothing.
    pub cost: String,
    /// How to mend it; empty when there is nothing to mend.
    pub fix: String,
}

/// All checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DoctorReport {
    /// In the order in which they matter.
    pub checks: Vec<Check>,
}

impl DoctorReport {
    /// Whether sandboxes can run here.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.checks.iter().all(|check| check.verdict != Verdict::Fail)
    }
}

/// Looks at everything; a check that fails does not hide the others. Works beside a running daemon.
///
/// # Errors
/// `NotReady` when the data directory itself cannot be used.
pub async fn doctor(config: HostConfig) -> Result<DoctorReport> {
    let services = blocking(move || Services::open(config)).await?;
    let mut checks = Vec::new();
    checks.push(vmm(&services).await);
    checks.extend(programs());
    checks.push(kernel(&services).await);
    checks.push(images(&services).await);
    checks.push(accelerator(&services).await);
    checks.extend(filesystem(&services).await);
    checks.push(layout(&services).await);
    checks.push(network());
    checks.push(limits());
    checks.push(confinement(&services).await);
    checks.push(host());
    Ok(DoctorReport { checks })
}

fn check(name: &'static str, verdict: Verdict, found: impl Into<String>) -> Check {
    Check { name, verdict, found: found.into(), cost: String::new(), fix: String::new() }
}

impl Check {
    fn costs(mut self, cost: impl Into<String>) -> Self {
        self.cost = cost.into();
        self
    }

    fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = fix.into();
        self
    }
}

async fn vmm(services: &Services) -> Check {
    match services.qemu().await {
        Ok(qemu) => check("vmm", Verdict::Ok, format!("QEMU {} ({})", qemu.version, qemu.path.display())),
        Err(error) => check("vmm", Verdict::Fail, error.with_causes()).costs("no sandbox can run").fix(
            match Arch::host() {
                Arch::Amd64 => "apt-get install qemu-system-x86",
                Arch::Arm64 => "apt-get install qemu-system-arm",
            },
        ),
    }
}

fn programs() -> Vec<Check> {
    image::programs()
        .into_iter()
        .map(|program| match program.path {
            Some(path) => check(program.name, Verdict::Ok, path.display().to_string()),
            None => check(
                program.name,
                if program.needed_to_run { Verdict::Fail } else { Verdict::Warn },
                "missing",
            )
            .costs(program.used_for)
            .fix(format!("apt-get install {}", program.package)),
        })
        .collect()
}

async fn kernel(services: &Services) -> Check {
    let store = services.store.clone();
    match blocking(move || Ok(store.kernel().get(Arch::host())?)).await {
        Ok(kernel) => check(
            "guest kernel",
            Verdict::Ok,
            format!("Linux {}, agent {}", kernel.version, kernel.agent_version),
        ),
        Err(error) => check("guest kernel", Verdict::Fail, none_or(&error, "none yet"))
            .costs("no sandbox can run")
            .fix("bhatti setup"),
    }
}

async fn images(services: &Services) -> Check {
    let store = services.store.clone();
    match blocking(move || Ok(store.images().list()?)).await {
        Ok(images) if images.is_empty() => check("images", Verdict::Fail, "none yet")
            .costs("there is nothing to start a sandbox from")
            .fix("bhatti setup"),
        Ok(images) => {
            let names: Vec<String> = images.iter().map(|image| image.name.to_string()).collect();
            check("images", Verdict::Ok, names.join(", "))
        }
        Err(error) => check("images", Verdict::Fail, error.with_causes()).fix("bhatti setup --force"),
    }
}

async fn accelerator(services: &Services) -> Check {
    const NO_BOUNDARY: &str =
        "guests run about 10 times slower, and TCG is no security boundary: run only what you trust";
    match accel::prove(services, false).await {
        Ok(proof) if proof.accel == Accel::Kvm => {
            check("accelerator", Verdict::Ok, "kvm: a guest booted under it")
        }
        Ok(proof) => check("accelerator", Verdict::Warn, format!("tcg: {}", proof.why_not_kvm))
            .costs(NO_BOUNDARY)
            .fix("use a host whose /dev/kvm runs guests (hardware, or nested virtualisation switched on)"),
        Err(error) => {
            let fix = if error.kind() == ErrorKind::NotReady { "bhatti setup" } else { "" };
            check("accelerator", Verdict::Warn, format!("not known yet: {}", error.with_causes()))
                .costs("it is found out by booting a guest")
                .fix(fix)
        }
    }
}

async fn filesystem(services: &Services) -> Vec<Check> {
    let store = services.store.clone();
    let root = store.root().display().to_string();
    let found = match blocking(move || Ok(store.probe()?)).await {
        Ok(found) => found,
        Err(error) => {
            return vec![
                check("filesystem", Verdict::Fail, error.with_causes())
                    .costs("nothing can be stored")
                    .fix("give another directory with --data-dir, or free some space"),
            ];
        }
    };
    let has = |ability: bool| if ability { "yes" } else { "no" };
    let mut checks = vec![check(
        "filesystem",
        Verdict::Ok,
        format!("{} at {root}, {} free of {}", found.fs_type, found.free, found.total),
    )];
    let reflink =
        check("reflink", if found.reflink { Verdict::Ok } else { Verdict::Warn }, has(found.reflink));
    checks.push(if found.reflink {
        reflink
    } else {
        reflink
            .costs("layout reflink copies the image's data; layout overlay (the default) does not need it")
            .fix("nothing to do for the default layout; else put the data directory on btrfs or xfs")
    });
    let sparse =
        check("sparse files", if found.sparse { Verdict::Ok } else { Verdict::Warn }, has(found.sparse));
    checks.push(if found.sparse {
        sparse
    } else {
        sparse.costs("empty disk and memory takes its full size")
    });
    checks.push(check("compression", Verdict::Ok, has(found.compression)).costs(if found.compression {
        ""
    } else {
        "none: memory images are compressed by bhatti itself"
    }));
    checks
}

async fn layout(services: &Services) -> Check {
    match storage_layout::measure(services, false).await {
        Ok(measured) => check("storage layout", Verdict::Ok, measured.words()),
        Err(error) => {
            let fix = if error.kind() == ErrorKind::NotReady { "bhatti setup" } else { "" };
            check("storage layout", Verdict::Warn, format!("not known yet: {}", error.with_causes()))
                .costs("it is found out by making a few root disks of each")
                .fix(fix)
        }
    }
}

/// How sandboxes can reach the world.
fn network() -> Check {
    match net::User::find(Vec::new()) {
        Ok(user) => check(
            "network",
            Verdict::Ok,
            format!(
                "{} (the default): {}{}",
                net::default_mode(),
                user.passt().display(),
                if net::host_has_v6() { "" } else { ", IPv4 only" }
            ),
        ),
        Err(error) => check("network", Verdict::Warn, format!("none: {error}"))
            .costs("sandboxes have no network: nothing can be installed or fetched in them")
            .fix("apt-get install passt"),
    }
}

/// Whether VMMs can be held to what they may take.
fn limits() -> Check {
    match vm::Cgroups::find().and_then(|found| found.leave().map(|()| found.describe())) {
        Ok(found) => check("limits", Verdict::Ok, found),
        Err(error) => check("limits", Verdict::Warn, format!("no control groups: {error}"))
            .costs("a guest that is at work takes processors from others, and a VMM could take more memory than its guest has")
            .fix("run the daemon as root"),
    }
}

/// What a VMM that its guest took over would be without.
async fn confinement(services: &Services) -> Check {
    let Ok(qemu) = services.qemu().await else {
        return check("confinement", Verdict::Warn, "not known: there is no VMM");
    };
    let program = qemu.path.clone();
    let found = tokio::task::spawn_blocking(move || vm::Confinement::find(&program)).await;
    let kvm = accel::prove(services, false).await.is_ok_and(|proof| proof.accel == Accel::Kvm);
    match found.unwrap_or_else(|ended| Err(ended.into())).map(|found| found.describe(kvm)) {
        Ok((without, keeps)) if keeps.is_empty() => {
            check("confinement", Verdict::Ok, format!("VMMs are without {without}"))
        }
        Ok((without, keeps)) => check(
            "confinement",
            Verdict::Warn,
            format!("VMMs are without {without}; they keep {}", keeps.join(" and ")),
        )
        .costs("a guest that breaks out of its VMM finds more than it should"),
        Err(error) => check("confinement", Verdict::Warn, format!("none: {error}"))
            .costs("a guest that breaks out of its VMM finds more than it should"),
    }
}

fn host() -> Check {
    check("host", Verdict::Ok, format!("{} processors, {} of memory", vm::host_cpus(), vm::host_memory()))
}

fn none_or(error: &crate::Error, none: &str) -> String {
    if error.kind() == ErrorKind::NotFound { none.to_owned() } else { error.with_causes() }
}
