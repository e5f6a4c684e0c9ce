//! Prints what the store's part of create, stop and wake costs in a directory: `timings DIR [ROUNDS]`.
//!
//! The guest is a made-up one of 512 MiB: once idle (2.1 MiB changed in about 300 runs), once busy (128 MiB).

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bhatti_storage::{
    ImageRef, MachineRecord, Manifest, MemoryHeader, PageSink, PageSource, RunState, Store, TemplateRecord,
    TemplateSpec,
};
use types::{
    Accel, Arch, Bytes, ContentId, Mebibytes, Owner, PAGE_SIZE, RamOffset, RamRun, SandboxId, StorageLayout,
    Timestamp,
};

const MEMORY: Mebibytes = Mebibytes(512);

/// RAM of which some runs are private; words repeat about as much as a guest's do.
struct Guest {
    ram: Vec<u8>,
    runs: Vec<RamRun>,
}

impl Guest {
    fn new(private_pages: u64, run_pages: u64) -> Self {
        let pages = MEMORY.bytes().0 / PAGE_SIZE;
        let count = private_pages / run_pages;
        let stride = pages / count;
        let run = |n| RamRun { start: RamOffset(n * stride * PAGE_SIZE), len: Bytes(run_pages * PAGE_SIZE) };
        let runs: Vec<_> = (0..count).map(run).collect();
        let mut ram = vec![0; usize::try_from(MEMORY.bytes().0).unwrap()];
        let mut state = 1u64;
        for run in &runs {
            let (start, len) = (usize::try_from(run.start.0).unwrap(), usize::try_from(run.len.0).unwrap());
            for word in ram[start..start + len].chunks_exact_mut(64) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let noise = state.to_le_bytes();
                word[..8].copy_from_slice(&noise);
                word[24..28].copy_from_slice(&noise[4..]);
            }
        }
        Self { ram, runs }
    }
}

impl PageSource for Guest {
    fn len(&self) -> Bytes {
        MEMORY.bytes()
    }
    fn private_runs(&self) -> io::Result<Vec<RamRun>> {
        Ok(self.runs.clone())
    }
    fn read(&self, at: RamOffset, buf: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(at.0).unwrap();
        buf.copy_from_slice(&self.ram[at..at + buf.len()]);
        Ok(())
    }
}

struct Target(Vec<u8>);

impl PageSink for Target {
    fn write(&mut self, at: RamOffset, data: &[u8]) -> io::Result<()> {
        let at = usize::try_from(at.0).unwrap();
        self.0[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }
}

fn machine() -> MachineRecord {
    MachineRecord {
        qemu_version: "7.2.22".into(),
        machine_type: "pc-q35-7.2".into(),
        accel: Accel::Tcg,
        cpu_model: "Nehalem-v1".into(),
        devices: Vec::new(),
    }
}

/// Times by step, in the order in which steps first came.
#[derive(Default)]
struct Clock(Vec<(&'static str, Vec<Duration>)>);

impl Clock {
    fn time<T>(&mut self, step: &'static str, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let result = work();
        let took = begun.elapsed();
        match self.0.iter_mut().find(|(name, _)| *name == step) {
            Some((_, times)) => times.push(took),
            None => self.0.push((step, vec![took])),
        }
        result
    }

    fn print(self, what: &str) {
        println!("{what}");
        for (step, mut times) in self.0 {
            times.sort();
            let [least, median, most] =
                [0, times.len() / 2, times.len() - 1].map(|at| times[at].as_secs_f64() * 1e3);
            println!("  {step:<16} {median:8.2} ms  ({least:.2} to {most:.2}, n={})", times.len());
        }
    }
}

fn template(store: &Store, layout: StorageLayout, base: &Guest) -> TemplateRecord {
    let staged = store.images().stage().unwrap();
    let file = std::fs::File::options().write(true).open(staged.path()).unwrap();
    file.set_len(1 << 30).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &base.ram[..200 << 20], 1 << 20).unwrap();
    let image = staged.commit(&"bench".parse().unwrap(), Arch::host(), "bench").unwrap();
    let key = ContentId::from_hash(blake3::hash(layout.as_str().as_bytes()).as_bytes());
    let mut staged = store.templates().stage(&key, layout).unwrap();
    match layout {
        StorageLayout::Overlay => std::fs::write(staged.root_disk_path(), &base.ram[..600 << 10]).unwrap(),
        StorageLayout::Reflink => drop(staged.clone_image(&image).unwrap()),
    }
    let begun = Instant::now();
    let ram = staged.write_ram(base).unwrap();
    println!("template ({layout}): RAM base of {} written in {:?}", ram.private, begun.elapsed());
    std::fs::write(staged.devices_path(), vec![1; 125_000]).unwrap();
    let image = ImageRef { name: image.name, id: image.id };
    let kernel = ContentId::from_hash(&[7; 32]);
    let spec = TemplateSpec {
        image,
        kernel,
        layout,
        cpus: 1,
        memory_mib: MEMORY,
        machine: machine(),
        detached: true,
    };
    staged.commit(spec).unwrap()
}

fn round(
    store: &Store,
    template: &TemplateRecord,
    guest: &Guest,
    target: &mut Target,
    clock: &mut Clock,
) -> Bytes {
    let id = SandboxId::random();
    let staged = clock.time("create: stage", || store.stage_sandbox(&id)).unwrap();
    clock.time("create: clone", || staged.clone_root_from_template(template)).unwrap();
    std::fs::write(staged.config_path(), vec![2; 60_000]).unwrap();
    let manifest = Manifest {
        name: "bench".parse().unwrap(),
        id,
        owner: Owner::admin(),
        generation: 1,
        state: RunState::Running,
        layout: template.spec.layout,
        layers: Vec::new(),
        volumes: Vec::new(),
        secrets: Vec::new(),
        net: None,
        net_rate: None,
        disk_rate: None,
        image: template.spec.image.clone(),
        kernel: template.spec.kernel.clone(),
        cpus: 1,
        memory_mib: MEMORY,
        disk_size_mib: Mebibytes(1024),
        labels: BTreeMap::new(),
        keep_hot: false,
        thermal: types::ThermalRule::default(),
        created_at: Timestamp::now(),
        ram_base: template.ram_base(),
        machine: machine(),
        memory: None,
    };
    let dir = clock.time("create: commit", || staged.commit(&manifest)).unwrap();
    let header = MemoryHeader { generation: 1, base: manifest.ram_base.id() };
    let memory = clock.time("stop: pages", || dir.stage_memory(guest, header, 1)).unwrap();
    let stored = memory.stats().stored;
    std::fs::write(dir.stage_devices().unwrap(), vec![3; 125_000]).unwrap();
    let cold = clock.time("stop: commit", || dir.commit_cold(memory, manifest, true)).unwrap();
    let image = clock.time("wake: open", || dir.open_memory(&cold)).unwrap();
    clock.time("wake: load", || image.load(target)).unwrap();
    clock.time("wake: devices", || dir.open_devices(&cold)).unwrap();
    clock.time("wake: consume", || dir.commit(&cold.into_running())).unwrap();
    clock.time("wake: drop", || dir.drop_consumed_memory()).unwrap();
    clock.time("destroy", || dir.destroy()).unwrap();
    stored
}

fn main() {
    let mut args = std::env::args_os().skip(1);
    let parent = PathBuf::from(args.next().expect("timings DIR [ROUNDS]"));
    let rounds = args.next().map_or(20, |text| text.to_str().unwrap().parse().unwrap());
    let root = parent.join(format!("timings-{}", SandboxId::random()));
    let store = Store::open(&root).unwrap();
    println!("{:?}", store.probe().unwrap());
    let busy = Guest::new(32 << 10, 64);
    let idle = Guest::new(540, 2);
    let mut target = Target(vec![1; busy.ram.len()]);
    for layout in [StorageLayout::Overlay, StorageLayout::Reflink] {
        let template = template(&store, layout, &busy);
        for (name, guest, rounds) in [("idle", &idle, rounds), ("busy", &busy, rounds.min(5))] {
            let mut clock = Clock::default();
            let stored = (0..rounds).map(|_| round(&store, &template, guest, &mut target, &mut clock)).last();
            let private = Bytes(guest.runs.iter().map(|run| run.len.0).sum());
            clock.print(&format!(
                "{layout}, {name} guest: {private} private, {} stored",
                stored.unwrap_or_default()
            ));
        }
    }
    std::fs::remove_dir_all(&root).unwrap();
}
