//! What the host offers to machines: processors, memory, `/dev/kvm`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use types::Bytes;

/// Tells one boot of the host from every other; empty where the kernel does not say.
#[must_use]
pub fn host_boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Processors that this process may use.
#[must_use]
pub fn host_cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX))
}

/// The host's memory (`MemTotal` of proc(5)); 0 where the kernel does not say.
#[must_use]
pub fn host_memory() -> Bytes {
    let kib = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    });
    Bytes(kib.unwrap_or_default().saturating_mul(1024))
}

/// How much memory is left, and how long processes wait for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HostPressure {
    /// All of it.
    pub total: Bytes,
    /// What the kernel says could be had without swapping (`MemAvailable`).
    pub available: Bytes,
    /// Percent of the last ten seconds in which some process waited for memory (`/proc/pressure/memory`); 0 where the
    /// kernel does not say.
    pub stalled_percent: f64,
}

/// Reads `meminfo` and `pressure/memory` below `proc`, which is `/proc` but in tests.
///
/// # Errors
/// `meminfo` cannot be read or has not both numbers.
pub fn host_pressure(proc: &Path) -> io::Result<HostPressure> {
    let text = fs::read_to_string(proc.join("meminfo"))?;
    let field = |name: &str| {
        let kib = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = kib.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        let missing = || io::Error::new(io::ErrorKind::InvalidData, format!("meminfo has no {name}"));
        kib.map(|kib| Bytes(kib.saturating_mul(1024))).ok_or_else(missing)
    };
    let stalled = fs::read_to_string(proc.join("pressure/memory")).ok().and_then(|text| {
        let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
        some.split(' ').find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
    });
    Ok(HostPressure {
        total: field("MemTotal")?,
        available: field("MemAvailable")?,
        stalled_percent: stalled.unwrap_or_default(),
    })
}

/// What a process has in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resident {
    /// Pages of its own (`RssAnon`): of a VMM, what its guest changed and the VMM itself.
    pub private: Bytes,
    /// Pages of files (`RssFile` and `RssShmem`), which all who map them share.
    pub shared: Bytes,
}

/// What a process has in memory, by the kernel's own counters in `status` below `proc`: nothing is walked or woken.
/// `None` once it is gone.
#[must_use]
pub fn resident(proc: &Path, pid: u32) -> Option<Resident> {
    let text = fs::read_to_string(proc.join(pid.to_string()).join("status")).ok()?;
    let field = |name: &str| {
        let kib = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        kib.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib.saturating_mul(1024))
    };
    let shared = field("RssFile")?.saturating_add(field("RssShmem").unwrap_or_default());
    Some(Resident { private: Bytes(field("RssAnon")?), shared: Bytes(shared) })
}

/// Ticks in a millisecond of the counter that emulated guests see; measured once, `None` where there is none.
#[must_use]
pub fn host_tsc_khz() -> Option<u32> {
    static RATE: OnceLock<Option<u32>> = OnceLock::new();
    *RATE.get_or_init(sys::host_tsc::tsc_khz)
}

/// Whether this user may open `/dev/kvm`. That it opens does not mean that a guest runs under it.
///
/// # Errors
/// Why not, in words.
pub fn kvm_opens() -> Result<(), String> {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err("there is no /dev/kvm: the processor has no virtualisation, or it is switched off".to_owned())
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err("this user may not open /dev/kvm: add it to the group kvm".to_owned())
        }
        Err(error) => Err(format!("/dev/kvm does not open: {error}")),
    }
}

/// What to give [`Machine::launch`](crate::Machine::launch) for a machine that has no disk to lock.
///
/// # Errors
/// When `/dev/null` does not open.
pub fn no_lock() -> io::Result<File> {
    File::open("/dev/null")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_processors_and_memory() {
        assert!(host_cpus() >= 1);
        assert!(host_memory() > Bytes(64 << 20));
        let pressure = host_pressure(Path::new("/proc")).unwrap();
        assert!(pressure.available > Bytes(0) && pressure.available < pressure.total);
        assert!(!host_boot_id().is_empty());
    }
}
