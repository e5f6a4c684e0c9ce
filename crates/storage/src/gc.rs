//! Collecting what nobody names any more: a plan that can be shown, then executed.
//!
//! # What may go
//! | kind | when |
//! |---|---|
//! | layer, RAM base | no sandbox and no snapshot names it |
//! | template | no memory lies over it, and it could not be made again: its image has no name any more, or its kernel is not current |
//! | image | no name, no sandbox, no snapshot and no template that stays needs its content |
//! | kernel | it is not current, and no sandbox, no snapshot and no template that stays boots it |
//! | blob | no pull reads or writes it: it is a cache |
//! | leftover | what a crash left, see `reconcile` |
//!
//! # Invariants
//! - A record that cannot be read may name anything of what its kind names: all of that stays.
//! - What a pin keeps, what is locked, and what another process has open stays.
//! - Between reading who names what and the object's new name nobody can begin to want it (see `references`).

mod plan;

pub(crate) use plan::{belongs_to_owner, below_root, id_of, is_in_use, is_young, layer_of};

use std::path::PathBuf;

use sys::host_open_files::OpenFiles;
use types::Bytes;

use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::lock;
use crate::reconcile::{self, Leftover};
use crate::references::Shared;
use crate::store::Store;

/// What can be collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GcKind {
    /// A frozen disk layer, or the seal of one that is gone.
    Layer,
    /// A RAM base of a sandbox's own.
    RamBase,
    /// A machine that was booted once.
    Template,
    /// A base image's content.
    Image,
    /// A guest kernel with its initramfs.
    Kernel,
    /// A download that was kept to be used again.
    Blob,
    /// What a crash left.
    Leftover,
}

impl GcKind {
    /// The word in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Layer => "layer",
            Self::RamBase => "base",
            Self::Template => "template",
            Self::Image => "image",
            Self::Kernel => "kernel",
            Self::Blob => "blob",
            Self::Leftover => "leftover",
        }
    }
}

/// Something that nobody names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcItem {
    /// What it is.
    pub kind: GcKind,
    /// Its id, or its path from the data root.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Why nobody can want it any more; of one that stays, why it stays all the same.
    pub why: String,
    /// What it occupies.
    pub allocated: Bytes,
    /// What of that is free afterwards: not what has another name. Extents that clones share stay in use, too, and are
    /// not known here.
    pub frees: Bytes,
    what: What,
}

/// What is to be done about an item.
#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Object(Shared),
    /// A layer's seal without the layer.
    Seal,
    Blob,
    Leftover(Leftover),
}

/// What would be removed, and what stays although nobody names it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcPlan {
    /// What goes.
    pub items: Vec<GcItem>,
    /// What stays, with the reason.
    pub kept: Vec<GcItem>,
    /// Records that cannot be read, so that what they may name stays.
    pub unreadable: Vec<String>,
}

impl GcPlan {
    /// What is free when all of it is gone.
    #[must_use]
    pub fn frees(&self) -> Bytes {
        Bytes(self.items.iter().map(|item| item.frees.0).sum())
    }

    /// Only what is of these kinds.
    #[must_use]
    pub fn only(mut self, kinds: &[GcKind]) -> Self {
        self.items.retain(|item| kinds.contains(&item.kind));
        self.kept.retain(|item| kinds.contains(&item.kind));
        self
    }
}

/// What executing a plan did.
#[derive(Debug, Default)]
pub struct GcReport {
    /// What is gone.
    pub removed: Vec<GcItem>,
    /// What stays, with the reason.
    pub kept: Vec<GcItem>,
    /// Records that cannot be read, so that what they may name stays.
    pub unreadable: Vec<String>,
    /// What could not be removed.
    pub failed: Vec<Error>,
}

impl GcReport {
    /// What is free now.
    #[must_use]
    pub fn freed(&self) -> Bytes {
        Bytes(self.removed.iter().map(|item| item.frees.0).sum())
    }
}

/// Among whom one works on a store.
#[derive(Debug, Clone)]
pub struct Company {
    /// Whether nobody else works here: no daemon, and no verb of this process. VMMs may run all the same.
    pub alone: bool,
    /// What other processes have open.
    pub open: OpenFiles,
}

impl Store {
    /// What nobody names any more.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn gc_plan(&self, company: &Company) -> Result<GcPlan> {
        let setting_up = self.lock_setup_for_gc()?.is_none();
        let held = self.pins().held();
        plan::plan(self, &held, company, setting_up)
    }

    /// Removes what the plan says and what is still so. What somebody wants, holds or has open by now stays.
    ///
    /// # Errors
    /// When a directory cannot be read; nothing is removed then.
    pub fn gc(&self, plan: &GcPlan, company: &Company) -> Result<GcReport> {
        let mut report =
            GcReport { kept: plan.kept.clone(), unreadable: plan.unreadable.clone(), ..GcReport::default() };
        // Held to the end: `setup` makes images, kernels and templates that nobody names at first.
        let setup = self.lock_setup_for_gc()?;
        let mut gone = Vec::new();
        let held = self.pins().held();
        let now = plan::plan(self, &held, company, setup.is_none())?;
        for item in &plan.items {
            let same = |other: &&GcItem| other.what == item.what && other.path == item.path;
            if let Some(kept) = now.kept.iter().find(same) {
                report.kept.push(kept.clone());
                continue;
            }
            let Some(item) = now.items.iter().find(same) else {
                if item.path.symlink_metadata().is_ok() {
                    report.kept.push(GcItem { why: "somebody wants it by now".to_owned(), ..item.clone() });
                }
                continue;
            };
            match self.take_away(item) {
                Ok(paths) => gone.push((item.clone(), paths)),
                Err(error) => report.failed.push(error),
            }
        }
        // What is gone by name can be removed while others go on.
        drop(held);
        for (item, paths) in gone {
            let removed = match &item.what {
                What::Leftover(leftover) => {
                    reconcile::execute(self, std::slice::from_ref(leftover)).failed.pop().map_or(Ok(()), Err)
                }
                What::Object(_) | What::Seal | What::Blob => {
                    paths.iter().try_for_each(|path| durable::remove_any(path))
                }
            };
            match removed {
                Ok(()) => report.removed.push(item),
                Err(error) => report.failed.push(error),
            }
        }
        drop(setup);
        Ok(report)
    }

    /// Gives a shared object a name that means nothing; leftovers have one already.
    fn take_away(&self, item: &GcItem) -> Result<Vec<PathBuf>> {
        match &item.what {
            What::Leftover(_) => Ok(Vec::new()),
            What::Seal | What::Blob => durable::take_away(&item.path).map(|path| vec![path]),
            What::Object(Shared::Layer(layer)) => {
                let gone = durable::take_away(&item.path)?;
                let seal = self.layout().layer_record(&layer.id);
                durable::remove_if_there(&seal)?;
                Ok(vec![gone])
            }
            What::Object(_) => durable::take_away(&item.path).map(|path| vec![path]),
        }
    }

    /// `None` while somebody sets up.
    fn lock_setup_for_gc(&self) -> Result<Option<lock::SetupLock>> {
        match lock::try_setup(self.root()) {
            Err(error) if error.kind() == ErrorKind::Busy => Ok(None),
            locked => locked.map(Some),
        }
    }
}
