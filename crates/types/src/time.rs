//! Points in time as text that sorts.

use serde::{Deserialize, Serialize};

/// Milliseconds since 1970-01-01T00:00:00Z; RFC 3339 with milliseconds when shown or stored as JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The host's wall clock now.
    #[must_use]
    pub fn now() -> Self {
        Self(jiff::Timestamp::now().as_millisecond())
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let time = jiff::Timestamp::from_millisecond(self.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        write!(f, "{time:.3}")
    }
}

impl From<Timestamp> for String {
    fn from(time: Timestamp) -> Self {
        time.to_string()
    }
}

impl TryFrom<String> for Timestamp {
    type Error = jiff::Error;
    fn try_from(text: String) -> Result<Self, jiff::Error> {
        Ok(Self(text.parse::<jiff::Timestamp>()?.as_millisecond()))
    }
}

/// From where on somebody wants to know what happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// After the event of that number.
    Number(u64),
    /// From that time on.
    Time(Timestamp),
}

impl std::str::FromStr for Since {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(number) = text.parse() {
            return Ok(Self::Number(number));
        }
        let time = Timestamp::try_from(text.to_owned());
        time.map(Self::Time).map_err(|_| {
            format!("{text:?} is neither the number of an event nor a time such as 2026-11-25T19:00:00Z")
        })
    }
}

impl std::fmt::Display for Since {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Time(time) => time.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_is_a_number_or_a_time() {
        assert_eq!("17".parse(), Ok(Since::Number(17)));
        let time = Since::Time(Timestamp(1_700_000_000_000));
        for text in ["2023-11-14T22:13:20Z", "2023-11-14T23:13:20+01:00"] {
            assert_eq!(text.parse(), Ok(time), "{text}");
        }
        assert_eq!(time.to_string().parse(), Ok(time));
        for bad in ["", "-1", "x", "yesterday", "2023-11-14", "18446744073709551616"] {
            assert!(bad.parse::<Since>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn timestamps_survive_being_written_down() {
        let time = Timestamp(1_700_000_000_123);
        assert_eq!(time.to_string(), "2023-11-14T22:13:20.123Z");
        assert_eq!(Timestamp::try_from(time.to_string()).unwrap(), time);
    }
}
