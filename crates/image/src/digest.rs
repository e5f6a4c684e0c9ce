//! SHA-256 digests, by which registries and archives name what they hold.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::Error;

/// A digest in the form `sha256:<64 hex digits>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha256Digest(String);

impl Sha256Digest {
    pub(crate) fn from_bytes(hash: &[u8]) -> Self {
        use fmt::Write as _;
        let hex = hash.iter().fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        Self(hex)
    }

    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self::from_bytes(&Sha256::digest(bytes))
    }

    /// The digits alone: safe as a file's name.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0
    }

    /// The first 12 digits, for people.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl fmt::Display for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

impl FromStr for Sha256Digest {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let hex = text.strip_prefix("sha256:").filter(|hex| {
            hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        });
        match hex {
            Some(hex) => Ok(Self(hex.to_owned())),
            None => {
                let shown: String = text.chars().take(80).collect();
                let why = format!("the digest {shown:?} is not of the form sha256:<64 hex digits>");
                Err(Error::input("use", std::path::Path::new("the image"), why))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_sha256_and_nothing_that_leads_elsewhere() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Sha256Digest::of(b"").to_string(), empty);
        assert_eq!(empty.parse::<Sha256Digest>().unwrap(), Sha256Digest::of(b""));
        let upper = empty.to_uppercase();
        for bad in ["", "sha256:", "sha512:00", "sha256:../../etc/passwd", &empty[7..], upper.as_str()] {
            assert!(bad.parse::<Sha256Digest>().is_err(), "{bad}");
        }
    }
}
