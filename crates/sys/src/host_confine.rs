//! What a program gives up before it becomes a VMM: rights and surroundings that none needs, so that a guest which takes
//! over its VMM finds them gone. Kernel by kernel as much as there is; nothing here asks for more rights than the
//! caller has.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

use nix::libc;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, capabilities, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs, unshare_unsafe,
};

/// `linux/landlock.h`: what is denied everywhere. No VMM makes directories, links, pipes or devices, nor moves a file
/// from one directory to another (which is denied by itself).
const REMOVE_DIR: u64 = 1 << 4;
const MAKE_CHAR: u64 = 1 << 6;
const MAKE_DIR: u64 = 1 << 7;
const MAKE_FIFO: u64 = 1 << 10;
const MAKE_BLOCK: u64 = 1 << 11;
const MAKE_SYM: u64 = 1 << 12;
const NEVER: u64 = REMOVE_DIR | MAKE_CHAR | MAKE_DIR | MAKE_FIFO | MAKE_BLOCK | MAKE_SYM;
/// `LANDLOCK_ACCESS_NET_BIND_TCP | LANDLOCK_ACCESS_NET_CONNECT_TCP`, from version 4 on.
const TCP: u64 = 0b11;
/// `LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | LANDLOCK_SCOPE_SIGNAL`, from version 6 on.
const OTHERS: u64 = 0b11;
/// `LANDLOCK_CREATE_RULESET_VERSION`.
const VERSION: libc::c_long = 1;

/// Root's VMM opens files that are others': images that a user's daemon made, and, before QEMU 8.2, RAM bases that are
/// read-only. What it can reach as root it reaches without this, too.
const KEPT: CapabilitySet = CapabilitySet::DAC_OVERRIDE;

/// `struct landlock_ruleset_attr`.
#[repr(C)]
struct Attributes {
    fs: u64,
    net: u64,
    scoped: u64,
}

/// What programs can be made to give up here. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Confinement {
    is_root: bool,
    /// Whether namespaces of its own can be made.
    namespaces: bool,
    /// The version of Landlock, and rules that allow nothing of what they are about.
    landlock: Option<(i32, Arc<OwnedFd>)>,
}

impl PartialEq for Confinement {
    fn eq(&self, other: &Self) -> bool {
        let parts =
            |it: &Self| (it.is_root, it.namespaces, it.landlock.as_ref().map(|(version, _)| *version));
        parts(self) == parts(other)
    }
}

impl Eq for Confinement {}

impl Confinement {
    /// Finds out what this kernel and these rights allow; starts a program that does nothing.
    ///
    /// # Errors
    /// What the system says of making the rules, where it can make any.
    pub fn find() -> io::Result<Self> {
        let is_root = rustix::process::geteuid().is_root();
        let mut probe = Command::new("/proc/self/exe");
        probe.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: as in `apply`. Whether the namespaces could be made is known before anything is executed, and the error
        // that the closure ends with is told to who spawns.
        unsafe {
            probe.pre_exec(|| {
                own_namespaces()?;
                Err(io::Error::from_raw_os_error(libc::EINTR))
            });
        }
        let tried = probe.spawn().err().map(|error| error.kind());
        let namespaces = is_root && tried == Some(io::ErrorKind::Interrupted);
        let landlock = match landlock_version() {
            Some(version) => Some((version, Arc::new(rules(version)?))),
            None => None,
        };
        Ok(Self { is_root, namespaces, landlock })
    }

    /// What a VMM is without, for people; and what it keeps since this host cannot take it away.
    #[must_use]
    pub fn describe(&self) -> (String, Vec<&'static str>) {
        let mut without = vec!["new privileges"];
        let mut keeps = Vec::new();
        if self.is_root {
            without.push("capabilities");
        }
        if self.namespaces {
            without.push("the host's network and IPC");
        } else {
            keeps.push("the host's network (namespaces need CAP_SYS_ADMIN)");
        }
        match &self.landlock {
            None => keeps.push(
                "signals to other processes of its user and looks into their memory, other VMMs' among them (this \
                 kernel has no Landlock)",
            ),
            Some((version, _)) => {
                if *version >= 4 {
                    without.push("TCP");
                }
                without.push("making links and devices");
                if *version >= 6 {
                    without.push("signals to others");
                } else {
                    keeps.push("signals to other processes of its user (from Linux 6.12 on it would not)");
                }
            }
        }
        (without.join(", "), keeps)
    }

    /// Has the program give all of it up before it begins.
    pub fn apply(&self, command: &mut Command) {
        let (is_root, namespaces) = (self.is_root, self.namespaces);
        let rules = self.landlock.as_ref().map(|(_, rules)| Arc::clone(rules));
        // SAFETY: the closure runs between fork and exec, where only async-signal-safe calls are allowed: it makes system
        // calls, allocates nothing (its errors hold a number) and takes no lock.
        unsafe {
            command.pre_exec(move || {
                setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
                if namespaces {
                    own_namespaces()?;
                }
                keep_only(if is_root { KEPT } else { CapabilitySet::empty() })?;
                set_no_new_privs(true)?;
                if let Some(rules) = &rules {
                    restrict_self(rules)?;
                }
                Ok(())
            });
        }
    }
}

fn own_namespaces() -> io::Result<()> {
    // SAFETY: only unsharing the table of descriptors could pull one away from under somebody.
    Ok(unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWIPC) }?)
}

/// Gives up capabilities for good, and those that a user's service manager lent it. Root gets those of the bounding set
/// when it executes something, but none that it had not before once there are no new privileges: where that set may
/// not be made smaller (no `CAP_SETPCAP`, as in some containers), nothing is lost by it.
fn keep_only(kept: CapabilitySet) -> io::Result<()> {
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
    let kept = kept & capabilities(None)?.permitted;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}

/// Which Landlock the kernel has, if it is there and switched on.
fn landlock_version() -> Option<i32> {
    // SAFETY: asked for its version, the call reads and writes no memory.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<Attributes>(), 0_usize, VERSION)
    };
    i32::try_from(version).ok().filter(|version| *version > 0)
}

fn rules(version: i32) -> io::Result<OwnedFd> {
    let attributes = Attributes { fs: NEVER, net: TCP, scoped: OTHERS };
    // Older kernels know a shorter structure, and refuse what they do not know.
    let size: usize = match version {
        ..4 => 8,
        4..6 => 16,
        _ => 24,
    };
    // SAFETY: the kernel reads `size` bytes of a structure that has as many, and writes nothing.
    let fd = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attributes, size, 0 as libc::c_long)
    };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel just gave this descriptor to us, closed on exec, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn restrict_self(rules: &OwnedFd) -> io::Result<()> {
    // SAFETY: the call takes a descriptor, which is open, and flags.
    let done =
        unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0 as libc::c_long) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(script: &str, confined: bool) -> String {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        if confined {
            Confinement::find().unwrap().apply(&mut command);
        }
        let output = command.output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    #[test]
    fn a_confined_program_has_no_new_privileges_and_leaves_no_core() {
        let script = "grep NoNewPrivs /proc/self/status; ulimit -Hc";
        assert_eq!(says(script, true), "NoNewPrivs:\t1\n0");
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
        let found = Confinement::find().unwrap();
        let (without, keeps) = found.describe();
        assert!(without.starts_with("new privileges"), "{without}");
        assert_eq!(found.namespaces, keeps.iter().all(|kept| !kept.contains("network")), "{keeps:?}");
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
        if found.landlock.is_some_and(|(version, _)| version >= 6) {
            let signal = format!("kill -0 {} 2> /dev/null && echo heard", std::process::id());
            assert_eq!((says(&signal, true), says(&signal, false)), (String::new(), "heard".to_owned()));
        }
    }
}
