//! What a VMM keeps of its guest's memory, as the kernel counts it.
//!
//! | | kernel's word | who pays |
//! |---|---|---|
//! | pages that the guest has written | `Anonymous` | the sandbox |
//! | pages of its RAM base that no other machine maps | `Private_Clean` | the sandbox, as long as it is the only one |
//! | page tables over its RAM | counted from `pagemap` | the sandbox |
//! | pages of its RAM base that others map, too | the rest of `Rss` | the template: they are there once, whoever ends |

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::error::{During as _, Error, Result};

/// Bytes of one guest's memory that are in the host's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Resident {
    /// What is there because of this machine and goes with it: pages that nobody else maps, and page tables.
    pub(crate) own: u64,
    /// Pages of its base that others map, too.
    pub(crate) shared: u64,
    /// Its part of those, each divided by how many map it.
    pub(crate) share: u64,
    /// Pages that the guest has written.
    pub(crate) written: u64,
}

/// Of the guest whose VMM works in `dir`.
pub(crate) fn of(dir: &Path) -> Result<Resident> {
    const DURING: &str = "looking at guest memory";
    let dir = dir.canonicalize().during(DURING)?;
    for user in image::users_of_dir(&dir).during(DURING)? {
        // A process that ends while it is looked at is none of those that wait.
        let Ok(smaps) = fs::read_to_string(format!("/proc/{}/smaps", user.pid)) else { continue };
        let (mut found, mappings) = guest_memory(&smaps);
        if found != Resident::default() {
            found.own += page_tables(user.pid, &mappings).during(DURING)?;
            return Ok(found);
        }
    }
    Err(Error::new(DURING, format!("nobody maps a RAM base in {}", dir.display())))
}

/// The sum over all mappings of a RAM base (`ram.base` of a template, `*.ram` otherwise).
fn guest_memory(smaps: &str) -> (Resident, Vec<Range<u64>>) {
    let (mut sum, mut within, mut mappings) = (Resident::default(), false, Vec::new());
    let (mut all, mut proportional) = (0, 0);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        let Some(key) = first.strip_suffix(':') else {
            // A mapping's first line: addresses, permissions, offset, device, inode, path. Device and inode have no
            // colon at their end, so this is no key.
            within = words.nth(4).is_some_and(|path| path.ends_with("/ram.base") || path.ends_with(".ram"));
            let address = |text| u64::from_str_radix(text, 16).unwrap_or_default();
            if let Some((from, to)) = first.split_once('-').filter(|_| within) {
                mappings.push(address(from)..address(to));
            }
            continue;
        };
        let kib = words.next().and_then(|number| number.parse::<u64>().ok()).unwrap_or_default();
        match key {
            "Rss" if within => all += kib * 1024,
            "Pss" if within => proportional += kib * 1024,
            "Private_Clean" | "Private_Dirty" if within => sum.own += kib * 1024,
            "Anonymous" if within => sum.written += kib * 1024,
            _ => {}
        }
    }
    sum.shared = all.saturating_sub(sum.own);
    sum.share = proportional.saturating_sub(sum.own);
    (sum, mappings)
}

/// The page tables of the lowest level over `mappings`: one of 4 KiB for each 2 MiB of which something is mapped.
fn page_tables(pid: u32, mappings: &[Range<u64>]) -> std::io::Result<u64> {
    const PAGE: u64 = 4096;
    const ENTRY: u64 = 8;
    const ENTRIES: u64 = 512;
    // Bit 63 of an entry: present (Documentation/admin-guide/mm/pagemap.rst).
    const PRESENT: u8 = 0x80;
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let mut tables = 0;
    for mapping in mappings {
        let (mut page, end) = (mapping.start / PAGE, mapping.end / PAGE);
        while page < end {
            let next = ((page / ENTRIES + 1) * ENTRIES).min(end);
            let len = usize::try_from((next - page) * ENTRY).unwrap_or_default();
            let mut entries = vec![0; len];
            pagemap.read_exact_at(&mut entries, page * ENTRY)?;
            tables += u64::from(entries.iter().skip(7).step_by(8).any(|top| top & PRESENT != 0));
            page = next;
        }
    }
    Ok(tables * PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mappings_of_a_ram_base_count() {
        let smaps = "7f00-7f80 rw-p 00000000 fe:00 42    /data/templates/ab/ram.base\n\
                     Size:               512 kB\nRss:                 80 kB\nPss:                 40 kB\n\
                     Pss_Dirty:           30 kB\nPrivate_Clean:        4 kB\nPrivate_Dirty:       28 kB\n\
                     Anonymous:           28 kB\nVmFlags: rd wr mr\n\
                     7f80-7f90 rw-p 00000000 00:00 0\n\
                     Rss:                999 kB\nPss:                999 kB\nAnonymous:          999 kB\n\
                     7f90-7fa0 rw-p 00080000 fe:00 43    /data/bases/cd.ram\n\
                     Rss:                  8 kB\nPss:                  6 kB\nPrivate_Dirty:        4 kB\n\
                     Anonymous:            4 kB\n";
        const KIB: u64 = 1024;
        let expected = Resident { own: 36 * KIB, shared: 52 * KIB, share: 10 * KIB, written: 32 * KIB };
        assert_eq!(guest_memory(smaps), (expected, vec![0x7f00..0x7f80, 0x7f90..0x7fa0]));
    }

    #[test]
    fn what_is_mapped_has_tables() {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let stack = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
        let (from, to) = stack.split(' ').next().unwrap().split_once('-').unwrap();
        let at = |text| u64::from_str_radix(text, 16).unwrap();
        let stack = at(from)..at(to);
        let tables = page_tables(std::process::id(), std::slice::from_ref(&stack)).unwrap();
        let most = (stack.end.div_ceil(2 << 20) - stack.start / (2 << 20)) * 4096;
        assert!((4096..=most).contains(&tables), "{tables} of {most}");
        assert_eq!(page_tables(std::process::id(), &[]).unwrap(), 0);
    }
}
