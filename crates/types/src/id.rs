//! Identifiers: random for sandboxes and nonces, content hashes for what is shared.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is no identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an id of {1} lower-case hex digits")]
pub struct IdError(String, usize);

fn checked_hex(text: &str, digits: usize) -> Result<(), IdError> {
    let ok = text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if ok { Ok(()) } else { Err(IdError(text.chars().take(80).collect(), digits)) }
}

fn random_hex<const N: usize>() -> String {
    let mut raw = [0u8; N];
    // The kernel's generator fails only before the first boot entropy, which a daemon never meets.
    getrandom::fill(&mut raw).expect("the kernel's random generator answers");
    to_hex(&raw)
}

fn to_hex(raw: &[u8]) -> String {
    use fmt::Write as _;
    raw.iter().fold(String::with_capacity(raw.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $digits:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The hex digits.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                checked_hex(text, $digits).map(|()| Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                checked_hex(&text, $digits).map(|()| Self(text))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

hex_id!(
    /// A sandbox's id: 16 hex digits, random, never used again.
    SandboxId,
    16
);
hex_id!(
    /// A frozen disk layer's id: 16 hex digits, random, never used again.
    LayerId,
    16
);
hex_id!(
    /// A BLAKE3 hash as 64 hex digits: the name of an image's or a RAM base's content.
    ContentId,
    64
);
hex_id!(
    /// 32 random hex digits that tell one attachment, or one run of a guest, from every other.
    Nonce,
    32
);

hex_id!(
    /// A task's id: 16 hex digits, random, never used again.
    TaskId,
    16
);

impl TaskId {
    /// A fresh id from the kernel's random generator.
    #[must_use]
    pub fn random() -> Self {
        Self(random_hex::<8>())
    }
}

impl SandboxId {
    /// A fresh id from the kernel's random generator.
    #[must_use]
    pub fn random() -> Self {
        Self(random_hex::<8>())
    }
}

impl LayerId {
    /// A fresh id from the kernel's random generator.
    #[must_use]
    pub fn random() -> Self {
        Self(random_hex::<8>())
    }
}

impl Nonce {
    /// A fresh nonce from the kernel's random generator.
    #[must_use]
    pub fn random() -> Self {
        Self(random_hex::<16>())
    }
}

impl ContentId {
    /// The id for 32 bytes of hash.
    #[must_use]
    pub fn from_hash(hash: &[u8; 32]) -> Self {
        Self(to_hex(hash))
    }

    /// The first 12 digits, for people.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_hex_of_their_length_and_nothing_else() {
        assert!("0123456789abcdef".parse::<SandboxId>().is_ok());
        for bad in ["", "0123456789abcde", "0123456789ABCDEF", "../../etc/passwd", "0123456789abcdeg"] {
            assert!(bad.parse::<SandboxId>().is_err(), "{bad:?}");
        }
        assert_ne!(SandboxId::random(), SandboxId::random());
        assert_eq!(ContentId::from_hash(&[0xab; 32]).short(), "abababababab");
    }
}
