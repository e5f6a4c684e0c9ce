//! libvirt's `managedsave` and `start` of the same guest, where libvirt is installed.
//!
//! virsh(1) carries libvirt's driver itself (`qemu:///embed`, with a root directory of its own), so nothing of the host's
//! libvirt is asked, changed or left behind.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;

use crate::error::{During as _, Error, Result};
use crate::reference::{Parts, Reference};

const DOMAIN: &str = "bhatti-bench";
const CONFIGURATION: &str = "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\nnamespaces = []\n\
                             cgroup_controllers = []\nremember_owner = 0\nstdio_handler = \"file\"\n";

/// How long virsh may take over one command. A boot, the longest, takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one life of libvirt's domain took.
pub(crate) struct Life {
    /// From `managedsave` until it has returned.
    pub(crate) save: Duration,
    /// The file's allocated size.
    pub(crate) saved_bytes: u64,
    /// From `start` to the end of the guest's first command.
    pub(crate) load: Duration,
}

/// A virsh that is asked one command after the other.
pub(crate) struct Libvirt {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
    asked: usize,
    /// It did not answer, and is not asked again.
    stuck: bool,
    dir: TempDir,
}

impl Libvirt {
    /// With all its files below `beside`.
    ///
    /// # Errors
    /// It is not installed, or has no driver for QEMU.
    pub(crate) fn start(beside: &Path) -> Result<Self> {
        const DURING: &str = "starting virsh (Debian's libvirt-clients and libvirt-daemon-system)";
        let dir = tempfile::Builder::new().prefix(".virsh-").tempdir_in(beside).during(DURING)?;
        let root = dir.path().canonicalize().during(DURING)?;
        fs::create_dir(root.join("etc")).during(DURING)?;
        fs::write(root.join("etc/qemu.conf"), CONFIGURATION).during(DURING)?;
        let log = fs::File::create(root.join("virsh.log")).during(DURING)?;
        // It keeps what it says until it ends, where nobody looks at it on a terminal (stdbuf(1) of coreutils).
        let mut child = Command::new("stdbuf")
            .args(["-o0", "virsh", "--quiet", "--connect"])
            .arg(format!("qemu:///embed?root={}", root.display()))
            // Ctrl-C is for the bench, which still needs it to end the domain.
            .process_group(0)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .during(DURING)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::new(DURING, "it has no input or output"));
        };
        let mut virsh = Self { child, input, output, asked: 0, stuck: false, dir };
        virsh.ask("version").during(DURING)?;
        Ok(virsh)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Has it execute a command and returns when that is done.
    fn ask(&mut self, command: &str) -> Result<()> {
        let during = format!("virsh {command}");
        if self.stuck {
            return Err(Error::new(during, "virsh does not answer any more"));
        }
        self.asked += 1;
        // It repeats what it is told, with as many blanks as were typed, and says it with one.
        let done = format!("end of {};", self.asked);
        let before = self.log().len();
        writeln!(self.input, "{command}\necho '{}'", done.replace(' ', "'  '")).during(&during)?;
        self.input.flush().during(&during)?;
        let (mut said, until) = (Vec::new(), Instant::now() + PATIENCE);
        while !String::from_utf8_lossy(&said).contains(&done) {
            let heard = self.hear(until);
            self.stuck = heard.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut);
            let heard = heard.during(&during)?;
            if heard.is_empty() {
                return Err(Error::new(during, self.log()));
            }
            said.extend(heard);
        }
        // It warns there, too, of what is said in its configuration.
        let said = self.log();
        let errors: Vec<_> = said
            .get(before..)
            .unwrap_or_default()
            .lines()
            .filter(|line| line.starts_with("error:"))
            .collect();
        if errors.is_empty() { Ok(()) } else { Err(Error::new(during, errors.join("; "))) }
    }

    /// What it says next; nothing when it has ended.
    fn hear(&mut self, until: Instant) -> io::Result<Vec<u8>> {
        let left = Timespec::try_from(until.saturating_duration_since(Instant::now()));
        let left = left.map_err(io::Error::other)?;
        if poll(&mut [PollFd::new(&self.output, PollFlags::IN)], Some(&left))? == 0 {
            let why = format!("no answer within {} s", PATIENCE.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        let mut heard = vec![0; 4096];
        let len = self.output.read(&mut heard)?;
        heard.truncate(len);
        Ok(heard)
    }

    /// Whether it ends in time, having been told to.
    fn ends(&mut self) -> bool {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.hear(until) {
                Ok(heard) if heard.is_empty() => return true,
                Ok(_more) => {}
                Err(_late) => return false,
            }
        }
    }

    /// Ends it with what it has started, without its help.
    fn kill(&self) {
        let pid = |text: String| text.trim().parse().ok().and_then(Pid::from_raw);
        let machine = fs::read_to_string(self.path(&format!("run/qemu/{DOMAIN}.pid"))).ok().and_then(pid);
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _gone = kill_process_group(group, Signal::KILL);
        }
        if let Some(machine) = machine {
            let _gone = kill_process(machine, Signal::KILL);
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("virsh.log")).unwrap_or_default()
    }

    /// Boots the reference's guest as a domain, runs a command, saves it, loads it, runs a command.
    pub(crate) fn live(&mut self, reference: &Reference) -> Result<Life> {
        let parts = reference.parts()?;
        let (socket, xml) = (self.path("agent.sock"), self.path("domain.xml"));
        fs::write(&xml, domain(&parts, &socket, &self.path("console"))).during("describing a domain")?;
        self.ask(&format!("define '{}'", xml.display()))?;
        let lived = self.lived(reference, &socket);
        // In whatever state it is; where it is not running any more there is nothing to end.
        let _ended = self.ask(&format!("destroy {DOMAIN}"));
        let forgotten = self.ask(&format!("undefine {DOMAIN} --managed-save"));
        let life = lived?;
        forgotten.map(|()| life)
    }

    fn lived(&mut self, reference: &Reference, socket: &Path) -> Result<Life> {
        use std::os::unix::fs::MetadataExt as _;
        self.ask(&format!("start {DOMAIN}"))?;
        reference.first_command(socket)?;
        let began = Instant::now();
        self.ask(&format!("managedsave {DOMAIN}"))?;
        let save = began.elapsed();
        let file = self.path(&format!("lib/qemu/save/{DOMAIN}.save"));
        let saved_bytes = file.metadata().during("looking at what virsh saved")?.blocks() * 512;
        let began = Instant::now();
        self.ask(&format!("start {DOMAIN}"))?;
        reference.first_command(socket)?;
        Ok(Life { save, saved_bytes, load: began.elapsed() })
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        // A domain that is there still ends first; what fails here fails on the way out and has nobody to tell.
        let _told = writeln!(self.input, "destroy {DOMAIN}\nquit");
        let _sent = self.input.flush();
        if self.stuck || !self.ends() {
            self.kill();
        }
        let _ended = self.child.wait();
    }
}

/// The reference's machine in libvirt's words.
fn domain(parts: &Parts, socket: &Path, console: &Path) -> String {
    let kind = match parts.accel {
        types::Accel::Kvm => "kvm",
        types::Accel::Tcg => "qemu",
    };
    let arch = match parts.arch {
        types::Arch::Amd64 => "x86_64",
        types::Arch::Arm64 => "aarch64",
    };
    let disk = |file: &Path, format: &str, target: &str, more: &str| {
        format!(
            "<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{}'/>\
             <target dev='{target}' bus='virtio'/>{more}</disk>",
            escaped(&file.display().to_string())
        )
    };
    let path = |path: &Path| escaped(&path.display().to_string());
    format!(
        "<domain type='{kind}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>{DOMAIN}</name>\
         <memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>\
         <os><type arch='{arch}' machine='{machine}'>hvm</type><kernel>{kernel}</kernel><initrd>{initrd}</initrd>\
         <cmdline>{cmdline}</cmdline></os><features><acpi/></features>\
         <devices><emulator>{qemu}</emulator>{root}{config}\
         <channel type='unix'><source mode='bind' path='{socket}'/><target type='virtio' name='bhatti.agent'/></channel>\
         <serial type='file'><source path='{console}'/></serial><memballoon model='none'/></devices>\
         <qemu:commandline><qemu:arg value='-cpu'/><qemu:arg value='{cpu}'/></qemu:commandline></domain>\n",
        memory = parts.memory.0,
        machine = escaped(&parts.machine_type),
        kernel = path(&parts.kernel),
        initrd = path(&parts.initramfs),
        cmdline = escaped(&parts.cmdline),
        qemu = path(&parts.qemu),
        root = disk(&parts.root, "qcow2", "vda", ""),
        config = disk(&parts.config, "raw", "vdb", "<readonly/>"),
        socket = path(socket),
        console = path(console),
        cpu = escaped(&parts.cpu_model),
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}
