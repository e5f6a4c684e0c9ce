//! What crashes left behind: a plan that can be shown, then executed.

use std::path::PathBuf;

use types::SandboxId;

/// What a leftover is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeftoverKind {
    /// A sandbox that was never committed.
    StagedSandbox,
    /// A sandbox that was being destroyed.
    GoneSandbox,
    /// A template that was never committed; if held, its VMM still runs in it.
    StagedTemplate,
    /// A template that was being removed.
    GoneTemplate,
    /// An image that was never committed.
    StagedImage,
    /// A kernel that was never committed.
    StagedKernel,
    /// A file of a commit that did not happen.
    StagedFile(SandboxId),
    /// A memory image that a running or powered-off manifest does not name.
    ConsumedMemory(SandboxId),
    /// A socket that nobody listens on.
    StaleSocket(SandboxId),
    /// A sandbox whose manifest cannot be read. Never removed.
    Broken(SandboxId, String),
    /// Something bhatti never makes. Never removed.
    Foreign,
}

/// One thing that a crash left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// What it is.
    pub kind: LeftoverKind,
    /// Where it is.
    pub path: PathBuf,
    /// Whether a living process holds it: left alone.
    pub held: bool,
}

impl Leftover {
    /// Whether executing the plan removes it.
    #[must_use]
    pub fn will_be_removed(&self) -> bool {
        !self.held && !matches!(self.kind, LeftoverKind::Broken(..) | LeftoverKind::Foreign)
    }
}

/// What executing a plan did.
#[derive(Debug, Default)]
pub struct ReconcileReport {
    /// What is gone.
    pub removed: Vec<PathBuf>,
    /// What could not be removed.
    pub failed: Vec<crate::Error>,
}
