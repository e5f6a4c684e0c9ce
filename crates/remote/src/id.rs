//! Names of backups: when they were made, and eight digits that tell apart what was made in the same second.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use types::Timestamp;

/// A backup's id, such as `20261125t192352-1a2b3c4d`. Ids sort by time (UTC), to the second.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupId(String);

/// Why a text is no id of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupIdError(String);

impl fmt::Display for BackupIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no id of a backup; they look like 20261125t192352-1a2b3c4d", self.0)
    }
}

impl std::error::Error for BackupIdError {}

impl BackupId {
    /// A fresh one.
    #[must_use]
    pub fn new(at: Timestamp) -> Self {
        let mut raw = [0u8; 4];
        // The kernel's generator fails only before the first boot entropy, which a daemon never meets.
        getrandom::fill(&mut raw).expect("the kernel's random generator answers");
        // 2026-11-25T19:23:52.123Z
        let time: String = at.to_string().chars().filter(char::is_ascii_digit).take(14).collect();
        let (day, time) = time.split_at(8);
        Self(format!("{day}t{time}-{:08x}", u32::from_le_bytes(raw)))
    }

    /// The part that says when, in whole seconds.
    pub(crate) fn second(&self) -> &str {
        &self.0[..15]
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BackupId {
    type Err = BackupIdError;
    fn from_str(text: &str) -> Result<Self, BackupIdError> {
        let bytes = text.as_bytes();
        let ok = bytes.len() == 24
            && bytes.iter().enumerate().all(|(at, byte)| match at {
                8 => *byte == b't',
                15 => *byte == b'-',
                0..=14 => byte.is_ascii_digit(),
                _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
            });
        if ok { Ok(Self(text.to_owned())) } else { Err(BackupIdError(text.chars().take(80).collect())) }
    }
}

impl TryFrom<String> for BackupId {
    type Error = BackupIdError;
    fn try_from(text: String) -> Result<Self, BackupIdError> {
        text.parse()
    }
}

impl From<BackupId> for String {
    fn from(id: BackupId) -> Self {
        id.0
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_say_when_and_nothing_that_a_path_could_mean() {
        let id = BackupId::new(Timestamp(1_700_000_000_123));
        assert!(id.as_str().starts_with("20231114t221320-"), "{id}");
        assert_eq!(id.as_str().parse(), Ok(id.clone()));
        assert!(BackupId::new(Timestamp(1_700_000_001_000)) > id);
        for bad in
            ["", "../../../../etc/passwd-x", "20231114T221320-00000000", "20231114t221320-0000000g", "1"]
        {
            assert!(bad.parse::<BackupId>().is_err(), "{bad}");
        }
    }
}
