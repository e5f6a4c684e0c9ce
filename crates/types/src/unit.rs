//! Units as types, so that pages, bytes and mebibytes cannot be taken for one another.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Size of a guest and host page in bytes. Both engines in use have 4 KiB base pages; a host with another page
/// size is refused by `doctor`.
pub const PAGE_SIZE: u64 = 4096;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// As mebibytes, rounded down.
    #[must_use]
    pub const fn floor_mib(self) -> Mebibytes {
        Mebibytes(self.0 >> 20)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u64); 4] =
            [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        for (unit, scale) in UNITS {
            if self.0 >= scale {
                return write!(f, "{}.{} {unit}", self.0 / scale, self.0 % scale * 10 / scale);
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// A number of mebibytes: how guests' memory and disks are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mebibytes(pub u64);

impl Mebibytes {
    /// The same size in bytes; `None` past 2^64.
    #[must_use]
    pub const fn checked_bytes(self) -> Option<Bytes> {
        match self.0.checked_mul(1 << 20) {
            Some(bytes) => Some(Bytes(bytes)),
            None => None,
        }
    }

    /// The same size in bytes, at most 2^64 - 1. Validated specs stay far below that.
    #[must_use]
    pub const fn bytes(self) -> Bytes {
        Bytes(self.0.saturating_mul(1 << 20))
    }
}

impl fmt::Display for Mebibytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// An offset into a machine's RAM block, in bytes. It is not a guest physical address: above the PCI hole the
/// two differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RamOffset(pub u64);

/// A run of RAM: `start` and `len` are multiples of [`PAGE_SIZE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRun {
    /// Where the run begins.
    pub start: RamOffset,
    /// How long it is.
    pub len: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        assert_eq!(Bytes(0).to_string(), "0 B");
        assert_eq!(Bytes(1023).to_string(), "1023 B");
        assert_eq!(Bytes(1536).to_string(), "1.5 KiB");
        assert_eq!(Bytes(512 << 10).to_string(), "512.0 KiB");
        assert_eq!(Bytes((2 << 40) - 1).to_string(), "1.9 TiB");
        assert_eq!(Bytes(1 << 30).to_string(), "1.0 GiB");
        assert_eq!(Mebibytes(512).bytes(), Bytes(512 << 20));
        assert_eq!(Mebibytes(u64::MAX).checked_bytes(), None);
    }
}
