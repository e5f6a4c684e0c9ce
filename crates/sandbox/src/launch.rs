//! From a manifest to a machine that runs it: which files, which devices, which base.

use std::path::PathBuf;
use std::time::Duration;

use guest::{AttachOptions, Guest};
use storage::{DeviceRecord, LayerFormat, LayerRef, MachineRecord, Manifest, layout};
use tokio::time::Instant;
use types::{Accel, Arch, Bytes, ContentId, Mebibytes, SandboxId, SandboxName, StorageLayout};
use vm::{DiskFile, DiskFormat, End, Machine, MachineSpec, Nic, Qemu, RootDisk};

use crate::error::{Error, ErrorKind, Result};
use crate::network::{self, CARD};

/// How long a guest that runs already may take to answer an attach.
pub(crate) const ATTACH_TIMEOUT: Duration = Duration::from_secs(30);

/// The machine that new templates and cold boots get on this host.
pub(crate) fn machine_record(qemu: &Qemu, accel: Accel) -> MachineRecord {
    let arch = Arch::host();
    MachineRecord {
        qemu_version: qemu.version.to_string(),
        machine_type: Qemu::machine_type(arch).to_owned(),
        accel,
        cpu_model: vm::cpu_model(arch, accel).to_owned(),
        devices: [
            ("root", "virtio-blk"),
            ("config", "virtio-blk"),
            ("agent", "virtio-serial"),
            (CARD, network::QUIET_CARD),
        ]
        .into_iter()
        .map(|(id, kind)| DeviceRecord { id: id.into(), kind: kind.into(), port: id.into() })
        .collect(),
    }
}

/// What of a machine comes from the sandbox or template itself.
#[derive(Debug, Clone)]
pub(crate) struct Frame<'a> {
    pub(crate) machine: &'a MachineRecord,
    pub(crate) layout: StorageLayout,
    /// The frozen layers under the root disk, nearest first, as seen from the machine's directory.
    pub(crate) below: Vec<(LayerRef, PathBuf)>,
    pub(crate) image: &'a ContentId,
    pub(crate) cpus: u32,
    pub(crate) memory: Mebibytes,
    /// The config drive, as seen from the machine's directory.
    pub(crate) config: PathBuf,
    /// Disks on ports, as seen from the machine's directory.
    pub(crate) volumes: Vec<vm::VolumeDisk>,
}

impl<'a> Frame<'a> {
    pub(crate) fn of(manifest: &'a Manifest, below: Vec<(LayerRef, PathBuf)>) -> Self {
        Self {
            machine: &manifest.machine,
            layout: manifest.layout,
            below,
            image: &manifest.image.id,
            cpus: manifest.cpus,
            memory: manifest.memory_mib,
            config: PathBuf::from(layout::CONFIG_DRIVE),
            volumes: crate::attached::disks(manifest),
        }
    }

    fn root_disk(&self) -> RootDisk {
        let path = PathBuf::from(layout::root_disk(self.layout));
        if self.layout == StorageLayout::Reflink {
            return RootDisk { top: DiskFile { path, format: DiskFormat::Raw }, below: Vec::new() };
        }
        let format = |layer: &LayerRef| match layer.format {
            LayerFormat::Qcow2 => DiskFormat::Qcow2,
            LayerFormat::Raw => DiskFormat::Raw,
        };
        let layers = self.below.iter();
        let mut below: Vec<_> =
            layers.map(|(layer, path)| DiskFile { path: path.clone(), format: format(layer) }).collect();
        if below.last().is_none_or(|last| last.format != DiskFormat::Raw) {
            below.push(DiskFile {
                path: storage::object_from_machine_dir(self.image),
                format: DiskFormat::Raw,
            });
        }
        RootDisk { top: DiskFile { path, format: DiskFormat::Qcow2 }, below }
    }

    /// The spec of the machine; `ram_base` as seen from its directory, `line` whether it is launched with one.
    pub(crate) fn spec(
        &self,
        qemu: &Qemu,
        kernel: &storage::KernelRecord,
        ram_base: PathBuf,
        incoming: bool,
        line: bool,
    ) -> MachineSpec {
        MachineSpec {
            arch: Arch::host(),
            accel: self.machine.accel,
            machine_type: self.machine.machine_type.clone(),
            cpu_model: self.machine.cpu_model.clone(),
            cpus: self.cpus,
            memory: self.memory,
            kernel: kernel.vmlinuz_from_machine_dir(),
            initramfs: kernel.initramfs_from_machine_dir(),
            extra_cmdline: Vec::new(),
            ram_base,
            ram_base_writable: !qemu.opens_base_read_only(),
            root: Some(self.root_disk()),
            config: Some(self.config.clone()),
            announces: network::announces(self.machine),
            nic: network::has_card(self.machine).then_some(if line { Nic::Line } else { Nic::Nothing }),
            volumes: self.volumes.clone(),
            // A guest that sleeps already knows its rate.
            tsc_khz: if incoming { None } else { vm::host_tsc_khz() },
            incoming,
        }
    }
}

/// Who a guest is to be after a boot or a clone.
pub(crate) fn identity(id: &SandboxId, name: &SandboxName, first_boot: bool) -> wire::Identity {
    // Derived from the id, so that a boot from the disk gives the guest the machine-id that its disk knows.
    let hash = blake3::hash(id.as_str().as_bytes());
    wire::Identity {
        sandbox_id: id.to_string(),
        hostname: name.to_string(),
        machine_id: hash.to_hex()[..32].to_owned(),
        read_config: true,
        first_boot,
        config: None,
    }
}

/// What a guest is told first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Greeting {
    /// Who it is from now on.
    pub(crate) identity: Option<wire::Identity>,
    /// Whether its agent may have been in the middle of a frame.
    pub(crate) pad: bool,
    /// The size to which its root file system is to grow.
    pub(crate) grow: Option<Bytes>,
    /// What is to be mounted before anything of the sandbox's own runs.
    pub(crate) mounts: Vec<wire::VolumeMount>,
    /// The sandbox's secrets as they are now; `None` leaves those that it knows.
    pub(crate) secrets: Option<wire::Secrets>,
    /// How it reaches the world.
    pub(crate) net: Option<wire::Net>,
}

impl Greeting {
    /// Nothing but a word, to a guest that knows everything.
    pub(crate) fn plain(pad: bool) -> Self {
        Self { pad, ..Self::default() }
    }
}

/// Connects to the agent of a machine that has just been let go, and waits until it has done what the greeting asks.
/// A machine that ends instead, or does not answer in time, is an error with the console's last lines.
pub(crate) async fn attach(
    machine: &Machine,
    greeting: Greeting,
    timeout: Duration,
) -> Result<(Guest, wire::Welcome)> {
    let channel = machine.open_channel().await?;
    let told = greeting.secrets.is_some();
    let options = AttachOptions {
        pad: greeting.pad,
        identity: greeting.identity,
        grow_root_to: greeting.grow.map(|size| size.0),
        volumes: greeting.mounts,
        secrets: greeting.secrets,
        net: greeting.net,
        deadline: Instant::now() + timeout,
    };
    let why = tokio::select! {
        attached = Guest::attach(channel, options) => match attached {
            Ok((_, welcome)) if told && !welcome.secrets => {
                return Err(Error::new(ErrorKind::NotReady, "the agent in this guest is too old for secrets")
                    .hint("run `bhatti setup`, and create the sandbox anew"));
            }
            Ok(attached) => return Ok(attached),
            Err(error) if error.kind() == guest::ErrorKind::Timeout => {
                format!("the guest did not answer within {} s", timeout.as_secs())
            }
            Err(error) => format!("the guest's agent failed: {error}"),
        },
        end = machine.ended() => match end {
            End::Shutdown => "the guest powered off while it was starting".to_owned(),
            End::Panicked => "the guest's kernel panicked while it was starting".to_owned(),
            End::Gone => "the VMM ended while the guest was starting".to_owned(),
        },
    };
    Err(with_console(machine, why).await)
}

/// A failure of a guest, with the last lines of its console.
async fn with_console(machine: &Machine, why: String) -> Error {
    const LINES: usize = 8;
    let console = machine.console_tail().await.unwrap_or_default();
    let lines: Vec<&str> = console.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let tail = lines[lines.len().saturating_sub(LINES)..].join(" | ");
    let message = if tail.is_empty() { why } else { format!("{why}; its console ended with: {tail}") };
    Error::new(ErrorKind::GuestTimeout, message).hint("`bhatti doctor` checks kernel and accelerator")
}
