//! A machine's spec as QEMU's command line.
//!
//! # Invariants
//! Every id and every PCI address is written out and never moves: a device state names devices by where they sit
//! (`0000:00:02.0/virtio-blk`), so moving one strands all that were saved. `tests/golden/*.argv` guard this.
//!
//! | slot of `pcie.0` | amd64 | arm64 |
//! |---|---|---|
//! | 0x2 | root disk | same |
//! | 0x3 | config drive | same |
//! | 0x4 | virtio-serial | same |
//! | 0x5 | network card | same |
//! | 0x6.0 to 0x6.3 | ports for hot-plugged devices | same |
//!
//! What is left out was measured (median of 21 starts up to a QMP answer, waiting for a device state): not reading
//! kernel and initramfs saves 18 of 94 ms and 14 MiB of private memory, four ports less save 9 ms, the chipset's
//! disk, USB, keyboard, SMBus and HPET 4 ms. Seccomp costs nothing that could be seen.

use std::ffi::OsString;

use serde_json::{Value, json};
use types::{Accel, Arch};

use crate::error::Result;
use crate::machine::{AGENT_SOCKET, QMP_SOCKET};
use crate::nodes::{self, ROOT_NODE, text};
use crate::spec::{DiskFile, MachineSpec, Nic};
use crate::volumes;

/// Node and device of the config drive.
pub(crate) const CONFIG_NODE: &str = "config";
/// The console's ring buffer.
pub(crate) const CONSOLE: &str = "console";
/// How much of the console the VMM keeps; a power of two.
pub(crate) const CONSOLE_BYTES: u32 = 16 * 1024;
/// The network card, what it is plugged into, and the descriptor of that: standard output, which a VMM without a
/// display and a monitor there has no other use for.
const NIC: &str = "nic";
const LINE: &str = "line";
const LINE_FD: u8 = 1;
/// The memory object.
pub(crate) const RAM: &str = "ram";

/// Ports that devices can be plugged into while the guest runs. Each costs about 2 ms of every start.
pub(crate) const HOTPLUG_PORTS: u8 = 4;

/// Host memory that translated code may take at most; then it is thrown away and made anew. QEMU's own default is
/// up to 1 GiB for each machine.
const TRANSLATION_MIB: u32 = 256;

impl MachineSpec {
    /// The arguments for the program, without its name.
    ///
    /// # Errors
    /// `Refused`: a path that is not UTF-8, which QEMU's JSON cannot carry.
    pub fn argv(&self) -> Result<Vec<OsString>> {
        let root = self.root.is_some().then_some(ROOT_NODE);
        let config = self.config.is_some().then_some(CONFIG_NODE);
        self.argv_over(&self.block_nodes()?, root, config)
    }

    /// The same over other block nodes, with the names of those that the root disk and the config drive are made of.
    pub(crate) fn argv_over(
        &self,
        nodes: &[Value],
        root: Option<&str>,
        config: Option<&str>,
    ) -> Result<Vec<OsString>> {
        let mut args = Args::default();
        args.flag("-nodefaults").flag("-no-user-config").pair("-display", "none");
        args.pair("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        args.pair("-machine", self.machine());
        args.pair("-global", "migration.send-configuration=off");
        args.pair(
            "-accel",
            match self.accel {
                Accel::Kvm => "kvm".to_owned(),
                Accel::Tcg => format!("tcg,thread=multi,tb-size={TRANSLATION_MIB}"),
            },
        );
        args.pair("-cpu", &self.cpu_model);
        args.pair("-smp", format!("cpus={0},sockets=1,cores={0},threads=1,maxcpus={0}", self.cpus));
        args.pair("-m", format!("size={}M", self.memory.0));
        args.pair("-object", self.memory_object()?.to_string());
        if self.reads_kernel() {
            args.pair("-kernel", &self.kernel).pair("-initrd", &self.initramfs);
            args.pair("-append", self.cmdline());
        }
        // A guest that reboots or powers off leaves its VMM paused, so that the console can still be read.
        args.pair("-action", "reboot=shutdown,shutdown=pause,panic=pause");
        args.pair("-chardev", format!("ringbuf,id={CONSOLE},size={CONSOLE_BYTES}"));
        args.pair("-serial", format!("chardev:{CONSOLE}"));
        args.pair("-chardev", format!("socket,id=qmp,path={QMP_SOCKET},server=on,wait=off"));
        args.pair("-mon", "chardev=qmp,mode=control");
        // Sockets are made in this order: once this one is there, QMP's is listening.
        args.pair("-chardev", format!("socket,id=agent,path={AGENT_SOCKET},server=on,wait=off"));
        for node in nodes {
            args.pair("-blockdev", node.to_string());
        }
        if let Some(node) = root {
            args.pair("-device", disk(ROOT_NODE, node, 0x2));
        }
        if let Some(node) = config {
            args.pair("-device", disk(CONFIG_NODE, node, 0x3));
        }
        args.pair("-device", "virtio-serial-pci,id=serial,bus=pcie.0,addr=0x4,disable-legacy=on,max_ports=2");
        args.pair("-device", "virtserialport,id=agent,bus=serial.0,nr=1,chardev=agent,name=bhatti.agent");
        if let Some(nic) = self.nic {
            // Without a file of its own, which would become part of the machine's memory and be run at each boot. The
            // guest takes an address of its own before it sends anything.
            let mut card = format!("virtio-net-pci,id={NIC},bus=pcie.0,addr=0x5,disable-legacy=on,romfile=");
            if !self.announces {
                card.push_str(",guest_announce=off");
            }
            if nic == Nic::Line {
                args.pair("-netdev", format!("stream,id={LINE},server=off,addr.type=fd,addr.str={LINE_FD}"));
                card.push_str(&format!(",netdev={LINE}"));
            }
            args.pair("-device", card);
        }
        for port in 0..HOTPLUG_PORTS {
            args.pair(
                "-device",
                format!(
                    "pcie-root-port,id=port{port},bus=pcie.0,addr=0x6.{port},multifunction=on,chassis={chassis},\
                     slot={chassis}",
                    chassis = port + 1,
                ),
            );
        }
        for volume in &self.volumes {
            args.pair("-device", volumes::device(volume.port).to_string());
        }
        if self.incoming {
            args.flag("-S").pair("-incoming", "defer");
        }
        Ok(args.0)
    }

    /// On x86 the kernel is only read to be put where the firmware finds it, which a machine that gets a state never
    /// asks for; a guest that reboots ends its VMM. On Arm the kernel decides how the machine itself is built (PSCI).
    pub(crate) fn reads_kernel(&self) -> bool {
        !self.incoming || self.arch == Arch::Arm64
    }

    fn machine(&self) -> String {
        let own = match (self.arch, self.accel) {
            (Arch::Amd64, _) => "smm=off,vmport=off,sata=off,usb=off,i8042=off,smbus=off,hpet=off",
            (Arch::Arm64, Accel::Kvm) => "gic-version=host",
            (Arch::Arm64, Accel::Tcg) => "gic-version=3",
        };
        format!("{},memory-backend={RAM},suppress-vmdesc=on,{own}", self.machine_type)
    }

    fn memory_object(&self) -> Result<Value> {
        let mut object = json!({
            "qom-type": "memory-backend-file",
            "id": RAM,
            "mem-path": text(&self.ram_base)?,
            "size": self.memory.bytes().0,
            "share": false,
            "merge": false,
            "dump": false,
            "prealloc": false,
        });
        if !self.ram_base_writable {
            object["readonly"] = json!(true);
            object["rom"] = json!("off");
        }
        Ok(object)
    }

    /// What the kernel is told. Under emulation the guest's TSC ticks as the host's does: told its rate, the kernel does
    /// not calibrate it against timers that a busy host delays (which hung one boot in four). Its watchdog stays: it
    /// notices when a sleeping guest wakes on a host with another rate, and takes another clock.
    fn cmdline(&self) -> String {
        let mut words = vec![match self.arch {
            Arch::Amd64 => "console=ttyS0 reboot=t",
            Arch::Arm64 => "console=ttyAMA0",
        }];
        words.push("panic=-1 quiet");
        if self.arch == Arch::Amd64 {
            // The kernel's self-tests of its ciphers are a sixth of a boot under emulation.
            words.push("cryptomgr.notests");
            if self.accel == Accel::Tcg {
                // What mitigations hold off is the speculation of a processor that this guest does not run on. Not on Arm,
                // where the command line is a part of what a saved state was made with. See decision 0074.
                words.push("no_timer_check mitigations=off");
            }
        }
        let rate = self.tsc_khz.filter(|_| self.arch == Arch::Amd64 && self.accel == Accel::Tcg);
        let rate = rate.map(|khz| format!("tsc_early_khz={khz}"));
        words.extend(rate.as_deref());
        if self.root.is_some() {
            words.push("bhatti.root=/dev/vda");
        }
        words.extend(self.extra_cmdline.iter().map(String::as_str));
        words.join(" ")
    }

    pub(crate) fn block_nodes(&self) -> Result<Vec<Value>> {
        let mut nodes = Vec::new();
        if let Some(root) = &self.root {
            nodes.extend(nodes::root_disk(root)?);
        }
        if let Some(config) = &self.config {
            nodes.extend(nodes::frozen(CONFIG_NODE, &DiskFile::raw(config), None)?);
        }
        for volume in &self.volumes {
            nodes.extend(volumes::nodes(volume)?);
        }
        Ok(nodes)
    }
}

fn disk(name: &str, node: &str, slot: u8) -> String {
    format!(
        "virtio-blk-pci,id={name},bus=pcie.0,addr={slot:#x},drive={node},serial={name},disable-legacy=on,num-queues=1"
    )
}

#[derive(Default)]
struct Args(Vec<OsString>);

impl Args {
    fn flag(&mut self, flag: &str) -> &mut Self {
        self.0.push(flag.into());
        self
    }

    fn pair(&mut self, flag: &str, value: impl Into<OsString>) -> &mut Self {
        self.0.push(flag.into());
        self.0.push(value.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::spec::{RootDisk, VolumeDisk, testing};
    use std::path::PathBuf;

    fn golden(name: &str, spec: &MachineSpec) {
        golden_argv(name, spec.argv().unwrap());
    }

    fn golden_argv(name: &str, argv: Vec<OsString>) {
        let lines: Vec<_> = argv.iter().map(|arg| arg.to_str().unwrap()).collect();
        let text = lines.join("\n") + "\n";
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        if std::env::var_os("BHATTI_BLESS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            text, kept,
            "{name}: a changed command line strands saved states; see `# Invariants` above"
        );
    }

    #[test]
    fn the_command_lines_are_those_that_states_were_saved_with() {
        for (arch, accel) in [
            (Arch::Amd64, Accel::Tcg),
            (Arch::Amd64, Accel::Kvm),
            (Arch::Arm64, Accel::Tcg),
            (Arch::Arm64, Accel::Kvm),
        ] {
            let mut spec = testing::spec(arch, accel);
            golden(&format!("{arch}-{accel}-boot.argv"), &spec);
            spec.incoming = true;
            spec.root = Some(RootDisk { top: DiskFile::raw("rootfs.ext4"), below: Vec::new() });
            spec.ram_base_writable = true;
            golden(&format!("{arch}-{accel}-incoming.argv"), &spec);
            golden_argv(&format!("{arch}-{accel}-blank.argv"), spec.blank().unwrap().argv().unwrap());
        }
        let mut spec = testing::spec(Arch::Amd64, Accel::Tcg);
        let volume = |port, read_only| VolumeDisk {
            port,
            path: format!("../../volumes/admin/v{port}.ext4").into(),
            read_only,
        };
        spec.volumes = vec![volume(0, false), volume(3, true)];
        golden("amd64-tcg-volumes.argv", &spec);
        spec.volumes.clear();
        for (name, nic) in [("nothing", Nic::Nothing), ("line", Nic::Line)] {
            spec.nic = Some(nic);
            golden(&format!("amd64-tcg-nic-{name}.argv"), &spec);
        }
        spec.announces = true;
        golden("amd64-tcg-nic-announces.argv", &spec);
        spec.nic = None;
        spec.incoming = true;
        let image = DiskFile::raw("../../images/rootfs-minimal.ext4");
        let layer = |id: &str| DiskFile::qcow2(format!("../../layers/{id}.qcow2"));
        for (name, below) in [
            ("two-layers", vec![layer("2222222222222222"), layer("1111111111111111"), image]),
            (
                "raw-layer",
                vec![layer("2222222222222222"), DiskFile::raw("../../layers/1111111111111111.ext4")],
            ),
        ] {
            spec.root = Some(RootDisk { top: DiskFile::qcow2("rootfs.qcow2"), below });
            golden(&format!("amd64-tcg-{name}.argv"), &spec);
        }
    }

    #[test]
    fn a_machine_without_disks_has_none() {
        let mut spec = testing::spec(Arch::Amd64, Accel::Kvm);
        (spec.root, spec.config) = (None, None);
        let argv = spec.argv().unwrap();
        assert!(argv.iter().all(|arg| arg != "-blockdev"));
        assert!(argv.iter().all(|arg| !arg.to_string_lossy().contains("bhatti.root")));
    }

    #[test]
    fn commas_and_quotes_in_paths_are_only_letters() {
        let mut spec = testing::spec(Arch::Amd64, Accel::Tcg);
        spec.ram_base = "a,share=on\"b.ram".into();
        let raw = |path: PathBuf| Some(RootDisk { top: DiskFile::raw(path), below: Vec::new() });
        spec.root = raw("a,b\"c".into());
        let argv = spec.argv().unwrap();
        let objects: Vec<Value> = argv
            .iter()
            .filter_map(|arg| serde_json::from_str(arg.to_str().unwrap()).ok())
            .filter(Value::is_object)
            .collect();
        assert_eq!(objects[0]["mem-path"], "a,share=on\"b.ram");
        assert_eq!(objects[1]["filename"], "a,b\"c");
        use std::os::unix::ffi::OsStringExt as _;
        spec.root = raw(PathBuf::from(OsString::from_vec(vec![0xff])));
        assert_eq!(spec.argv().unwrap_err().kind(), ErrorKind::Refused);
    }

    #[test]
    fn nothing_lies_below_a_raw_file() {
        let (raw, qcow2) = (|| DiskFile::raw("r"), || DiskFile::qcow2("q"));
        let mut spec = testing::spec(Arch::Amd64, Accel::Tcg);
        for (top, below, fine) in [
            (raw(), vec![], true),
            (qcow2(), vec![], true),
            (qcow2(), vec![qcow2(), raw()], true),
            (qcow2(), vec![qcow2(), qcow2()], true),
            (raw(), vec![raw()], false),
            (qcow2(), vec![raw(), qcow2()], false),
            (qcow2(), vec![qcow2(), raw(), raw()], false),
        ] {
            spec.root = Some(RootDisk { top, below });
            match spec.argv() {
                Ok(_) => assert!(fine, "{:?}", spec.root),
                Err(error) => assert!(!fine && error.kind() == ErrorKind::Refused, "{error}"),
            }
        }
    }
}
