//! Where the bytes of real guests are, as `du` tells it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;
use testkit::TestHost;

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");
const MIB: u64 = 1 << 20;

fn bytes(of: &Value, figure: &str) -> u64 {
    of[figure].as_u64().unwrap_or_else(|| panic!("no {figure} in {of}"))
}

fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let found = list.as_array().unwrap().iter().find(|thing| thing["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {list}"))
}

fn file<'a>(of: &'a Value, name: &str) -> Option<&'a Value> {
    of["files"].as_array().unwrap().iter().find(|file| {
        let path = Path::new(file["path"].as_str().unwrap());
        path.file_name().is_some_and(|last| last == name)
    })
}

#[test]
fn a_sandbox_takes_what_it_wrote_and_its_files_add_up() {
    let host = TestHost::start(BHATTI);
    let _ = host.ok(&["create", "--name", "writer"]);
    let _ = host.ok(&["create", "--name", "idle"]);
    let _ = host.sh("writer", "head -c 12M /dev/urandom > ~/data && sync");

    // Both run; what the guest wrote is counted though nothing was stopped.
    let usage = host.json(&["du"]);
    assert_eq!(usage["exact"], true, "{}", usage["note"]);
    let (writer, idle) = (named(&usage["sandboxes"], "writer"), named(&usage["sandboxes"], "idle"));
    let more = bytes(writer, "exclusive_bytes") - bytes(idle, "exclusive_bytes");
    assert!(more >= 11 * MIB, "{writer}\n{idle}");
    // Not more than it wrote, but for what xfs allocates beyond the end of a file while somebody writes to it.
    let disk = |sandbox: &Value| {
        let disk = file(sandbox, "rootfs.qcow2").or_else(|| file(sandbox, "rootfs.ext4")).unwrap();
        bytes(disk, "exclusive_bytes").min(bytes(disk, "apparent_bytes"))
    };
    let others = |sandbox: &Value| {
        let files = sandbox["files"].as_array().unwrap().iter();
        files
            .filter(|file| file["kind"] != "root_disk")
            .map(|file| bytes(file, "exclusive_bytes"))
            .sum::<u64>()
    };
    assert!(disk(writer) + others(writer) < disk(idle) + others(idle) + 20 * MIB, "{writer}\n{idle}");
    let image = named(&usage["objects"], "minimal");
    assert!(bytes(image, "apparent_bytes") >= 1 << 30 && bytes(image, "physical_bytes") < 1 << 30);
    assert_eq!(bytes(image, "exclusive_bytes"), 0, "this image has names in another data directory, too");
    let sum = |list: &Value, figure: &str| -> u64 {
        list.as_array().unwrap().iter().map(|thing| bytes(thing, figure)).sum()
    };
    let parts = |figure| sum(&usage["sandboxes"], figure) + sum(&usage["objects"], figure);
    assert!(bytes(&usage["total"], "physical_bytes") <= parts("physical_bytes"));
    assert!(parts("exclusive_bytes") <= bytes(&usage["total"], "exclusive_bytes"));

    // Asleep, its memory is a file of its own: apparently all of it, really what it changed.
    let _ = host.ok(&["stop", "writer"]);
    let one = host.json(&["du", "writer"]);
    assert_eq!(one["sandboxes"].as_array().unwrap().len(), 1);
    let writer = named(&one["sandboxes"], "writer");
    let memory = file(writer, "mem.snap").unwrap();
    assert_eq!(bytes(memory, "apparent_bytes"), 512 * MIB);
    assert!(bytes(memory, "physical_bytes") < 128 * MIB, "{memory}");
    let dir = host.sandbox_dir("writer");
    for file in writer["files"].as_array().unwrap().iter().filter(|file| file["kind"] != "directory") {
        let path: PathBuf = host.data_dir().join(file["path"].as_str().unwrap());
        assert!(path.starts_with(&dir), "{}", path.display());
        assert_eq!(bytes(file, "apparent_bytes"), path.metadata().unwrap().size(), "{}", path.display());
    }
    let under = writer["lies_on"].as_array().unwrap();
    let on_image = under.iter().any(|path| path.as_str().unwrap().starts_with("images/objects/"));
    assert_eq!(on_image, file(writer, "rootfs.qcow2").is_some(), "a whole disk lies on nothing: {writer}");
    assert_eq!(one["objects"].as_array().unwrap().len(), under.len(), "each is told with its bytes");

    let table = host.ok(&["du", "--sort", "name"]);
    let line = |word: &str| table.lines().position(|line| line.contains(word)).unwrap();
    assert!(line("total") < line("idle") && line("idle") < line("writer"), "{table}");
    assert!(line("writer") < line("minimal") && table.contains("together."), "{table}");
    let table = host.ok(&["du", "writer"]);
    assert!(table.contains("mem.snap") && table.contains(" (shared)"), "{table}");
    host.refused(&["du", "nobody"], 1, &["nobody"]);
    host.refused(&["du", "writer", "--verify"], 2, &["--verify"]);

    // Without it, what was exclusive to it is gone and nothing else.
    let before = host.json(&["du"]);
    let exclusive = bytes(named(&before["sandboxes"], "writer"), "exclusive_bytes");
    let _ = host.ok(&["destroy", "writer"]);
    let after = host.json(&["du"]);
    let freed = bytes(&before["total"], "physical_bytes") - bytes(&after["total"], "physical_bytes");
    assert!(freed.abs_diff(exclusive) < 2 * MIB, "{exclusive} were promised, {freed} came");
}

#[test]
fn what_a_snapshot_froze_is_a_layer_that_belongs_to_no_single_sandbox() {
    let host = TestHost::start(BHATTI);
    let _ = host.ok(&["create", "--name", "source"]);
    let _ = host.sh("source", "head -c 12M /dev/urandom > ~/data && sync");
    let before = host.json(&["du"]);
    let _ = host.ok(&["snapshot", "create", "source", "--name", "kept"]);
    let _ = host.ok(&["snapshot", "resume", "kept", "--name", "copy"]);
    let usage = host.json(&["du"]);
    let kept = named(&usage["snapshots"], "kept");
    assert_eq!(kept["owner"], "admin");
    assert!(bytes(file(kept, "mem.snap").unwrap(), "physical_bytes") > 0, "{kept}");

    // The random bytes are there once, whichever way the disk was captured.
    let grown = bytes(&usage["total"], "physical_bytes") - bytes(&before["total"], "physical_bytes");
    let memory = bytes(file(kept, "mem.snap").unwrap(), "physical_bytes");
    let can_share = usage["objects"].as_array().unwrap().iter().any(|object| object["kind"] == "layer")
        || bytes(kept, "exclusive_bytes") < bytes(kept, "physical_bytes");
    if can_share {
        assert!(grown < memory + 8 * MIB, "{grown} more than before, {memory} of it memory");
    }
    let layers: Vec<&Value> =
        usage["objects"].as_array().unwrap().iter().filter(|object| object["kind"] == "layer").collect();
    for layer in &layers {
        let lies_on = |list: &Value, name: &str| {
            named(list, name)["lies_on"].as_array().unwrap().contains(&layer["path"])
        };
        assert!(lies_on(&usage["snapshots"], "kept") && lies_on(&usage["sandboxes"], "copy"), "{usage}");
        assert!(bytes(layer, "physical_bytes") >= 12 * MIB, "{layer}");
    }
    // A disk that was frozen under its sandbox is no longer the sandbox's own.
    if !layers.is_empty() {
        assert!(bytes(named(&usage["sandboxes"], "source"), "physical_bytes") < 4 * MIB, "{usage}");
    }
    let table = host.ok(&["du"]);
    assert!(table.contains("kept") && table.contains("of what is on the disk"), "{table}");
}

#[test]
fn figures_are_verified_against_the_filesystem() {
    let host = TestHost::start(BHATTI);
    let _ = host.ok(&["create", "--name", "one"]);
    let _ = host.ok(&["stop", "one"]);
    let root = std::env::var_os("BHATTI_TEST_ROOT").map_or_else(std::env::temp_dir, PathBuf::from);
    let device = |path: &Path| path.metadata().unwrap().dev();
    if device(&root) == device(&root.join("..")) {
        println!("not compared: others write to this filesystem");
        return;
    }
    let verified = host.json(&["du", "--verify"]);
    let checks = verified["verify"].as_array().unwrap();
    println!("{checks:#?}");
    assert!(checks.iter().any(|check| check["against"] == "statfs" && check["theirs_bytes"].is_u64()));
    for check in checks {
        let off = check["difference_percent"].as_f64().unwrap_or(0.0);
        assert!(off.abs() <= 1.0, "{check}");
    }
    let compared =
        checks.iter().any(|check| check["against"] == "compsize" && check["theirs_bytes"].is_u64());
    assert_eq!(
        compared,
        verified["method"] == "btrfs_extents",
        "compsize answers where there is something to ask"
    );
    let text = host.ok(&["du", "--verify"]);
    assert!(text.lines().any(|line| line.starts_with("ok  what new files take: ")), "{text}");
}
