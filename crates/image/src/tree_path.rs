//! A name in a layer, taken apart and found harmless.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

const OP: &str = "unpack";
/// Longer ones cannot be named to the kernel (PATH_MAX less its zero).
const LONGEST: usize = 4095;
const LONGEST_NAME: usize = 255;
const MOST_NAMES: usize = 255;

/// A path below the root without `.`, `..`, empty parts, and a slash at either end. Empty for the root itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TreePath {
    text: Vec<u8>,
    /// Where each name ends.
    ends: Vec<usize>,
}

impl TreePath {
    /// Takes a path of an archive: an absolute one is meant from the tree's root; one with `..` is refused, for no tool
    /// writes one that is meant well.
    pub(crate) fn parse(text: &[u8]) -> Result<Self> {
        let refused = |why: &str| {
            let shown = String::from_utf8_lossy(&text[..text.len().min(120)]).into_owned();
            Err(Error::input(OP, Path::new(&shown), format!("the layer cannot be used: the name {why}")))
        };
        if text.len() > LONGEST {
            return refused("is longer than 4095 bytes");
        }
        if text.contains(&0) {
            return refused("has a zero in it");
        }
        let (mut clean, mut ends) = (Vec::with_capacity(text.len()), Vec::new());
        for part in text.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".") {
            if part == b".." {
                return refused("has '..' in it");
            }
            if part.len() > LONGEST_NAME {
                return refused("has a part of more than 255 bytes");
            }
            if !clean.is_empty() {
                clean.push(b'/');
            }
            clean.extend_from_slice(part);
            ends.push(clean.len());
        }
        if ends.len() > MOST_NAMES {
            return refused("has more than 255 parts");
        }
        Ok(Self { text: clean, ends })
    }

    /// The last part; `None` for the root.
    pub(crate) fn name(&self) -> Option<&OsStr> {
        let start = self.text.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
        (!self.text.is_empty()).then(|| OsStr::from_bytes(&self.text[start..]))
    }

    /// All but the last part.
    pub(crate) fn parent_bytes(&self) -> &[u8] {
        &self.text[..self.text.iter().rposition(|byte| *byte == b'/').unwrap_or(0)]
    }

    /// Each directory above, as a path from the root and its own name, from above.
    pub(crate) fn directories(&self) -> impl Iterator<Item = (&Path, &OsStr)> {
        let count = self.ends.len().saturating_sub(1);
        self.ends[..count].iter().scan(0, |start, end| {
            let name = OsStr::from_bytes(&self.text[*start..*end]);
            *start = end + 1;
            Some((Path::new(OsStr::from_bytes(&self.text[..*end])), name))
        })
    }

    /// The parts.
    pub(crate) fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.text.split(|byte| *byte == b'/')
    }

    /// For people.
    pub(crate) fn shown(&self) -> PathBuf {
        Path::new("/").join(OsStr::from_bytes(&self.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_and_what_leads_up_is_refused() {
        let path = TreePath::parse(b"//./a//b/./c/").unwrap();
        assert_eq!(path.shown(), Path::new("/a/b/c"));
        assert_eq!(path.name().unwrap(), "c");
        assert_eq!(path.parent_bytes(), b"a/b");
        let above: Vec<_> = path.directories().map(|(p, n)| (p.to_owned(), n.to_owned())).collect();
        assert_eq!(above, [("a".into(), "a".into()), ("a/b".into(), "b".into())]);
        let root = TreePath::parse(b"./").unwrap();
        assert!(root.name().is_none() && root.directories().next().is_none());
        for bad in [&b"../a"[..], b"a/../b", b"a/..", b"..", b"a\0b", &[b'x'; 300], &b"a/".repeat(300)] {
            assert!(TreePath::parse(bad).is_err());
        }
        assert!(TreePath::parse(&b"aaaa/".repeat(900)).is_err(), "too long");
    }
}
