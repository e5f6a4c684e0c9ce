//! One piece of damage.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;

use testkit::Choices;

/// What is done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// One bit is another.
    Bit { at: u64, bit: u8 },
    /// It ends there.
    Cut { at: u64 },
    /// Two blocks of this size are in each other's place.
    Swap { one: u64, other: u64, len: u64 },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bit { at, bit } => write!(f, "bit {bit} of byte {at}"),
            Self::Cut { at } => write!(f, "cut at {at}"),
            Self::Swap { one, other, len } => write!(f, "{len} bytes at {one} and {other} swapped"),
        }
    }
}

/// A place in one of the pieces.
fn anywhere(choices: &mut Choices, pieces: &[(u64, u64)]) -> u64 {
    let total = pieces.iter().map(|(_, len)| len).sum();
    let mut at = choices.below(total);
    for (start, len) in pieces {
        if at < *len {
            return start + at;
        }
        at -= len;
    }
    0
}

impl Damage {
    /// Some damage inside the pieces of a file: mostly bits. `None` where it would change nothing.
    pub fn choose(
        choices: &mut Choices,
        path: &Path,
        pieces: &[(u64, u64)],
        bits_only: bool,
    ) -> Option<Self> {
        let at = anywhere(choices, pieces);
        match choices.below(10) {
            0 | 1 if !bits_only => Some(Self::Cut { at }),
            2 if !bits_only => {
                let len = 64;
                let (one, other) = (at / len * len, anywhere(choices, pieces) / len * len);
                let file = File::open(path).expect("the file");
                let (mut first, mut second) = ([0; 64], [0; 64]);
                let read =
                    file.read_exact_at(&mut first, one).and_then(|()| file.read_exact_at(&mut second, other));
                (read.is_ok() && first != second).then_some(Self::Swap { one, other, len })
            }
            _ => Some(Self::Bit { at, bit: u8::try_from(choices.below(8)).expect("small") }),
        }
    }

    /// Does it.
    pub fn inflict(self, path: &Path) {
        let mode = std::fs::metadata(path).expect("the file").permissions();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("leave to write");
        let file = File::options().read(true).write(true).open(path).expect("the file");
        match self {
            Self::Bit { at, bit } => {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).expect("a byte");
                file.write_all_at(&[byte[0] ^ 1 << bit], at).expect("a byte");
            }
            Self::Cut { at } => file.set_len(at).expect("a length"),
            Self::Swap { one, other, len } => {
                let mut blocks = [
                    vec![0; usize::try_from(len).expect("small")],
                    vec![0; usize::try_from(len).expect("small")],
                ];
                file.read_exact_at(&mut blocks[0], one).expect("a block");
                file.read_exact_at(&mut blocks[1], other).expect("a block");
                file.write_all_at(&blocks[1], one).expect("a block");
                file.write_all_at(&blocks[0], other).expect("a block");
            }
        }
        std::fs::set_permissions(path, mode).expect("its mode");
    }
}
