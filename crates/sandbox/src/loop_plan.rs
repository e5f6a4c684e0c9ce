//! What `setup --storage btrfs-loop` will do, decided from what is there; nothing is done here.
//!
//! A plan is a list of steps, each of which leaves a state that the next plan understands: whatever cuts a plan off, the
//! plan made from what is then there goes on or goes back (storage's `relocate` tells what the names mean).

use std::fmt;
use std::path::PathBuf;

use image::{DirUser, LoopHost, UnitState};
use storage::{FsCapabilities, MovingDir, RootState, Space, Surroundings, TreeSize};
use types::Bytes;

use crate::error::{Error, ErrorKind, Result};

/// Without `--size`, where the filesystem under it is as large.
const DEFAULT_SIZE: Bytes = Bytes(20 << 30);
/// btrfs itself begins at 110 MiB; a kernel, an image and a template take some 600, and a full btrfs is no pleasure.
const LEAST_SIZE: Bytes = Bytes(1 << 30);
/// Kept free of the host's filesystem, whatever is copied to it.
const HOST_MARGIN: u64 = 128 << 20;
/// What btrfs needs for itself beside the data: 256 MiB and a tenth.
const BTRFS_MARGIN: u64 = 256 << 20;

/// What is wished for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoopWish {
    /// The data in a btrfs in a file, of this size or of a usual one.
    Make {
        /// As large as that file may become.
        size: Option<Bytes>,
    },
    /// The data in a plain directory.
    Undo,
}

/// What is mounted on the data root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mounted {
    No,
    /// The btrfs in the backing file, from this loop device.
    Ours {
        device: PathBuf,
    },
    Other {
        fs_type: String,
        source: PathBuf,
    },
}

/// All that a plan is made from.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// The data root, for texts.
    pub(crate) root: PathBuf,
    /// The backing file, for texts.
    pub(crate) backing: PathBuf,
    pub(crate) place: Surroundings,
    pub(crate) mounted: Mounted,
    /// What is in the data root; nothing where that is no data.
    pub(crate) data: TreeSize,
    /// The name of the filesystem beside the data root, for texts.
    pub(crate) beside: String,
    /// Its room.
    pub(crate) room: Space,
    /// What the filesystem of the data root can do, where that matters: not where it is ours, nor where it is known
    /// that the data lies elsewhere.
    pub(crate) here: Option<FsCapabilities>,
    /// Something mounted below the data root.
    pub(crate) mounted_below: Option<PathBuf>,
    pub(crate) users: Vec<DirUser>,
    pub(crate) host: LoopHost,
    /// The mount unit, or why there can be none for these paths.
    pub(crate) unit: std::result::Result<UnitState, String>,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// `D.moving` becomes a mount point.
    MakeMountPoint,
    /// `D` becomes one.
    MakeRootMountPoint,
    /// `D.btrfs.moving` is made.
    MakeFile(Bytes),
    /// The data is copied into it, and compared.
    CopyIn(TreeSize),
    /// `D` and `D.moving` change places.
    Exchange,
    /// The backing file gets its name.
    Settle,
    /// The backing file gets its moving name.
    Unsettle,
    Mount,
    Unmount,
    /// systemd mounts it from now on.
    InstallUnit,
    /// Nobody does; the unit's text is kept.
    KeepUnitText,
    RemoveUnit,
    /// The backing file and the btrfs in it become as large as that.
    Grow(Bytes),
    /// The data is copied to `D.moving`, and compared.
    CopyOut(TreeSize),
    RemoveMovingFile,
    /// `D.moving` with a copy that does not count.
    RemoveCopy,
    /// `D.moving`, a mount point.
    RemoveMountPoint,
}

impl Step {
    /// For progress: short, and the same every time.
    pub(crate) const fn what(&self) -> &'static str {
        match self {
            Self::MakeMountPoint | Self::MakeRootMountPoint => "mount point",
            Self::MakeFile(_) => "backing file",
            Self::CopyIn(_) => "data into the btrfs",
            Self::Exchange => "exchange of the directories",
            Self::Settle | Self::Unsettle => "name of the backing file",
            Self::Mount => "mount",
            Self::Unmount => "unmount",
            Self::InstallUnit | Self::KeepUnitText => "mount unit",
            Self::RemoveUnit => "removal of the mount unit",
            Self::Grow(_) => "growth",
            Self::CopyOut(_) => "data into a plain directory",
            Self::RemoveMovingFile => "removal of the backing file",
            Self::RemoveCopy => "removal of the other copy",
            Self::RemoveMountPoint => "removal of the mount point",
        }
    }
}

/// What is to be done, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    /// Whether the steps lead only to where one can see what more there is to do.
    pub(crate) then_look_again: bool,
    pub(crate) warnings: Vec<String>,
    /// How things are once it is done.
    pub(crate) outcome: String,
}

impl Plan {
    fn nothing(outcome: String) -> Self {
        Self { steps: Vec::new(), then_look_again: false, warnings: Vec::new(), outcome }
    }
}

/// A step with its names, as a sentence.
pub(crate) struct Told<'a>(pub(crate) &'a Step, pub(crate) &'a Facts);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (root, backing) = (self.1.root.display(), self.1.backing.display());
        match self.0 {
            Step::MakeMountPoint => write!(f, "make {root}.moving, a directory to mount on"),
            Step::MakeRootMountPoint => write!(f, "make {root} a directory to mount on"),
            Step::MakeFile(size) => write!(f, "make {backing}.moving, sparse, {size}, with a btrfs in it"),
            Step::CopyIn(size) => {
                write!(f, "copy {} files, {}, into it, unseen by others, and compare", size.files, size.data)
            }
            Step::Exchange => write!(f, "exchange {root} and {root}.moving in one step"),
            Step::Settle => write!(f, "rename {backing}.moving to {backing}"),
            Step::Unsettle => write!(f, "rename {backing} to {backing}.moving"),
            Step::Mount => write!(f, "mount {backing} on {root} (-o {})", image::LOOP_MOUNT_OPTIONS),
            Step::Unmount => write!(f, "unmount {root}"),
            Step::InstallUnit => write!(f, "write and enable a systemd unit that mounts it at boot"),
            Step::KeepUnitText => write!(f, "write the text of a systemd unit to {backing}.mount"),
            Step::RemoveUnit => write!(f, "remove the mount unit"),
            Step::Grow(size) => write!(f, "let {backing} and the btrfs in it grow to {size}"),
            Step::CopyOut(size) => {
                write!(f, "copy {} files, {}, to {root}.moving, and compare", size.files, size.data)
            }
            Step::RemoveMovingFile => write!(f, "remove {backing}.moving"),
            Step::RemoveCopy | Step::RemoveMountPoint => write!(f, "remove {root}.moving"),
        }
    }
}

/// Decides.
///
/// # Errors
/// The refusal: why it cannot be done here, and what could.
pub(crate) fn plan(facts: &Facts, wish: LoopWish) -> Result<Plan> {
    match wish {
        LoopWish::Make { size } => make(facts, size),
        LoopWish::Undo => undo(facts),
    }
}

/// What to do when a step of a plan has failed, `done` being those before it. Empty where only going on helps.
pub(crate) fn way_back(done: &[Step], failed: &Step) -> Vec<Step> {
    let moving_in = done.iter().any(|step| matches!(step, Step::MakeMountPoint));
    let moving_out = done.iter().any(|step| matches!(step, Step::CopyOut(_)));
    let start_over = [Step::RemoveMovingFile, Step::RemoveMountPoint];
    let stay = [Step::Mount, Step::RemoveCopy];
    match failed {
        Step::MakeMountPoint | Step::MakeFile(_) | Step::CopyIn(_) => start_over.to_vec(),
        Step::Exchange if moving_in => start_over.to_vec(),
        Step::Settle if moving_in => [&[Step::Exchange][..], &start_over].concat(),
        Step::Mount if moving_in => [&[Step::Unsettle, Step::Exchange][..], &start_over].concat(),
        Step::CopyOut(_) => vec![Step::RemoveCopy],
        Step::Unmount | Step::Unsettle if moving_out => stay.to_vec(),
        Step::Exchange if moving_out => [&[Step::Settle][..], &stay].concat(),
        _ => Vec::new(),
    }
}

fn make(facts: &Facts, size: Option<Bytes>) -> Result<Plan> {
    if let Some(size) = size.filter(|size| *size < LEAST_SIZE) {
        return Err(Error::new(
            ErrorKind::BadRequest,
            format!("--size: {size} is too little for a data directory"),
        )
        .hint(format!("give at least {LEAST_SIZE}; it is taken only as it is used")));
    }
    let root = facts.root.display();
    match (&facts.mounted, &facts.place.root) {
        (Mounted::Ours { .. }, _) => keep(facts, size),
        (Mounted::No, RootState::MountPoint { .. }) => go_on(facts),
        (Mounted::No, RootState::Missing | RootState::Empty) if facts.place.backing.is_some() => go_on(facts),
        (Mounted::No, RootState::Data) if facts.place.backing.is_some() => Err(two_sets(facts)),
        (Mounted::No, RootState::Foreign { such_as }) => Err(Error::new(
            ErrorKind::Conflict,
            format!("{root}: is no data directory, there are other files in it, such as {such_as}"),
        )
        .hint("give a directory of its own with --data-dir")),
        _ if facts.here.as_ref().is_some_and(|here| here.reflink && here.compression) => {
            Ok(Plan::nothing(format!(
                "{root}: its filesystem shares and compresses already; nothing to gain from a btrfs in a file"
            )))
        }
        (Mounted::Other { fs_type, source }, _) => Err(Error::new(
            ErrorKind::Conflict,
            format!("{root}: is a mount point itself ({fs_type} on {})", source.display()),
        )
        .hint("name a directory below it with --data-dir, or unmount it first")),
        (Mounted::No, _) => move_in(facts, size.unwrap_or_else(|| DEFAULT_SIZE.min(facts.room.total))),
    }
}

/// It is there: only what is missing around it is done.
fn keep(facts: &Facts, size: Option<Bytes>) -> Result<Plan> {
    let have = facts.place.backing.unwrap_or_default();
    let mut steps = Vec::new();
    match size {
        Some(size) if size < have => {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("--size: {} is {have}, and is not made smaller", facts.backing.display()),
            )
            .hint("it takes only what is used; to have a smaller one, --undo and set up anew"));
        }
        Some(size) if size > have => {
            fits_host(facts, size)?;
            steps.push(Step::Grow(size));
        }
        _ => {}
    }
    let mut warnings = Vec::new();
    steps.extend(unit_step(facts, &mut warnings));
    steps.extend(moving_file_step(facts));
    steps.extend(moving_dir_step(facts));
    Ok(Plan {
        steps,
        then_look_again: false,
        warnings,
        outcome: format!("{} is in a btrfs in {}", facts.root.display(), facts.backing.display()),
    })
}

/// The data is in the backing file and only to be mounted.
fn go_on(facts: &Facts) -> Result<Plan> {
    can_mount(facts)?;
    let (root, backing) = (facts.root.display(), facts.backing.display());
    let mut steps = Vec::new();
    let mut warnings = Vec::new();
    match &facts.place.root {
        RootState::MountPoint { besides } if !besides.is_empty() => warnings.push(format!(
            "{root} has {} in it, which a mount hides: unmount it to see them",
            besides.join(", ")
        )),
        RootState::MountPoint { .. } => {}
        _ => steps.push(Step::MakeRootMountPoint),
    }
    if facts.place.backing.is_none() {
        if !facts.place.moving_file {
            let copy = match facts.place.moving_dir {
                MovingDir::Data => format!("; a copy of the data is in {root}.moving"),
                _ => String::new(),
            };
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("{root}: the file with its data, {backing}, is gone{copy}"),
            )
            .hint("put it back; to begin without it, remove NOT-MOUNTED.txt"));
        }
        steps.push(Step::Settle);
    }
    steps.push(Step::Mount);
    Ok(Plan { steps, then_look_again: true, warnings, outcome: String::new() })
}

fn move_in(facts: &Facts, size: Bytes) -> Result<Plan> {
    can_mount(facts)?;
    if !facts.host.mkfs {
        return Err(Error::new(ErrorKind::NotReady, "mkfs.btrfs is not installed".to_owned())
            .hint("install the package btrfs-progs (apt-get install btrfs-progs, dnf install btrfs-progs)"));
    }
    if let Err(why) = &facts.unit {
        return Err(Error::new(ErrorKind::BadRequest, why.clone()).hint("give another --data-dir"));
    }
    fits_host(facts, size)?;
    undisturbed(facts)?;
    if facts.place.moving_dir == MovingDir::Data {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("{}.moving: has files in it that no move has left there", facts.root.display()),
        )
        .hint("look at them, then move them away"));
    }
    let data = facts.data.data.0;
    let wants = Bytes(data + data / 10 + BTRFS_MARGIN);
    if data > 0 && wants > size {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("--size: {} of data and what btrfs needs do not fit into {size}", facts.data.data),
        )
        .hint(format!("give at least {wants}")));
    }
    let copy = Bytes(data + data / 16 + HOST_MARGIN);
    if copy > facts.room.free {
        return Err(Error::new(
            ErrorKind::NoSpace,
            format!(
                "{}: a second copy of the data takes up to {copy} until the first is removed; {} are free",
                facts.root.display(),
                facts.room.free
            ),
        )
        .hint("free some space, or begin with an empty --data-dir"));
    }
    let mut warnings = Vec::new();
    if size > facts.room.free {
        warnings.push(format!(
            "the btrfs may grow to {size}, and {} are free under it now: keep an eye on `df {}`",
            facts.room.free,
            facts.backing.parent().unwrap_or(&facts.backing).display()
        ));
    }
    if is_in_memory(&facts.beside) {
        warnings.push(format!(
            "{} lies in memory ({}) and is gone with the next boot",
            facts.backing.display(),
            facts.beside
        ));
    }
    if facts.beside == "btrfs" {
        // Advice only: what is done does not depend on it.
        warnings.push(
            "this is a btrfs in a btrfs; mounting the one that is there with compress=zstd:1 is better"
                .to_owned(),
        );
    }
    let mut steps: Vec<_> = moving_file_step(facts).collect();
    steps.extend([
        Step::MakeMountPoint,
        Step::MakeFile(size),
        Step::CopyIn(facts.data),
        Step::Exchange,
        Step::Settle,
        Step::Mount,
    ]);
    steps.extend(unit_step(facts, &mut warnings));
    steps.push(Step::RemoveCopy);
    Ok(Plan {
        steps,
        then_look_again: false,
        warnings,
        outcome: format!("{} is in a btrfs in {}", facts.root.display(), facts.backing.display()),
    })
}

fn undo(facts: &Facts) -> Result<Plan> {
    let (root, backing) = (facts.root.display(), facts.backing.display());
    match (&facts.mounted, &facts.place.root) {
        (Mounted::Ours { .. }, _) => move_out(facts),
        (Mounted::No, RootState::MountPoint { .. }) => go_on(facts),
        (Mounted::No, RootState::Missing | RootState::Empty) if facts.place.backing.is_some() => go_on(facts),
        (Mounted::No, RootState::Data) if facts.place.backing.is_some() => Err(two_sets(facts)),
        (Mounted::Other { fs_type, .. }, _) if facts.place.backing.is_some() => Err(Error::new(
            ErrorKind::Conflict,
            format!("{root}: another filesystem ({fs_type}) is mounted over the data, which is in {backing}"),
        )
        .hint("unmount that one first")),
        _ => {
            let mut steps = Vec::new();
            if matches!(facts.unit, Ok(UnitState::Installed | UnitState::Stale)) || facts.place.unit_text {
                steps.push(Step::RemoveUnit);
            }
            steps.extend(moving_file_step(facts));
            // Without a backing file, a copy of the data beside the data root is nobody's.
            steps.extend(moving_dir_step(facts).filter(|step| *step != Step::RemoveCopy));
            let outcome = format!("{root} is a plain directory");
            Ok(Plan { steps, then_look_again: false, warnings: Vec::new(), outcome })
        }
    }
}

fn move_out(facts: &Facts) -> Result<Plan> {
    undisturbed(facts)?;
    let data = facts.data.data.0;
    let wants = Bytes(data + data / 50 + HOST_MARGIN);
    if wants > facts.room.free {
        return Err(Error::new(
            ErrorKind::NoSpace,
            format!(
                "{}: a plain copy of the data takes up to {wants}, and {} are free on the filesystem of {}",
                facts.root.display(),
                facts.room.free,
                facts.backing.display()
            ),
        )
        .hint("free some space there, or remove sandboxes and images that are not needed"));
    }
    let mut steps: Vec<_> = moving_file_step(facts).collect();
    steps.extend([
        Step::CopyOut(facts.data),
        Step::Unmount,
        Step::Unsettle,
        Step::Exchange,
        Step::RemoveUnit,
        Step::RemoveMovingFile,
        Step::RemoveMountPoint,
    ]);
    let mut warnings = Vec::new();
    if facts.unit == Ok(UnitState::Foreign) {
        warnings.push("the mount unit of this directory was not written by setup, and stays".to_owned());
    }
    Ok(Plan {
        steps,
        then_look_again: false,
        warnings,
        outcome: format!("{} is a plain directory", facts.root.display()),
    })
}

fn two_sets(facts: &Facts) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!(
            "{}: has data of its own, and {} beside it has other data",
            facts.root.display(),
            facts.backing.display()
        ),
    )
    .hint("look at both (mount the file elsewhere with -o loop) and move away the one that is not wanted")
}

fn can_mount(facts: &Facts) -> Result<()> {
    let refuse =
        |message: &str, hint: &str| Err(Error::new(ErrorKind::NotReady, message.to_owned()).hint(hint));
    let host = facts.host;
    if !host.root {
        return refuse("mounting a btrfs in a file needs root", "run it with sudo, or use `--storage here`");
    }
    if !host.may_mount {
        return refuse(
            "this process may not mount (it runs in a container, or without CAP_SYS_ADMIN)",
            "set it up on the host and hand the directory to the container, or use `--storage here`",
        );
    }
    if !host.btrfs {
        return refuse(
            "this kernel has no btrfs, and `modprobe btrfs` did not change that",
            "use a kernel with CONFIG_BTRFS_FS, or `--storage here`",
        );
    }
    if !host.loop_devices {
        return refuse(
            "there are no loop devices (/dev/loop-control), and `modprobe loop` did not change that",
            "use a kernel with CONFIG_BLK_DEV_LOOP and give a container the device, or use `--storage here`",
        );
    }
    Ok(())
}

fn fits_host(facts: &Facts, size: Bytes) -> Result<()> {
    if size <= facts.room.total {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::TooLarge,
        format!("--size: {size} is more than the whole filesystem under it has ({})", facts.room.total),
    )
    .hint("give less, or put the data directory on a larger disk with --data-dir"))
}

pub(crate) fn undisturbed(facts: &Facts) -> Result<()> {
    let root = facts.root.display();
    if let Some(below) = &facts.mounted_below {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("{root}: another filesystem is mounted in it, on {}", below.display()),
        )
        .hint("unmount that first"));
    }
    if !facts.users.is_empty() {
        let who: Vec<_> = facts.users.iter().map(DirUser::to_string).collect();
        return Err(Error::new(ErrorKind::Busy, format!("{root}: is in use by {}", who.join(", "))).hint(
            "stop the sandboxes (`bhatti stop NAME`), end the daemon, leave the directory; then try again",
        ));
    }
    Ok(())
}

fn is_in_memory(fs_type: &str) -> bool {
    fs_type == "tmpfs"
}

fn unit_step(facts: &Facts, warnings: &mut Vec<String>) -> Option<Step> {
    match &facts.unit {
        _ if is_in_memory(&facts.beside) => None,
        Ok(UnitState::Absent | UnitState::Stale) => Some(Step::InstallUnit),
        Ok(UnitState::Installed) => None,
        Ok(UnitState::Foreign) => {
            warnings.push(
                "there is a mount unit for this directory that setup did not write; it is left".to_owned(),
            );
            None
        }
        Ok(UnitState::NoSystemd) | Err(_) => (!facts.place.unit_text).then_some(Step::KeepUnitText),
    }
}

fn moving_file_step(facts: &Facts) -> impl Iterator<Item = Step> + use<> {
    facts.place.moving_file.then_some(Step::RemoveMovingFile).into_iter()
}

fn moving_dir_step(facts: &Facts) -> impl Iterator<Item = Step> + use<> {
    match facts.place.moving_dir {
        MovingDir::Missing => None,
        MovingDir::MountPoint | MovingDir::Empty => Some(Step::RemoveMountPoint),
        MovingDir::Data => Some(Step::RemoveCopy),
    }
    .into_iter()
}

#[cfg(test)]
#[path = "loop_plan_tests.rs"]
mod tests;
