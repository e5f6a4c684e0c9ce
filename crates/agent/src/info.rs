//! How the guest is doing, in a few system calls.

use std::fs;

use wire::Info;

/// Asks the kernel.
pub fn read() -> Info {
    let root = rustix::fs::statvfs("/").ok();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let seconds = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let loads = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut load = loads.split_ascii_whitespace().map(milli);
    let mut next_load = || load.next().unwrap_or(0);
    Info {
        uptime_ms: seconds.split_ascii_whitespace().next().map_or(0, milli),
        memory_total_bytes: memory(&meminfo, "MemTotal:"),
        memory_available_bytes: memory(&meminfo, "MemAvailable:"),
        load_milli: [next_load(), next_load(), next_load()],
        root_total_bytes: root.as_ref().map_or(0, |root| root.f_blocks.saturating_mul(root.f_frsize)),
        root_free_bytes: root.as_ref().map_or(0, |root| root.f_bavail.saturating_mul(root.f_frsize)),
    }
}

/// "1.23" as 1230.
fn milli(number: &str) -> u64 {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let padded: String = fraction.chars().chain("000".chars()).take(3).collect();
    let parse = |text: &str| text.parse::<u64>().unwrap_or(0);
    parse(whole).saturating_mul(1000).saturating_add(parse(&padded))
}

fn memory(meminfo: &str, field: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    let kib = line.split_ascii_whitespace().next().and_then(|kib| kib.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_proc_are_read_exactly() {
        assert_eq!((milli("0.07"), milli("12.5"), milli("3"), milli("x")), (70, 12_500, 3_000, 0));
        assert_eq!(memory("MemTotal:  500 kB\nMemAvailable:  400 kB\n", "MemAvailable:"), 409_600);
    }
}
