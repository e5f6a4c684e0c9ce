//! Checking a data root: every manifest, checksum, base, reference and chain, and what has no business there.
//!
//! Checking changes nothing: what could be done about a finding is a value ([`Repair`]), shown first and carried out by
//! [`Store::repair`]. A repair loses nothing: it finishes or removes what a crash left, makes names and checksums
//! again from what is there, and moves what is in the way to `quarantine/`, never to be removed by bhatti.
//!
//! # Invariants
//! - What changes while it is looked at is no finding. A sandbox is looked at again until two looks in a row, between which
//!   its manifest stayed the same, found the same; an object that went meanwhile was not missing.
//! - Damage of what somebody needs is told with their names, and its file stays where it is.

mod machines;
mod objects;
pub(crate) mod qcow2;
mod repair;
mod strays;
mod volumes;
mod watch;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use types::{Bytes, ContentId, SandboxId, SandboxName};

use crate::error::{Error, ErrorKind, Result};
use crate::gc::Company;
use crate::layout::Layout;
use crate::references::{References, Shared};
use crate::store::Store;

use repair::Step;
use watch::Watch;

pub use repair::Repair;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Note,
    /// In the way, or will be; nobody's data is touched by it.
    Warning,
    /// Data is damaged or missing, or something cannot be used.
    Error,
}

impl Severity {
    /// The word in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// What a finding is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A sandbox; the name is missing when its manifest cannot be read.
    Sandbox(SandboxId, Option<SandboxName>),
    /// A named snapshot, with its owner unless that is the admin.
    Snapshot(String),
    /// A volume, with its owner unless that is the admin.
    Volume(String),
    /// A base image: its name, or its content's id.
    Image(String),
    /// A guest kernel.
    Kernel(String),
    /// A template.
    Template(ContentId),
    /// A frozen disk layer.
    Layer(String),
    /// A RAM base.
    RamBase(String),
    /// A file that belongs to nothing.
    Stray(String),
}

impl Subject {
    /// The word in JSON.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Sandbox(..) => "sandbox",
            Self::Snapshot(_) => "snapshot",
            Self::Volume(_) => "volume",
            Self::Image(_) => "image",
            Self::Kernel(_) => "kernel",
            Self::Template(_) => "template",
            Self::Layer(_) => "layer",
            Self::RamBase(_) => "base",
            Self::Stray(_) => "stray",
        }
    }

    /// What people call it, or its id.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Sandbox(id, None) => id.to_string(),
            Self::Sandbox(_, Some(name)) => name.to_string(),
            Self::Template(key) => key.to_string(),
            Self::Snapshot(name)
            | Self::Volume(name)
            | Self::Image(name)
            | Self::Kernel(name)
            | Self::Layer(name)
            | Self::RamBase(name)
            | Self::Stray(name) => name.clone(),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sandbox(id, Some(name)) => write!(f, "sandbox {name} ({id})"),
            other => write!(f, "{} {}", other.kind(), other.name()),
        }
    }
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub subject: Subject,
    /// The file or directory, from the data root.
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
    /// What to do; may be empty.
    pub way_out: String,
    /// The sandboxes and snapshots that need a shared object.
    pub needed_by: Vec<String>,
    /// What `repair` does about it.
    pub repair: Option<Repair>,
    /// What became of that.
    pub outcome: Option<Outcome>,
}

/// What became of a repair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Done, in words.
    Done(String),
    /// Not done, and why.
    Failed(String),
}

/// How much was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checked {
    /// Sandboxes.
    pub sandboxes: u64,
    /// Named snapshots.
    pub snapshots: u64,
    /// Images' contents.
    pub images: u64,
    /// Kernels.
    pub kernels: u64,
    /// Templates.
    pub templates: u64,
    /// Frozen layers.
    pub layers: u64,
    /// RAM bases of sandboxes' own.
    pub bases: u64,
    /// Data that was read and compared with its checksum.
    pub bytes: Bytes,
}

/// What a check found, and what a repair did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FsckReport {
    /// The worst first.
    pub findings: Vec<Finding>,
    /// How much was looked at.
    pub checked: Checked,
    /// Whether it went to the end, which it does not when it is called off.
    pub complete: bool,
}

impl FsckReport {
    /// How many findings of that severity there are that no repair has dealt with.
    #[must_use]
    pub fn left(&self, severity: Severity) -> usize {
        let open = |finding: &&Finding| {
            finding.severity == severity && !matches!(finding.outcome, Some(Outcome::Done(_)))
        };
        self.findings.iter().filter(open).count()
    }
}

/// How far a check is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsckProgress {
    /// What is being read, for people.
    pub what: String,
    /// Bytes that were read.
    pub done: Bytes,
    /// Bytes that will have been read, about.
    pub total: Bytes,
}

/// Says what is wrong with the overlay at a path.
pub type OverlayCheck<'a> = dyn Fn(&Path) -> Option<String> + 'a;

/// How a store is to be checked.
#[derive(Clone, Copy)]
pub struct FsckOptions<'a> {
    /// Called after every few MiB that were read.
    pub progress: &'a dyn Fn(FsckProgress),
    /// Once it is true the check ends, within a few MiB.
    pub cancel: &'a AtomicBool,
    /// Looks into an overlay that no VMM has open, by other means than this crate has; says what is wrong with it.
    pub check_overlay: Option<&'a OverlayCheck<'a>>,
    /// Whether a daemon works with that sandbox, whose manifest it then knows better than the file does.
    pub is_known: &'a dyn Fn(&SandboxId) -> bool,
}

impl Store {
    /// Whether `root` has been opened before.
    #[must_use]
    pub fn is_there(root: &Path) -> bool {
        Layout::new(root).sandboxes().is_dir()
    }

    /// Looks at everything. Nothing is changed.
    ///
    /// # Errors
    /// When the data root cannot be read. What cannot be read below it is a finding.
    pub fn fsck(&self, company: &Company, options: &FsckOptions<'_>) -> Result<FsckReport> {
        let references = self.references()?;
        let watch = Watch::new(options, self.to_be_read(&references)?);
        let mut check = Check {
            store: self,
            company,
            options,
            watch,
            references,
            findings: Vec::new(),
            checked: Checked::default(),
        };
        let complete = match check.everything() {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::Cancelled => false,
            Err(error) => return Err(error),
        };
        let Check { mut findings, mut checked, watch, .. } = check;
        checked.bytes = watch.done();
        for finding in &mut findings {
            if let Ok(below) = finding.path.strip_prefix(self.root()) {
                finding.path = below.to_owned();
            }
        }
        // The worst first, else in the order of finding: what lies below comes before what lies on it.
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        Ok(FsckReport { findings, checked, complete })
    }
}

/// A check under way.
struct Check<'a> {
    store: &'a Store,
    company: &'a Company,
    options: &'a FsckOptions<'a>,
    watch: Watch<'a>,
    references: References,
    findings: Vec<Finding>,
    checked: Checked,
}

impl Check<'_> {
    fn everything(&mut self) -> Result<()> {
        let strays = self.store.reconcile_plan()?;
        self.images()?;
        self.kernels()?;
        self.templates()?;
        self.layers()?;
        self.bases()?;
        self.sandboxes()?;
        self.snapshots()?;
        self.volumes()?;
        self.leftovers(&strays)?;
        self.foreign()?;
        self.unnamed()
    }

    /// The sandboxes and snapshots that name an object.
    fn needed_by(&self, object: &Shared) -> Vec<String> {
        let manifests = self.references.manifests.iter();
        let namers = manifests.filter(|(_, manifest)| Shared::of(manifest).any(|named| named == *object));
        namers.map(|(namer, _)| namer.to_string()).collect()
    }

    /// Notes a finding about an object, unless the object went while it was looked at.
    fn about(&mut self, object: &Shared, mut finding: Finding) -> Result<()> {
        if !finding.path.exists() && !self.company.alone {
            self.references = self.store.references()?;
            finding.needed_by = self.needed_by(object);
            let current = match object {
                Shared::Image(id) => {
                    let records = self.store.images().records()?;
                    records.iter().any(|(_, record)| record.as_ref().is_ok_and(|record| record.id == *id))
                }
                Shared::Kernel(id) => {
                    let records = self.store.kernel().current()?;
                    records.iter().any(|(_, record)| record.as_ref().is_ok_and(|record| record.id == *id))
                }
                Shared::Layer(_) | Shared::Base(_) | Shared::Template(_) => false,
            };
            if finding.needed_by.is_empty() && !current {
                return Ok(());
            }
        }
        self.findings.push(finding);
        Ok(())
    }
}

impl Finding {
    fn new(severity: Severity, subject: Subject, path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self {
            severity,
            subject,
            path: path.into(),
            what: what.into(),
            way_out: String::new(),
            needed_by: Vec::new(),
            repair: None,
            outcome: None,
        }
    }

    fn error(subject: Subject, path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::new(Severity::Error, subject, path, what)
    }

    fn warning(subject: Subject, path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::new(Severity::Warning, subject, path, what)
    }

    fn note(subject: Subject, path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::new(Severity::Note, subject, path, what)
    }

    /// What another part of the store says when it is asked for the thing.
    fn told(severity: Severity, subject: Subject, error: &Error) -> Self {
        let finding = Self::new(severity, subject, error.path(), error.why());
        finding.way_out(error.hint().unwrap_or_default())
    }

    fn way_out(mut self, way_out: impl Into<String>) -> Self {
        self.way_out = way_out.into();
        self
    }

    fn needed_by(mut self, names: Vec<String>) -> Self {
        self.needed_by = names;
        self
    }

    fn repair(mut self, step: Step) -> Self {
        self.repair = Some(Repair(step));
        self
    }
}
