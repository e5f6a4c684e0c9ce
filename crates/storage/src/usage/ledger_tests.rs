use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

fn stretch(start: u64, stored: u64) -> Stretch {
    Stretch { space: 0, start, stored, plain: stored, shared: false, at_most: false }
}

fn file(apparent: u64, referenced: u64) -> InodeBytes {
    InodeBytes { apparent, referenced, ..InodeBytes::default() }
}

fn sums(apparent: u64, referenced: u64, unique: u64, physical: u64, exclusive: u64) -> Sums {
    Sums { apparent, referenced, unique, physical, exclusive }
}

/// A base of 100 and two clones of it, each of which wrote 10 of its own.
#[test]
fn clones_share_what_they_did_not_write() {
    let mut ledger = Ledger::new();
    let owner = ledger.node(Ledger::ROOT);
    let (image, one, two) = (ledger.node(Ledger::ROOT), ledger.node(owner), ledger.node(owner));
    let base = ledger.inode(image, file(100, 100));
    for (from, to, shared) in [(1000, 1040, true), (1040, 1050, false), (1050, 1100, true)] {
        ledger.stretch(base, Stretch { shared, ..stretch(from, to - from) });
    }
    for (clone, own) in [(one, 2000), (two, 3000)] {
        let inode = ledger.inode(clone, file(100, 100));
        ledger.stretch(inode, Stretch { shared: true, ..stretch(1000, 40) });
        ledger.stretch(inode, stretch(own, 10));
        ledger.stretch(inode, Stretch { shared: true, ..stretch(1050, 50) });
    }
    let balance = ledger.balance();
    assert_eq!(balance.of(one), sums(100, 100, 100, 100, 10));
    assert_eq!(balance.of(two), sums(100, 100, 100, 100, 10));
    assert_eq!(
        balance.of(image),
        sums(100, 100, 100, 100, 10),
        "what both clones wrote over is the base's alone"
    );
    assert_eq!(balance.of(owner), sums(200, 200, 110, 110, 20));
    assert_eq!(balance.of(Ledger::ROOT), sums(300, 300, 120, 120, 120));
}

#[test]
fn what_only_one_owner_has_is_freed_with_the_owner_and_not_with_one_of_its_things() {
    let mut ledger = Ledger::new();
    let owner = ledger.node(Ledger::ROOT);
    let (one, two) = (ledger.node(owner), ledger.node(owner));
    for leaf in [one, two] {
        let inode = ledger.inode(leaf, file(64, 64));
        ledger.stretch(inode, Stretch { shared: true, ..stretch(0, 64) });
    }
    let balance = ledger.balance();
    assert_eq!((balance.of(one).exclusive, balance.of(two).exclusive), (0, 0));
    assert_eq!(balance.of(owner), sums(128, 128, 64, 64, 64));
}

#[test]
fn a_file_of_two_names_is_one() {
    let mut ledger = Ledger::new();
    let (one, two) = (ledger.node(Ledger::ROOT), ledger.node(Ledger::ROOT));
    let bytes = InodeBytes { own_stored: 4, own_plain: 4, referenced: 68, ..file(70, 0) };
    let inode = ledger.inode(one, bytes);
    ledger.name(inode, two);
    ledger.stretch(inode, stretch(512, 64));
    let balance = ledger.balance();
    assert_eq!(balance.of(one), sums(70, 68, 68, 68, 0));
    assert_eq!(balance.of(two), balance.of(one));
    assert_eq!(balance.of(Ledger::ROOT), sums(70, 68, 68, 68, 68));
}

#[test]
fn what_somebody_outside_refers_to_is_freed_by_nothing_here() {
    let mut ledger = Ledger::new();
    let (linked, cloned) = (ledger.node(Ledger::ROOT), ledger.node(Ledger::ROOT));
    let inode = ledger.inode(linked, InodeBytes { named_elsewhere: true, own_stored: 3, ..file(10, 10) });
    ledger.stretch(inode, stretch(0, 10));
    let inode = ledger.inode(cloned, file(30, 30));
    ledger.stretch(inode, Stretch { shared: true, ..stretch(100, 10) });
    ledger.stretch(inode, stretch(200, 20));
    let balance = ledger.balance();
    assert_eq!(balance.of(linked).exclusive, 0);
    assert_eq!(balance.of(cloned).exclusive, 20);
    assert_eq!((balance.of(Ledger::ROOT).physical, balance.of(Ledger::ROOT).exclusive), (43, 20));
}

#[test]
fn compression_shows_between_unique_and_physical() {
    let mut ledger = Ledger::new();
    let (one, two) = (ledger.node(Ledger::ROOT), ledger.node(Ledger::ROOT));
    let whole = Stretch { plain: 128, ..stretch(4096, 16) };
    for (leaf, used) in [(one, 128), (two, 5)] {
        let inode = ledger.inode(leaf, file(used, used));
        ledger.stretch(inode, whole);
    }
    let balance = ledger.balance();
    // Whoever refers to five bytes of an extent holds all of it.
    assert_eq!(balance.of(two), sums(5, 5, 128, 16, 0));
    assert_eq!(balance.of(Ledger::ROOT), sums(133, 133, 128, 16, 16));
}

#[test]
fn where_only_addresses_are_told_an_extent_ends_at_the_next_one() {
    let mut ledger = Ledger::new();
    let leaf = ledger.node(Ledger::ROOT);
    let inode = ledger.inode(leaf, file(300, 300));
    let bound = |start, plain| Stretch { at_most: true, ..stretch(start, plain) };
    for stretch in [bound(1000, 100), bound(1030, 60), bound(1030, 100), bound(5000, 100)] {
        ledger.stretch(inode, stretch);
    }
    ledger.stretch(inode, Stretch { space: 1, ..stretch(1, 7) });
    // 30 to the next, at most 100 to the far one, and the last as it says: at most 100.
    assert_eq!(ledger.balance().of(leaf), sums(300, 300, 307, 30 + 100 + 100 + 7, 237));
}

#[test]
fn addresses_of_different_filesystems_are_different_bytes() {
    let mut ledger = Ledger::new();
    let leaf = ledger.node(Ledger::ROOT);
    let inode = ledger.inode(leaf, file(30, 30));
    for space in 0..3 {
        ledger.stretch(inode, Stretch { space, ..stretch(100, 10) });
    }
    assert_eq!(ledger.balance().of(leaf).physical, 30);
}

#[test]
fn nothing_at_all_has_no_bytes() {
    assert_eq!(Ledger::new().balance().of(Ledger::ROOT), Sums::default());
}

/// Each of a thousand clones of one extent has written in a hundred places of its own.
#[test]
fn many_clones_of_one_extent_are_counted_in_no_time() {
    const CLONES: u64 = 1000;
    const WRITES: u64 = 100;
    let mut ledger = Ledger::new();
    let size = CLONES * WRITES * 2;
    let begun = Instant::now();
    for clone in 0..CLONES {
        let leaf = ledger.node(Ledger::ROOT);
        let inode = ledger.inode(leaf, file(size, size));
        let mut from = 0;
        for write in 0..WRITES {
            let hole = (write * CLONES + clone) * 2;
            ledger.stretch(inode, Stretch { shared: true, ..stretch(from, hole - from) });
            ledger.stretch(inode, stretch(size * (clone + 1) + write, 1));
            from = hole + 1;
        }
        ledger.stretch(inode, Stretch { shared: true, ..stretch(from, size - from) });
    }
    let balance = ledger.balance();
    let took = begun.elapsed();
    assert_eq!(balance.of(Ledger::ROOT).physical, size + CLONES * WRITES);
    assert_eq!(balance.of(NodeId(1)).exclusive, WRITES);
    // 200,000 references; a walk over all pairs would take minutes.
    assert!(took < Duration::from_secs(if cfg!(debug_assertions) { 10 } else { 1 }), "{took:?}");
}

/// Address space, beginning, length, and whether the filesystem says that it is shared.
type SmallStretch = (u16, u64, u64, bool);

/// Who has one byte.
#[derive(Debug, Default)]
struct Holders {
    leaves: BTreeSet<usize>,
    references: usize,
    shared: bool,
    elsewhere: bool,
}

/// A small disk on which everything can be counted byte by byte.
#[derive(Debug, Clone)]
struct Case {
    /// Parent of each node, which has a lower number; node 0 is the whole.
    parents: Vec<usize>,
    inodes: Vec<(BTreeSet<usize>, InodeBytes, Vec<SmallStretch>)>,
}

prop_compose! {
    fn cases()(
        parents in proptest::collection::vec(any::<prop::sample::Index>(), 1..12),
        inodes in proptest::collection::vec(
            (
                proptest::collection::btree_set(any::<prop::sample::Index>().prop_map(|i| i.index(1 << 16)), 1..4),
                (0..50u64, 0..50u64, 0..5u64, any::<bool>()),
                proptest::collection::vec((0..2u16, 0..40u64, 1..12u64, prop::bool::weighted(0.3)), 0..6),
            ),
            0..8,
        ),
    ) -> Case {
        let parents: Vec<usize> =
            std::iter::once(0).chain(parents.iter().enumerate().map(|(i, p)| p.index(i + 1))).collect();
        let nodes = parents.len();
        // Only leaves name inodes.
        let leaves: Vec<usize> = (0..nodes).filter(|node| !parents[1..].contains(node)).collect();
        let inodes = inodes
            .into_iter()
            .map(|(names, (apparent, referenced, own, named_elsewhere), stretches)| {
                let names = names.into_iter().map(|name| leaves[name % leaves.len()]).collect();
                let bytes = InodeBytes { apparent, referenced, own_stored: own, own_plain: own, named_elsewhere };
                (names, bytes, stretches)
            })
            .collect();
        Case { parents, inodes }
    }
}

impl Case {
    fn above(&self, leaf: usize) -> BTreeSet<usize> {
        let mut found = BTreeSet::from([leaf]);
        let mut node = leaf;
        while node != 0 {
            node = self.parents[node];
            found.insert(node);
        }
        found
    }

    fn balance(&self) -> Balance {
        let mut ledger = Ledger::new();
        for &parent in &self.parents[1..] {
            ledger.node(NodeId(u32::try_from(parent).unwrap()));
        }
        let node = |node: usize| NodeId(u32::try_from(node).unwrap());
        for (names, bytes, stretches) in &self.inodes {
            let mut names = names.iter();
            let inode = ledger.inode(node(*names.next().unwrap()), *bytes);
            names.for_each(|name| ledger.name(inode, node(*name)));
            for &(space, start, stored, shared) in stretches {
                let stretch = Stretch { space, start, stored, plain: stored, shared, at_most: false };
                ledger.stretch(inode, stretch);
            }
        }
        ledger.balance()
    }

    fn disk(&self) -> BTreeMap<(u16, u64), Holders> {
        let mut disk = BTreeMap::new();
        for (names, bytes, stretches) in &self.inodes {
            for &(space, start, stored, shared) in stretches {
                for byte in start..start + stored {
                    let holders: &mut Holders = disk.entry((space, byte)).or_default();
                    holders.leaves.extend(names);
                    holders.references += 1;
                    holders.shared |= shared;
                    holders.elsewhere |= bytes.named_elsewhere;
                }
            }
        }
        disk
    }

    fn slow_sums(&self, node: usize) -> Sums {
        let inside: BTreeSet<usize> =
            (0..self.parents.len()).filter(|&leaf| self.above(leaf).contains(&node)).collect();
        let mut sums = Sums::default();
        for (names, bytes, _) in &self.inodes {
            if names.iter().any(|name| inside.contains(name)) {
                sums.apparent += bytes.apparent;
                sums.referenced += bytes.referenced;
                sums.physical += bytes.own_stored;
                sums.unique += bytes.own_plain;
                if !bytes.named_elsewhere && names.is_subset(&inside) {
                    sums.exclusive += bytes.own_stored;
                }
            }
        }
        for holders in self.disk().values() {
            if holders.leaves.iter().any(|leaf| inside.contains(leaf)) {
                sums.physical += 1;
                sums.unique += 1;
                let outside = holders.elsewhere || (holders.shared && holders.references == 1);
                if !outside && holders.leaves.is_subset(&inside) {
                    sums.exclusive += 1;
                }
            }
        }
        sums
    }
}

proptest! {
    #[test]
    fn the_walk_says_what_counting_byte_by_byte_says(case in cases()) {
        let balance = case.balance();
        for node in 0..case.parents.len() {
            let fast = balance.of(NodeId(u32::try_from(node).unwrap()));
            prop_assert_eq!(fast, case.slow_sums(node), "node {}", node);
        }
    }

    #[test]
    fn exclusive_bytes_of_things_never_add_up_to_more_than_there_is(case in cases()) {
        let balance = case.balance();
        let of = |node: usize| balance.of(NodeId(u32::try_from(node).unwrap()));
        for node in 0..case.parents.len() {
            let children: Vec<usize> =
                (1..case.parents.len()).filter(|&child| case.parents[child] == node).collect();
            let exclusive: u64 = children.iter().map(|&child| of(child).exclusive).sum();
            let physical: u64 = children.iter().map(|&child| of(child).physical).sum();
            prop_assert!(exclusive <= of(node).exclusive && of(node).exclusive <= of(node).physical);
            prop_assert!(children.is_empty() || of(node).physical <= physical);
        }
    }

    #[test]
    fn the_order_in_which_things_were_found_does_not_matter(case in cases(), seed in any::<u64>()) {
        let mut shuffled = case.clone();
        let len = shuffled.inodes.len().max(1);
        shuffled.inodes.rotate_left(usize::try_from(seed % 7).unwrap() % len);
        for (_, _, stretches) in &mut shuffled.inodes {
            stretches.reverse();
        }
        let (one, other) = (case.balance(), shuffled.balance());
        prop_assert_eq!(one.sums, other.sums);
    }
}
