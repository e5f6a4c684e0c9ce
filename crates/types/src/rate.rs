//! How much may pass in a second.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::spec::InvalidSpec;

/// The least that a machine still works with.
const LEAST_BYTES: u64 = 64 << 10;
const LEAST_OPERATIONS: u64 = 20;

/// Bytes, and operations (of a disk) or packets (of a network), in a second; as text `BYTES[:OPERATIONS]`, `:OPERATIONS` or
/// `unlimited`, with K, M and G for powers of 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rate {
    bytes: Option<u64>,
    operations: Option<u64>,
}

impl Rate {
    /// Whatever the host can do.
    pub const UNLIMITED: Self = Self { bytes: None, operations: None };

    /// Bytes a second, if they are limited.
    #[must_use]
    pub const fn bytes(self) -> Option<u64> {
        self.bytes
    }

    /// Operations or packets a second, if they are limited.
    #[must_use]
    pub const fn operations(self) -> Option<u64> {
        self.operations
    }

    /// Whether nothing is limited.
    #[must_use]
    pub const fn is_unlimited(self) -> bool {
        self.bytes.is_none() && self.operations.is_none()
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self { bytes: None, operations: None } => f.write_str("unlimited"),
            Self { bytes, operations } => {
                if let Some(bytes) = bytes {
                    let units = [(1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
                    let unit = units.into_iter().find(|(size, _)| bytes % size == 0).unwrap_or((1, ""));
                    write!(f, "{}{}", bytes / unit.0, unit.1)?;
                }
                operations.map_or(Ok(()), |operations| write!(f, ":{operations}"))
            }
        }
    }
}

impl FromStr for Rate {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        if text == "unlimited" {
            return Ok(Self::UNLIMITED);
        }
        let wrong = |why: String| {
            InvalidSpec::new(
                format!("{text:?} is no rate: {why}"),
                "give bytes a second and perhaps operations or packets a second, such as 20M, 20M:1000 or :1000, or `unlimited`",
            )
        };
        let (bytes, operations) = text.split_once(':').map_or((text, None), |(a, b)| (a, Some(b)));
        let number = |word: &str, least: u64, what: &str| {
            let (digits, unit) = match word.char_indices().last() {
                Some((at, 'K' | 'k')) => (&word[..at], 1 << 10),
                Some((at, 'M' | 'm')) => (&word[..at], 1 << 20),
                Some((at, 'G' | 'g')) => (&word[..at], 1 << 30),
                _ => (word, 1),
            };
            let number: Option<u64> = digits.parse().ok().and_then(|number: u64| number.checked_mul(unit));
            match number {
                // The VMM counts in signed numbers.
                Some(number) if number > 1 << 50 => {
                    Err(wrong(format!("{word} is more than anything can do")))
                }
                Some(number) if number < least => {
                    Err(wrong(format!("a machine needs at least {least} {what}")))
                }
                Some(number) => Ok(number),
                None => Err(wrong(format!("{word:?} is no number"))),
            }
        };
        let bytes = match bytes {
            "" => None,
            word => Some(number(word, LEAST_BYTES, "bytes a second")?),
        };
        let operations = operations.map(|word| number(word, LEAST_OPERATIONS, "a second")).transpose()?;
        if bytes.is_none() && operations.is_none() {
            return Err(wrong("it limits nothing".to_owned()));
        }
        Ok(Self { bytes, operations })
    }
}

impl TryFrom<String> for Rate {
    type Error = InvalidSpec;

    fn try_from(text: String) -> Result<Self, InvalidSpec> {
        text.parse()
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> Self {
        rate.to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn rates_are_read_as_they_are_written_and_nonsense_is_refused() {
        for (text, bytes, operations) in [
            ("20M", Some(20 << 20), None),
            ("1G:500", Some(1 << 30), Some(500)),
            (":1000", None, Some(1000)),
            ("65537", Some(65537), None),
            ("unlimited", None, None),
        ] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!((rate.bytes(), rate.operations()), (bytes, operations), "{text}");
            assert_eq!(rate.to_string(), text);
        }
        assert_eq!(
            "2k:1K".parse::<Rate>().unwrap_err().message,
            "\"2k:1K\" is no rate: a machine needs at least 65536 bytes a second"
        );
        assert_eq!("128k:1K".parse::<Rate>().unwrap().to_string(), "128K:1024");
        for bad in [
            "",
            ":",
            "0",
            "-1",
            "20M:",
            "20M:0",
            "20MB",
            "1.5M",
            "M",
            "99999999999999999999",
            "9999999G",
            "20 M",
            "ä",
        ] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }
}
