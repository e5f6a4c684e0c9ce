//! What there is without bhatti: a machine of the same shape that boots, and QEMU's own migration to and from a file and
//! its snapshots inside a disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest::{AttachOptions, ExecEvent, Guest};
use storage::{KernelRecord, Store, layout};
use types::{Accel, Arch, ContentId, Mebibytes, StorageLayout};
use vm::{DiskFile, Machine, MachineSpec, Nic, Qemu, RootDisk};

use crate::error::{During as _, Error, Result};
use crate::pages::Pages;

/// Size of the guest that everything is compared on.
const MEMORY: Mebibytes = Mebibytes(512);

const PATIENCE: Duration = Duration::from_secs(180);

/// What one life of a plain machine took.
pub(crate) struct Life {
    /// From the start of its VMM to the end of its first command.
    pub(crate) boot: Duration,
    /// From the order to migrate until the file is whole, as QEMU comes (128 MiB/s at most).
    pub(crate) save: Duration,
    /// The same without that limit.
    pub(crate) save_uncapped: Duration,
    /// The file's allocated size.
    pub(crate) saved_bytes: u64,
    /// From the start of a VMM that loads the file to the end of its first command.
    pub(crate) load: Duration,
    /// From `savevm` until the disk that has the state is on stable storage.
    pub(crate) savevm: Duration,
    /// From the start of a VMM over that disk, `loadvm`, to the end of its first command.
    pub(crate) loadvm: Duration,
}

/// What a plain machine is made of, for another VMM manager.
pub(crate) struct Parts {
    /// Holds its disks.
    _staged: storage::StagedTemplate,
    pub(crate) arch: Arch,
    pub(crate) accel: Accel,
    pub(crate) memory: Mebibytes,
    pub(crate) machine_type: String,
    pub(crate) cpu_model: String,
    pub(crate) qemu: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    pub(crate) cmdline: String,
    /// Root disk, qcow2.
    pub(crate) root: PathBuf,
    /// Config drive, raw.
    pub(crate) config: PathBuf,
}

/// The parts of a plain machine.
pub(crate) struct Reference {
    store: Store,
    qemu: Qemu,
    kernel: KernelRecord,
    image: storage::ImageRecord,
    accel: Accel,
    runtime: tokio::runtime::Runtime,
}

impl Reference {
    pub(crate) fn new(data_dir: &Path) -> Result<Self> {
        let store = Store::open(data_dir).during("opening the data directory")?;
        let arch = Arch::host();
        let name = "minimal".parse().during("naming the image")?;
        let templates = store.templates().list().during("looking for a template")?;
        let template = templates.into_iter().find_map(|(_, template)| template.ok());
        let accel =
            template.ok_or_else(|| Error::new("looking for a template", "there is none"))?.spec.machine.accel;
        Ok(Self {
            qemu: Qemu::discover(None, arch).during("looking for QEMU")?,
            kernel: store.kernel().get(arch).during("looking for the kernel")?,
            image: store.images().resolve(&name, arch).during("looking for the image")?,
            accel,
            runtime: tokio::runtime::Runtime::new().during("starting a runtime")?,
            store,
        })
    }

    fn spec(&self, incoming: bool) -> Result<MachineSpec> {
        let arch = Arch::host();
        Ok(MachineSpec {
            arch,
            accel: self.accel,
            machine_type: Qemu::machine_type(arch).to_owned(),
            cpu_model: vm::cpu_model(arch, self.accel).to_owned(),
            cpus: 1,
            memory: MEMORY,
            kernel: self.kernel.vmlinuz_from_machine_dir(),
            initramfs: self.kernel.initramfs_from_machine_dir(),
            extra_cmdline: Vec::new(),
            ram_base: self.store.zero_base(MEMORY).during("making a RAM base")?,
            ram_base_writable: !self.qemu.opens_base_read_only(),
            root: Some(RootDisk {
                top: DiskFile::qcow2(layout::root_disk(StorageLayout::Overlay)),
                below: vec![DiskFile::raw(self.image.path_from_machine_dir())],
            }),
            config: Some(PathBuf::from(layout::CONFIG_DRIVE)),
            volumes: Vec::new(),
            nic: None,
            announces: false,
            tsc_khz: vm::host_tsc_khz(),
            incoming,
        })
    }

    /// Boots, runs a command, migrates to a file, loads it, runs a command.
    pub(crate) fn live(&self) -> Result<Life> {
        let staged = self.stage()?;
        self.runtime.block_on(self.measured(&staged))
    }

    /// From the start of a VMM to the end of its guest's first command.
    pub(crate) fn boot(&self) -> Result<Duration> {
        let staged = self.stage()?;
        self.runtime.block_on(async {
            let began = Instant::now();
            let machine = self.launch(&staged, false).await?;
            let ran = run(&machine, &["true"]).await.map(|()| began.elapsed());
            machine.kill().await.during("ending the VMM")?;
            ran
        })
    }

    /// The floor of a wake: from the start of a VMM over the template's RAM base, its device state loaded, to the end
    /// of the guest's first command.
    pub(crate) fn load_template(&self, memory: Mebibytes) -> Result<Duration> {
        let during = "looking for a template";
        let templates = self.store.templates();
        let mut all = templates.list().during(during)?.into_iter().filter_map(|(_, template)| template.ok());
        let template = all
            .find(|template| template.spec.memory_mib == memory && template.spec.image.id == self.image.id)
            .ok_or_else(|| Error::new(during, "there is none of that size"))?;
        let spec = &template.spec;
        let key = ContentId::from_hash(&[0xbf; 32]);
        let staged = templates.stage(&key, spec.layout).during("staging a machine")?;
        let root = templates.dir(&template.key).join(template.root_disk());
        storage::clone_file(&root, &staged.root_disk_path()).during("cloning a template's disk")?;
        config_drive(&staged)?;
        let devices = templates.open_devices(&template).during("opening a device state")?;
        let top = PathBuf::from(layout::root_disk(spec.layout));
        let root = match spec.layout {
            StorageLayout::Overlay => RootDisk {
                top: DiskFile::qcow2(top),
                below: vec![DiskFile::raw(self.image.path_from_machine_dir())],
            },
            StorageLayout::Reflink => RootDisk { top: DiskFile::raw(top), below: Vec::new() },
        };
        let machine_spec = MachineSpec {
            machine_type: spec.machine.machine_type.clone(),
            cpu_model: spec.machine.cpu_model.clone(),
            cpus: spec.cpus,
            memory,
            ram_base: self.store.ram_base(&template.ram_base(), memory).during("looking for a RAM base")?,
            root: Some(root),
            // The state that is loaded has one.
            nic: Some(Nic::Nothing),
            announces: spec.machine.devices.iter().any(|device| device.kind == "virtio-net"),
            tsc_khz: None,
            ..self.spec(true)?
        };
        let lock = staged.lock_root().during("locking the disk")?;
        self.runtime.block_on(async {
            let began = Instant::now();
            let machine = Machine::launch(&self.qemu, &machine_spec, staged.dir(), lock)
                .await
                .during("starting the VMM")?;
            let ran = async {
                machine.load_devices(devices).await.during("loading a device state")?;
                machine.resume().await.during("resuming")?;
                run(&machine, &["true"]).await?;
                Ok(began.elapsed())
            }
            .await;
            machine.kill().await.during("ending the VMM")?;
            ran
        })
    }

    /// What a guest has in its memory after it has booted and run a command.
    pub(crate) fn memory_after(&self, argv: &[&str]) -> Result<Pages> {
        let staged = self.stage()?;
        self.runtime.block_on(async {
            let machine = self.launch(&staged, false).await?;
            let read = async {
                run(&machine, argv).await?;
                machine.pause().await.during("pausing")?;
                Pages::of(&machine.ram().during("looking at guest memory")?).during("reading guest memory")
            }
            .await;
            machine.kill().await.during("ending the VMM")?;
            read
        })
    }

    /// The machine's parts, with whole paths.
    pub(crate) fn parts(&self) -> Result<Parts> {
        let during = "naming the parts of a machine";
        let staged = self.stage()?;
        let spec = self.spec(false)?;
        let argv = spec.argv().during(during)?;
        let cmdline = argv.iter().skip_while(|word| *word != "-append").nth(1);
        let cmdline = cmdline.ok_or_else(|| Error::new(during, "it has no kernel"))?;
        let cmdline = cmdline.to_string_lossy().into_owned();
        let whole = |path: &Path| staged.dir().join(path).canonicalize().during(during);
        Ok(Parts {
            arch: spec.arch,
            accel: spec.accel,
            memory: spec.memory,
            machine_type: spec.machine_type.clone(),
            cpu_model: spec.cpu_model.clone(),
            qemu: in_path(&self.qemu.path),
            kernel: whole(&spec.kernel)?,
            initramfs: whole(&spec.initramfs)?,
            cmdline,
            root: whole(Path::new(layout::root_disk(StorageLayout::Overlay)))?,
            config: whole(Path::new(layout::CONFIG_DRIVE))?,
            _staged: staged,
        })
    }

    /// Attaches to the agent at the other end of `socket` and runs a command.
    pub(crate) fn first_command(&self, socket: &Path) -> Result<()> {
        self.runtime.block_on(async {
            let channel = tokio::net::UnixStream::connect(socket).await.during("opening the channel")?;
            run_on(channel, &["true"]).await
        })
    }

    /// A staging directory that is never committed: gone at the end, whatever happens.
    fn stage(&self) -> Result<storage::StagedTemplate> {
        let key = ContentId::from_hash(&[0xbe; 32]);
        let staged =
            self.store.templates().stage(&key, StorageLayout::Overlay).during("staging a machine")?;
        let base = self.image.path_from_machine_dir();
        image::qemu_img_create_overlay(
            &staged.root_disk_path(),
            &base,
            image::BackingFormat::Raw,
            self.image.size,
        )
        .during("making a disk")?;
        config_drive(&staged)?;
        Ok(staged)
    }

    async fn measured(&self, staged: &storage::StagedTemplate) -> Result<Life> {
        let began = Instant::now();
        let machine = self.launch(staged, false).await?;
        let outcome = async {
            run(&machine, &["true"]).await?;
            let boot = began.elapsed();
            machine.pause().await.during("pausing")?;
            let path = staged.dir().join("reference.mig");
            let (save_uncapped, _) = save(&machine, &path, true).await?;
            // What was migrated away must run again before it may be migrated once more.
            machine.resume().await.during("resuming")?;
            machine.pause().await.during("pausing")?;
            let (save, saved_bytes) = save(&machine, &path, false).await?;
            Ok::<_, Error>((boot, save, save_uncapped, saved_bytes, path))
        }
        .await;
        machine.kill().await.during("ending the VMM")?;
        let (boot, save, save_uncapped, saved_bytes, path) = outcome?;
        let file = File::open(&path).during("opening what was saved")?;
        let began = Instant::now();
        let machine = self.launch(staged, true).await?;
        let loaded = async {
            machine.load_devices(file).await.during("loading what was saved")?;
            machine.resume().await.during("resuming")?;
            run(&machine, &["true"]).await?;
            let load = began.elapsed();
            machine.pause().await.during("pausing")?;
            let began = Instant::now();
            machine.save_into_disk().await.during("savevm")?;
            let disk = File::open(staged.root_disk_path()).during("opening the disk")?;
            disk.sync_all().during("syncing the disk")?;
            Ok::<_, Error>((load, began.elapsed()))
        }
        .await;
        machine.kill().await.during("ending the VMM")?;
        let (load, savevm) = loaded?;
        let began = Instant::now();
        let machine = self.launch(staged, false).await?;
        let loaded = async {
            machine.load_from_disk().await.during("loadvm")?;
            // Saved while it was paused, it is so again.
            machine.resume().await.during("resuming")?;
            run(&machine, &["true"]).await?;
            Ok::<_, Error>(began.elapsed())
        }
        .await;
        machine.kill().await.during("ending the VMM")?;
        Ok(Life { boot, save, save_uncapped, saved_bytes, load, savevm, loadvm: loaded? })
    }

    async fn launch(&self, staged: &storage::StagedTemplate, incoming: bool) -> Result<Machine> {
        for socket in [layout::QMP_SOCKET, layout::AGENT_SOCKET] {
            match std::fs::remove_file(staged.dir().join(socket)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::new(socket, error));
                }
                _ => {}
            }
        }
        let lock = staged.lock_root().during("locking the disk")?;
        let spec = self.spec(incoming)?;
        Machine::launch(&self.qemu, &spec, staged.dir(), lock).await.during("starting the VMM")
    }
}

/// Where a program is that was found by its name alone.
fn in_path(program: &Path) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file());
    found.unwrap_or_else(|| program.to_owned())
}

/// The config drive of a guest that is nobody.
fn config_drive(staged: &storage::StagedTemplate) -> Result<()> {
    let env = BTreeMap::new();
    let drive = image::ConfigDrive { env: &env, init: None, defaults: &Default::default(), files: &[] };
    image::config_drive(&staged.dir().join(layout::CONFIG_DRIVE), &drive).during("making a config drive")
}

/// Attaches to the agent and runs a command.
async fn run(machine: &Machine, argv: &[&str]) -> Result<()> {
    run_on(machine.open_channel().await.during("opening the channel")?, argv).await
}

/// The same over a channel that is open.
async fn run_on(channel: tokio::net::UnixStream, argv: &[&str]) -> Result<()> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let options = AttachOptions::plain(deadline);
    let (guest, _welcome) = Guest::attach(channel, options).await.during("attaching")?;
    let argv = argv.iter().map(|word| (*word).to_owned()).collect();
    let exec = wire::Exec { argv, ..wire::Exec::default() };
    let mut stream = guest.exec(exec).await.during("running a command")?;
    while let Some(event) = stream.next().await {
        if let ExecEvent::Exit(status) = event {
            if status.code != Some(0) {
                return Err(Error::new("running a command", format!("{status:?}")));
            }
            return guest.detach(deadline).await.during("detaching");
        }
    }
    Err(Error::new("running a command", "the stream broke off"))
}

/// QEMU's own migration of the paused guest into a file; the file's allocated bytes.
async fn save(machine: &Machine, path: &Path, uncapped: bool) -> Result<(Duration, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let file = File::create(path).during("making the file")?;
    let kept = file.try_clone().during("keeping the file")?;
    let began = Instant::now();
    machine.migrate_to_file(file, uncapped).await.during("migrating to a file")?;
    kept.sync_all().during("syncing the file")?;
    Ok((began.elapsed(), kept.metadata().during("looking at the file")?.blocks() * 512))
}
