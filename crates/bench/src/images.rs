//! Images: what a second pull moves, and an import beside the host's own tools on the same files.
//!
//! The reference of an import is `tar -x` of the layer and `mke2fs -d` of the tree, and a sync of the filesystem that comes
//! of it, because an import that has returned is durable.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Options;
use crate::daemon::Daemon;
use crate::error::{During as _, Error, Result};
use crate::progress::Progress;
use crate::sample::{Sample, mib, ms};
use crate::table::{Row, Target};

/// MiB of the image that is imported: half in small files, half in large ones.
const IMPORT_MIB: usize = 500;
const SMALL_KIB: usize = 64;
const LARGE_MIB: usize = 25;
/// MiB of each layer that both pulled images have, and of the one that they have not.
const SHARED_MIB: usize = 16;
const OWN_MIB: usize = 4;

pub(crate) fn measure(daemon: &Daemon, options: &Options, progress: Progress<'_>) -> Result<Vec<Row>> {
    let scratch = tempfile::Builder::new().prefix(".bench-").tempdir_in(daemon.data_dir());
    let scratch = scratch.during("making a directory")?;
    let mut rows = Vec::new();
    progress.step("images: pulls that share layers")?;
    match pulls(daemon, options, scratch.path()) {
        Ok(row) => rows.push(row),
        Err(error) => rows.push(Row::missing("second pull", error)),
    }
    if rustix::process::geteuid().is_root() {
        imports(daemon, options, progress, scratch.path(), &mut rows)?;
    } else {
        rows.push(Row::missing("import of an image", "only root can unpack one"));
    }
    Ok(rows)
}

/// A registry of the bench's own.
struct Registry {
    child: Child,
    address: String,
}

impl Registry {
    fn start(dir: &Path) -> Result<Self> {
        const DURING: &str = "starting docker-registry (Debian's package docker-registry)";
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.during(DURING)?.to_string();
        let (config, storage) = (dir.join("registry.yml"), dir.join("registry"));
        let text = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            storage.display()
        );
        fs::write(&config, text).during(DURING)?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().during(DURING)?;
        let Some(stderr) = child.stderr.take() else { return Err(Error::new(DURING, "it has no output")) };
        let registry = Self { child, address };
        let mut lines = BufReader::new(stderr).lines();
        if !lines.any(|line| line.is_ok_and(|line| line.contains("listening on"))) {
            return Err(Error::new(DURING, "it ended"));
        }
        // Read on, so that it never waits for somebody to hear it.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn pulls(daemon: &Daemon, options: &Options, scratch: &Path) -> Result<Row> {
    let registry = Registry::start(scratch)?;
    let mut noise = Noise::default();
    let mut layer = |name: &str, size: usize| -> Result<PathBuf> {
        let tree = scratch.join(format!("tree-{name}"));
        fs::create_dir(&tree).during("making a layer")?;
        noise.file(&tree.join(name), size << 20)?;
        packed(&tree, &scratch.join(format!("{name}.tar")))
    };
    let shared = [layer("a", SHARED_MIB)?, layer("b", SHARED_MIB)?, layer("c", SHARED_MIB)?];
    let (mut first, mut second) = (Sample::default(), Sample::default());
    for (number, moved) in [&mut first, &mut second].into_iter().enumerate() {
        let own = layer(&format!("own{number}"), OWN_MIB)?;
        let layers: Vec<&Path> = shared.iter().chain([&own]).map(PathBuf::as_path).collect();
        let archive = scratch.join(format!("image-{number}.tar"));
        docker_save(&layers, scratch, &archive)?;
        let reference = format!("{}/bench:{number}", registry.address);
        let (from, to) = (format!("docker-archive:{}", archive.display()), format!("docker://{reference}"));
        run("skopeo", &["--insecure-policy", "copy", "-q", "--dest-tls-verify=false", &from, &to])?;
        let task =
            bhatti(daemon, options, &["image", "pull", &reference, "--name", &format!("pull-{number}")])?;
        let bytes = task["result"]["moved_bytes"].as_u64();
        moved.push(mib(bytes.ok_or_else(|| Error::new("pulling", &task))?));
    }
    let step = format!(
        "second pull, which shares three layers of {SHARED_MIB} MiB ({:.1} MiB moved by the first)",
        first.median()
    );
    let own = Sample { values: vec![mib(u64::try_from(OWN_MIB << 20).unwrap_or(0))] };
    // The registry compresses what does not compress, and sends two small documents besides.
    Ok(Row::new(step, "MiB", second)
        .against("the layer that is its own", own)
        .target(Target::AtMostTimes(1.01)))
}

fn imports(
    daemon: &Daemon,
    options: &Options,
    progress: Progress<'_>,
    scratch: &Path,
    rows: &mut Vec<Row>,
) -> Result<()> {
    progress.step(&format!("images: making one of {IMPORT_MIB} MiB"))?;
    let tree = scratch.join("tree");
    let mut noise = Noise::default();
    for number in 0..IMPORT_MIB * 1024 / 2 / SMALL_KIB {
        let dir = tree.join(format!("small/{}", number / 100));
        fs::create_dir_all(&dir).during("making an image")?;
        noise.file(&dir.join(number.to_string()), SMALL_KIB << 10)?;
    }
    for number in 0..IMPORT_MIB / 2 / LARGE_MIB {
        noise.file(&tree.join(format!("large-{number}")), LARGE_MIB << 20)?;
    }
    let layer = packed(&tree, &scratch.join("layer.tar"))?;
    fs::remove_dir_all(&tree).during("making an image")?;
    let archive = scratch.join("image.tar");
    docker_save(&[&layer], scratch, &archive)?;
    let (mut ours, mut theirs) = (Sample::default(), Sample::default());
    // Each run moves gigabytes.
    for run in 0..options.runs.clamp(1, 2) {
        progress.step(&format!("images: import, run {}", run + 1))?;
        rustix::fs::sync();
        let began = Instant::now();
        let archive = archive.display().to_string();
        bhatti(daemon, options, &["image", "import", "--tar", &archive, "--name", "bench-import"])?;
        ours.push(ms(began.elapsed()));
        rustix::fs::sync();
        theirs.push(ms(reference(scratch, &layer)?));
    }
    let step = format!("import of an image of {IMPORT_MIB} MiB");
    rows.push(
        Row::new(step, "ms", ours)
            .against("tar -x, mke2fs -d of the same files, sync", theirs)
            .target(Target::AtMostTimes(1.3)),
    );
    let peak = Sample { values: vec![peak_mib(daemon)?] };
    rows.push(
        Row::new("peak memory of the daemon that imported it", "MiB", peak).target(Target::AtMost(128.0)),
    );
    Ok(())
}

fn reference(scratch: &Path, layer: &Path) -> Result<Duration> {
    let (tree, image) = (scratch.join("reference"), scratch.join("reference.ext4"));
    let text = |path: &Path| path.display().to_string();
    let began = Instant::now();
    fs::create_dir(&tree).during("unpacking")?;
    run("tar", &["-C", &text(&tree), "-xpf", &text(layer), "--numeric-owner", "--xattrs"])?;
    File::create(&image).and_then(|file| file.set_len(2 << 30)).during("making a filesystem")?;
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-m", "0", "-d", &text(&tree), &text(&image)])?;
    File::open(&image).and_then(|file| file.sync_all()).during("syncing a filesystem")?;
    let took = began.elapsed();
    fs::remove_dir_all(&tree).during("removing a tree")?;
    fs::remove_file(&image).during("removing a filesystem")?;
    Ok(took)
}

/// `VmHWM` of proc(5).
fn peak_mib(daemon: &Daemon) -> Result<f64> {
    let status =
        fs::read_to_string(format!("/proc/{}/status", daemon.pid())).during("looking at the daemon")?;
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    kib.map(|kib: u64| mib(kib << 10)).ok_or_else(|| Error::new("looking at the daemon", "it tells no peak"))
}

/// The command line against the bench's daemon.
pub(crate) fn bhatti(daemon: &Daemon, options: &Options, args: &[&str]) -> Result<Value> {
    let mut command = Command::new(&options.program);
    command.arg("--json").args(args).env("BHATTI_DATA_DIR", daemon.data_dir()).stdin(Stdio::null());
    let done = command.output().during("running bhatti")?;
    if !done.status.success() {
        return Err(Error::new(args.join(" "), String::from_utf8_lossy(&done.stderr)));
    }
    serde_json::from_slice(&done.stdout).during("reading what bhatti said")
}

fn run(program: &str, args: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin")).stdin(Stdio::null());
    let done = command.args(args).output().during(program)?;
    if !done.status.success() {
        return Err(Error::new(program, String::from_utf8_lossy(&done.stderr)));
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

fn packed(tree: &Path, archive: &Path) -> Result<PathBuf> {
    let text = |path: &Path| path.display().to_string();
    run("tar", &["-C", &text(tree), "-cf", &text(archive), "."])?;
    Ok(archive.to_owned())
}

/// An archive as `docker save` writes it, of these layers.
fn docker_save(layers: &[&Path], scratch: &Path, archive: &Path) -> Result<()> {
    let (mut ids, mut names) = (Vec::new(), Vec::new());
    for layer in layers {
        let sum = run("sha256sum", &[&layer.display().to_string()])?;
        ids.push(format!("sha256:{}", sum.split_whitespace().next().unwrap_or_default()));
        names.push(layer.file_name().unwrap_or_default().to_string_lossy().into_owned());
    }
    let arch = types::Arch::host().as_str();
    let config = json!({
        "architecture": arch, "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": ids },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": ["bench:1"], "Layers": names }]);
    fs::write(scratch.join("config.json"), config.to_string()).during("making an image")?;
    fs::write(scratch.join("manifest.json"), manifest.to_string()).during("making an image")?;
    let (dir, archive) = (scratch.display().to_string(), archive.display().to_string());
    let mut args = vec!["-C", &dir, "-cf", &archive, "config.json", "manifest.json"];
    args.extend(names.iter().map(String::as_str));
    run("tar", &args).map(drop)
}

/// Bytes that do not compress, the same in every run.
struct Noise(u64);

impl Default for Noise {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Noise {
    fn file(&mut self, path: &Path, length: usize) -> Result<()> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            bytes.extend_from_slice(&self.0.to_le_bytes());
        }
        File::create(path).and_then(|mut file| file.write_all(&bytes[..length])).during("making an image")
    }
}
