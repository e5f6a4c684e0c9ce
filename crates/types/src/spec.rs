//! What a sandbox is to be, after checking: no part of it can be nonsense any more.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::volume::check_mounts;
use crate::{Egress, ImageName, Mebibytes, Owner, SandboxName, SecretName, VolumeMount};

/// Labels of a sandbox: key to value.
pub type Labels = BTreeMap<String, String>;

/// A validated order for one sandbox. On purpose not `Serialize`: requests and manifests have types of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxSpec {
    /// Unique among its owner's sandboxes.
    pub name: SandboxName,
    /// Whose it is.
    pub owner: Owner,
    /// The base image to start from.
    pub image: ImageName,
    /// Virtual processors, at least 1.
    pub cpus: u32,
    /// Guest memory.
    pub memory: Mebibytes,
    /// Size of the root disk; `None` is the image's own size.
    pub disk_size: Option<Mebibytes>,
    /// Environment of every command.
    pub env: BTreeMap<String, String>,
    /// Secrets of its owner that every command gets as variables of their names.
    pub secrets: Vec<SecretName>,
    /// Files placed before the first command.
    pub files: Vec<GuestFile>,
    /// Volumes mounted before anything of its own runs, in the order of their ports.
    pub volumes: Vec<VolumeMount>,
    /// A command line run by `sh -c` as a session at every boot.
    pub init: Option<String>,
    /// How it reaches the world; as its host says when missing.
    pub net: Option<NetMode>,
    /// What it may reach; every public address when missing.
    pub egress: Option<Egress>,
    /// How much its network may carry in each direction; as its host says when missing.
    pub net_rate: Option<crate::Rate>,
    /// How much its disks may read and write together; as its host says when missing.
    pub disk_rate: Option<crate::Rate>,
    /// Free-form labels.
    pub labels: Labels,
    /// Exempt from going to sleep by itself.
    pub keep_hot: bool,
    /// When it is paused and put to sleep, where it says so itself.
    pub thermal: crate::ThermalRule,
    /// Refuse the slow path instead of taking it.
    pub strict: bool,
}

/// A file to be placed in the guest: absolute path, content, permission bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFile {
    /// Absolute path in the guest, without `..`.
    pub path: String,
    /// The bytes.
    pub content: Vec<u8>,
    /// Permission bits, at most 0o7777.
    pub mode: u32,
}

/// What this host can give one sandbox at most, and what a guest needs at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecLimits {
    /// Processors of the host.
    pub max_cpus: u32,
    /// The least memory that was seen to boot.
    pub min_memory: Mebibytes,
    /// Memory of the host.
    pub max_memory: Mebibytes,
    /// All `--file` contents together, so that they fit the config drive.
    pub max_files_bytes: u64,
}

/// What is wrong with an order, in words for the one who gave it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidSpec {
    /// What is wrong.
    pub message: String,
    /// What to do instead.
    pub hint: String,
}

impl InvalidSpec {
    pub(crate) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }
}

impl SandboxSpec {
    /// Checks everything that can be checked without looking at any state.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self, limits: &SpecLimits) -> Result<(), InvalidSpec> {
        if self.cpus == 0 || self.cpus > limits.max_cpus {
            return Err(InvalidSpec::new(
                format!("cpus {} is not possible here", self.cpus),
                format!("use 1 to {}", limits.max_cpus),
            ));
        }
        if self.memory < limits.min_memory || self.memory > limits.max_memory {
            return Err(InvalidSpec::new(
                format!("memory of {} is not possible here", self.memory),
                format!("use {} to {} (MiB)", limits.min_memory.0, limits.max_memory.0),
            ));
        }
        Self::check_disk_size(self.disk_size)?;
        for key in self.env.keys() {
            let ok = !key.is_empty()
                && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
                && !key.starts_with(|c: char| c.is_ascii_digit());
            if !ok {
                return Err(InvalidSpec::new(
                    format!("environment name {key:?} is not possible"),
                    "use letters, digits and '_', not beginning with a digit",
                ));
            }
        }
        if self.env.values().any(|v| v.contains('\0')) {
            return Err(InvalidSpec::new("an environment value has a NUL byte", "remove it"));
        }
        if let Some(twice) = self.secrets.iter().find(|secret| self.env.contains_key(secret.as_str())) {
            return Err(InvalidSpec::new(
                format!("{twice} is given as a secret and as an environment variable"),
                "leave one of the two out",
            ));
        }
        if self.net == Some(NetMode::None) && self.egress.as_ref().is_some_and(|egress| !egress.is_none()) {
            return Err(InvalidSpec::new(
                "a sandbox without a network reaches nothing",
                "leave `--egress` or `--net none` out",
            ));
        }
        Self::check_labels(&self.labels)?;
        check_mounts(self.volumes.iter().map(|volume| (&volume.name, &volume.mount)))?;
        let mut total = 0u64;
        for file in &self.files {
            check_guest_path(&file.path)?;
            if file.mode > 0o7777 {
                return Err(InvalidSpec::new(
                    format!("file mode {:o} is not possible", file.mode),
                    "use permission bits such as 0644",
                ));
            }
            total = total.saturating_add(file.content.len() as u64);
        }
        if total > limits.max_files_bytes {
            return Err(InvalidSpec::new(
                format!("files of {total} bytes do not fit the config drive"),
                format!(
                    "give at most {} bytes here and send the rest with `bhatti file write`",
                    limits.max_files_bytes
                ),
            ));
        }
        Ok(())
    }

    /// Checks the size of a root disk, as far as that is possible without knowing what it is made of.
    ///
    /// # Errors
    /// 0, or more than 16 TiB.
    pub fn check_disk_size(size: Option<Mebibytes>) -> Result<(), InvalidSpec> {
        match size {
            Some(size) if size.0 == 0 || size.0 > 16 * 1024 * 1024 => Err(InvalidSpec::new(
                format!("disk size of {size} is not possible"),
                "use at least the image's size and at most 16777216 (MiB)",
            )),
            _ => Ok(()),
        }
    }

    /// Checks labels: a key that can be asked for as `KEY=VALUE`, and nothing endless.
    ///
    /// # Errors
    /// The first label that is not possible.
    pub fn check_labels(labels: &Labels) -> Result<(), InvalidSpec> {
        let wrong = |key: &String, value: &String| {
            key.is_empty() || key.len() > 128 || value.len() > 1024 || key.contains(['=', ',', '\n'])
        };
        match labels.iter().find(|(key, value)| wrong(key, value)) {
            Some((key, _)) => Err(InvalidSpec::new(
                format!("label {:?} is not possible", key.chars().take(80).collect::<String>()),
                "use a key of 1 to 128 characters without '=' and ',', and a value of at most 1024",
            )),
            None => Ok(()),
        }
    }
}

/// Checks that `path` is absolute, has no `..` and no NUL, and names something.
///
/// # Errors
/// Which of these it is.
pub fn check_guest_path(path: &str) -> Result<(), InvalidSpec> {
    let shown = path.chars().take(120).collect::<String>();
    let bad = |why: &str| {
        Err(InvalidSpec::new(
            format!("guest path {shown:?} {why}"),
            "use an absolute path such as /home/user/x",
        ))
    };
    if !path.starts_with('/') {
        return bad("is not absolute");
    }
    if path.contains('\0') {
        return bad("has a NUL byte");
    }
    if path.split('/').any(|part| part == "..") {
        return bad("has '..' in it");
    }
    if path.len() > 4095 {
        return bad("is longer than 4095 bytes");
    }
    if path.bytes().all(|b| b == b'/') || path.ends_with('/') {
        return bad("names no file");
    }
    Ok(())
}

macro_rules! word_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $text)] $variant,)+
        }

        impl $name {
            /// The word that stands for it in JSON, on the command line and in files.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = InvalidSpec;
            fn from_str(text: &str) -> Result<Self, InvalidSpec> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    other => Err(InvalidSpec::new(
                        format!("{other:?} is not known"),
                        concat!("use one of:" $(, " ", $text)+),
                    )),
                }
            }
        }
    };
}

word_enum!(
    /// How a sandbox's root disk is kept.
    StorageLayout {
        /// A qcow2 overlay on the one base image.
        Overlay = "overlay",
        /// A raw clone of the base image.
        Reflink = "reflink",
    }
);
word_enum!(
    /// How a file came to be a copy of another.
    CloneMethod {
        /// A small overlay; the rest stays in the base.
        Overlay = "overlay",
        /// FICLONE: shared extents.
        Reflink = "reflink",
        /// Data copied, holes kept.
        SparseCopy = "sparse_copy",
    }
);
word_enum!(
    /// How a sandbox reaches the world.
    NetMode {
        /// By a process of the host that opens connections in its place.
        User = "user",
        /// So, and to the other sandboxes of its owner in this mode, by their names.
        Bridge = "bridge",
        /// Not at all.
        None = "none",
    }
);
word_enum!(
    /// What executes the guest's instructions.
    Accel {
        /// Hardware virtualisation.
        Kvm = "kvm",
        /// Software emulation; not a security boundary.
        Tcg = "tcg",
    }
);
word_enum!(
    /// The guest's instruction set, by Debian's names.
    Arch {
        /// x86-64.
        Amd64 = "amd64",
        /// 64-bit Arm.
        Arm64 = "arm64",
    }
);
word_enum!(
    /// How the present run of a guest began.
    Boot {
        /// A clone of a booted template.
        Template = "template",
        /// A machine that stood by.
        Standby = "standby",
        /// The kernel started from the disk.
        ColdBoot = "cold_boot",
        /// Its own memory image.
        Resume = "resume",
        /// A copy of a running sandbox.
        Fork = "fork",
    }
);
word_enum!(
    /// What a sandbox costs at this moment.
    Thermal {
        /// Running.
        Hot = "hot",
        /// Paused, in memory.
        Warm = "warm",
        /// On disk only.
        Cold = "cold",
    }
);

impl Arch {
    /// The architecture this program was built for.
    ///
    /// # Panics
    /// Never on the two architectures that bhatti is built for; others do not compile.
    #[must_use]
    pub const fn host() -> Self {
        #[cfg(target_arch = "x86_64")]
        return Self::Amd64;
        #[cfg(target_arch = "aarch64")]
        return Self::Arm64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> SandboxSpec {
        SandboxSpec {
            name: "a".parse().unwrap(),
            owner: Owner::admin(),
            image: "minimal".parse().unwrap(),
            cpus: 1,
            memory: Mebibytes(512),
            disk_size: None,
            env: BTreeMap::new(),
            secrets: Vec::new(),
            files: Vec::new(),
            volumes: Vec::new(),
            init: None,
            net: None,
            egress: None,
            net_rate: None,
            disk_rate: None,
            labels: Labels::new(),
            keep_hot: false,
            thermal: crate::ThermalRule::default(),
            strict: false,
        }
    }

    const LIMITS: SpecLimits = SpecLimits {
        max_cpus: 2,
        min_memory: Mebibytes(128),
        max_memory: Mebibytes(1024),
        max_files_bytes: 10,
    };

    #[test]
    fn an_order_is_refused_with_what_to_do_instead() {
        assert!(spec().validate(&LIMITS).is_ok());
        type Change = Box<dyn Fn(&mut SandboxSpec)>;
        let cases: [(&str, Change); 8] = [
            ("use 1 to 2", Box::new(|s| s.cpus = 0)),
            ("use 1 to 2", Box::new(|s| s.cpus = 3)),
            ("use 128 to 1024 (MiB)", Box::new(|s| s.memory = Mebibytes(64))),
            ("use 128 to 1024 (MiB)", Box::new(|s| s.memory = Mebibytes(2048))),
            ("at least", Box::new(|s| s.disk_size = Some(Mebibytes(0)))),
            ("letters, digits", Box::new(|s| drop(s.env.insert("1A".into(), String::new())))),
            (
                "absolute path",
                Box::new(|s| {
                    s.files.push(GuestFile { path: "/a/../b".into(), content: vec![], mode: 0o644 });
                }),
            ),
            (
                "at most 10 bytes",
                Box::new(|s| {
                    s.files.push(GuestFile { path: "/a".into(), content: vec![0; 11], mode: 0o644 });
                }),
            ),
        ];
        for (hint, change) in cases {
            let mut changed = spec();
            change(&mut changed);
            let error = changed.validate(&LIMITS).unwrap_err();
            assert!(error.hint.contains(hint), "{error:?}");
        }
    }

    #[test]
    fn words_are_read_as_they_are_written() {
        assert_eq!("reflink".parse::<StorageLayout>().unwrap(), StorageLayout::Reflink);
        assert!("zfs".parse::<StorageLayout>().unwrap_err().hint.contains("overlay"));
        assert_eq!(serde_json_word(Boot::ColdBoot), "cold_boot");
    }

    fn serde_json_word(boot: Boot) -> String {
        boot.to_string()
    }
}
