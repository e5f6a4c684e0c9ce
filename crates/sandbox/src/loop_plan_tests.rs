use std::collections::HashSet;

use super::*;

const GIB: u64 = 1 << 30;

fn plain_fs() -> FsCapabilities {
    FsCapabilities {
        fs_type: "ext4".to_owned(),
        reflink: false,
        sparse: true,
        compression: false,
        free: Bytes(50 * GIB),
        total: Bytes(100 * GIB),
    }
}

fn facts() -> Facts {
    Facts {
        root: "/var/lib/bhatti".into(),
        backing: "/var/lib/bhatti.btrfs".into(),
        place: Surroundings {
            root: RootState::Data,
            moving_dir: MovingDir::Missing,
            backing: None,
            moving_file: false,
            unit_text: false,
        },
        mounted: Mounted::No,
        data: TreeSize { files: 10, data: Bytes(3 * GIB) },
        beside: "ext4".to_owned(),
        room: Space { free: Bytes(50 * GIB), total: Bytes(100 * GIB) },
        here: Some(plain_fs()),
        mounted_below: None,
        users: Vec::new(),
        host: LoopHost { root: true, may_mount: true, mkfs: true, btrfs: true, loop_devices: true },
        unit: Ok(UnitState::Absent),
    }
}

fn mounted() -> Facts {
    let mut facts = facts();
    facts.mounted = Mounted::Ours { device: "/dev/loop0".into() };
    facts.place.backing = Some(Bytes(20 * GIB));
    facts.unit = Ok(UnitState::Installed);
    facts
}

const MAKE: LoopWish = LoopWish::Make { size: None };

fn refused(facts: &Facts, wish: LoopWish, kind: ErrorKind, parts: &[&str]) {
    let error = plan(facts, wish).unwrap_err();
    let text = format!("{}; {}", error, error.way_out());
    assert_eq!(error.kind(), kind, "{text}");
    assert!(!error.way_out().is_empty(), "no way out: {text}");
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text:?}");
    }
}

#[test]
fn data_moves_in_by_steps_that_people_can_read() {
    let facts = facts();
    let plan = plan(&facts, MAKE).unwrap();
    let told: Vec<_> = plan.steps.iter().map(|step| Told(step, &facts).to_string()).collect();
    assert_eq!(
        told,
        [
            "make /var/lib/bhatti.moving, a directory to mount on",
            "make /var/lib/bhatti.btrfs.moving, sparse, 20.0 GiB, with a btrfs in it",
            "copy 10 files, 3.0 GiB, into it, unseen by others, and compare",
            "exchange /var/lib/bhatti and /var/lib/bhatti.moving in one step",
            "rename /var/lib/bhatti.btrfs.moving to /var/lib/bhatti.btrfs",
            "mount /var/lib/bhatti.btrfs on /var/lib/bhatti (-o loop,noatime,compress=zstd:1)",
            "write and enable a systemd unit that mounts it at boot",
            "remove /var/lib/bhatti.moving",
        ]
    );
    assert_eq!(plan.warnings, [""; 0]);
    assert_eq!(plan.outcome, "/var/lib/bhatti is in a btrfs in /var/lib/bhatti.btrfs");
}

#[test]
fn what_is_done_already_is_not_done_again() {
    let again = plan(&mounted(), MAKE).unwrap();
    assert_eq!(again.steps, []);
    let mut in_use = mounted();
    in_use.users.push(DirUser { pid: 7, program: "bhatti".to_owned() });
    assert_eq!(plan(&in_use, MAKE).unwrap().steps, [], "a daemon may run on it");
    assert_eq!(plan(&in_use, LoopWish::Make { size: Some(Bytes(20 * GIB)) }).unwrap().steps, []);
    let mut undone = facts();
    undone.unit = Ok(UnitState::Absent);
    assert_eq!(plan(&undone, LoopWish::Undo).unwrap().steps, []);
}

#[test]
fn a_filesystem_that_shares_and_compresses_needs_none_below_it() {
    let mut facts = facts();
    let able = FsCapabilities { fs_type: "btrfs".to_owned(), reflink: true, compression: true, ..plain_fs() };
    facts.here = Some(able.clone());
    let nothing = plan(&facts, MAKE).unwrap();
    assert_eq!(nothing.steps, []);
    assert!(nothing.outcome.contains("shares and compresses already"), "{}", nothing.outcome);
    facts.mounted = Mounted::Other { fs_type: "btrfs".to_owned(), source: "/dev/sdb".into() };
    assert_eq!(plan(&facts, MAKE).unwrap().steps, []);
    facts.here = Some(FsCapabilities { compression: false, ..able });
    refused(
        &facts,
        MAKE,
        ErrorKind::Conflict,
        &["is a mount point itself (btrfs on /dev/sdb)", "--data-dir"],
    );
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let make = |gib: u64| LoopWish::Make { size: Some(Bytes(gib * GIB)) };
    let little = LoopWish::Make { size: Some(Bytes(GIB - 1)) };
    refused(&facts(), little, ErrorKind::BadRequest, &["too little", "at least 1.0 GiB"]);
    refused(&facts(), make(101), ErrorKind::TooLarge, &["101.0 GiB is more than the whole", "100.0 GiB"]);
    refused(&facts(), make(3), ErrorKind::TooLarge, &["3.0 GiB of data", "give at least 3.5 GiB"]);
    refused(&mounted(), make(19), ErrorKind::Conflict, &["is 20.0 GiB, and is not made smaller"]);
    refused(&mounted(), make(101), ErrorKind::TooLarge, &["more than the whole"]);
    assert_eq!(plan(&mounted(), make(30)).unwrap().steps, [Step::Grow(Bytes(30 * GIB))]);
    let thin = plan(&facts(), make(60)).unwrap();
    assert_eq!(thin.warnings.len(), 1);
    assert!(thin.warnings[0].contains("may grow to 60.0 GiB, and 50.0 GiB are free"), "{:?}", thin.warnings);
}

#[test]
fn a_host_that_cannot_is_told_what_it_lacks() {
    type Lack = fn(&mut LoopHost);
    let lacks: [(Lack, &[&str]); 5] = [
        (|host| host.root = false, &["needs root", "sudo"]),
        (|host| host.may_mount = false, &["may not mount", "container"]),
        (|host| host.btrfs = false, &["no btrfs", "modprobe btrfs"]),
        (|host| host.loop_devices = false, &["no loop devices", "/dev/loop-control"]),
        (|host| host.mkfs = false, &["mkfs.btrfs is not installed", "apt-get install btrfs-progs"]),
    ];
    for (lack, parts) in lacks {
        let mut facts = facts();
        lack(&mut facts.host);
        refused(&facts, MAKE, ErrorKind::NotReady, parts);
    }
}

#[test]
fn a_directory_in_use_or_not_of_bhatti_stays_as_it_is() {
    let mut used = facts();
    used.users = [(7, "bhatti"), (9, "qemu-system-x86")]
        .map(|(pid, program)| DirUser { pid, program: program.to_owned() })
        .to_vec();
    let who = ["is in use by bhatti (pid 7), qemu-system-x86 (pid 9)", "stop the sandboxes"];
    refused(&used, MAKE, ErrorKind::Busy, &who);
    used.mounted = mounted().mounted;
    used.place.backing = Some(Bytes(20 * GIB));
    refused(&used, LoopWish::Undo, ErrorKind::Busy, &who);

    let mut below = facts();
    below.mounted_below = Some("/var/lib/bhatti/volumes".into());
    refused(&below, MAKE, ErrorKind::Conflict, &["is mounted in it, on /var/lib/bhatti/volumes"]);

    let mut foreign = facts();
    foreign.place.root = RootState::Foreign { such_as: "thesis.pdf".to_owned() };
    refused(&foreign, MAKE, ErrorKind::Conflict, &["is no data directory", "thesis.pdf"]);

    let mut copy = facts();
    copy.place.moving_dir = MovingDir::Data;
    refused(&copy, MAKE, ErrorKind::Conflict, &["/var/lib/bhatti.moving"]);

    let mut two = facts();
    two.place.backing = Some(Bytes(GIB));
    for wish in [MAKE, LoopWish::Undo] {
        refused(&two, wish, ErrorKind::Conflict, &["data of its own", "/var/lib/bhatti.btrfs"]);
    }
}

#[test]
fn a_backing_file_that_is_gone_is_missed() {
    let mut facts = facts();
    facts.place.root = RootState::MountPoint { besides: Vec::new() };
    facts.place.moving_dir = MovingDir::Data;
    for wish in [MAKE, LoopWish::Undo] {
        let parts = [
            "/var/lib/bhatti.btrfs, is gone; a copy of the data is in /var/lib/bhatti.moving",
            "put it back",
        ];
        refused(&facts, wish, ErrorKind::Corrupt, &parts);
    }
}

#[test]
fn without_a_size_it_is_as_large_as_fits() {
    let made = |total| {
        let small = Facts { room: Space { free: Bytes(10 * GIB), total: Bytes(total) }, ..facts() };
        let steps = plan(&small, MAKE).unwrap().steps;
        steps.iter().find_map(|step| if let Step::MakeFile(size) = step { Some(size.0) } else { None })
    };
    assert_eq!((made(100 * GIB), made(15 * GIB)), (Some(20 * GIB), Some(15 * GIB)));
}

#[test]
fn without_room_for_a_second_copy_nothing_begins() {
    let mut full = facts();
    full.room.free = Bytes(2 * GIB);
    refused(&full, MAKE, ErrorKind::NoSpace, &["takes up to 3.3 GiB", "2.0 GiB are free"]);
    let mut full = mounted();
    full.room.free = Bytes(3 * GIB);
    refused(&full, LoopWish::Undo, ErrorKind::NoSpace, &["a plain copy", "3.0 GiB are free"]);
}

#[test]
fn without_systemd_the_unit_is_kept_as_text_and_in_memory_there_is_none() {
    let mut facts = facts();
    facts.unit = Ok(UnitState::NoSystemd);
    assert!(plan(&facts, MAKE).unwrap().steps.contains(&Step::KeepUnitText));
    facts.beside = "tmpfs".to_owned();
    let plan = plan(&facts, MAKE).unwrap();
    assert!(!plan.steps.contains(&Step::KeepUnitText));
    assert!(
        plan.warnings.iter().any(|warning| warning.contains("gone with the next boot")),
        "{:?}",
        plan.warnings
    );
}

// What follows plays every plan against a model of the host and cuts it off at every point.

/// What a directory or a backing file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Content {
    Nothing,
    /// A copy that was cut off.
    Half,
    /// All the data, after so many uses.
    All(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Dir {
    Missing,
    MountPoint,
    Holding(Content),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    root: Dir,
    moving_dir: Dir,
    backing: Option<Content>,
    moving_file: Option<Content>,
    mounted: bool,
    systemd: bool,
    unit: bool,
    unit_text: bool,
    /// What whoever uses it must find.
    truth: Content,
}

impl World {
    fn facts(&self) -> Facts {
        let mut facts = facts();
        facts.place = Surroundings {
            root: match (self.mounted, self.root) {
                (true, _) => match self.backing {
                    Some(Content::Nothing) | None => RootState::Empty,
                    Some(_) => RootState::Data,
                },
                (false, Dir::Missing) => RootState::Missing,
                (false, Dir::MountPoint) => RootState::MountPoint { besides: Vec::new() },
                (false, Dir::Holding(Content::Nothing)) => RootState::Empty,
                (false, Dir::Holding(_)) => RootState::Data,
            },
            moving_dir: match self.moving_dir {
                Dir::Missing => MovingDir::Missing,
                Dir::MountPoint => MovingDir::MountPoint,
                Dir::Holding(Content::Nothing) => MovingDir::Empty,
                Dir::Holding(_) => MovingDir::Data,
            },
            backing: self.backing.map(|_| Bytes(20 * GIB)),
            moving_file: self.moving_file.is_some(),
            unit_text: self.unit_text,
        };
        facts.mounted = if self.mounted { mounted().mounted } else { Mounted::No };
        facts.data = TreeSize { files: 1, data: Bytes(GIB) };
        facts.unit = Ok(match (self.systemd, self.unit) {
            (false, _) => UnitState::NoSystemd,
            (true, false) => UnitState::Absent,
            (true, true) => UnitState::Installed,
        });
        facts
    }

    /// What whoever opens the data directory finds; `None` if that is refused. The rule of storage's `relocate`.
    fn seen(&self) -> Option<Content> {
        match (self.mounted, self.root) {
            (true, _) => self.backing,
            (false, Dir::MountPoint) => None,
            (false, Dir::Missing) => Some(Content::Nothing),
            (false, Dir::Holding(content)) => Some(content),
        }
    }

    fn check(&self) {
        let held = self.seen().or(self.backing).or(self.moving_file);
        assert_eq!(held, Some(self.truth), "the data is lost: {self:?}");
    }

    /// Does a step, and gives every state on the way, the last one being that after it.
    fn step(&self, step: &Step) -> Vec<Self> {
        let mut now = self.clone();
        let mut states = Vec::new();
        let mut then = |now: &Self| states.push(now.clone());
        match step {
            Step::MakeMountPoint => {
                if now.root == Dir::Missing {
                    now.root = Dir::Holding(Content::Nothing);
                    then(&now);
                }
                assert!(!matches!(now.moving_dir, Dir::Holding(Content::Half | Content::All(_))));
                if now.moving_dir == Dir::Missing {
                    now.moving_dir = Dir::Holding(Content::Nothing);
                    then(&now);
                }
                now.moving_dir = Dir::MountPoint;
            }
            Step::MakeRootMountPoint => now.root = Dir::MountPoint,
            Step::MakeFile(_) => {
                assert_eq!(now.moving_file, None);
                now.moving_file = Some(Content::Half);
            }
            Step::CopyIn(_) => {
                assert!(!now.mounted && now.moving_dir == Dir::MountPoint);
                let Dir::Holding(content) = now.root else { panic!("nothing to copy in {now:?}") };
                now.moving_file = Some(content);
            }
            Step::Exchange => {
                assert!(!now.mounted, "a mount point cannot be renamed");
                std::mem::swap(&mut now.root, &mut now.moving_dir);
            }
            Step::Settle => {
                assert_eq!(now.backing, None);
                now.backing = now.moving_file.take();
            }
            Step::Unsettle => {
                assert_eq!(now.moving_file, None);
                now.moving_file = now.backing.take();
            }
            Step::Mount => {
                assert!(now.backing.is_some() && now.root == Dir::MountPoint);
                now.mounted = true;
            }
            Step::Unmount => now.mounted = false,
            Step::InstallUnit => now.unit = true,
            Step::KeepUnitText => now.unit_text = true,
            Step::RemoveUnit => {
                now.unit = false;
                then(&now);
                now.unit_text = false;
            }
            Step::Grow(_) => {}
            Step::CopyOut(_) => {
                let content = now.backing.filter(|_| now.mounted).expect("something to copy");
                for held in [Dir::Missing, Dir::Holding(Content::Nothing), Dir::Holding(Content::Half)] {
                    now.moving_dir = held;
                    then(&now);
                }
                now.moving_dir = Dir::Holding(content);
            }
            Step::RemoveMovingFile => now.moving_file = None,
            Step::RemoveCopy => {
                assert_ne!(now.moving_dir, Dir::MountPoint);
                now.moving_dir = Dir::Holding(Content::Half);
                then(&now);
                now.moving_dir = Dir::Missing;
            }
            Step::RemoveMountPoint => {
                assert!(!matches!(now.moving_dir, Dir::Holding(Content::Half | Content::All(_))));
                now.moving_dir = Dir::Holding(Content::Nothing);
                then(&now);
                now.moving_dir = Dir::Missing;
            }
        }
        then(&now);
        states.iter().for_each(Self::check);
        states
    }

    /// What may happen between two runs.
    fn meanwhile(&self) -> Vec<Self> {
        let mut later = Vec::new();
        let reboot = Self { mounted: self.unit && self.backing.is_some(), ..self.clone() };
        later.push(reboot);
        // It is used, where it can be.
        let used = match self.truth {
            Content::All(times) if times < 2 => Some(Content::All(times + 1)),
            Content::Nothing => Some(Content::All(0)),
            _ => None,
        };
        if let (Some(used), Some(_)) = (used, self.seen()) {
            let mut later_on = Self { truth: used, ..self.clone() };
            if self.mounted {
                later_on.backing = Some(used);
            } else {
                later_on.root = Dir::Holding(used);
            }
            later.push(later_on);
        }
        later
    }

    /// Carries a wish out to its end, giving every state on the way.
    fn fulfil(&self, wish: LoopWish) -> Vec<Self> {
        let mut states = vec![self.clone()];
        for _round in 0..3 {
            let now = states.last().unwrap().clone();
            let plan =
                plan(&now.facts(), wish).unwrap_or_else(|error| panic!("{wish:?} in {now:?}: {error}"));
            for step in &plan.steps {
                let next = states.last().unwrap().step(step);
                states.extend(next);
            }
            if !plan.then_look_again {
                break;
            }
        }
        let end = states.last().unwrap();
        assert_eq!((end.moving_dir, end.moving_file), (Dir::Missing, None), "{end:?} after {wish:?}");
        match wish {
            LoopWish::Make { .. } => {
                assert!(end.mounted && end.backing.is_some() && (end.unit || end.unit_text))
            }
            LoopWish::Undo => {
                assert!(!end.mounted && end.backing.is_none() && !end.unit && !end.unit_text, "{end:?}");
            }
        }
        assert_eq!(plan(&end.facts(), wish).unwrap().steps, [], "{wish:?} again in {end:?}");
        states
    }
}

fn beginnings() -> Vec<World> {
    let roots = [
        (Dir::Missing, Content::Nothing),
        (Dir::Holding(Content::Nothing), Content::Nothing),
        (Dir::Holding(Content::All(0)), Content::All(0)),
    ];
    let worlds = roots.into_iter().flat_map(|(root, truth)| {
        [false, true].map(|systemd| World {
            root,
            moving_dir: Dir::Missing,
            backing: None,
            moving_file: None,
            mounted: false,
            systemd,
            unit: false,
            unit_text: false,
            truth,
        })
    });
    worlds.collect()
}

#[test]
fn whatever_is_cut_off_anywhere_can_be_gone_on_with_and_taken_back_and_loses_nothing() {
    let mut known = HashSet::new();
    let mut ahead = beginnings();
    while let Some(world) = ahead.pop() {
        if !known.insert(world.clone()) {
            continue;
        }
        world.check();
        ahead.extend(world.meanwhile());
        for wish in [MAKE, LoopWish::Undo] {
            ahead.extend(world.fulfil(wish));
        }
    }
    assert!(known.len() > 100, "only {} states were met", known.len());
}

#[test]
fn a_step_that_fails_leads_back_to_where_it_began() {
    for begun in beginnings() {
        for wish in [MAKE, LoopWish::Undo] {
            let begun =
                if wish == LoopWish::Undo { begun.fulfil(MAKE).pop().unwrap() } else { begun.clone() };
            let mut now = begun.clone();
            let steps = plan(&now.facts(), wish).unwrap().steps;
            for (at, step) in steps.iter().enumerate() {
                let back = way_back(&steps[..at], step);
                if back.is_empty() {
                    break;
                }
                // It failed before or after what it did on the way.
                let mut half_done = now.step(step);
                half_done.pop();
                for mut state in half_done.into_iter().chain([now.clone()]) {
                    for step in &back {
                        state = state.step(step).pop().unwrap();
                    }
                    if begun.root == Dir::Missing && state.root != Dir::Missing {
                        state.root = Dir::Missing;
                    }
                    assert_eq!(state, begun, "{step:?} failed");
                }
                now = now.step(step).pop().unwrap();
            }
        }
    }
}
