//! Archives of images, whole, cut, damaged, and of something else. Unpacking needs root.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;
use crate::run::Tool;
use crate::{Cancel, ErrorKind, Progress};

type Files = BTreeMap<String, Vec<u8>>;

fn tar(files: &Files) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        header.set_mtime(1);
        header.set_uid(0);
        header.set_gid(0);
        builder.append_data(&mut header, name, &content[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

fn layer(name: &str, content: &str) -> Vec<u8> {
    tar(&BTreeMap::from([(name.to_owned(), content.into())]))
}

fn config(layers: &[&[u8]], arch: &str) -> Vec<u8> {
    let ids: Vec<String> = layers.iter().map(|layer| Sha256Digest::of(layer).to_string()).collect();
    serde_json::to_vec(&serde_json::json!({
        "architecture": arch, "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids},
        "config": {"Env": ["A=1"], "Cmd": ["/bin/sh"], "WorkingDir": "/srv/app"},
    }))
    .unwrap()
}

/// As an old `docker save` writes it.
fn docker_save() -> Files {
    let (one, two) = (layer("bin/sh", "#!"), layer("two", "2"));
    let config = config(&[&one, &two], Arch::host().as_str());
    let name = format!("{}.json", Sha256Digest::of(&config).hex());
    let manifest =
        serde_json::json!([{"Config": name, "RepoTags": ["a:b"], "Layers": ["1/layer.tar", "2/layer.tar"]}]);
    Files::from([
        ("1/layer.tar".into(), one),
        ("2/layer.tar".into(), two),
        (name, config),
        ("manifest.json".into(), serde_json::to_vec(&manifest).unwrap()),
    ])
}

fn oci_layout() -> Files {
    let one = layer("one", "1");
    let packed = zstd::encode_all(&one[..], 3).unwrap();
    let config = config(&[&one], Arch::host().as_str());
    let mut files = Files::new();
    let mut blob = |kind: &str, bytes: Vec<u8>| {
        let digest = Sha256Digest::of(&bytes);
        let descriptor =
            serde_json::json!({"mediaType": kind, "digest": digest.to_string(), "size": bytes.len()});
        files.insert(blob_name(&digest), bytes);
        descriptor
    };
    let config = blob("application/vnd.oci.image.config.v1+json", config);
    let layer = blob("application/vnd.oci.image.layer.v1.tar+zstd", packed);
    let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let manifest = blob("application/vnd.oci.image.manifest.v1+json", serde_json::to_vec(&manifest).unwrap());
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
    files.insert("index.json".into(), serde_json::to_vec(&index).unwrap());
    files.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
    files
}

fn import(bytes: &[u8], limits: Limits) -> (tempfile::TempDir, PathBuf, Result<FlatImage>) {
    let dir = tempfile::tempdir().unwrap();
    let (archive, out) = (dir.path().join("archive"), dir.path().join("out.ext4"));
    std::fs::write(&archive, bytes).unwrap();
    let (cancel, progress) = (Cancel::new(), |_: Progress| {});
    let work = dir.path().join("work");
    std::fs::create_dir(&work).unwrap();
    let build = Build { work_dir: &work, progress: &progress, cancel: &cancel };
    let made = import_archive(&build, &archive, limits, Arch::host(), &out);
    assert_eq!(std::fs::read_dir(&work).unwrap().count(), 0, "nothing is left beside it");
    (dir, out, made)
}

fn debugfs(image: &Path, command: &str) -> String {
    let out =
        Tool::new("read back", "debugfs", "e2fsprogs").args(["-R", command]).arg(image).output().unwrap();
    String::from_utf8(out).unwrap()
}

fn refused(bytes: &[u8], why: &str) {
    let (_dir, _out, made) = import(bytes, Limits::default());
    let error = made.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input, "{error}");
    assert!(error.to_string().contains(why), "{error} does not say {why:?}");
}

#[test]
fn every_form_becomes_a_sound_filesystem_with_its_files() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (_dir, out, made) = import(&tar(&docker_save()), Limits::default());
    let made = made.unwrap();
    assert_eq!(made.config.env["A"], "1");
    assert!(made.warnings.is_empty(), "it has a shell: {:?}", made.warnings);
    Tool::new("check", "e2fsck", "e2fsprogs").args(["-f", "-n"]).arg(&out).run().unwrap();
    assert_eq!((debugfs(&out, "cat /two"), debugfs(&out, "cat /bin/sh")), ("2".into(), "#!".into()));
    assert!(debugfs(&out, "stat /srv/app").contains("Type: directory"), "commands begin there");
    let layout = tar(&oci_layout());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&layout).unwrap();
    for bytes in [layout.clone(), gzip.finish().unwrap(), zstd::encode_all(&layout[..], 1).unwrap()] {
        let (_dir, out, made) = import(&bytes, Limits::default());
        assert!(made.unwrap().warnings[0].contains("/bin/sh"));
        assert_eq!(debugfs(&out, "cat /one"), "1");
    }
}

#[test]
fn what_is_no_image_says_so() {
    refused(b"", "no image");
    refused(b"hello, this is text\n", "no tar archive");
    refused(&layer("etc/passwd", "x"), "neither a manifest.json");
    refused(b"\xfd7zXZ\0 and more", "gzip and zstd");
    refused(&[0x1f, 0x8b, 8, 0, 1, 2, 3], "cut short or damaged");
    let mut files = docker_save();
    files.insert("manifest.json".into(), b"{}".to_vec());
    refused(&tar(&files), "makes no sense");
    let mut two: Vec<serde_json::Value> = serde_json::from_slice(&docker_save()["manifest.json"]).unwrap();
    two.push(two[0].clone());
    files.insert("manifest.json".into(), serde_json::to_vec(&two).unwrap());
    refused(&tar(&files), "2 images");
}

#[test]
fn a_cut_archive_is_refused_wherever_it_was_cut() {
    let bytes = tar(&docker_save());
    for part in 1..16 {
        let (_dir, _out, made) = import(&bytes[..bytes.len() * part / 16 - 512], Limits::default());
        if let Err(error) = made {
            assert!(matches!(error.kind(), ErrorKind::Input | ErrorKind::Missing), "{error}");
        } else {
            // Only the zeros at the end may be missing.
            assert!(bytes[bytes.len() * part / 16 - 512..].iter().all(|byte| *byte == 0));
        }
    }
}

#[test]
fn damaged_parts_and_names_that_lead_out_are_refused() {
    let mut files = docker_save();
    let name = files.keys().find(|name| name.len() > 60).unwrap().clone();
    files.get_mut(&name).unwrap().push(b' ');
    refused(&tar(&files), "digest is not that of its name");
    let mut files = oci_layout();
    let manifest = files.iter().find(|(_, v)| v.starts_with(b"{\"config\"")).unwrap().0.clone();
    files.get_mut(&manifest).unwrap().push(b' ');
    refused(&tar(&files), "damaged");
    let mut files = docker_save();
    let text = String::from_utf8(files["manifest.json"].clone()).unwrap();
    files.insert("manifest.json".into(), text.replace("1/layer.tar", "../../etc/passwd").into());
    refused(&tar(&files), "is not in it");
    if rustix::process::geteuid().is_root() {
        let mut files = docker_save();
        files.insert("2/layer.tar".into(), layer("two", "3"));
        refused(&tar(&files), "layer 2 is not what its configuration says");
    }
}

#[test]
fn an_image_of_another_machine_is_refused_by_name() {
    let one = layer("a", "1");
    let config = config(&[&one], "s390x");
    let manifest = br#"[{"Config":"c.json","Layers":["l.tar"]}]"#.to_vec();
    let files =
        Files::from([("c.json".into(), config), ("l.tar".into(), one), ("manifest.json".into(), manifest)]);
    refused(&tar(&files), "linux/s390x");
}

#[test]
fn names_in_an_archive_stay_in_it() {
    let clean = |here: &str, name: &str| clean(Path::new(here), name.as_bytes());
    assert_eq!(clean("a/b", "../c/./layer.tar").as_deref(), Some("a/c/layer.tar"));
    assert_eq!(clean("", "/x").as_deref(), Some("x"));
    assert_eq!((clean("a", "../../x"), clean("", ".."), clean("", "")), (None, None, None));
}
