//! What one VMM may take of the host's processors, memory and process numbers: a control group for each (cgroups(7)).
//!
//! ```text
//!  v2:  <mount>/<parent>/bhatti/<machine>/{cpu.max, cpu.weight, memory.max, pids.max, cgroup.procs}
//!  v1:  <mount of the controller>/<this process's group>/bhatti/<machine>/{cpu.*, memory.*, pids.max, cgroup.procs}
//! ```
//! All daemons of a host share `bhatti`. A group is empty once its VMM has ended, and only then can it be removed; whoever
//! sweeps removes all that are empty, also those that a daemon which died has left. A lock on `bhatti` keeps one that is
//! about to get its VMM from being taken for one that lost it, and `bhatti` itself from being removed under it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use types::{Accel, Bytes};

use crate::spec::MachineSpec;

/// The group that holds those of the machines.
const NAME: &str = "bhatti";
/// What groups are made for, as `cgroup.subtree_control` takes it.
const CONTROLLERS: &str = "+cpu +memory +pids";
/// Microseconds over which processor time is counted.
const PERIOD: u64 = 100_000;
/// Threads of a VMM: processors, workers for its disks (at most 64), its own.
const MOST_TASKS: u32 = 256;
/// Memory of a VMM beside its guest's: its own, and what it keeps of its disks before writing it.
const OWN_MEMORY: Bytes = Bytes(256 << 20);
/// What emulation may take besides: translated code and what that needs.
const TRANSLATION: Bytes = Bytes(384 << 20);

/// What one machine may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Its processors.
    pub cpus: u32,
    /// Its guest's memory and the VMM's own.
    pub memory: Bytes,
}

impl Limits {
    /// What a machine of `spec` needs at most.
    #[must_use]
    pub fn of(spec: &MachineSpec) -> Self {
        let beside = match spec.accel {
            Accel::Kvm => OWN_MEMORY.0,
            Accel::Tcg => OWN_MEMORY.0 + TRANSLATION.0,
        };
        Self { cpus: spec.cpus, memory: Bytes(spec.memory.bytes().0.saturating_add(beside)) }
    }

    /// Processor time in a period: its guest's processors, and one for what a VMM does beside.
    fn quota(self) -> u64 {
        u64::from(self.cpus).saturating_add(1).saturating_mul(PERIOD)
    }
}

/// The groups of one daemon's machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroups(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    V2(PathBuf),
    V1 { cpu: PathBuf, memory: PathBuf, pids: PathBuf },
}

/// Where a hierarchy is mounted, and which group of it this process is in.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    own: PathBuf,
}

impl Cgroups {
    /// Looks for a hierarchy in which groups for cpu, memory and pids can be made.
    ///
    /// # Errors
    /// Why there is none.
    pub fn find() -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let groups = fs::read_to_string("/proc/self/cgroup")?;
        let mut why = None;
        if let Some(unified) = hierarchy(&mounts, &groups, None) {
            // Below itself where the daemon was given a group to divide; the root takes processes beside groups.
            for parent in [unified.own.clone(), unified.mount.clone()] {
                match make_v2(&parent) {
                    Ok(found) => return Ok(found),
                    Err(error) => why = Some(error),
                }
            }
        }
        let v1 = |controller| hierarchy(&mounts, &groups, Some(controller)).map(|found| found.own.join(NAME));
        match (v1("cpu"), v1("memory"), v1("pids")) {
            (Some(cpu), Some(memory), Some(pids)) => {
                let found = Self(Kind::V1 { cpu, memory, pids });
                found.lock(FlockOperation::LockShared)?;
                Ok(found)
            }
            _ => Err(why.unwrap_or_else(|| io::Error::other("no cgroup hierarchy is mounted"))),
        }
    }

    /// For people: which version, and where.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.0 {
            Kind::V2(dir) => format!("cgroup v2 below {}", dir.display()),
            Kind::V1 { memory, .. } => format!("cgroup v1 (cpu, memory, pids) below {}", memory.display()),
        }
    }

    /// Makes a group for the VMM `pid` and moves it there, with all its threads.
    ///
    /// # Errors
    /// What the system says; a process that has ended by then is none.
    pub fn take_in(&self, machine: &str, pid: u32, limits: Limits) -> io::Result<()> {
        let (quota, memory) = (limits.quota(), limits.memory.0);
        let shares = u64::from(limits.cpus.max(1));
        let _here = self.lock(FlockOperation::LockShared)?;
        for dir in self.groups() {
            let dir = dir.join(machine);
            make_dir(&dir)?;
            let put = |file: &str, value: String| write(&dir.join(file), &value);
            match &self.0 {
                Kind::V2(_) => {
                    put("cpu.weight", (shares * 100).min(10_000).to_string())?;
                    put("cpu.max", format!("{quota} {PERIOD}"))?;
                    put("memory.max", memory.to_string())?;
                    put("pids.max", MOST_TASKS.to_string())?;
                }
                Kind::V1 { cpu, .. } if dir.starts_with(cpu) => {
                    put("cpu.shares", (shares * 1024).min(262_144).to_string())?;
                    put("cpu.cfs_period_us", PERIOD.to_string())?;
                    put("cpu.cfs_quota_us", quota.to_string())?;
                }
                Kind::V1 { memory: dir_of_memory, .. } if dir.starts_with(dir_of_memory) => {
                    put("memory.limit_in_bytes", memory.to_string())?;
                }
                Kind::V1 { .. } => put("pids.max", MOST_TASKS.to_string())?,
            }
            match put("cgroup.procs", pid.to_string()) {
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Removes the groups in which there is no process any more.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn sweep(&self) -> io::Result<()> {
        self.alone(|| self.remove_empty())
    }

    /// Removes the groups without processes, and what held them if nothing is left.
    ///
    /// # Errors
    /// As [`sweep`](Self::sweep).
    pub fn leave(&self) -> io::Result<()> {
        self.alone(|| {
            self.remove_empty()?;
            self.groups().into_iter().try_for_each(remove_if_empty)
        })
    }

    fn remove_empty(&self) -> io::Result<()> {
        for dir in self.groups() {
            for entry in fs::read_dir(dir)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    remove_if_empty(&entry.path())?;
                }
            }
        }
        Ok(())
    }

    /// Does something while nobody else makes or removes groups; not at all where somebody does, who is not the last then.
    fn alone(&self, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match self.lock(FlockOperation::NonBlockingLockExclusive) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            lock => lock.and_then(|_lock| act()),
        }
    }

    /// Makes the groups that hold those of the machines where they are not there, and locks what is there under their name
    /// then: the last machine of another daemon may have ended meanwhile, and taken it away.
    fn lock(&self, how: FlockOperation) -> io::Result<fs::File> {
        let [first, ..] = self.groups()[..] else { return Err(io::ErrorKind::NotFound.into()) };
        loop {
            self.groups().into_iter().try_for_each(make_dir)?;
            let file = match fs::File::open(first) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file?,
            };
            flock(&file, how)?;
            match fs::metadata(first) {
                Ok(now) if now.ino() == file.metadata()?.ino() => {
                    if let Kind::V2(dir) = &self.0 {
                        write(&dir.join("cgroup.subtree_control"), CONTROLLERS)?;
                    }
                    return Ok(file);
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
    }

    fn groups(&self) -> Vec<&Path> {
        match &self.0 {
            Kind::V2(dir) => vec![dir],
            Kind::V1 { cpu, memory, pids } => vec![cpu, memory, pids],
        }
    }
}

/// The group below `parent`, whose own children have cpu, memory and pids.
fn make_v2(parent: &Path) -> io::Result<Cgroups> {
    let has = fs::read_to_string(parent.join("cgroup.controllers"))?;
    if let Some(missing) =
        ["cpu", "memory", "pids"].iter().find(|wanted| !has.split_whitespace().any(|it| it == **wanted))
    {
        return Err(io::Error::other(format!("{} has no controller {missing}", parent.display())));
    }
    write(&parent.join("cgroup.subtree_control"), CONTROLLERS)?;
    let made = Cgroups(Kind::V2(parent.join(NAME)));
    made.lock(FlockOperation::LockShared)?;
    Ok(made)
}

/// A group that has processes or other groups stays; one that somebody else has removed is as good.
fn remove_if_empty(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(error) if matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::NotFound) => Ok(()),
        done => done,
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", dir.display()))),
    }
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    fs::write(path, value).map_err(|error| match error.raw_os_error() {
        // Told apart by who reads it.
        Some(_) if path.ends_with("cgroup.procs") => error,
        _ => io::Error::new(error.kind(), format!("{}: {error}", path.display())),
    })
}

/// The hierarchy of a controller, or the unified one, by `/proc/self/mountinfo` and `/proc/self/cgroup` (proc(5)).
fn hierarchy(mounts: &str, groups: &str, controller: Option<&str>) -> Option<Hierarchy> {
    let (mount, root) = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let (mut before, mut after) = (before.split(' ').skip(3), after.split(' '));
        let (root, mount) = (before.next()?, before.next()?);
        let (kind, options) = (after.next()?, after.nth(1)?);
        let fits = match controller {
            None => kind == "cgroup2",
            Some(wanted) => kind == "cgroup" && options.split(',').any(|option| option == wanted),
        };
        fits.then(|| (PathBuf::from(mount), root.to_owned()))
    })?;
    let own = groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let fits = match controller {
            None => controllers.is_empty(),
            Some(wanted) => controllers.split(',').any(|it| it == wanted),
        };
        fits.then(|| path.to_owned())
    })?;
    // Where only a part of the hierarchy is mounted, as in a container, paths begin above it.
    let below = own.strip_prefix(root.trim_end_matches('/')).unwrap_or(&own);
    let own = mount.join(below.trim_start_matches('/'));
    Some(Hierarchy { mount, own })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_hierarchy_is_found_however_it_is_mounted() {
        let mounts = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
                      36 31 0:33 /docker/x /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
        let groups = "8:pids:/\n4:memory:/docker/x/y\n1:cpu,cpuacct:/system.slice\n0::/user.slice";
        let found = |controller| {
            hierarchy(mounts, groups, controller).map(|it| (it.mount.to_str().unwrap().to_owned(), it.own))
        };
        let at = |mount: &str, own: &str| Some((mount.to_owned(), PathBuf::from(own)));
        assert_eq!(
            found(Some("cpu")),
            at("/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/system.slice")
        );
        assert_eq!(found(Some("memory")), at("/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/y"));
        assert_eq!(found(Some("pids")), None, "it is mounted nowhere");
        assert_eq!(found(None), at("/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified/user.slice"));
    }

    #[test]
    fn a_hierarchy_without_a_controller_is_refused_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "cpuset cpu pids").unwrap();
        let error = make_v2(dir.path()).unwrap_err();
        assert!(error.to_string().contains("memory"), "{error}");
        assert!(!dir.path().join(NAME).exists());
    }

    /// Directories stand for groups: a name that is taken away while others want to make something in it.
    #[test]
    fn who_makes_a_group_finds_a_place_for_it_however_often_others_leave() {
        let dir = tempfile::tempdir().unwrap();
        let groups = Cgroups(Kind::V2(dir.path().join(NAME)));
        std::thread::scope(|scope| {
            let leaving = scope.spawn(|| {
                for _ in 0..2000 {
                    // No more than a real group does a directory with files in it go away.
                    let _lock = groups.lock(FlockOperation::LockExclusive).unwrap();
                    fs::remove_dir_all(dir.path().join(NAME)).unwrap();
                }
            });
            let mut made = 0;
            while !leaving.is_finished() {
                let _here = groups.lock(FlockOperation::LockShared).unwrap();
                make_dir(&dir.path().join(NAME).join("machine")).unwrap();
                made += 1;
            }
            assert!(made > 0);
        });
    }

    /// The second version cannot be mounted beside the first one with the controllers that this uses; so a directory
    /// stands for it, which takes what is written.
    #[test]
    fn the_files_of_the_second_version_are_written_with_what_a_machine_may_take() {
        let dir = tempfile::tempdir().unwrap();
        let groups = Cgroups(Kind::V2(dir.path().to_owned()));
        groups.take_in("m", 42, Limits { cpus: 2, memory: Bytes(1 << 30) }).unwrap();
        for (file, value) in [
            ("cpu.max", "300000 100000"),
            ("cpu.weight", "200"),
            ("memory.max", "1073741824"),
            ("pids.max", "256"),
            ("cgroup.procs", "42"),
        ] {
            assert_eq!(fs::read_to_string(dir.path().join("m").join(file)).unwrap(), value, "{file}");
        }
    }
}
