//! Who has which bytes: pure accounting over what was gathered.
//!
//! Things form a tree: the whole, owners, what they have, files. An inode is named by one leaf or, with hard links, by
//! several; it refers to stretches of disk, and others may refer to the same. A byte on the disk belongs *exclusively* to
//! everything that contains all references to it, which is the lowest common ancestor of the leaves that name it, and all
//! above. So one walk over the stretches in the order of the disk is enough, however many refer to each byte.
//!
//! # Invariants
//! Each node's physical bytes are the union of its leaves'; the exclusive bytes of disjoint nodes never add up to more
//! than the physical bytes of what contains them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A node of the tree of things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId(u32);

/// An inode that was gathered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InodeId(u32);

/// What an inode is, without its stretches of disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct InodeBytes {
    /// Its length.
    pub(crate) apparent: u64,
    /// Bytes of it that are no holes, as read.
    pub(crate) referenced: u64,
    /// What it takes beside its stretches and shares with nobody: maps of extents, inline data, what has no place yet.
    pub(crate) own_stored: u64,
    /// The same as read.
    pub(crate) own_plain: u64,
    /// Whether it has names that were not gathered.
    pub(crate) named_elsewhere: bool,
}

/// A stretch of disk that an inode refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// The address space: addresses of different ones cannot be compared.
    pub(crate) space: u16,
    /// Where it begins.
    pub(crate) start: u64,
    /// What it takes there.
    pub(crate) stored: u64,
    /// What it is when read.
    pub(crate) plain: u64,
    /// Whether the filesystem says that somebody else refers to it, too.
    pub(crate) shared: bool,
    /// Whether `stored` is only a bound: it may end where the next stretch begins.
    pub(crate) at_most: bool,
}

/// The figures of a node. All in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sums {
    pub(crate) apparent: u64,
    pub(crate) referenced: u64,
    pub(crate) unique: u64,
    pub(crate) physical: u64,
    pub(crate) exclusive: u64,
}

#[derive(Debug)]
struct Inode {
    bytes: InodeBytes,
    /// The only leaf of nearly every inode; those of the others are in `Ledger::more_names`.
    leaf: NodeId,
}

/// One reference to a stretch. There may be millions: 32 bytes each.
#[derive(Debug, Clone, Copy)]
struct Reference {
    start: u64,
    stored: u64,
    plain: u64,
    inode: u32,
    space: u16,
    shared: bool,
    at_most: bool,
}

const _: () = assert!(size_of::<Reference>() == 32);

/// What was gathered.
#[derive(Debug)]
pub(crate) struct Ledger {
    parents: Vec<u32>,
    inodes: Vec<Inode>,
    /// Further leaves of inodes with several names.
    more_names: Vec<(InodeId, NodeId)>,
    references: Vec<Reference>,
}

impl Ledger {
    /// The whole, which contains every other node.
    pub(crate) const ROOT: NodeId = NodeId(0);

    pub(crate) fn new() -> Self {
        Self { parents: vec![0], inodes: Vec::new(), more_names: Vec::new(), references: Vec::new() }
    }

    /// A new node in `parent`.
    pub(crate) fn node(&mut self, parent: NodeId) -> NodeId {
        let id = index(self.parents.len());
        self.parents.push(parent.0);
        NodeId(id)
    }

    /// A new inode, named by `leaf`.
    pub(crate) fn inode(&mut self, leaf: NodeId, bytes: InodeBytes) -> InodeId {
        let id = index(self.inodes.len());
        self.inodes.push(Inode { bytes, leaf });
        InodeId(id)
    }

    /// Another name of an inode.
    pub(crate) fn name(&mut self, inode: InodeId, leaf: NodeId) {
        self.more_names.push((inode, leaf));
    }

    /// Says whether an inode has names that were not gathered.
    pub(crate) fn set_named_elsewhere(&mut self, inode: InodeId, elsewhere: bool) {
        self.inodes[at(inode.0)].bytes.named_elsewhere = elsewhere;
    }

    /// A stretch that an inode refers to.
    pub(crate) fn stretch(&mut self, inode: InodeId, stretch: Stretch) {
        let Stretch { space, start, stored, plain, shared, at_most } = stretch;
        if stored > 0 {
            self.references.push(Reference { start, stored, plain, inode: inode.0, space, shared, at_most });
        }
    }

    /// The figures of every node, by its number.
    pub(crate) fn balance(mut self) -> Balance {
        self.more_names.sort_unstable_by_key(|(inode, leaf)| (inode.0, *leaf));
        self.references.sort_unstable_by_key(|reference| (reference.space, reference.start));
        settle_bounds(&mut self.references);
        let mut walk = Walk::new(&self);
        walk.stretches();
        walk.inodes();
        Balance { sums: walk.finish() }
    }

    fn leaves(&self, inode: u32) -> impl Iterator<Item = NodeId> {
        let from = self.more_names.partition_point(|(id, _)| id.0 < inode);
        let more = self.more_names[from..].iter().take_while(move |(id, _)| id.0 == inode);
        std::iter::once(self.inodes[at(inode)].leaf).chain(more.map(|(_, leaf)| *leaf))
    }
}

/// The figures of every node.
#[derive(Debug)]
pub(crate) struct Balance {
    sums: Vec<Sums>,
}

impl Balance {
    pub(crate) fn of(&self, node: NodeId) -> Sums {
        self.sums[at(node.0)]
    }
}

fn index(len: usize) -> u32 {
    u32::try_from(len).expect("fewer than 2^32 files in one data root")
}

fn at(index: u32) -> usize {
    usize::try_from(index).expect("a 64-bit host")
}

/// Encoded extents of which only the address and the plain size are known: all that begin at one address are one, as
/// large as the largest part of it, and it takes at most the way to the next.
fn settle_bounds(references: &mut [Reference]) {
    let mut from = 0;
    while from < references.len() {
        let Reference { space, start, .. } = references[from];
        let same = |reference: &&Reference| (reference.space, reference.start) == (space, start);
        let to = from + references[from..].iter().take_while(same).count();
        let room = match references.get(to) {
            Some(next) if next.space == space => next.start - start,
            _ => u64::MAX,
        };
        let group = &mut references[from..to];
        let plain = group.iter().map(|reference| reference.plain).max().unwrap_or(0);
        for reference in group.iter_mut().filter(|reference| reference.at_most) {
            reference.plain = plain;
            reference.stored = plain.min(room);
        }
        from = to;
    }
}

/// What a node is while the walk goes on.
#[derive(Debug, Clone, Copy, Default)]
struct Open {
    /// References inside it to the byte at hand.
    references: u32,
    /// Children that have any.
    children: u32,
    /// Those children's numbers, xored: with one child, its number.
    which: u32,
    /// What was covered when its first reference came.
    stored_before: u64,
    plain_before: u64,
}

struct Walk<'a> {
    ledger: &'a Ledger,
    open: Vec<Open>,
    sums: Vec<Sums>,
    /// References to the byte at hand, those of them that say it is shared, and those by inodes named elsewhere.
    here: u32,
    shared: u32,
    elsewhere: u32,
    /// Covered so far.
    stored: u64,
    plain: u64,
    /// Plain and stored size of the extent at hand.
    rate: (u64, u64),
    position: u64,
}

impl<'a> Walk<'a> {
    fn new(ledger: &'a Ledger) -> Self {
        let nodes = ledger.parents.len();
        Self {
            ledger,
            open: vec![Open::default(); nodes],
            sums: vec![Sums::default(); nodes],
            here: 0,
            shared: 0,
            elsewhere: 0,
            stored: 0,
            plain: 0,
            rate: (1, 1),
            position: 0,
        }
    }

    /// Goes over all stretches in the order of the disk.
    fn stretches(&mut self) {
        let references = &self.ledger.references;
        // Those that cover the byte at hand, by their ends.
        let mut open: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
        let mut space = None;
        for (number, reference) in references.iter().enumerate() {
            let same_space = space == Some(reference.space);
            while let Some(&Reverse((end, which))) = open.peek()
                && (!same_space || end <= reference.start)
            {
                open.pop();
                self.advance(end);
                self.leave(&references[which]);
            }
            if same_space {
                self.advance(reference.start);
            }
            space = Some(reference.space);
            self.position = reference.start;
            self.enter(reference);
            open.push(Reverse((reference.start.saturating_add(reference.stored), number)));
        }
        while let Some(Reverse((end, which))) = open.pop() {
            self.advance(end);
            self.leave(&references[which]);
        }
    }

    /// Gives the bytes up to `to` to whom they belong.
    fn advance(&mut self, to: u64) {
        let bytes = to.saturating_sub(self.position);
        self.position = self.position.max(to);
        if self.here == 0 || bytes == 0 {
            return;
        }
        let (plain, stored) = self.rate;
        self.stored += bytes;
        self.plain += share(bytes, plain, stored);
        // A second reference of ours explains that it is shared; without one, somebody outside has it, too.
        let outside = self.elsewhere > 0 || (self.shared > 0 && self.here == 1);
        if !outside {
            let lowest = self.lowest();
            self.sums[lowest].exclusive += bytes;
        }
    }

    /// The lowest node that has all references to the byte at hand.
    fn lowest(&self) -> usize {
        let mut node = 0;
        while self.open[node].children == 1 {
            node = at(self.open[node].which);
        }
        node
    }

    fn enter(&mut self, reference: &Reference) {
        self.here += 1;
        self.shared += u32::from(reference.shared);
        self.elsewhere += u32::from(self.ledger.inodes[at(reference.inode)].bytes.named_elsewhere);
        self.rate = (reference.plain, reference.stored);
        for leaf in self.ledger.leaves(reference.inode) {
            let mut node = leaf.0;
            loop {
                let open = &mut self.open[at(node)];
                open.references += 1;
                let parent = self.ledger.parents[at(node)];
                if open.references == 1 {
                    (open.stored_before, open.plain_before) = (self.stored, self.plain);
                    if node != 0 {
                        let above = &mut self.open[at(parent)];
                        above.children += 1;
                        above.which ^= node;
                    }
                }
                if node == 0 {
                    break;
                }
                node = parent;
            }
        }
    }

    fn leave(&mut self, reference: &Reference) {
        self.here -= 1;
        self.shared -= u32::from(reference.shared);
        self.elsewhere -= u32::from(self.ledger.inodes[at(reference.inode)].bytes.named_elsewhere);
        for leaf in self.ledger.leaves(reference.inode) {
            let mut node = leaf.0;
            loop {
                let open = &mut self.open[at(node)];
                open.references -= 1;
                let parent = self.ledger.parents[at(node)];
                if open.references == 0 {
                    let sums = &mut self.sums[at(node)];
                    sums.physical += self.stored - open.stored_before;
                    sums.unique += self.plain - open.plain_before;
                    if node != 0 {
                        let above = &mut self.open[at(parent)];
                        above.children -= 1;
                        above.which ^= node;
                    }
                }
                if node == 0 {
                    break;
                }
                node = parent;
            }
        }
    }

    /// Adds what inodes have beside their stretches: once to each node that names them.
    fn inodes(&mut self) {
        let mut named_by = vec![u32::MAX; self.sums.len()];
        for (number, inode) in (0u32..).zip(&self.ledger.inodes) {
            let mut lowest: Option<u32> = None;
            for leaf in self.ledger.leaves(number) {
                let mut node = leaf.0;
                // Up to what an earlier name of it has counted already.
                while named_by[at(node)] != number {
                    named_by[at(node)] = number;
                    let sums = &mut self.sums[at(node)];
                    sums.apparent += inode.bytes.apparent;
                    sums.referenced += inode.bytes.referenced;
                    sums.physical += inode.bytes.own_stored;
                    sums.unique += inode.bytes.own_plain;
                    if node == 0 {
                        break;
                    }
                    node = self.ledger.parents[at(node)];
                }
                lowest = Some(match lowest {
                    Some(other) => self.common(other, leaf.0),
                    None => leaf.0,
                });
            }
            if let Some(node) = lowest.filter(|_| !inode.bytes.named_elsewhere) {
                self.sums[at(node)].exclusive += inode.bytes.own_stored;
            }
        }
    }

    /// The lowest node that contains both. Parents have lower numbers than their children.
    fn common(&self, mut one: u32, mut other: u32) -> u32 {
        while one != other {
            if one > other {
                one = self.ledger.parents[at(one)];
            } else {
                other = self.ledger.parents[at(other)];
            }
        }
        one
    }

    /// What is exclusive to a node is so to all above.
    fn finish(self) -> Vec<Sums> {
        let mut sums = self.sums;
        for node in (1..sums.len()).rev() {
            let exclusive = sums[node].exclusive;
            sums[at(self.ledger.parents[node])].exclusive += exclusive;
        }
        sums
    }
}

/// `bytes` of something that has `stored` bytes for `plain` ones, in plain ones.
fn share(bytes: u64, plain: u64, stored: u64) -> u64 {
    if plain == stored || stored == 0 {
        return bytes;
    }
    let plain = u128::from(bytes) * u128::from(plain) / u128::from(stored);
    u64::try_from(plain).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
