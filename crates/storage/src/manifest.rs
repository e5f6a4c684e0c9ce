//! A sandbox's generation record: which of its files belong together, and in which state the last commit left it.
//!
//! `docs/formats/manifest.md` draws the file.

use std::path::Path;

use serde::{Deserialize, Serialize};
use types::{
    Accel, Bytes, ContentId, Egress, ImageName, Labels, LayerId, MAX_VOLUMES, Mebibytes, MountPath, NetMode,
    Owner, Rate, SandboxId, SandboxName, SecretName, StorageLayout, ThermalRule, Timestamp, VolumeName,
    check_mounts,
};

use crate::error::{Error, ErrorKind, Result};
use crate::record::{self, Format};

/// What the last commit says about the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// A VMM runs it; if none does, host or VMM died and the next start boots from the disk.
    Running,
    /// Its memory is in `mem.snap` and `vm.snap`.
    Cold,
    /// Powered off: the disk alone counts.
    Off,
}

/// The base image a root disk was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRef {
    /// Its name when the sandbox was created.
    pub name: ImageName,
    /// Its content.
    pub id: ContentId,
}

/// What lies under a guest's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RamBase {
    /// A template's RAM base.
    Template {
        /// The template.
        key: ContentId,
        /// The base's content.
        ram: ContentId,
    },
    /// A base of its own in `bases/`, written when a guest had changed much.
    Own {
        /// The base's content.
        ram: ContentId,
    },
    /// Nothing but zeros: the guest was booted.
    Zero,
}

impl RamBase {
    /// The id that a memory image over this base carries; 64 zeros for the zero base.
    #[must_use]
    pub fn id(&self) -> ContentId {
        match self {
            Self::Template { ram, .. } | Self::Own { ram } => ram.clone(),
            Self::Zero => ContentId::from_hash(&[0; 32]),
        }
    }
}

/// How a frozen layer is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerFormat {
    /// The blocks that were written; the others are in what lies below.
    Qcow2,
    /// The whole disk: nothing lies below.
    Raw,
}

/// A root disk that was frozen: a file in `layers/` that is never written again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerRef {
    /// Its id.
    pub id: LayerId,
    /// How it is kept.
    pub format: LayerFormat,
}

/// A volume that is attached: while the manifest names it, it is in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRef {
    /// Which one, of the sandbox's owner.
    pub name: VolumeName,
    /// Where it is mounted.
    pub mount: MountPath,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// The port that its disk is plugged into.
    pub port: u8,
}

/// How a sandbox reaches the world.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetRecord {
    /// By what.
    pub mode: NetMode,
    /// What it may reach.
    pub egress: Egress,
}

/// A device in port order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceRecord {
    /// The VMM's id of it.
    pub id: String,
    /// What it is, in the VMM's words.
    pub kind: String,
    /// The port it is on.
    pub port: String,
}

/// The machine that a memory image fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineRecord {
    /// The VMM's version that ran it last.
    pub qemu_version: String,
    /// The pinned machine type.
    pub machine_type: String,
    /// What executed the guest.
    pub accel: Accel,
    /// The processor the guest saw.
    pub cpu_model: String,
    /// Devices in port order.
    pub devices: Vec<DeviceRecord>,
}

/// The memory image that belongs to this generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryRecord {
    /// BLAKE3 of `mem.snap`'s header, which in turn holds the checksum of every frame.
    pub mem_header_blake3: ContentId,
    /// Bytes of `mem.snap` up to the end of its last frame; its logical size is at least the memory's.
    pub mem_content_bytes: Bytes,
    /// BLAKE3 of `vm.snap`.
    pub vm_blake3: ContentId,
    /// Size of `vm.snap`.
    pub vm_bytes: Bytes,
    /// Size of the device state in it, when it is packed (zstd); since version 6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_unpacked_bytes: Option<Bytes>,
    /// BLAKE3 of the root overlay's header and tables (see `fsck::qcow2`), while nobody writes it; since version 7.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_tables_blake3: Option<ContentId>,
    /// Whether the agent had detached cleanly, so that the channel holds no half frame.
    pub detached: bool,
}

/// The generation record of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The sandbox, and its directory's name.
    pub id: SandboxId,
    /// Its name.
    pub name: SandboxName,
    /// Whose it is.
    pub owner: Owner,
    /// Counts up with every change of state; a memory image is valid for exactly one.
    pub generation: u64,
    /// What the last commit says.
    pub state: RunState,
    /// How the root disk is kept.
    pub layout: StorageLayout,
    /// The frozen layers under the root disk, the nearest first. Below the last one lies the image, unless it is whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerRef>,
    /// The image under or behind the root disk.
    pub image: ImageRef,
    /// The kernel and initramfs it boots.
    pub kernel: ContentId,
    /// Virtual processors.
    pub cpus: u32,
    /// Guest memory.
    pub memory_mib: Mebibytes,
    /// Size of the root disk.
    pub disk_size_mib: Mebibytes,
    /// Free-form labels.
    pub labels: Labels,
    /// Exempt from going to sleep by itself.
    pub keep_hot: bool,
    /// When it is paused and put to sleep, where it says so itself.
    #[serde(default, skip_serializing_if = "ThermalRule::is_empty")]
    pub thermal: ThermalRule,
    /// When it was created.
    pub created_at: Timestamp,
    /// What lies under its memory.
    pub ram_base: RamBase,
    /// The volumes that are attached, in the order of their ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeRef>,
    /// The owner's secrets that its guest is told, by name; their values are never stored with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretName>,
    /// How it reaches the world; not at all when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<NetRecord>,
    /// How much its network may carry in a second in each direction; as the host says when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_rate: Option<Rate>,
    /// How much its disks may read and write together in a second; as the host says when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_rate: Option<Rate>,
    /// The machine it runs on.
    pub machine: MachineRecord,
    /// The memory image; there is one if and only if the state is cold.
    pub memory: Option<MemoryRecord>,
}

pub(crate) const FORMAT: Format = Format { name: "bhatti-sandbox", version: 7 };

impl Manifest {
    /// The next generation, in which a guest runs: no memory image is valid any more.
    #[must_use]
    pub fn into_running(mut self) -> Self {
        self.generation = self.generation.saturating_add(1);
        self.state = RunState::Running;
        self.memory = None;
        self
    }

    /// The next generation, in which the disk alone counts.
    #[must_use]
    pub fn into_off(mut self) -> Self {
        self.generation = self.generation.saturating_add(1);
        self.state = RunState::Off;
        self.memory = None;
        self
    }

    /// The lowest port that no volume is plugged into.
    #[must_use]
    pub fn free_port(&self) -> Option<u8> {
        let ports = (0u8..).take(MAX_VOLUMES);
        ports.into_iter().find(|port| self.volumes.iter().all(|volume| volume.port != *port))
    }

    /// The volume of that name, if it is attached.
    #[must_use]
    pub fn volume(&self, name: &VolumeName) -> Option<&VolumeRef> {
        self.volumes.iter().find(|volume| volume.name == *name)
    }

    /// With a volume more.
    #[must_use]
    pub fn with_volume(mut self, volume: VolumeRef) -> Self {
        let at = self.volumes.partition_point(|other| other.port < volume.port);
        self.volumes.insert(at, volume);
        self
    }

    /// With a volume less.
    #[must_use]
    pub fn without_volume(mut self, name: &VolumeName) -> Self {
        self.volumes.retain(|volume| volume.name != *name);
        self
    }

    /// The file's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        record::encode(FORMAT, self)
    }

    /// Reads a file's bytes; `path` is for the error only.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are not those of [`Manifest::encode`], `TooNew` for a later version.
    pub fn decode(bytes: &[u8], path: &Path) -> Result<Self> {
        let manifest: Self = record::decode(FORMAT, bytes, path)?;
        manifest.check(path)?;
        Ok(manifest)
    }

    /// What holds between the fields whatever the state.
    pub(crate) fn check(&self, path: &Path) -> Result<()> {
        if (self.state == RunState::Cold) != self.memory.is_some() {
            return Err(Error::new(ErrorKind::Invalid, "check manifest", path)
                .because("a memory image belongs to the cold state and to no other"));
        }
        let whole = self.layers.iter().rposition(|layer| layer.format == LayerFormat::Raw);
        if whole.is_some_and(|at| at + 1 != self.layers.len())
            || (self.layout == StorageLayout::Reflink && !self.layers.is_empty())
        {
            return Err(Error::new(ErrorKind::Invalid, "check manifest", path)
                .because("nothing can lie below a whole disk"));
        }
        let ports: Vec<u8> = self.volumes.iter().map(|volume| volume.port).collect();
        let in_order = ports.windows(2).all(|pair| pair[0] < pair[1]);
        let fit = ports.iter().all(|port| usize::from(*port) < MAX_VOLUMES);
        if !in_order
            || !fit
            || check_mounts(self.volumes.iter().map(|volume| (&volume.name, &volume.mount))).is_err()
        {
            return Err(Error::new(ErrorKind::Invalid, "check manifest", path)
                .because("its volumes cannot be attached side by side"));
        }
        if self.memory_mib.checked_bytes().is_none() || self.memory_mib.0 == 0 {
            return Err(Error::new(ErrorKind::Invalid, "check manifest", path)
                .because("the memory size is impossible"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use types::After;

    use super::*;

    fn sample() -> Manifest {
        let id = |byte| ContentId::from_hash(&[byte; 32]);
        Manifest {
            id: "0123456789abcdef".parse().unwrap(),
            name: "web-1".parse().unwrap(),
            owner: Owner::admin(),
            generation: 12,
            state: RunState::Cold,
            layout: StorageLayout::Overlay,
            layers: vec![LayerRef { id: "00112233445566aa".parse().unwrap(), format: LayerFormat::Qcow2 }],
            image: ImageRef { name: "minimal".parse().unwrap(), id: id(1) },
            kernel: id(2),
            cpus: 1,
            memory_mib: Mebibytes(512),
            disk_size_mib: Mebibytes(1024),
            labels: [("tier".to_owned(), "tëst \"quoted\"".to_owned())].into(),
            keep_hot: false,
            thermal: ThermalRule {
                warm_after: Some(After::seconds(5)),
                cold_after: Some(After::NEVER),
                sleep_busy: None,
            },
            created_at: Timestamp(1_700_000_000_123),
            ram_base: RamBase::Template { key: id(3), ram: id(4) },
            volumes: vec![VolumeRef {
                name: "data".parse().unwrap(),
                mount: "/data".parse().unwrap(),
                read_only: true,
                port: 1,
            }],
            secrets: vec!["API_KEY".parse().unwrap()],
            net: Some(NetRecord {
                mode: NetMode::User,
                egress: Egress::from_words(&["10.1.0.0/16", "pypi.org"]).unwrap(),
            }),
            net_rate: Some("20M".parse().unwrap()),
            disk_rate: Some("100M:2000".parse().unwrap()),
            machine: MachineRecord {
                qemu_version: "7.2.22".to_owned(),
                machine_type: "pc-q35-7.2".to_owned(),
                accel: Accel::Tcg,
                cpu_model: "Nehalem-v1".to_owned(),
                devices: vec![DeviceRecord {
                    id: "root".to_owned(),
                    kind: "virtio-blk-pci".to_owned(),
                    port: "rp0".to_owned(),
                }],
            },
            memory: Some(MemoryRecord {
                mem_header_blake3: id(5),
                mem_content_bytes: Bytes(351_232),
                vm_blake3: id(6),
                vm_bytes: Bytes(9_110),
                vm_unpacked_bytes: Some(Bytes(127_110)),
                root_tables_blake3: Some(id(7)),
                detached: true,
            }),
        }
    }

    fn decode(bytes: &[u8]) -> Result<Manifest> {
        Manifest::decode(bytes, Path::new("sandboxes/0123456789abcdef/manifest.json"))
    }

    /// Release by release, the files that were once written are read. `BHATTI_WRITE_GOLDEN=1` writes a missing one.
    #[test]
    fn manifests_of_every_version_are_still_read_and_the_present_one_is_written_alike() {
        let plain = |memory: MemoryRecord| MemoryRecord {
            vm_bytes: Bytes(127_110),
            vm_unpacked_bytes: None,
            root_tables_blake3: None,
            ..memory
        };
        let fifth_sample = || Manifest {
            net: None,
            net_rate: None,
            disk_rate: None,
            memory: sample().memory.map(plain),
            ..sample()
        };
        let fourth_sample = || Manifest { secrets: Vec::new(), ..fifth_sample() };
        let third_sample = || Manifest { thermal: ThermalRule::default(), ..fourth_sample() };
        let golden = |name| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let first = std::fs::read_to_string(golden("manifest-1.json")).unwrap();
        assert_eq!(
            decode(first.as_bytes()).unwrap(),
            Manifest { layers: Vec::new(), volumes: Vec::new(), ..third_sample() }
        );
        let second = std::fs::read_to_string(golden("manifest-2.json")).unwrap();
        assert_eq!(decode(second.as_bytes()).unwrap(), Manifest { volumes: Vec::new(), ..third_sample() });
        let third = std::fs::read_to_string(golden("manifest-3.json")).unwrap();
        assert_eq!(decode(third.as_bytes()).unwrap(), third_sample());
        let fourth = std::fs::read_to_string(golden("manifest-4.json")).unwrap();
        assert_eq!(decode(fourth.as_bytes()).unwrap(), fourth_sample());
        let fifth = std::fs::read_to_string(golden("manifest-5.json")).unwrap();
        assert_eq!(decode(fifth.as_bytes()).unwrap(), fifth_sample());
        let sixth = std::fs::read_to_string(golden("manifest-6.json")).unwrap();
        let unsealed = |memory: MemoryRecord| MemoryRecord { root_tables_blake3: None, ..memory };
        let sixth_sample = Manifest { memory: sample().memory.map(unsealed), ..sample() };
        assert_eq!(decode(sixth.as_bytes()).unwrap(), sixth_sample);
        let path = golden("manifest-7.json");
        if std::env::var_os("BHATTI_WRITE_GOLDEN").is_some() && !path.exists() {
            std::fs::write(&path, sample().encode()).unwrap();
        }
        let seventh = std::fs::read_to_string(&path).unwrap();
        assert_eq!(decode(seventh.as_bytes()).unwrap(), sample());
        assert_eq!(String::from_utf8(sample().encode()).unwrap(), seventh);
    }

    #[test]
    fn a_newer_manifest_is_refused_by_its_version_even_if_nothing_else_is_known() {
        let text = r#"{"format":"bhatti-sandbox","version":8,"blake4":"?","content":[]}"#;
        let error = decode(text.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooNew);
        assert!(error.to_string().contains("version 8"), "{error}");
        let same = String::from_utf8(sample().encode()).unwrap().replace("\"version\":7", "\"version\":8");
        assert_eq!(decode(same.as_bytes()).unwrap_err().kind(), ErrorKind::TooNew);
    }

    #[test]
    fn another_format_and_a_contradiction_are_refused() {
        let text = String::from_utf8(sample().encode()).unwrap().replace("bhatti-sandbox", "bhatti-template");
        assert_eq!(decode(text.as_bytes()).unwrap_err().kind(), ErrorKind::Corrupt);
        let hot = Manifest { state: RunState::Running, ..sample() };
        assert_eq!(decode(&hot.encode()).unwrap_err().kind(), ErrorKind::Invalid);
        assert!(decode(&sample().into_running().encode()).is_ok());
    }

    #[test]
    fn volumes_that_share_a_port_or_a_path_are_refused() {
        let volume = |name: &str, mount: &str, port| VolumeRef {
            name: name.parse().unwrap(),
            mount: mount.parse().unwrap(),
            read_only: false,
            port,
        };
        for (volumes, fine) in [
            (vec![volume("a", "/a", 0), volume("b", "/b", 3)], true),
            (vec![volume("a", "/a", 1), volume("b", "/b", 1)], false),
            (vec![volume("a", "/a", 1), volume("b", "/b", 0)], false),
            (vec![volume("a", "/a", 4)], false),
            (vec![volume("a", "/a", 0), volume("b", "/a/b", 1)], false),
        ] {
            assert_eq!(decode(&Manifest { volumes, ..sample() }.encode()).is_ok(), fine);
        }
    }

    #[test]
    fn a_new_generation_names_no_memory() {
        for next in [sample().into_running(), sample().into_off()] {
            assert_eq!((next.generation, next.memory), (13, None));
        }
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_refused_or_changes_nothing(at in any::<prop::sample::Index>(), bit in 0u32..8) {
            let mut bytes = sample().encode();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            match decode(&bytes) {
                Ok(read) => prop_assert_eq!(read, sample()),
                Err(error) => prop_assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::TooNew)),
            }
        }

        #[test]
        fn any_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            prop_assert!(decode(&bytes).is_err());
        }
    }
}
