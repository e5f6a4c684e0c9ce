//! Images, written byte by byte, so that nothing in them depends on the host's tools.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// Runs a program of the host, which must succeed.
pub fn run(program: &str, args: &[&str]) -> String {
    let done = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{program} {args:?}: {text}{}", String::from_utf8_lossy(&done.stderr));
    text
}

/// A static busybox for this machine.
pub fn busybox() -> Vec<u8> {
    std::fs::read("/bin/busybox").expect("busybox-static; scripts/host-deps.sh --tests")
}

/// Bytes that do not compress, the same each time.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A layer being written.
pub struct Layer(Builder<Vec<u8>>);

impl Layer {
    pub fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn header(kind: EntryType, mode: u32, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header.set_size(size);
        header
    }

    pub fn file(mut self, name: &str, mode: u32, content: &[u8]) -> Self {
        let mut header = Self::header(EntryType::Regular, mode, content.len() as u64);
        self.0.append_data(&mut header, name, content).unwrap();
        self
    }

    pub fn owned(mut self, name: &str, mode: u32, owner: (u64, u64), content: &[u8]) -> Self {
        let mut header = Self::header(EntryType::Regular, mode, content.len() as u64);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(1_234_567_890);
        self.0.append_data(&mut header, name, content).unwrap();
        self
    }

    pub fn dir(mut self, name: &str, mode: u32) -> Self {
        let mut header = Self::header(EntryType::Directory, mode, 0);
        header.set_mtime(1_500_000_000);
        self.0.append_data(&mut header, name, &b""[..]).unwrap();
        self
    }

    pub fn link(mut self, kind: EntryType, name: &str, target: &str) -> Self {
        let mut header = Self::header(kind, 0o777, 0);
        self.0.append_link(&mut header, name, target).unwrap();
        self
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.link(EntryType::Symlink, name, target)
    }

    pub fn node(mut self, kind: EntryType, name: &str, major: u32, minor: u32) -> Self {
        let mut header = Self::header(kind, 0o640, 0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.0.append_data(&mut header, name, &b""[..]).unwrap();
        self
    }

    /// Extended attributes of what is added next.
    pub fn with(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// An image: its layers, and what it wants.
pub struct Image {
    layers: Vec<Vec<u8>>,
    arch: &'static str,
    config: Value,
}

impl Image {
    pub fn new(layers: Vec<Layer>, config: Value) -> Self {
        let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        Self { layers: layers.into_iter().map(Layer::bytes).collect(), arch, config }
    }

    pub fn of_arch(mut self, arch: &'static str) -> Self {
        self.arch = arch;
        self
    }

    /// As `docker save` writes it.
    pub fn docker_save(&self, path: &Path) {
        let hex =
            |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let ids: Vec<String> = self.layers.iter().map(|layer| format!("sha256:{}", hex(layer))).collect();
        let config = json!({
            "architecture": self.arch, "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": ids},
            "history": ids.iter().map(|_| json!({"created_by": "test"})).collect::<Vec<_>>(),
        });
        let config = serde_json::to_vec(&config).unwrap();
        let name = format!("{}.json", hex(&config));
        let layers: Vec<String> =
            (0..self.layers.len()).map(|number| format!("{number}/layer.tar")).collect();
        let manifest = json!([{"Config": name, "RepoTags": ["test:1"], "Layers": layers}]);
        let mut archive = Layer::new();
        for (name, layer) in layers.iter().zip(&self.layers) {
            archive = archive.file(name, 0o644, layer);
        }
        archive = archive.file(&name, 0o644, &config);
        archive = archive.file("manifest.json", 0o644, &serde_json::to_vec(&manifest).unwrap());
        std::fs::write(path, archive.bytes()).unwrap();
    }

    /// An OCI layout in a directory, made by skopeo.
    pub fn layout(&self, dir: &Path) -> PathBuf {
        let (archive, layout) = (dir.join("archive.tar"), dir.join("layout"));
        self.docker_save(&archive);
        let (from, to) =
            (format!("docker-archive:{}", archive.display()), format!("oci:{}:test", layout.display()));
        run("skopeo", &["--insecure-policy", "copy", "-q", &from, &to]);
        layout
    }

    /// Unpacked by umoci; gives the root directory.
    pub fn reference(&self, dir: &Path) -> PathBuf {
        let layout = self.layout(dir);
        let bundle = dir.join("bundle");
        let image = format!("{}:test", layout.display());
        run("umoci", &["unpack", "--image", &image, bundle.to_str().unwrap()]);
        bundle.join("rootfs")
    }
}

/// The least that a shell, its tools and a listing need.
pub fn rootfs() -> Layer {
    let mut layer = Layer::new().dir("bin", 0o755).file("bin/busybox", 0o755, &busybox());
    for applet in [
        "sh", "cat", "find", "stat", "sort", "id", "pwd", "env", "md5sum", "readlink", "echo", "sleep", "ls",
        "touch", "true", "grep", "test",
    ] {
        layer = layer.symlink(&format!("bin/{applet}"), "busybox");
    }
    layer
}

/// As many oddities as fit.
pub fn oddities() -> Vec<Layer> {
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut sparse = vec![0u8; 3 << 20];
    sparse[2 << 20] = 1;
    let lower = rootfs()
        .dir("odd", 0o755)
        .dir("odd/sticky", 0o1777)
        .dir("odd/opaque", 0o750)
        .file("odd/opaque/below", 0o644, b"hidden")
        .dir("odd/opaque/sub", 0o755)
        .file("odd/opaque/sub/below", 0o644, b"hidden")
        .file("odd/gone", 0o644, b"hidden")
        .file("odd/becomes-dir", 0o644, b"x")
        .dir("odd/becomes-file", 0o755)
        .file("odd/becomes-file/x", 0o644, b"x")
        .file("odd/shared", 0o644, b"one file")
        .link(EntryType::Link, "odd/shared-too", "odd/shared")
        .owned("odd/setuid", 0o4755, (7, 8), b"setuid")
        .owned("odd/big-owner", 0o600, (2_000_000, 3_000_000), b"big")
        .symlink("odd/dangling", "/no/such/place")
        .symlink("odd/circle", "circle")
        .symlink("odd/to-dir", "sticky")
        .node(EntryType::Fifo, "odd/pipe", 0, 0)
        .node(EntryType::Char, "odd/char", 1, 3)
        .node(EntryType::Block, "odd/block", 7, 200)
        .file("odd/sparse", 0o644, &sparse)
        .file("odd/empty", 0o000, b"")
        .file("odd/with space and \u{e4}\u{2603}", 0o644, b"name")
        .file(&format!("odd/{}", "long".repeat(60)), 0o644, b"long name")
        .with(&[("SCHILY.xattr.security.capability", &capability), ("SCHILY.xattr.user.note", b"a\0b")])
        .file("odd/capable", 0o755, b"capable")
        .with(&[("SCHILY.xattr.user.dir", b"of a directory")])
        .dir("odd/attributes", 0o711)
        .with(&[("mtime", b"1111111111.5")])
        .file("odd/half-second", 0o644, b"time");
    let upper = Layer::new()
        .file("odd/.wh.gone", 0o644, b"")
        .file("odd/opaque/.wh..wh..opq", 0o644, b"")
        .file("odd/opaque/above", 0o644, b"seen")
        .dir("odd/becomes-dir", 0o755)
        .file("odd/becomes-dir/inside", 0o644, b"x")
        .file("odd/.wh.becomes-file", 0o644, b"")
        .file("odd/never-below/.wh.nothing", 0o644, b"")
        .link(EntryType::Link, "odd/shared-across", "odd/shared")
        .file("odd/shared-too", 0o600, b"a file of its own now")
        .file("odd/to-dir/through-a-link", 0o644, b"lands in sticky");
    let last =
        Layer::new().file("odd/becomes-file", 0o755, b"a file").file("top", 0o644, b"of the last layer");
    vec![lower, upper, last]
}
