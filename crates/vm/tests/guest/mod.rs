//! A directory with all that a test machine needs, and what tests do with it.
//!
//! The guest's init (`init` beside this file, packed by `build.sh`) counts on the console and echoes lines that come
//! through the agent's port.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, ReadHalf, WriteHalf};
use tokio::net::UnixStream;
use types::{Accel, Arch, Mebibytes, RamOffset, RamRun};
use vm::{DiskFile, DiskFormat, GuestRam, Machine, MachineSpec, Qemu, RootDisk};

pub const MEMORY: Mebibytes = Mebibytes(256);
const LIMIT: Duration = Duration::from_secs(90);

fn required(name: &str) -> PathBuf {
    std::env::var_os(name).map(PathBuf::from).unwrap_or_else(|| {
        panic!(
            "{name} is not set: these tests boot real guests. Set BHATTI_TEST_KERNEL (a vmlinuz), \
             BHATTI_TEST_INITRAMFS (made by crates/vm/tests/guest/build.sh), and for tests with two versions \
             BHATTI_TEST_QEMU_OLDER"
        )
    })
}

pub fn qemu() -> Qemu {
    let given = std::env::var_os("BHATTI_TEST_QEMU").map(PathBuf::from);
    Qemu::discover(given.as_deref(), Arch::host()).unwrap()
}

#[allow(dead_code, reason = "each test binary uses its own part")]
pub fn older_qemu() -> Qemu {
    Qemu::discover(Some(&required("BHATTI_TEST_QEMU_OLDER")), Arch::host()).unwrap()
}

/// Where one machine lives: its disks, its base; gone with the value.
pub struct Home {
    pub dir: PathBuf,
    pub cpus: u32,
    pub words: Vec<String>,
    pub root: RootDisk,
    pub volumes: Vec<vm::VolumeDisk>,
    _all: tempfile::TempDir,
}

impl Drop for Home {
    /// A test that failed has left its VMM running: it is ended with the directory that it runs in.
    fn drop(&mut self) {
        let Ok(home) = self.dir.canonicalize() else { return };
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
            // A process may end while it is looked at.
            if let Some(pid) = pid
                && fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == home)
            {
                let _ended = sys::host_process::Pidfd::open(pid).and_then(|handle| handle.kill());
            }
        }
    }
}

impl Home {
    /// Long enough a path that no socket address could hold it.
    pub fn new() -> Self {
        let root = std::env::var_os("BHATTI_TEST_ROOT").map_or_else(std::env::temp_dir, PathBuf::from);
        let all = tempfile::tempdir_in(root).unwrap();
        let dir = all.path().join("d".repeat(100)).join("sandbox");
        fs::create_dir_all(&dir).unwrap();
        File::create(dir.join("../zero.ram")).unwrap().set_len(MEMORY.bytes().0).unwrap();
        File::create(dir.join("../image")).unwrap().set_len(64 << 20).unwrap();
        File::create(dir.join("config")).unwrap().set_len(1 << 20).unwrap();
        for name in ["../image", "../zero.ram"] {
            let mut mode = fs::metadata(dir.join(name)).unwrap().permissions();
            std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o444);
            fs::set_permissions(dir.join(name), mode).unwrap();
        }
        File::create(dir.join("lock")).unwrap();
        let root = RootDisk { top: DiskFile::qcow2("root.qcow2"), below: vec![DiskFile::raw("../image")] };
        let home = Self { dir, cpus: 1, words: Vec::new(), root, volumes: Vec::new(), _all: all };
        home.overlay("root.qcow2", &home.root.below[0], "64M");
        home
    }

    /// Makes an empty qcow2 file over another one.
    pub fn overlay(&self, name: &str, below: &DiskFile, size: &str) {
        let format = match below.format {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        };
        let below = below.path.to_str().unwrap();
        self.qemu_img(&["create", "-q", "-f", "qcow2", "-u", "-b", below, "-F", format, name, size]);
    }

    /// Runs `qemu-img` in the machine's directory; what it printed.
    pub fn qemu_img(&self, args: &[&str]) -> String {
        let ran = std::process::Command::new("qemu-img").args(args).current_dir(&self.dir).output().unwrap();
        assert!(ran.status.success(), "{args:?}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap()
    }

    pub fn spec(&self, qemu: &Qemu, incoming: bool) -> MachineSpec {
        MachineSpec {
            arch: Arch::host(),
            accel: Accel::Tcg,
            machine_type: Qemu::machine_type(Arch::host()).to_owned(),
            cpu_model: vm::cpu_model(Arch::host(), Accel::Tcg).to_owned(),
            cpus: self.cpus,
            memory: MEMORY,
            kernel: required("BHATTI_TEST_KERNEL"),
            initramfs: required("BHATTI_TEST_INITRAMFS"),
            extra_cmdline: self.words.clone(),
            ram_base: "../zero.ram".into(),
            ram_base_writable: !qemu.opens_base_read_only(),
            root: Some(self.root.clone()),
            config: Some("config".into()),
            volumes: self.volumes.clone(),
            nic: None,
            announces: false,
            tsc_khz: vm::host_tsc_khz(),
            incoming,
        }
    }

    /// The lock's file, locked: fails while a VMM has it.
    pub fn lock(&self) -> std::io::Result<File> {
        let file = File::open(self.dir.join("lock"))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        Ok(file)
    }

    pub async fn launch(&self, qemu: &Qemu, incoming: bool) -> vm::Result<Machine> {
        Machine::launch(qemu, &self.spec(qemu, incoming), &self.dir, self.lock().unwrap()).await
    }
}

#[allow(dead_code, reason = "each test binary uses its own part")]
/// What the console says once it contains `word`.
pub async fn console_with(machine: &Machine, word: &str) -> String {
    let begun = Instant::now();
    loop {
        let text = machine.console_tail().await.unwrap();
        if text.contains(word) {
            return text;
        }
        assert!(begun.elapsed() < LIMIT, "no {word:?} on the console: {text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[allow(dead_code, reason = "each test binary uses its own part")]
/// The last whole count, the guest's nonce and the sectors of its root disk. Waits for a count above `above`.
pub async fn count_above(machine: &Machine, above: u64) -> (u64, String, u64) {
    let begun = Instant::now();
    loop {
        let text = machine.console_tail().await.unwrap();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        if let Some(line) = whole.lines().rev().find(|line| line.starts_with("count ")) {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [_, count, _, nonce, _, sectors] = words[..] {
                let count: u64 = count.parse().unwrap();
                if count > above {
                    return (count, nonce.to_owned(), sectors.parse().unwrap());
                }
            }
        }
        assert!(begun.elapsed() < LIMIT, "no count above {above} on the console: {text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Commands run by the guest's init, one after the other.
pub struct Shell {
    lines: tokio::io::Lines<BufReader<ReadHalf<UnixStream>>>,
    write: WriteHalf<UnixStream>,
    last: u32,
}

#[allow(dead_code, reason = "each test binary uses its own part")]
impl Shell {
    pub async fn of(machine: &Machine) -> Self {
        let (read, write) = tokio::io::split(machine.open_channel().await.unwrap());
        Self { lines: BufReader::new(read).lines(), write, last: 0 }
    }

    /// What a command printed, its lines joined by spaces.
    pub async fn run(&mut self, command: &str) -> String {
        self.last += 1;
        self.write.write_all(format!("run {} {command}\n", self.last).as_bytes()).await.unwrap();
        let begin = format!("ran {} ", self.last);
        loop {
            let line = tokio::time::timeout(LIMIT, self.lines.next_line()).await.unwrap().unwrap().unwrap();
            if let Some(said) = line.strip_prefix(&begin) {
                let (status, said) = said.split_once(' ').unwrap_or((said, ""));
                assert_eq!(status, "0", "{command}: {said}");
                return said.to_owned();
            }
        }
    }
}

/// A guest's memory, out of its VMM.
pub struct Saved {
    pub runs: Vec<RamRun>,
    pub pages: Vec<u8>,
}

pub fn copy_out(ram: &GuestRam) -> Saved {
    let runs = ram.private_runs().unwrap();
    let total: u64 = runs.iter().map(|run| run.len.0).sum();
    let mut pages = vec![0; usize::try_from(total).unwrap()];
    ram.read_runs(&runs, &mut pages).unwrap();
    Saved { runs, pages }
}

#[allow(dead_code, reason = "each test binary uses its own part")]
/// Pauses, saves everything, kills.
pub async fn put_to_sleep(machine: Machine) -> Saved {
    let t0 = Instant::now();
    machine.pause().await.unwrap();
    let paused = t0.elapsed();
    let saved = copy_out(&machine.ram().unwrap());
    let copied = t0.elapsed();
    machine.save_devices("vm.snap").await.unwrap();
    let devices = t0.elapsed();
    machine.kill().await.unwrap();
    eprintln!(
        "sleep: pause {paused:?}, {} runs of {} KiB out {:?}, devices {:?}, kill {:?}",
        saved.runs.len(),
        saved.pages.len() >> 10,
        copied - paused,
        devices - copied,
        t0.elapsed() - devices
    );
    saved
}

/// Launches and loads; the guest is paused.
pub async fn wake(home: &Home, qemu: &Qemu, saved: &Saved) -> Machine {
    wake_from(home, qemu, &home.spec(qemu, true), saved).await
}

/// The same with a spec of one's own.
pub async fn wake_from(home: &Home, qemu: &Qemu, spec: &MachineSpec, saved: &Saved) -> Machine {
    let t0 = Instant::now();
    let machine = Machine::launch(qemu, spec, &home.dir, home.lock().unwrap()).await.unwrap();
    let ready = t0.elapsed();
    machine.ram().unwrap().write_runs(&saved.runs, &saved.pages).unwrap();
    let written = t0.elapsed();
    machine.load_devices(File::open(home.dir.join("vm.snap")).unwrap()).await.unwrap();
    eprintln!("wake: ready {ready:?}, ram {:?}, devices {:?}", written - ready, t0.elapsed() - written);
    machine
}

#[allow(dead_code, reason = "each test binary uses its own part")]
pub fn blocks_of(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&fs::metadata(path).unwrap())
}

/// A page in the middle of RAM.
#[allow(dead_code, reason = "each test binary uses its own part")]
pub const MIDDLE: RamOffset = RamOffset(128 << 20);
