//! What can be done about findings without losing anything.
//!
//! # The quarantine
//! `quarantine/<time>-<what>/` holds what was in the way, under its own name, and `NOTE.txt` with where it was and why it
//! is there. Nothing here or elsewhere in bhatti removes it. A sandbox or a snapshot in it may need any shared object:
//! as long as it is there, `gc` removes none.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use types::{Arch, ContentId, ImageName, Owner, SandboxId, Timestamp, VolumeName};

use super::{Finding, FsckReport, Outcome};
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::freeze;
use crate::gc::{self, Company};
use crate::image::ImageRecord;
use crate::layout;
use crate::lock;
use crate::manifest::LayerRef;
use crate::reconcile::{self, Leftover};
use crate::references::Shared;
use crate::sparse;
use crate::store::Store;
use crate::volume::VolumeRecord;

/// What [`Store::repair`] does about a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair(pub(super) Step);

/// One repair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Removed, as when a daemon starts.
    Leftover(Leftover),
    /// The root disk that was frozen by half gets its name.
    FinishFreeze(SandboxId),
    /// A file that has its name among the layers loses its old one.
    SecondName { sandbox: SandboxId, path: PathBuf },
    /// A layer gets its checksum.
    Seal(LayerRef),
    /// A layer gets another checksum in place of an unreadable one.
    Reseal(LayerRef),
    /// An image's name shows its content again.
    Relink(Box<ImageRecord>),
    /// An image's record is made again from its name and its content.
    RestoreRecord { record: PathBuf, owner: Option<Owner>, name: ImageName, arch: Arch, id: ContentId },
    /// A volume's record is made again from its name.
    RestoreVolumeRecord { owner: Owner, name: VolumeName },
    /// Mode 0444.
    ReadOnly(PathBuf),
    /// Moved out of the way, if `guard` allows it.
    Quarantine { what: String, path: PathBuf, guard: Guard },
}

/// What must be so for something to be moved away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Guard {
    /// The sandbox's manifest is still unreadable, and no VMM runs in it.
    Sandbox(SandboxId),
    /// Nothing is made from the snapshot just now.
    Snapshot,
    /// No manifest and no pin names it, and nobody has it open.
    Object(Shared),
    /// Nobody has it open.
    Unused,
}

impl Repair {
    /// What it does, as `moves it to quarantine/`.
    #[must_use]
    pub const fn says(&self) -> &'static str {
        match &self.0 {
            Step::Leftover(_) | Step::SecondName { .. } => "removes it",
            Step::FinishFreeze(_) => "finishes it",
            Step::Seal(_) => "gives it its checksum",
            Step::Reseal(_) => "moves the seal to quarantine/ and makes it anew",
            Step::Relink(_) => "makes the name anew",
            Step::RestoreRecord { .. } => "makes the record anew from the image's name and content",
            Step::RestoreVolumeRecord { .. } => "makes the record anew from the volume's name",
            Step::ReadOnly(_) => "makes it read-only",
            Step::Quarantine { .. } => "moves it to quarantine/",
        }
    }
}

impl Store {
    /// Does what the findings of `report` propose, and notes what became of it. Call it with the company that the report
    /// was made in; `is_known` as in [`FsckOptions`](super::FsckOptions).
    pub fn repair(&self, report: &mut FsckReport, company: &Company, is_known: &dyn Fn(&SandboxId) -> bool) {
        let setup = lock::try_setup(self.root()).ok();
        let mender = Mender { store: self, company, is_known, alone_with_images: setup.is_some() };
        for finding in &mut report.findings {
            let Some(Repair(step)) = &finding.repair else { continue };
            finding.outcome = Some(match mender.carry_out(step, finding) {
                Ok(done) => Outcome::Done(done),
                Err(error) => Outcome::Failed(error.why()),
            });
        }
    }
}

struct Mender<'a> {
    store: &'a Store,
    company: &'a Company,
    is_known: &'a dyn Fn(&SandboxId) -> bool,
    /// Whether no `setup` is at work.
    alone_with_images: bool,
}

impl Mender<'_> {
    fn carry_out(&self, step: &Step, finding: &Finding) -> Result<String> {
        let layout = self.store.layout();
        match step {
            Step::Leftover(leftover) => {
                match reconcile::execute(self.store, std::slice::from_ref(leftover)).failed.pop() {
                    Some(error) => Err(error),
                    None if leftover.path.symlink_metadata().is_ok() => {
                        Err(refused(&leftover.path, "a process holds it"))
                    }
                    None => Ok("removed".to_owned()),
                }
            }
            Step::FinishFreeze(id) => {
                let dir = self.store.sandbox(id);
                let _lock = dir.lock_machine()?;
                freeze::finish(self.store, &dir, &dir.manifest()?)?;
                Ok("finished".to_owned())
            }
            Step::SecondName { sandbox, path } => {
                let dir = self.store.sandbox(sandbox);
                let _lock = dir.lock_machine()?;
                let same = |layer: &LayerRef| freeze::same_file(path, &layout.layer(layer));
                if !dir.manifest()?.layers.iter().any(same) {
                    return Err(refused(path, "it is no layer any more"));
                }
                durable::remove_if_there(path)?;
                Ok("removed".to_owned())
            }
            Step::Seal(layer) => {
                self.store.layers().seal(layer)?;
                Ok("it has its checksum".to_owned())
            }
            Step::Reseal(layer) => {
                let seal = layout.layer_record(&layer.id);
                let kept = self.quarantine(&format!("seal-{}", layer.id), &seal, finding)?;
                self.store.layers().seal(layer)?;
                Ok(format!("it has a new checksum; the old one is in {kept}"))
            }
            Step::Relink(was) => {
                let (owner, name, arch) = (was.owner.as_ref(), &was.name, was.arch);
                self.alone_with(&layout.image_link(owner, name, arch))?;
                let record = self.store.images().resolve_of(owner, name, arch)?;
                if record.id != was.id {
                    return Err(refused(
                        &layout.image_record(owner, name, arch),
                        "it names another content by now",
                    ));
                }
                self.store.images().relink(&record)?;
                Ok("the name is made anew".to_owned())
            }
            Step::RestoreRecord { record, owner, name, arch, id } => {
                self.alone_with(record)?;
                let object = layout.object(id);
                let file = File::open(&object).map_err(|error| Error::io("open", &object, error))?;
                if sparse::content_id(&file, &object)? != *id {
                    return Err(refused(&object, "the image's content is damaged, too"));
                }
                let kept = match record.exists() {
                    true => Some(self.quarantine(&format!("record-{name}-{arch}"), record, finding)?),
                    false => None,
                };
                self.store.images().restore_record(owner.as_ref(), name, *arch, id)?;
                let kept = kept.map_or(String::new(), |kept| format!("; the old one is in {kept}"));
                Ok(format!("the record is made anew{kept}"))
            }
            Step::RestoreVolumeRecord { owner, name } => {
                let record = layout.volume_record(owner, name);
                let kept = match record.exists() {
                    true => {
                        Some(self.quarantine(&format!("volume-record-{owner}-{name}"), &record, finding)?)
                    }
                    false => None,
                };
                self.store.volumes().write_record(&VolumeRecord::new(owner.clone(), name.clone()))?;
                let kept = kept.map_or(String::new(), |kept| format!("; the old one is in {kept}"));
                Ok(format!("the record is made anew{kept}"))
            }
            Step::ReadOnly(path) => {
                let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
                durable::set_mode(&file, path, 0o444)?;
                Ok("it is read-only".to_owned())
            }
            Step::Quarantine { what, path, guard } => self.guarded(what, path, guard, finding),
        }
    }

    fn guarded(&self, what: &str, path: &Path, guard: &Guard, finding: &Finding) -> Result<String> {
        let moved = |kept: String| Ok(format!("moved to {kept}"));
        match guard {
            Guard::Sandbox(id) => {
                let dir = self.store.sandbox(id);
                let _lock = dir.lock_machine()?;
                if (self.is_known)(id) || dir.manifest().is_ok() {
                    return Err(refused(path, "somebody works with it by now"));
                }
                moved(self.quarantine(what, path, finding)?)
            }
            Guard::Snapshot => {
                let _lock = lock::directory(path)?;
                moved(self.quarantine(what, path, finding)?)
            }
            Guard::Object(object) => {
                self.alone_with(path)?;
                // Held to the end: nobody begins to want it meanwhile.
                let held = self.store.pins().held();
                let references = self.store.references()?;
                if let Some(error) = references.unreadable.first() {
                    let why = format!("something may need it that cannot be read: {}", error.message());
                    return Err(refused(path, &why));
                }
                if held.contains_key(object) || references.objects().contains(object) {
                    return Err(refused(path, "somebody needs it by now"));
                }
                self.unused(path)?;
                moved(self.quarantine(what, path, finding)?)
            }
            Guard::Unused => {
                self.unused(path)?;
                moved(self.quarantine(what, path, finding)?)
            }
        }
    }

    fn unused(&self, path: &Path) -> Result<()> {
        match gc::is_in_use(self.company, path)? {
            true => Err(refused(path, "a process has it open")),
            false => Ok(()),
        }
    }

    fn alone_with(&self, path: &Path) -> Result<()> {
        match self.alone_with_images {
            true => Ok(()),
            false => Err(refused(path, "`bhatti setup` is at work")),
        }
    }

    /// Moves something into the quarantine. Gives where it is now, from the data root.
    fn quarantine(&self, what: &str, path: &Path, finding: &Finding) -> Result<String> {
        // Nothing is moved that lies behind a link.
        let parent = path.parent().unwrap_or(path);
        if parent.canonicalize().ok().as_deref() != Some(parent) || !parent.starts_with(self.store.root()) {
            return Err(refused(path, "it lies outside of the data directory"));
        }
        let now = Timestamp::now().to_string();
        let when: String = now.chars().filter(|c| c.is_ascii_alphanumeric()).collect();
        let quarantine = self.store.layout().quarantine();
        let dir = quarantine.join(layout::quarantined(&when, what));
        match durable::make_dir(&quarantine) {
            Err(error) if error.kind() == ErrorKind::Exists => {}
            made => made?,
        }
        durable::make_dir(&dir)?;
        let target = dir.join(path.file_name().unwrap_or_default());
        let was = gc::below_root(self.store, path);
        let note = format!(
            "{subject}: {what}\n\nIt was {was}, and was moved here by `bhatti fsck --repair` at {now}.\n\
             To put it back: stop the daemon, and move it to where it was.\n\
             bhatti never removes it. If nobody needs it, remove this directory.\n",
            subject = finding.subject,
            what = finding.what,
        );
        // Nobody else's directory: no older note is there to be replaced, and no half one to be left under another name.
        let path_of_note = dir.join("NOTE.txt");
        durable::sync(&durable::new_file(&path_of_note, note.as_bytes(), 0o600)?, &path_of_note)?;
        if let Err(error) = durable::move_to(path, &target) {
            // Only the note is in it.
            let _ = fs::remove_dir_all(&dir);
            return Err(error);
        }
        durable::sync_dir(&quarantine)?;
        Ok(gc::below_root(self.store, &target))
    }
}

fn refused(path: &Path, why: &str) -> Error {
    Error::new(ErrorKind::Busy, "repair", path).because(why)
}
