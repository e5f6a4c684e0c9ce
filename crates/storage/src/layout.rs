//! Every name under the data root, said once.
//!
//! # Invariants
//! A template's directory, its staging directory and a sandbox's directory lie at the same depth, so that a relative
//! path written into an overlay (`../../images/objects/<id>.ext4`) means the same file from each of them.

use std::path::{Path, PathBuf};

use types::{
    Arch, ContentId, ImageName, LayerId, Mebibytes, Nonce, Owner, SandboxId, SnapshotName, StorageLayout,
    VolumeName,
};

use crate::manifest::{LayerFormat, LayerRef};

/// QMP's socket in a sandbox's directory.
pub const QMP_SOCKET: &str = "qmp.sock";
/// The agent channel's socket in a sandbox's directory.
pub const AGENT_SOCKET: &str = "agent.sock";
/// What a VMM sees of the data directory, in a sandbox's directory; empty but for moments.
pub const VMM_ROOM: &str = "vmm";
/// What the VMM wrote to its standard error.
pub const VMM_LOG: &str = "vmm.log";
/// What the processes between the VMM and the world wrote to their standard error.
pub const NET_LOG: &str = "net.log";
/// The config drive.
pub const CONFIG_DRIVE: &str = "config.ext4";
/// Guest memory, while cold.
pub const MEM_SNAP: &str = "mem.snap";
/// Device state, while cold.
pub const VM_SNAP: &str = "vm.snap";
/// Device state as the VMM writes it, before it counts.
pub const VM_SNAP_NEW: &str = "vm.snap.new";
/// What the last wake read.
pub const WAKE_SET: &str = "wake.set";
/// The generation record of a sandbox or a template.
pub const MANIFEST: &str = "manifest.json";
/// A kernel, in its directory.
pub(crate) const VMLINUZ: &str = "vmlinuz";
/// An initramfs, in its kernel's directory.
pub(crate) const INITRAMFS: &str = "initramfs";
/// A template's RAM base.
pub const RAM_BASE: &str = "ram.base";
/// From a sandbox's or a template's directory up to the data root.
pub const TO_ROOT: &str = "../..";

pub(crate) const MEM_SNAP_NEW: &str = "mem.snap.new";
pub(crate) const MANIFEST_NEW: &str = "manifest.json.new";
/// What begins every staging name.
pub(crate) const NEW: &str = ".new-";
/// What begins the name of a directory on its way out.
pub(crate) const GONE: &str = ".gone-";

/// The root disk's file name in a sandbox's or a template's directory.
#[must_use]
pub const fn root_disk(layout: StorageLayout) -> &'static str {
    match layout {
        StorageLayout::Overlay => "rootfs.qcow2",
        StorageLayout::Reflink => "rootfs.ext4",
    }
}

/// Where things are under one data root.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) root: PathBuf,
}

impl Layout {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The directories made by opening a store, parents first.
    pub(crate) fn directories(&self) -> [PathBuf; 11] {
        [
            self.images(),
            self.objects(),
            self.blobs(),
            self.templates(),
            self.zero(),
            self.sandboxes(),
            self.layers(),
            self.bases(),
            self.volumes(),
            self.snapshots(),
            self.kernel(),
        ]
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(crate) fn objects(&self) -> PathBuf {
        self.root.join("images/objects")
    }

    /// Blobs of registries, kept to be used again.
    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("images/blobs")
    }

    pub(crate) fn object(&self, id: &ContentId) -> PathBuf {
        self.root.join(object_below_root(id))
    }

    /// Of an image that is one owner's alone, or of one for all.
    pub(crate) fn image_record(&self, owner: Option<&Owner>, name: &ImageName, arch: Arch) -> PathBuf {
        self.images().join(format!("{}.json", image_stem(owner, name, arch)))
    }

    pub(crate) fn image_link(&self, owner: Option<&Owner>, name: &ImageName, arch: Arch) -> PathBuf {
        self.images().join(format!("{}.ext4", image_stem(owner, name, arch)))
    }

    pub(crate) fn templates(&self) -> PathBuf {
        self.root.join("templates")
    }

    pub(crate) fn template(&self, key: &ContentId) -> PathBuf {
        self.templates().join(key.as_str())
    }

    pub(crate) fn zero(&self) -> PathBuf {
        self.root.join("templates/zero")
    }

    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    pub(crate) fn sandbox(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes().join(id.as_str())
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(crate) fn layer(&self, layer: &LayerRef) -> PathBuf {
        self.root.join(layer_below_root(layer))
    }

    pub(crate) fn layer_record(&self, id: &LayerId) -> PathBuf {
        self.layers().join(format!("{id}.json"))
    }

    pub(crate) fn bases(&self) -> PathBuf {
        self.root.join("bases")
    }

    pub(crate) fn base(&self, ram: &ContentId) -> PathBuf {
        self.root.join(base_below_root(ram))
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    pub(crate) fn snapshots_of(&self, owner: &Owner) -> PathBuf {
        self.snapshots().join(owner.as_str())
    }

    pub(crate) fn snapshot(&self, owner: &Owner, name: &SnapshotName) -> PathBuf {
        self.snapshots_of(owner).join(name.as_str())
    }

    pub(crate) fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    pub(crate) fn volumes_of(&self, owner: &Owner) -> PathBuf {
        self.volumes().join(owner.as_str())
    }

    pub(crate) fn volume(&self, owner: &Owner, name: &VolumeName) -> PathBuf {
        self.root.join(volume_below_root(owner, name))
    }

    pub(crate) fn volume_record(&self, owner: &Owner, name: &VolumeName) -> PathBuf {
        self.volumes_of(owner).join(format!("{name}.json"))
    }

    pub(crate) fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    pub(crate) fn kernel(&self) -> PathBuf {
        self.root.join("kernel")
    }

    pub(crate) fn kernel_dir(&self, id: &ContentId) -> PathBuf {
        self.root.join(kernel_below_root(id))
    }

    pub(crate) fn kernel_record(&self, arch: Arch) -> PathBuf {
        self.kernel().join(format!("{arch}.json"))
    }
}

/// `rootfs-<name>-<arch>`, or `rootfs-<owner>.<name>-<arch>`: no name has a dot, so one cannot be taken for the other.
fn image_stem(owner: Option<&Owner>, name: &ImageName, arch: Arch) -> String {
    match owner {
        Some(owner) => format!("rootfs-{owner}.{name}-{arch}"),
        None => format!("rootfs-{name}-{arch}"),
    }
}

/// What the name of an image's file, without its extension, stands for.
pub(crate) fn image_of_stem(stem: &str) -> Option<(Option<Owner>, ImageName, Arch)> {
    let (called, arch) = stem.strip_prefix("rootfs-")?.rsplit_once('-')?;
    let (owner, name) = match called.split_once('.') {
        Some((owner, name)) => (Some(owner.parse().ok()?), name),
        None => (None, called),
    };
    Some((owner, name.parse().ok()?, arch.parse().ok()?))
}

/// A staging name that no other has.
pub(crate) fn staging_name() -> String {
    format!("{NEW}{}", Nonce::random())
}

/// The name in the quarantine for `what`, such as `sandbox-0123456789abcdef`, put there at `when`.
pub(crate) fn quarantined(when: &str, what: &str) -> String {
    format!("{when}-{what}")
}

/// Whether a name in the quarantine is a sandbox's or a snapshot's, whose manifest named what nobody can tell.
pub(crate) fn is_quarantined_machine(name: &str) -> bool {
    name.split_once('-')
        .is_some_and(|(_, what)| what.starts_with("sandbox-") || what.starts_with("snapshot-"))
}

/// An image's object, from the data root.
pub(crate) fn object_below_root(id: &ContentId) -> PathBuf {
    PathBuf::from(format!("images/objects/{id}.ext4"))
}

/// A kernel's directory, from the data root.
pub(crate) fn kernel_below_root(id: &ContentId) -> PathBuf {
    PathBuf::from(format!("kernel/{id}"))
}

/// A zero base, from the data root.
pub(crate) fn zero_below_root(memory: Mebibytes) -> PathBuf {
    PathBuf::from(format!("templates/zero/{}.ram", memory.0))
}

/// A template's RAM base, from the data root.
pub(crate) fn template_ram_below_root(key: &ContentId) -> PathBuf {
    PathBuf::from(format!("templates/{key}/{RAM_BASE}"))
}

/// A frozen layer, from the data root.
pub(crate) fn layer_below_root(layer: &LayerRef) -> PathBuf {
    let extension = match layer.format {
        LayerFormat::Qcow2 => "qcow2",
        LayerFormat::Raw => "ext4",
    };
    PathBuf::from(format!("layers/{}.{extension}", layer.id))
}

/// A volume, from the data root.
pub(crate) fn volume_below_root(owner: &Owner, name: &VolumeName) -> PathBuf {
    PathBuf::from(format!("volumes/{owner}/{name}.ext4"))
}

/// A RAM base of its own, from the data root.
pub(crate) fn base_below_root(ram: &ContentId) -> PathBuf {
    PathBuf::from(format!("bases/{ram}.ram"))
}

/// The name under which a new top waits in a sandbox's directory until the layer below it is frozen. The layer is part
/// of it: a VMM remembers its disks by name, so none may be used twice, and a crash leaves no doubt what it was for.
pub(crate) fn next_top(layer: &LayerId) -> String {
    format!("{NEXT_TOP}{layer}.new")
}

/// The layer that a file of that name waits to lie on.
pub(crate) fn next_top_over(name: &str) -> Option<LayerId> {
    name.strip_prefix(NEXT_TOP)?.strip_suffix(".new")?.parse().ok()
}

const NEXT_TOP: &str = "rootfs-";

/// A path below the data root as a VMM sees it whose working directory is a sandbox's or a template's.
pub(crate) fn from_machine_dir(below_root: &Path) -> PathBuf {
    Path::new(TO_ROOT).join(below_root)
}
