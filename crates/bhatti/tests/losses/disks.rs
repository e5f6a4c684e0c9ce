//! The filesystems of guests as they were left, checked from outside while nobody has them open.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use testkit::TestHost;

fn entries(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().map(|entry| entry.expect("an entry").path()).collect()
}

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().expect(program)
}

/// Whether e2fsck repairs it as a guest's own boot does (journal, orphans) and then finds nothing at all.
fn check(disk: &str) -> Option<String> {
    for (how, most) in [("-fp", 1), ("-fn", 0)] {
        let told = run("e2fsck", &[how, disk]);
        if told.status.code().is_none_or(|code| code > most) {
            let said = String::from_utf8_lossy(&told.stdout).replace('\n', "; ");
            return Some(format!("e2fsck {how} gave {}: {said}", told.status));
        }
    }
    None
}

/// A file of a disk and what lies below it, as qemu-img is told: the names in their headers are relative to the
/// directory in which each was made.
fn node(path: &Path, below: Option<Value>) -> Value {
    let driver = if path.extension().is_some_and(|end| end == "qcow2") { "qcow2" } else { "raw" };
    let mut node = json!({"driver": driver, "file": {"driver": "file", "filename": path}});
    if let Some(below) = below {
        node["backing"] = below;
    }
    node
}

/// The root disk in a sandbox's directory, with its layers and its image. `None` where there is no manifest yet.
fn root_disk(data: &Path, dir: &Path) -> Option<Value> {
    let manifest: Value = serde_json::from_slice(&std::fs::read(dir.join("manifest.json")).ok()?).ok()?;
    let manifest = &manifest["body"];
    if manifest["layout"] != "overlay" {
        return Some(node(&dir.join("rootfs.ext4"), None));
    }
    let image = manifest["image"]["id"].as_str()?;
    let object = entries(&data.join("images/objects"))
        .into_iter()
        .find(|path| path.to_string_lossy().contains(image))?;
    let layers = manifest["layers"].as_array().cloned().unwrap_or_default();
    let below = layers.iter().rev().fold(node(&object, None), |below, layer| {
        let (id, format) = (layer["id"].as_str().unwrap_or_default(), layer["format"].as_str());
        match format {
            Some("qcow2") => node(&data.join("layers").join(format!("{id}.qcow2")), Some(below)),
            _ => node(&data.join("layers").join(format!("{id}.ext4")), None),
        }
    });
    Some(node(&dir.join("rootfs.qcow2"), Some(below)))
}

/// Flattened copies of all root disks and volumes; `checked` counts them.
pub fn look(host: &TestHost, checked: &mut usize) -> Vec<String> {
    let scratch = tempfile::tempdir().expect("a directory");
    let copy = scratch.path().join("copy").to_string_lossy().into_owned();
    let data = std::fs::canonicalize(host.data_dir()).expect("the data directory");
    // What has only a staging name never came to be.
    let staged = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    let machines = entries(&data.join("sandboxes")).into_iter().filter(|dir| !staged(dir));
    let roots = machines.filter_map(|dir| Some((dir.display().to_string(), root_disk(&data, &dir)?)));
    let volumes = entries(&data.join("volumes")).into_iter().flat_map(|dir| entries(&dir));
    let volumes = volumes.filter(|path| !staged(path) && path.extension().is_some_and(|end| end == "ext4"));
    let volumes = volumes.map(|path| (path.display().to_string(), node(&path, None)));
    let mut lost = Vec::new();
    for (name, disk) in roots.chain(volumes) {
        let made = run("qemu-img", &["convert", "-O", "raw", &format!("json:{disk}"), &copy]);
        match made.status.success() {
            true => lost.extend(check(&copy).map(|why| format!("{name}: {why}"))),
            false => lost.push(format!("{name} is not read: {}", String::from_utf8_lossy(&made.stderr))),
        }
        *checked += 1;
    }
    lost
}
