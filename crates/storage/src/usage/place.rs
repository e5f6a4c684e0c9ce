//! What a path below the data root belongs to, and what it is there.

use std::path::{Component, Path, PathBuf};

use crate::layout::{self, GONE, NEW};
use crate::usage::UsageKind;

/// What has bytes: what can be made and removed as one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Thing {
    /// The sandbox whose directory has that name.
    Sandbox(String),
    /// A named snapshot of an owner.
    Snapshot(String, String),
    /// A volume of an owner.
    Volume(String, String),
    /// Something shared, and where it is.
    Object(UsageKind, PathBuf),
}

/// A name below the data root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) thing: Thing,
    /// What this file of the thing is.
    pub(crate) kind: UsageKind,
}

/// Where names of images are; what they name is found by looking at the file.
pub(crate) fn is_image_name(path: &Path) -> bool {
    let parts = parts(path);
    matches!(parts.as_slice(), ["images", name] if name.starts_with("rootfs-") && !is_staging(name))
}

/// What a name such as `images/rootfs-minimal-amd64.ext4` calls an image, with or without its extension.
pub(crate) fn image_name(path: &Path) -> Option<&str> {
    let name = stem(path.file_name()?.to_str()?);
    name.strip_prefix("rootfs-")?.rsplit_once('-').map(|(name, _)| name)
}

/// The place of a path, given from the data root.
pub(crate) fn place(path: &Path, is_dir: bool) -> Place {
    let parts = parts(path);
    let object = |kind, depth| Thing::Object(kind, parts[..depth].iter().collect());
    let thing = match *parts.as_slice() {
        [] => structure(),
        // What somebody makes or removes just now, wherever it is; in a sandbox it is the sandbox's.
        [first, ..] if is_staging(first) => object(UsageKind::Staging, 1),
        [
            "images" | "layers" | "bases" | "templates" | "kernel" | "sandboxes" | "snapshots" | "volumes",
            name,
            ..,
        ] if is_staging(name) => object(UsageKind::Staging, 2),
        ["images", "objects", name, ..]
        | ["templates", "zero", name, ..]
        | ["volumes" | "snapshots", _, name, ..]
            if is_staging(name) =>
        {
            object(UsageKind::Staging, 3)
        }
        ["images", "objects", _, ..] => object(UsageKind::Image, 3),
        ["images", "objects" | "blobs"] if is_dir => structure(),
        // Downloads that may be used again belong to no image.
        ["images", "blobs", _, ..] => object(UsageKind::Staging, 3),
        ["images", _, ..] => object(UsageKind::Image, 2),
        // The record of a layer lies beside it under the same name.
        ["layers", name, ..] => Thing::Object(UsageKind::Layer, Path::new("layers").join(stem(name))),
        ["bases", name, ..] => Thing::Object(UsageKind::Base, Path::new("bases").join(stem(name))),
        ["templates", "zero", ..] => object(UsageKind::Base, 2),
        ["templates", _, ..] => object(UsageKind::Template, 2),
        // Which kernel is the one for an architecture.
        ["kernel", name] if name.ends_with(".json") => object(UsageKind::Record, 2),
        ["kernel", _, ..] => object(UsageKind::Kernel, 2),
        ["quarantine", _, ..] => object(UsageKind::Quarantine, 2),
        ["sandboxes", id, ..] => Thing::Sandbox(id.to_owned()),
        ["snapshots" | "volumes", _] if is_dir => structure(),
        ["snapshots", owner, name, ..] => Thing::Snapshot(owner.to_owned(), name.to_owned()),
        ["volumes", owner, name, ..] => Thing::Volume(owner.to_owned(), stem(name).to_owned()),
        [
            "images" | "layers" | "bases" | "templates" | "kernel" | "sandboxes" | "snapshots" | "volumes"
            | "quarantine",
        ] if is_dir => structure(),
        [first, ..] => Thing::Object(of_daemon(first), PathBuf::from(first)),
    };
    let kind = match (is_dir, &thing) {
        (true, _) => UsageKind::Directory,
        (false, Thing::Object(kind @ (UsageKind::Staging | UsageKind::Database | UsageKind::Log), _)) => {
            *kind
        }
        (false, thing) => of_file(parts.last().copied().unwrap_or_default(), thing),
    };
    Place { thing, kind }
}

/// The directories that everything else is in.
fn structure() -> Thing {
    Thing::Object(UsageKind::Directory, PathBuf::new())
}

fn parts(path: &Path) -> Vec<&str> {
    // A name that is not UTF-8 was not made here: it is nobody's.
    path.components()
        .map(|part| match part {
            Component::Normal(name) => name.to_str().unwrap_or("?"),
            _ => "?",
        })
        .collect()
}

fn is_staging(name: &str) -> bool {
    name.starts_with(NEW) || name.starts_with(GONE) || name.ends_with(".new")
}

fn stem(name: &str) -> &str {
    name.split_once('.').map_or(name, |(stem, _)| stem)
}

/// What the daemon keeps in the data root itself.
fn of_daemon(name: &str) -> UsageKind {
    match name {
        _ if name.starts_with("bhatti.db") => UsageKind::Database,
        _ if name.ends_with(".log") => UsageKind::Log,
        _ => UsageKind::Other,
    }
}

/// What a file is by its name.
fn of_file(name: &str, thing: &Thing) -> UsageKind {
    match name {
        _ if is_staging(name) => UsageKind::Staging,
        layout::MEM_SNAP => UsageKind::Memory,
        layout::VM_SNAP => UsageKind::Devices,
        layout::CONFIG_DRIVE => UsageKind::Config,
        layout::VMM_LOG | layout::NET_LOG | layout::WAKE_SET => UsageKind::Log,
        layout::RAM_BASE => UsageKind::Base,
        _ if name.ends_with(".json") => UsageKind::Record,
        "rootfs.qcow2" | "rootfs.ext4" => UsageKind::RootDisk,
        _ => match thing {
            Thing::Object(kind, _) => *kind,
            Thing::Volume(..) => UsageKind::Volume,
            Thing::Snapshot(..) if name.ends_with(".ext4") => UsageKind::Volume,
            Thing::Sandbox(_) | Thing::Snapshot(..) => UsageKind::Other,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str) -> (Thing, UsageKind) {
        let (path, is_dir) = path.strip_suffix('/').map_or((path, false), |path| (path, true));
        let Place { thing, kind } = place(Path::new(path), is_dir);
        (thing, kind)
    }

    fn object(kind: UsageKind, path: &str) -> Thing {
        Thing::Object(kind, PathBuf::from(path))
    }

    #[test]
    fn every_name_that_bhatti_makes_has_its_place() {
        use UsageKind as K;
        let sandbox = || Thing::Sandbox("0123456789abcdef".to_owned());
        let snapshot = || Thing::Snapshot("admin".to_owned(), "warm".to_owned());
        let volume = || Thing::Volume("admin".to_owned(), "data".to_owned());
        let cases = [
            ("images/objects/ab12.ext4", object(K::Image, "images/objects/ab12.ext4"), K::Image),
            ("layers/00aa.qcow2", object(K::Layer, "layers/00aa"), K::Layer),
            ("layers/00aa.json", object(K::Layer, "layers/00aa"), K::Record),
            ("bases/ff00.ram", object(K::Base, "bases/ff00"), K::Base),
            ("templates/zero/512.ram", object(K::Base, "templates/zero"), K::Base),
            ("templates/ab/", object(K::Template, "templates/ab"), K::Directory),
            ("templates/ab/ram.base", object(K::Template, "templates/ab"), K::Base),
            ("templates/ab/rootfs.qcow2", object(K::Template, "templates/ab"), K::RootDisk),
            ("kernel/amd64.json", object(K::Record, "kernel/amd64.json"), K::Record),
            ("kernel/ab/vmlinuz", object(K::Kernel, "kernel/ab"), K::Kernel),
            ("sandboxes/0123456789abcdef/", sandbox(), K::Directory),
            ("sandboxes/0123456789abcdef/rootfs.ext4", sandbox(), K::RootDisk),
            ("sandboxes/0123456789abcdef/config.ext4", sandbox(), K::Config),
            ("sandboxes/0123456789abcdef/mem.snap", sandbox(), K::Memory),
            ("sandboxes/0123456789abcdef/vm.snap", sandbox(), K::Devices),
            ("sandboxes/0123456789abcdef/manifest.json", sandbox(), K::Record),
            ("sandboxes/0123456789abcdef/mem.snap.new", sandbox(), K::Staging),
            ("sandboxes/0123456789abcdef/vmm.log", sandbox(), K::Log),
            ("sandboxes/0123456789abcdef/what.ever", sandbox(), K::Other),
            ("snapshots/admin/warm/rootfs.qcow2", snapshot(), K::RootDisk),
            ("snapshots/admin/warm/volume-data.ext4", snapshot(), K::Volume),
            ("volumes/admin/data.ext4", volume(), K::Volume),
            ("volumes/admin/data.json", volume(), K::Record),
            ("snapshots/admin/", object(K::Directory, ""), K::Directory),
            ("images/objects/", object(K::Directory, ""), K::Directory),
            ("sandboxes/", object(K::Directory, ""), K::Directory),
            ("bhatti.db-wal", object(K::Database, "bhatti.db-wal"), K::Database),
            ("serve.log", object(K::Log, "serve.log"), K::Log),
            ("admin.key", object(K::Other, "admin.key"), K::Other),
            ("secrets.key", object(K::Other, "secrets.key"), K::Other),
            ("quarantine/x/mem.snap", object(K::Quarantine, "quarantine/x"), K::Memory),
            ("quarantine/", object(K::Directory, ""), K::Directory),
            (".new-open-1", object(K::Staging, ".new-open-1"), K::Staging),
            ("images/.new-scratch-1/a/b", object(K::Staging, "images/.new-scratch-1"), K::Staging),
            ("images/objects/.new-1", object(K::Staging, "images/objects/.new-1"), K::Staging),
            ("sandboxes/.gone-1/rootfs.ext4", object(K::Staging, "sandboxes/.gone-1"), K::Staging),
            ("snapshots/.new-fork-1/x", object(K::Staging, "snapshots/.new-fork-1"), K::Staging),
            ("snapshots/admin/.new-warm/x", object(K::Staging, "snapshots/admin/.new-warm"), K::Staging),
        ];
        for (path, thing, kind) in cases {
            assert_eq!(of(path), (thing, kind), "{path}");
        }
    }

    #[test]
    fn an_image_is_called_what_its_link_says() {
        let name = |path| image_name(Path::new(path)).map(str::to_owned);
        assert_eq!(name("images/rootfs-minimal-amd64.ext4").as_deref(), Some("minimal"));
        assert_eq!(name("images/rootfs-my-own-arm64").as_deref(), Some("my-own"));
        assert_eq!(name("images/rootfs-.json"), None);
        assert!(is_image_name(Path::new("images/rootfs-minimal-amd64.ext4")));
        assert!(!is_image_name(Path::new("images/objects/rootfs-a-b.ext4")));
        assert!(!is_image_name(Path::new("images/rootfs-minimal-amd64.json.new")));
    }
}
