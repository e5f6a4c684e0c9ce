//! What a program gives up before it becomes a VMM: rights and surroundings that none needs, so that a guest which takes
//! over its VMM finds them gone. Kernel by kernel as much as there is; nothing here asks for more rights than the
//! caller has.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Gid, Resource, Rlimit, Uid, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, capabilities, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    unshare_unsafe,
};

use crate::host_landlock::{self as landlock, Rules};
use crate::host_seccomp::{self as seccomp, Filter};

/// A VMM that stays root opens files that are others': images that a user's daemon made, and, before QEMU 8.2, RAM bases
/// that are read-only. What it can reach as root it reaches without this, too.
const KEPT: CapabilitySet = CapabilitySet::DAC_OVERRIDE;

/// What the caller needs for VMMs that have users of their own: to become one, to give it its files, and to end it and
/// read its memory all the same.
const FOR_USERS: CapabilitySet = CapabilitySet::SETUID
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SYS_PTRACE);
/// Users that neither people, services nor containers have ("unused" in systemd's UIDS-GIDS.md).
const USERS: std::ops::Range<u32> = 1_900_000_000..2_000_000_000;

/// What programs can be made to give up here. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Confinement {
    is_root: bool,
    /// Whether namespaces of its own can be made.
    namespaces: bool,
    /// The next user that nobody has been yet.
    users: Option<Arc<AtomicU32>>,
    /// What its users cannot be, in words, where root's VMMs have none.
    no_users: Option<String>,
    /// Who may open `/dev/kvm`, if there is one.
    kvm: Openers,
    /// The version of Landlock; and whether it is told which files there are.
    landlock: Option<i32>,
    files: bool,
    filter: Arc<Filter>,
}

impl PartialEq for Confinement {
    fn eq(&self, other: &Self) -> bool {
        let parts = |it: &Self| (it.is_root, it.namespaces, it.users.is_some(), it.landlock, it.files);
        parts(self) == parts(other)
    }
}

impl Eq for Confinement {}

/// Who may open a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Openers {
    Everybody,
    Group(Gid),
    Root,
}

impl Openers {
    fn of_kvm() -> Self {
        match fs::metadata("/dev/kvm") {
            Ok(kvm) if kvm.mode() & 0o006 == 0o006 => Self::Everybody,
            Ok(kvm) if kvm.mode() & 0o060 == 0o060 && kvm.gid() != 0 => Self::Group(Gid::from_raw(kvm.gid())),
            Ok(_) => Self::Root,
            Err(_none) => Self::Everybody,
        }
    }
}

/// What one program is left with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Left<'a> {
    /// The user that it becomes, and its group.
    pub user: Option<u32>,
    /// The directory below which it reads; `None` for all there are.
    pub room: Option<&'a Path>,
    /// Those in it below which it writes.
    pub writable: &'a [&'a Path],
}

impl Confinement {
    /// Finds out what this kernel and these rights allow, and with how much of it taken away `program` still says its
    /// version.
    ///
    /// # Errors
    /// What the system says of making the rules, where it can make any.
    pub fn find(program: &Path) -> io::Result<Self> {
        let is_root = rustix::process::geteuid().is_root();
        let mut probe = Command::new("/proc/self/exe");
        // SAFETY: as in `apply`. Whether the namespaces could be made is known before anything is executed, and the error
        // that the closure ends with is told to who spawns.
        unsafe {
            probe.pre_exec(|| {
                own_namespaces()?;
                Err(io::Error::from_raw_os_error(nix::libc::EINTR))
            });
        }
        let tried = quiet(&mut probe).spawn().err().map(|error| error.kind());
        let mut found = Self {
            is_root,
            namespaces: is_root && tried == Some(io::ErrorKind::Interrupted),
            users: None,
            no_users: None,
            kvm: Openers::of_kvm(),
            landlock: landlock::version(),
            files: false,
            filter: Arc::new(seccomp::filter()),
        };
        if is_root {
            found.no_users = lacks_for_users()?;
            if found.no_users.is_none() {
                let mut random = [0; 4];
                rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
                let first = USERS.start + u32::from_le_bytes(random) % (USERS.end - USERS.start);
                found.users = Some(Arc::new(AtomicU32::new(first)));
            }
        }
        found.files = found.landlock.is_some();
        if found.users.is_some() && !found.runs(program)? {
            let users = found.users.take();
            if found.runs(program)? {
                found.no_users = Some(format!("no other user can execute {}", program.display()));
            } else {
                found.users = users;
            }
        }
        if found.files && !found.runs(program)? {
            found.files = false;
        }
        Ok(found)
    }

    /// Whether the program says its version when it is confined so.
    fn runs(&self, program: &Path) -> io::Result<bool> {
        let mut command = Command::new(program);
        let room = self.has_rooms().then_some(Path::new("/proc/self/fdinfo"));
        let left = Left { user: self.next_user(false), room, writable: &[] };
        self.apply(quiet(command.arg("--version")), program, left)?;
        Ok(command.status().is_ok_and(|status| status.success()))
    }

    /// Whether a program sees no files but those of the room that it is given.
    #[must_use]
    pub fn has_rooms(&self) -> bool {
        self.files || self.users.is_some()
    }

    /// A user that no program has been yet; `None` where they stay the caller's, for one that `uses_kvm` also where root
    /// alone may.
    #[must_use]
    pub fn next_user(&self, uses_kvm: bool) -> Option<u32> {
        if uses_kvm && self.kvm == Openers::Root {
            return None;
        }
        let step = |now: u32| Some(if now + 1 < USERS.end { now + 1 } else { USERS.start });
        // Nothing is ordered by it.
        let next = |users: &Arc<AtomicU32>| users.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
        // The step always gives one.
        self.users.as_ref().map(|users| next(users).unwrap_or(USERS.start))
    }

    /// What a VMM is without, for people; and what one that perhaps `uses_kvm` keeps since this host cannot take it away.
    #[must_use]
    pub fn describe(&self, uses_kvm: bool) -> (String, Vec<String>) {
        let mut without =
            vec!["new privileges", "connections", "the host's network and IPC", "new namespaces"];
        let mut keeps = Vec::new();
        if self.is_root {
            without.push("capabilities");
        }
        match &self.users {
            Some(_) if uses_kvm && self.kvm == Openers::Root => {
                keeps.push(
                    "the user root (/dev/kvm is root's alone; it should be the group kvm's)".to_owned(),
                );
            }
            Some(_) => without.push("the daemon's user"),
            None => {}
        }
        if let Some(why) = &self.no_users {
            keeps.push(format!("the user root ({why})"));
        }
        match self.landlock {
            None => {
                if self.users.is_none() {
                    let text = "files of its user, signals to its other processes and looks into their memory, other VMMs' \
                                among them (this kernel has no Landlock)";
                    keeps.push(text.to_owned());
                }
            }
            Some(version) => {
                without.push("making links and devices");
                match (self.files, &self.users) {
                    (true, _) => without.push("files that are not its own"),
                    (false, None) => keeps.push("files of its user (it does not run without)".to_owned()),
                    (false, Some(_)) => {}
                }
                if version >= 6 || self.users.is_some() {
                    without.push("signals to others");
                } else {
                    let text = "signals to other processes of its user (from Linux 6.12 on it would not)";
                    keeps.push(text.to_owned());
                }
            }
        }
        (without.join(", "), keeps)
    }

    /// Has the program give up all of it before it begins, but for what is `left` to it.
    ///
    /// # Errors
    /// What the system says of making the rules.
    pub fn apply(&self, command: &mut Command, program: &Path, left: Left<'_>) -> io::Result<()> {
        let (is_root, namespaces) = (self.is_root, self.namespaces);
        let group = match self.kvm {
            Openers::Group(group) => Some(group),
            Openers::Everybody | Openers::Root => None,
        };
        let rules: Option<OwnedFd> = match self.landlock {
            Some(version) => Some(rules(version, program, left, self.files)?),
            None => None,
        };
        let user = left.user.map(|user| (Uid::from_raw(user), Gid::from_raw(user)));
        let filter = Arc::clone(&self.filter);
        // SAFETY: the closure runs between fork and exec, where only async-signal-safe calls are allowed: it makes system
        // calls, allocates nothing (its errors hold a number) and takes no lock.
        unsafe {
            command.pre_exec(move || {
                setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
                if namespaces {
                    own_namespaces()?;
                }
                let kept = if is_root && user.is_none() { KEPT } else { CapabilitySet::empty() };
                bound_to(kept)?;
                if let Some((user, own)) = user {
                    set_thread_groups(group.as_slice())?;
                    set_thread_res_gid(own, own, own)?;
                    set_thread_res_uid(user, user, user)?;
                }
                keep_only(kept)?;
                set_no_new_privs(true)?;
                if let Some(rules) = &rules {
                    landlock::restrict_self(rules)?;
                }
                filter.apply()
            });
        }
        Ok(())
    }
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

/// Why VMMs cannot have users of their own here, though the caller is root.
fn lacks_for_users() -> io::Result<Option<String>> {
    let lacking = FOR_USERS - capabilities(None)?.effective;
    if !lacking.is_empty() {
        let names: Vec<_> = lacking.iter_names().map(|(name, _)| format!("CAP_{name}")).collect();
        return Ok(Some(format!("the daemon has no {}", names.join(", "))));
    }
    let maps_all = |map: &str| {
        map.lines().any(|line| {
            let mut numbers = line.split_whitespace().map_while(|word| word.parse::<u64>().ok());
            let (first, _outside, len) = (numbers.next(), numbers.next(), numbers.next());
            first.zip(len).is_some_and(|(first, len)| {
                first <= u64::from(USERS.start) && u64::from(USERS.end) <= first.saturating_add(len)
            })
        })
    };
    for map in ["/proc/self/uid_map", "/proc/self/gid_map"] {
        if !maps_all(&fs::read_to_string(map)?) {
            return Ok(Some("this container has no users to spare".to_owned()));
        }
    }
    Ok(None)
}

/// What `program` may do with files when it is left with `left`.
fn rules(version: i32, program: &Path, left: Left<'_>, files: bool) -> io::Result<OwnedFd> {
    let Some(room) = left.room.filter(|_| files) else { return Ok(Rules::few(version)?.made()) };
    let mut rules = Rules::all(version)?;
    // Programs, their libraries and data; nothing in them is secret.
    for dir in ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt", "/nix/store", "/gnu/store"] {
        rules.execute_below(Path::new(dir))?;
    }
    // One that is not among them has what it needs beside it, as a script does, or beside its `bin`.
    if let Ok(program) = program.canonicalize() {
        rules.execute_below(&program)?;
        if let Some(dir) = program.parent() {
            rules.execute_below(dir)?;
            if let (true, Some(above)) = (dir.ends_with("bin"), dir.parent()) {
                for beside in ["lib", "lib64", "libexec", "share"] {
                    rules.execute_below(&above.join(beside))?;
                }
            }
        }
    }
    for path in ["/etc/ld.so.cache", "/sys/devices/system", "/sys/kernel/mm"] {
        rules.read_below(Path::new(path))?;
    }
    for path in ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/kvm"] {
        rules.use_device(Path::new(path))?;
    }
    rules.read_below(room)?;
    for dir in left.writable {
        rules.write_below(dir)?;
    }
    Ok(rules.made())
}

fn own_namespaces() -> io::Result<()> {
    // SAFETY: only unsharing the table of descriptors could pull one away from under somebody.
    Ok(unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWIPC) }?)
}

/// Takes all others out of the bounding set. Where that may not be made smaller (no `CAP_SETPCAP`, as in some containers),
/// nothing is lost by it: without new privileges nobody gets what he had not before.
fn bound_to(kept: CapabilitySet) -> io::Result<()> {
    for number in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(one) {
            continue;
        }
        match remove_capability_from_bounding_set(one) {
            // The kernel has no more; or it may not.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM) => break,
            other => other?,
        }
    }
    Ok(())
}

/// Gives up capabilities for good, and those that a user's service manager lent it.
fn keep_only(kept: CapabilitySet) -> io::Result<()> {
    let kept = kept & capabilities(None)?.permitted;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHELL: &str = "/bin/sh";

    fn says_when(script: &str, confined: Option<Left<'_>>) -> String {
        let mut command = Command::new(SHELL);
        command.args(["-c", script]).current_dir("/");
        if let Some(left) = confined {
            found().apply(&mut command, Path::new(SHELL), left).unwrap();
        }
        let output = command.output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn says(script: &str, confined: bool) -> String {
        says_when(script, confined.then(Left::default))
    }

    /// What can be found with a program that says its version.
    fn found() -> Confinement {
        Confinement::find(Path::new("/bin/bash")).unwrap()
    }

    #[test]
    fn a_confined_program_has_no_new_privileges_and_leaves_no_core() {
        let script = "while read -r key value; do [ $key = NoNewPrivs: ] && echo $value; done < /proc/self/status; ulimit -Hc";
        assert_eq!(says(script, true), "1\n0");
    }

    #[test]
    fn root_with_less_than_all_capabilities_can_give_up_the_rest() {
        let lacking = |lacks: CapabilitySet| {
            // Of one thread alone, and of what it starts.
            let thread = std::thread::spawn(move || {
                let had = capabilities(None).unwrap();
                let (effective, permitted) = (had.effective - lacks, had.permitted - lacks);
                set_capabilities(None, CapabilitySets { effective, permitted, ..had }).unwrap();
                says("sed -n 's/^Cap\\(Eff\\|Prm\\):.//p' /proc/self/status | sort -u", true)
            });
            thread.join().unwrap()
        };
        let has = capabilities(None).unwrap().permitted & KEPT;
        assert_eq!(lacking(CapabilitySet::SETPCAP), format!("{:016x}", has.bits()));
        assert_eq!(lacking(CapabilitySet::all()), "0000000000000000");
    }

    #[test]
    fn what_can_be_given_up_here_is_given_up() {
        let found = found();
        let (without, keeps) = found.describe(false);
        assert!(without.starts_with("new privileges"), "{without}");
        assert!(without.contains("network"), "{keeps:?}");
        if found.namespaces {
            let network = "readlink /proc/self/ns/net";
            assert_ne!(says(network, true), says(network, false));
        }
        if found.is_root {
            let kept = format!("{:016x}", KEPT.bits());
            let script = "sed -n 's/^Cap\\(Eff\\|Prm\\|Bnd\\):.//p' /proc/self/status | sort -u";
            assert_eq!(says(script, true), kept);
            assert_ne!(says(script, false), kept);
        }
        if found.landlock.is_some() {
            let dir = tempfile::tempdir().unwrap();
            let link = format!("ln -s /etc {}/link 2> /dev/null && echo made", dir.path().display());
            assert_eq!((says(&link, true), says(&link, false)), (String::new(), "made".to_owned()));
        }
        if found.landlock.is_some_and(|version| version >= 6) {
            let signal = format!("kill -0 {} 2> /dev/null && echo heard", std::process::id());
            assert_eq!((says(&signal, true), says(&signal, false)), (String::new(), "heard".to_owned()));
        }
    }

    #[test]
    fn one_with_a_room_has_the_files_in_it_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let room = dir.path().join("room");
        for part in ["room/read", "room/write", "beside"] {
            fs::create_dir_all(dir.path().join(part)).unwrap();
            fs::write(dir.path().join(part).join("file"), "here\n").unwrap();
        }
        let confinement = found();
        let user = confinement.next_user(false);
        let all =
            [Path::new("/"), dir.path(), &room, &room.join("read"), &room.join("write")].map(Path::to_owned);
        for at in &all[1..] {
            fs::set_permissions(at, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        let own = room.join("write/file");
        if let Some(user) = user {
            assert_ne!(Some(user), confinement.next_user(false));
            std::os::unix::fs::chown(&own, Some(user), Some(user)).unwrap();
        }
        let script = format!(
            "cd {}; id -u; for f in read write ../beside; do \
             read -r x < $f/file && echo reads $f; echo more >> $f/file && echo writes $f; \
             echo new > $f/new && echo makes $f; done 2> /dev/null",
            room.display()
        );
        let left = Left { user, room: Some(&room), writable: &[&room.join("write")] };
        let id = user.unwrap_or_else(|| rustix::process::geteuid().as_raw());
        let said = says_when(&script, Some(left));
        if confinement.files {
            assert_eq!(said, format!("{id}\nreads read\nreads write\nwrites write"));
        }
        assert!(says(&script, false).ends_with("makes ../beside"));
    }

    #[test]
    fn nobody_is_called_and_no_namespace_made() {
        let calls = "perl -MSocket -e 'socket(S, PF_UNIX, SOCK_STREAM, 0) and print \"stream \"; \
                     socket(D, PF_UNIX, SOCK_DGRAM, 0) and print \"datagram \"; \
                     socket(I, PF_INET, SOCK_STREAM, 0) and print \"inet \"; \
                     socketpair(A, B, PF_UNIX, SOCK_STREAM, 0) and print \"pair \"; \
                     connect(S, pack_sockaddr_un(\"/none\")); print 0+$!'";
        assert_eq!(says(calls, false), "stream datagram inet pair 2");
        assert_eq!(says(calls, true), "stream 1");
        assert_eq!(says("unshare --user true 2> /dev/null && echo made", true), "");
        assert_eq!(says("(echo a; echo b) | cat", true), "a\nb", "processes it may have");
    }
}
