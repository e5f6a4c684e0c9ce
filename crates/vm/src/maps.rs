//! Where in a VMM's address space its guest's RAM lies: `/proc/PID/maps` read and judged.

use sys::host_pagemap::AddressRange;

/// One line of `/proc/PID/maps` (proc(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapping<'a> {
    pub(crate) range: AddressRange,
    writable: bool,
    private: bool,
    pub(crate) offset: u64,
    device: &'a str,
    pub(crate) inode: u64,
    pub(crate) path: &'a str,
}

/// A piece of RAM: `len` bytes from `offset` on lie at `address`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Area {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) address: u64,
}

fn parse_line(line: &str) -> Option<Mapping<'_>> {
    let mut rest = line;
    let mut word = || {
        let trimmed = rest.trim_start_matches(' ');
        let (word, after) = trimmed.split_once(' ').unwrap_or((trimmed, ""));
        rest = after;
        (!word.is_empty()).then_some(word)
    };
    let (start, end) = word()?.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let range = AddressRange { start: hex(start)?, end: hex(end)? };
    let mode = word()?;
    let offset = hex(word()?)?;
    let device = word()?;
    let inode = word()?.parse().ok()?;
    let path = rest.trim_start_matches(' ');
    let mode: [u8; 4] = mode.as_bytes().try_into().ok()?;
    (range.start < range.end).then_some(Mapping {
        range,
        writable: mode[1] == b'w',
        private: mode[3] == b'p',
        offset,
        device,
        inode,
        path,
    })
}

/// The areas of the private, writable mapping of the base: those with its inode number that together are exactly
/// `len` bytes long. Its path would not do, a bind mount shows another one; nor would its device number, which btrfs
/// gives differently here than in stat(2). Where the inode number differs too (overlayfs), the file's name decides,
/// under the same condition. Ascending by offset; `None` when there is no such set, or more than one.
pub(crate) fn find_ram(maps: &str, inode: u64, file_name: &str, len: u64) -> Option<Vec<Area>> {
    let candidates: Vec<Mapping<'_>> = maps
        .lines()
        .filter_map(parse_line)
        .filter(|mapping| mapping.writable && mapping.private && mapping.inode != 0)
        .collect();
    let by_inode = |mapping: &&Mapping<'_>| mapping.inode == inode;
    let by_name = |mapping: &&Mapping<'_>| {
        let path = mapping.path.strip_suffix(" (deleted)").unwrap_or(mapping.path);
        path.rsplit('/').next() == Some(file_name)
    };
    one_cover(candidates.iter().filter(by_inode), len)
        .or_else(|| one_cover(candidates.iter().filter(by_name), len))
}

/// The mappings of files that still have their name.
pub(crate) fn of_files(maps: &str) -> impl Iterator<Item = Mapping<'_>> {
    let named = |mapping: &Mapping<'_>| {
        mapping.inode != 0 && mapping.path.starts_with('/') && !mapping.path.ends_with(" (deleted)")
    };
    maps.lines().filter_map(parse_line).filter(named)
}

fn one_cover<'a>(mappings: impl Iterator<Item = &'a Mapping<'a>>, len: u64) -> Option<Vec<Area>> {
    let mut files: Vec<((&str, u64), Vec<Area>)> = Vec::new();
    for mapping in mappings {
        let file = (mapping.device, mapping.inode);
        let area = Area {
            offset: mapping.offset,
            len: mapping.range.end - mapping.range.start,
            address: mapping.range.start,
        };
        match files.iter_mut().find(|(other, _)| *other == file) {
            Some((_, areas)) => areas.push(area),
            None => files.push((file, vec![area])),
        }
    }
    let mut covers = files.into_iter().filter_map(|(_, mut areas)| {
        areas.sort_by_key(|area| area.offset);
        let end = areas
            .iter()
            .try_fold(0u64, |end, area| (area.offset == end).then(|| end.checked_add(area.len)).flatten());
        (end == Some(len)).then_some(areas)
    });
    let first = covers.next();
    if covers.next().is_some() { None } else { first }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAPS: &str = "\
55d0c0000000-55d0c0400000 r-xp 00000000 fe:00 77    /usr/bin/qemu-system-x86_64
7f0000000000-7f0010000000 rw-p 00000000 00:2a 4242                       /srv/a b/ram.base
7f0010000000-7f0010001000 rw-p 10000000 00:2a 4242                       /srv/a b/ram.base (deleted)
7f0010001000-7f0020000000 rw-p 10001000 00:2a 4242                       /srv/a b/ram.base
7f1000000000-7f1000001000 rw-p 00003000 fe:00 4242                       /usr/lib/libother.so
7f2000000000-7f2000001000 rw-p 00000000 00:00 0
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    #[test]
    fn ram_is_found_by_inode_also_in_several_areas() {
        let areas = find_ram(MAPS, 4242, "x", 0x2000_0000).unwrap();
        assert_eq!(areas.len(), 3);
        assert_eq!(areas[1], Area { offset: 0x1000_0000, len: 0x1000, address: 0x7f00_1000_0000 });
    }

    #[test]
    fn ram_is_found_by_name_where_inode_numbers_differ() {
        assert_eq!(find_ram(MAPS, 1, "ram.base", 0x2000_0000).unwrap().len(), 3);
        assert_eq!(find_ram(MAPS, 1, "b", 0x2000_0000), None);
    }

    #[test]
    fn what_does_not_cover_the_ram_exactly_once_is_not_it() {
        assert_eq!(find_ram(MAPS, 4242, "x", 0x2000_1000), None);
        assert_eq!(find_ram(MAPS, 77, "x", 0x40_0000), None, "not writable");
        let twice = format!("{MAPS}{}", MAPS.replace("00:2a", "00:2b"));
        assert_eq!(find_ram(&twice, 4242, "x", 0x2000_0000), None);
        let shared = MAPS.replace("rw-p", "rw-s");
        assert_eq!(find_ram(&shared, 4242, "x", 0x2000_0000), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[0-9a-f\\-rwps: /\\n]{0,300}", inode: u64, len: u64) {
            let _ = find_ram(&text, inode, "x", len);
            let _ = text.lines().filter_map(parse_line).count();
        }
    }
}
