//! Which accelerator guests get: believed only after a guest has booted under it.
//!
//! `/dev/kvm` may exist, open, answer its API version, make machines, and still not run a kernel. So a small guest is
//! booted (kernel and initramfs only; its agent prints a word and powers off) within a limit. The answer is kept in
//! the index until the host, the VMM or the guest kernel is another one.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use types::{Accel, Arch, Mebibytes};
use vm::{End, Machine, MachineSpec, Qemu};

use crate::error::{Error, ErrorKind, Result};
use crate::services::{Services, blocking};

/// How long a guest may take to prove KVM. With working hardware it takes under a second.
const PROOF_TIMEOUT: Duration = Duration::from_secs(15);

/// What the agent prints when it was booted as a proof.
const PROOF_WORD: &str = "bhatti-probe-ok";

const SETTING: &str = "accelerator";

/// A proof, and what it is a proof of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccelProof {
    /// What guests get.
    pub accel: Accel,
    /// Why it is not `kvm`, in words; empty when it is.
    pub why_not_kvm: String,
    /// The host's boot, the VMM and the kernel that this was found out with.
    basis: String,
}

impl Services {
    /// What executes guests here.
    pub(crate) async fn accel(&self) -> Result<Accel> {
        if let Some(forced) = self.config.accel {
            return Ok(forced);
        }
        self.accel.get_or_try_init(|| async { Ok(prove(self, false).await?.accel) }).await.copied()
    }
}

/// The kept proof if it still holds, else a new one; always a new one when `again`.
pub(crate) async fn prove(services: &Services, again: bool) -> Result<AccelProof> {
    let qemu = services.qemu().await?;
    let store = services.store.clone();
    let kernel =
        blocking(move || Ok(store.kernel().get(Arch::host())?)).await.map_err(|error| {
            match error.kind() {
                ErrorKind::NotFound => Error::new(ErrorKind::NotReady, "there is no guest kernel here yet")
                    .hint("run `bhatti setup`"),
                _ => error,
            }
        })?;
    let basis = format!("{} {} {}", vm::host_boot_id(), qemu.version, kernel.id.short());
    if !again
        && let Some(kept) = services.index().get_setting(SETTING)?
        && let Ok(proof) = serde_json::from_str::<AccelProof>(&kept)
        && proof.basis == basis
    {
        return Ok(proof);
    }
    let why_not_kvm = match vm::kvm_opens() {
        Err(reason) => reason,
        Ok(()) => match try_kvm(services, qemu, &kernel).await {
            Ok(()) => String::new(),
            Err(error) => error.with_causes(),
        },
    };
    let accel = if why_not_kvm.is_empty() { Accel::Kvm } else { Accel::Tcg };
    tracing::info!(%accel, why_not_kvm, "accelerator probed");
    let proof = AccelProof { accel, why_not_kvm, basis };
    let text = serde_json::to_string(&proof).map_err(|error| {
        Error::new(ErrorKind::Internal, "a proof could not be written down").source(error)
    })?;
    services.index().set_setting(SETTING, &text)?;
    Ok(proof)
}

/// Boots the smallest guest under KVM.
async fn try_kvm(services: &Services, qemu: &Qemu, kernel: &storage::KernelRecord) -> Result<()> {
    const MEMORY: Mebibytes = Mebibytes(256);
    let (store, key) = (services.store.clone(), kernel.id.clone());
    // A staging directory gives the VMM a place; it is never committed, and so gone at the end.
    let (staged, lock, base) = blocking(move || {
        let staged = store.templates().stage(&key, types::StorageLayout::Reflink)?;
        let lock = vm::no_lock()
            .map_err(|error| Error::new(ErrorKind::Internal, "/dev/null does not open").source(error))?;
        Ok((staged, lock, store.zero_base(MEMORY)?))
    })
    .await?;
    let spec = MachineSpec {
        arch: Arch::host(),
        accel: Accel::Kvm,
        machine_type: Qemu::machine_type(Arch::host()).to_owned(),
        cpu_model: vm::cpu_model(Arch::host(), Accel::Kvm).to_owned(),
        cpus: 1,
        memory: MEMORY,
        kernel: kernel.vmlinuz_from_machine_dir(),
        initramfs: kernel.initramfs_from_machine_dir(),
        extra_cmdline: vec!["bhatti.probe".to_owned()],
        ram_base: base,
        ram_base_writable: !qemu.opens_base_read_only(),
        root: None,
        volumes: Vec::new(),
        config: None,
        nic: None,
        announces: false,
        tsc_khz: None,
        incoming: false,
    };
    let failed = |why: String| Error::new(ErrorKind::NotReady, format!("/dev/kvm opens, but {why}"));
    let machine = Machine::launch(qemu, &spec, staged.dir(), lock)
        .await
        .map_err(|error| failed(format!("the VMM does not run with it: {error}")))?;
    let verdict = match tokio::time::timeout(PROOF_TIMEOUT, machine.ended()).await {
        Err(_elapsed) => {
            Err(failed(format!("a guest did not boot under it within {} s", PROOF_TIMEOUT.as_secs())))
        }
        Ok(End::Shutdown) => match machine.console_tail().await {
            Ok(console) if console.contains(PROOF_WORD) => Ok(()),
            Ok(_) | Err(_) => Err(failed("a guest that booted under it ended too early".to_owned())),
        },
        Ok(End::Panicked) => Err(failed("a guest's kernel panicked under it".to_owned())),
        Ok(End::Gone) => Err(failed("the VMM ended while a guest booted under it".to_owned())),
    };
    machine.kill().await?;
    verdict
}

/// What was asked for, believed unseen.
pub(crate) fn forced(accel: Accel) -> AccelProof {
    AccelProof { accel, why_not_kvm: String::new(), basis: String::new() }
}
