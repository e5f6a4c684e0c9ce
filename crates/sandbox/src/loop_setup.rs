//! Carrying out what `loop_plan` decided: the data root into a btrfs in a file, and back.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use image::{Cancel, LoopHost, MountUnit, Progress};
use storage::{CloneOptions, CloneProgress, HeldRoot, Relocation, RootState, TreeSize};
use types::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::loop_plan::{self, Facts, LoopWish, Mounted, Step, Told};
use crate::services::blocking;
use crate::setup::SetupStep;

/// What to do with a data directory.
#[derive(Debug, Clone)]
pub struct LoopConfig {
    /// The data directory.
    pub data_dir: PathBuf,
    /// What is wished for.
    pub wish: LoopWish,
    /// Only tell.
    pub dry_run: bool,
}

/// How things are, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopReport {
    /// The data root.
    pub root: PathBuf,
    /// The file that holds the data, and its size; `None` where a plain directory does.
    pub backing: Option<(PathBuf, Bytes)>,
    /// What was done, or would be, a sentence each; nothing when all was so already.
    pub steps: Vec<String>,
    /// How things are then.
    pub outcome: String,
    /// What its owner should know.
    pub warnings: Vec<String>,
    /// A line for fstab, where nothing mounts it at boot.
    pub fstab: Option<String>,
}

/// Moves a data directory into a btrfs in a file beside it, or back. What an earlier run left undone is gone on with.
///
/// # Errors
/// A refusal changes nothing. A failure goes back to how it was; where even that fails, the directory has a note in it
/// that tells where the data is.
pub async fn loop_storage(
    config: LoopConfig,
    cancel: Cancel,
    report: impl Fn(SetupStep) + Send + Sync + 'static,
) -> Result<LoopReport> {
    blocking(move || {
        // Said before anything is looked at that others may not see.
        if !LoopHost::look().root {
            return Err(Error::new(ErrorKind::NotReady, "mounting a btrfs in a file needs root")
                .hint("run it with sudo, or use `--storage here`"));
        }
        let place = Relocation::of(&config.data_dir)?;
        let _alone = place.lock()?;
        Work { place, cancel: &cancel, report: &report, warnings: Vec::new() }
            .run(config.wish, config.dry_run)
    })
    .await
}

/// What a btrfs in a file would give this data directory, in one line; `None` where it would give nothing or cannot be.
pub async fn loop_advice(data_dir: PathBuf) -> Option<String> {
    let look = move || {
        let host = LoopHost::look();
        let here = Relocation::of(&data_dir)?.probe()?;
        let can = host.root && host.may_mount && host.btrfs && host.loop_devices;
        let lacks = match (here.reflink, here.compression) {
            (true, true) => return Ok(None),
            (false, true) => "does not share blocks between files",
            (true, false) => "does not compress",
            (false, false) => "neither shares blocks between files nor compresses",
        };
        Ok(can.then(|| {
            format!(
                "the filesystem of {} ({}) {lacks}; `bhatti setup --storage btrfs-loop` puts the data into a btrfs in \
                 a file beside it, where clones of disks are free and what is seldom read takes less",
                data_dir.display(),
                here.fs_type
            )
        }))
    };
    blocking(look).await.ok().flatten()
}

struct Work<'a> {
    place: Relocation,
    cancel: &'a Cancel,
    report: &'a (dyn Fn(SetupStep) + Sync),
    warnings: Vec<String>,
}

impl Work<'_> {
    fn run(mut self, wish: LoopWish, dry_run: bool) -> Result<LoopReport> {
        let mut told = Vec::new();
        loop {
            let facts = self.look()?;
            let plan = loop_plan::plan(&facts, wish)?;
            told.extend(plan.steps.iter().map(|step| Told(step, &facts).to_string()));
            self.warnings.extend(plan.warnings);
            if !dry_run {
                self.carry_out(&plan.steps, &facts)?;
            }
            if plan.then_look_again && !dry_run {
                continue;
            }
            let facts = if dry_run { facts } else { self.look()? };
            return self.told(&facts, told, plan.outcome);
        }
    }

    fn told(self, facts: &Facts, steps: Vec<String>, outcome: String) -> Result<LoopReport> {
        let ours = matches!(facts.mounted, Mounted::Ours { .. });
        let fstab = if ours && facts.place.unit_text { Some(self.unit()?.fstab_line()) } else { None };
        Ok(LoopReport {
            root: facts.root.clone(),
            backing: facts.place.backing.filter(|_| ours).map(|size| (facts.backing.clone(), size)),
            steps,
            outcome,
            warnings: self.warnings,
            fstab,
        })
    }

    fn unit(&self) -> Result<MountUnit> {
        Ok(MountUnit::new(&self.place.backing(), self.place.root())?)
    }

    fn look(&self) -> Result<Facts> {
        let place = &self.place;
        let (root, backing) = (place.root(), place.backing());
        let surroundings = place.look()?;
        let mounts = image::mount_points()?;
        // Of two at one place the later one is seen.
        let mounted = match mounts.iter().rev().find(|mount| mount.at == root) {
            None => Mounted::No,
            Some(mount) if mount.backing.as_ref() == Some(&backing) => {
                Mounted::Ours { device: mount.source.clone() }
            }
            Some(other) => Mounted::Other { fs_type: other.fs_type.clone(), source: other.source.clone() },
        };
        let below = mounts.iter().find(|mount| mount.at != root && mount.at.starts_with(root));
        let (beside, room) = place.room_beside()?;
        // Only where it is asked for: a full filesystem could not be tried, and has to be grown or left all the same.
        let matters = !matches!(mounted, Mounted::Ours { .. })
            && surroundings.backing.is_none()
            && matches!(surroundings.root, RootState::Missing | RootState::Empty | RootState::Data);
        let here = if matters { Some(place.probe()?) } else { None };
        let data = match surroundings.root {
            RootState::Data => place.measure()?,
            _ => TreeSize::default(),
        };
        Ok(Facts {
            root: root.to_owned(),
            mounted_below: below.map(|mount| mount.at.clone()),
            users: image::users_of_dir(root)?,
            host: LoopHost::look(),
            unit: match self.unit() {
                Ok(unit) => Ok(unit.state()),
                Err(error) => Err(error.with_causes()),
            },
            backing,
            place: surroundings,
            mounted,
            data,
            beside,
            room,
            here,
        })
    }

    fn carry_out(&mut self, steps: &[Step], facts: &Facts) -> Result<()> {
        let moves = steps.iter().any(|step| matches!(step, Step::CopyIn(_) | Step::CopyOut(_)));
        let mut held = match facts.place.root {
            RootState::Data if moves => Some(self.place.hold()?),
            _ => None,
        };
        for (at, step) in steps.iter().enumerate() {
            let began = Instant::now();
            (self.report)(SetupStep::Begin { what: step.what() });
            self.step(step, facts, &mut held).map_err(|error| {
                // What holds the root may be what keeps it from being unmounted or exchanged.
                held = None;
                self.go_back(&steps[..at], step, facts, error)
            })?;
            let result = Told(step, facts).to_string();
            (self.report)(SetupStep::End { what: step.what(), result, took: began.elapsed() });
        }
        Ok(())
    }

    fn go_back(&mut self, done: &[Step], failed: &Step, facts: &Facts, error: Error) -> Error {
        for step in loop_plan::way_back(done, failed) {
            if let Err(second) = self.step(&step, facts, &mut None) {
                let line = error.with_causes();
                let text = format!("{line}; and on the way back: {}", second.with_causes());
                let note = format!(
                    "run it again; NOT-MOUNTED.txt in {} or beside it tells where the data is",
                    facts.root.display()
                );
                return Error::new(error.kind(), text).hint(note);
            }
        }
        error
    }

    fn step(&mut self, step: &Step, facts: &Facts, held: &mut Option<HeldRoot>) -> Result<()> {
        let place = &self.place;
        match step {
            Step::MakeMountPoint => place.make_mount_point()?,
            Step::MakeRootMountPoint => place.make_root_mount_point()?,
            Step::MakeFile(size) => image::make_btrfs_file(&place.moving_file(), *size)?,
            Step::CopyIn(_) => self.copy_in()?,
            Step::Exchange => {
                // A copy takes its time; whoever came meanwhile would go on in the old directory.
                self.nobody_in(facts)?;
                place.exchange()?;
            }
            Step::Settle => place.settle_backing()?,
            Step::Unsettle => place.unsettle_backing()?,
            Step::Mount => self.mount()?,
            Step::Unmount => {
                // An open lock file is a use of the filesystem.
                *held = None;
                image::unmount_btrfs_file(&place.backing(), place.root()).map_err(|error| {
                    Error::new(ErrorKind::Busy, error.to_string())
                        .hint("end what uses it, then try again; everything is as it was")
                })?;
            }
            Step::InstallUnit => self.install_unit()?,
            Step::KeepUnitText => place.keep_unit_text(&self.unit()?.text())?,
            Step::RemoveUnit => {
                if let Err(error) = self.unit().and_then(|unit| Ok(unit.remove()?)) {
                    self.warnings.push(format!("the mount unit is left: {}", error.with_causes()));
                }
                place.remove_unit_text()?;
            }
            Step::Grow(size) => {
                if let Mounted::Ours { device } = &facts.mounted {
                    image::grow_btrfs_file(&place.backing(), device, place.root(), *size)?;
                }
            }
            Step::CopyOut(_) => {
                let copy = place.make_moving_dir()?;
                self.watched("copying", |options| place.copy_to(&copy, options).map(drop))?;
                self.watched("comparing", |options| place.compare_with(&copy, options))?;
            }
            Step::RemoveMovingFile => place.remove_moving_file()?,
            Step::RemoveCopy => place.remove_moving_copy()?,
            Step::RemoveMountPoint => {
                if place.remove_moving_mount_point()? {
                    self.warnings.push(format!(
                        "{} is left: there are files in it that were hidden by the mount",
                        place.moving_dir().display()
                    ));
                }
            }
        }
        Ok(())
    }

    /// Fills the new filesystem where nobody sees it, and reads it back after it was mounted anew.
    fn copy_in(&self) -> Result<()> {
        let (file, at) = (self.place.moving_file(), self.place.moving_dir());
        image::with_mounts_of_own(|| {
            image::mount_btrfs_file(&file, &at)?;
            self.watched("copying", |options| self.place.copy_to(&at, options).map(drop))?;
            image::unmount_btrfs_file(&file, &at)?;
            image::mount_btrfs_file(&file, &at)?;
            self.watched("comparing", |options| self.place.compare_with(&at, options))?;
            Ok::<_, Error>(image::unmount_btrfs_file(&file, &at)?)
        })?;
        Ok(self.place.sync_moving_file()?)
    }

    /// Does long work of the storage room with progress, until it is done or is to be stopped.
    fn watched(
        &self,
        what: &str,
        work: impl FnOnce(&CloneOptions<'_>) -> std::result::Result<(), storage::Error>,
    ) -> Result<()> {
        let stop = AtomicBool::new(self.cancel.is_cancelled());
        let tell = |now: CloneProgress| {
            stop.store(self.cancel.is_cancelled(), Ordering::Relaxed);
            let (done, total) = (now.done.floor_mib().0, now.total.floor_mib().0);
            (self.report)(SetupStep::Progress(Progress { step: format!("{what}, MiB"), done, total }));
        };
        Ok(work(&CloneOptions { sync: false, progress: Some(&tell), cancel: Some(&stop) })?)
    }

    fn nobody_in(&self, facts: &Facts) -> Result<()> {
        let mut now = facts.clone();
        now.users = image::users_of_dir(self.place.root())?;
        loop_plan::undisturbed(&now)
    }

    /// Mounts it unless it is.
    fn mount(&self) -> Result<()> {
        let (root, backing) = (self.place.root(), self.place.backing());
        let is_ours = || -> Result<bool> {
            let mounts = image::mount_points()?;
            let on_root = mounts.iter().rev().find(|mount| mount.at == root);
            Ok(on_root.is_some_and(|mount| mount.backing.as_ref() == Some(&backing)))
        };
        if is_ours()? {
            return Ok(());
        }
        image::mount_btrfs_file(&backing, root)?;
        if is_ours()? {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Internal,
            format!("{}: mount says that it is done, and it is not", root.display()),
        ))
    }

    /// The data is safe without a unit: where systemd does not take it, that is said.
    fn install_unit(&mut self) -> Result<()> {
        let unit = self.unit()?;
        if let Err(error) = unit.install() {
            self.place.keep_unit_text(&unit.text())?;
            self.warnings.push(format!(
                "systemd does not mount it at boot: {}; the unit's text is in {}",
                error,
                self.place.unit_text().display()
            ));
        }
        Ok(())
    }
}
