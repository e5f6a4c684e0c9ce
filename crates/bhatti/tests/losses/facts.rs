//! What was acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use testkit::Choices;

/// What a sandbox holds, or a snapshot of it.
#[derive(Debug, Clone, Default)]
pub struct Content {
    /// Number of the last write, on the disk.
    pub disk: u64,
    /// The same in memory, where nothing on a disk has it; `None` after a boot.
    pub memory: Option<u64>,
    /// Files by path, with the number of the write that made each.
    pub files: BTreeMap<String, u64>,
}

/// A sandbox that exists.
#[derive(Debug, Clone, Default)]
pub struct Sandbox {
    pub content: Content,
    /// It was put to sleep and not asked for anything since.
    pub asleep: bool,
}

/// Something that was begun.
#[derive(Debug, Clone)]
pub enum Action {
    Create { name: String },
    Write { name: String, number: u64 },
    Stop { name: String },
    Start { name: String },
    Fork { name: String, copy: String },
    Snapshot { name: String, snapshot: String },
    Backup,
    Resume { snapshot: String, name: String },
    Forget { snapshot: String },
    Destroy { name: String },
}

impl Action {
    /// The sandbox that it works on.
    pub fn on(&self) -> Option<&str> {
        match self {
            Self::Write { name, .. }
            | Self::Stop { name }
            | Self::Start { name }
            | Self::Fork { name, .. }
            | Self::Snapshot { name, .. }
            | Self::Destroy { name } => Some(name),
            Self::Create { .. } | Self::Resume { .. } | Self::Forget { .. } | Self::Backup => None,
        }
    }

    /// The sandbox that it makes.
    pub fn makes(&self) -> Option<&str> {
        match self {
            Self::Create { name } | Self::Resume { name, .. } => Some(name),
            Self::Fork { copy, .. } => Some(copy),
            _ => None,
        }
    }
}

/// One line of work.
#[derive(Debug)]
pub struct Line {
    pub number: u64,
    pub choices: Choices,
    pub sandboxes: BTreeMap<String, Sandbox>,
    pub snapshots: BTreeMap<String, Content>,
    /// Names whose end was acknowledged.
    pub gone: BTreeSet<String>,
    pub under_way: Option<Action>,
    /// Names and writes made so far.
    pub made: u64,
    /// Its volume, and the writes in it; only such a line has no copies, for a volume has one writer.
    pub volume: Option<BTreeMap<String, u64>>,
    /// Backups of it by id, with the writes that are in each.
    pub backups: BTreeMap<String, BTreeMap<String, u64>>,
}

impl Line {
    /// The name of its volume.
    pub fn volume_name(&self) -> String {
        format!("data-{}", self.number)
    }
}

/// All lines.
#[derive(Debug)]
pub struct Facts {
    pub lines: Vec<Line>,
    pub operations: u64,
    halted: bool,
    /// The loss falls right behind so many acknowledgements.
    left: Option<u64>,
    troubles: Vec<String>,
}

impl Facts {
    pub fn new(lines: u64, seed: u64) -> Self {
        let line = |number| Line {
            number,
            choices: Choices::new(seed, number + 1),
            sandboxes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            gone: BTreeSet::new(),
            under_way: None,
            made: 0,
            volume: (number == 0).then(BTreeMap::new),
            backups: BTreeMap::new(),
        };
        Self {
            lines: (0..lines).map(line).collect(),
            operations: 0,
            halted: false,
            left: None,
            troubles: Vec::new(),
        }
    }

    pub fn line(&mut self, number: u64) -> &mut Line {
        &mut self.lines[usize::try_from(number).expect("a small number")]
    }

    /// Nothing begins and nothing counts from now on.
    pub fn halt(&mut self) {
        self.halted = true;
    }

    /// Goes on, until somebody halts it or so many things more were acknowledged.
    pub fn resume(&mut self, left: Option<u64>) {
        (self.halted, self.left) = (false, left);
    }

    /// Counts something that was acknowledged; tells whether the loss is due now. `lasting` is what must have been made
    /// durable by the host: a guest's write has just been synced by the guest.
    pub fn count(&mut self, lasting: bool) -> bool {
        self.operations += 1;
        self.left = self.left.map(|left| left.saturating_sub(u64::from(lasting)));
        self.halted |= self.left == Some(0);
        self.halted
    }

    pub fn halted(&self) -> bool {
        self.halted
    }

    /// Something that was refused though nothing had died: as bad as a loss.
    pub fn trouble(&mut self, what: String) {
        self.troubles.push(what);
        self.halted = true;
    }

    pub fn take_troubles(&mut self) -> Vec<String> {
        std::mem::take(&mut self.troubles)
    }
}
