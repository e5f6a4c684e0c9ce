//! What a VMM keeps of its guest's memory, as the kernel counts it.

use std::fs;
use std::path::Path;

use crate::error::{During as _, Error, Result};

/// Bytes of one guest's memory that are in the host's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Resident {
    /// Its own pages and its share of those that several machines map.
    pub(crate) proportional: u64,
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
        let found = guest_memory(&smaps);
        if found != Resident::default() {
            return Ok(found);
        }
    }
    Err(Error::new(DURING, format!("nobody maps a RAM base in {}", dir.display())))
}

/// The sum over all mappings of a RAM base (`ram.base` of a template, `*.ram` otherwise).
fn guest_memory(smaps: &str) -> Resident {
    let (mut sum, mut within) = (Resident::default(), false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        let Some(key) = first.strip_suffix(':') else {
            // A mapping's first line: addresses, permissions, offset, device, inode, path. Device and inode have no
            // colon at their end, so this is no key.
            within = words.nth(4).is_some_and(|path| path.ends_with("/ram.base") || path.ends_with(".ram"));
            continue;
        };
        let kib = words.next().and_then(|number| number.parse::<u64>().ok()).unwrap_or_default();
        match key {
            "Pss" if within => sum.proportional += kib * 1024,
            "Anonymous" if within => sum.written += kib * 1024,
            _ => {}
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mappings_of_a_ram_base_count() {
        let smaps = "7f00-7f80 rw-p 00000000 fe:00 42    /data/templates/ab/ram.base\n\
                     Size:               512 kB\nPss:                 40 kB\nPss_Dirty:           30 kB\n\
                     Anonymous:           32 kB\nVmFlags: rd wr mr\n\
                     7f80-7f90 rw-p 00000000 00:00 0\n\
                     Pss:                999 kB\nAnonymous:          999 kB\n\
                     7f90-7fa0 rw-p 00080000 fe:00 43    /data/bases/cd.ram\n\
                     Pss:                  8 kB\nAnonymous:            4 kB\n";
        let expected = Resident { proportional: 48 * 1024, written: 36 * 1024 };
        assert_eq!(guest_memory(smaps), expected);
    }
}
