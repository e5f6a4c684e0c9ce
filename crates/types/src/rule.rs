//! When an idle sandbox is paused and put to sleep: what the host says, and what one sandbox says instead.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::spec::InvalidSpec;

/// Seconds without work after which something is done, or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct After(u32);

impl After {
    /// It is not done.
    pub const NEVER: Self = Self(u32::MAX);

    /// After so many seconds; the largest number is [`After::NEVER`].
    #[must_use]
    pub const fn seconds(seconds: u32) -> Self {
        Self(seconds)
    }

    /// The number of seconds, unless never.
    #[must_use]
    pub const fn as_seconds(self) -> Option<u32> {
        if self.0 == u32::MAX { None } else { Some(self.0) }
    }

    /// The time, unless never.
    #[must_use]
    pub fn duration(self) -> Option<Duration> {
        self.as_seconds().map(|seconds| Duration::from_secs(seconds.into()))
    }
}

impl fmt::Display for After {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_seconds() {
            Some(seconds) => write!(f, "{seconds}"),
            None => f.write_str("never"),
        }
    }
}

impl FromStr for After {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        if text == "never" {
            return Ok(Self::NEVER);
        }
        text.parse().map(Self).map_err(|_not_a_number| InvalidSpec {
            message: format!("{text:?} is neither a number of seconds nor `never`"),
            hint: "give whole seconds, such as 30, or `never`".to_owned(),
        })
    }
}

/// When an idle sandbox is paused and put to sleep. Both times are counted from the end of the last work in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThermalTimes {
    /// Until it is paused.
    pub warm_after: After,
    /// Until it is put to sleep; at least `warm_after`.
    pub cold_after: After,
    /// Whether it is done also to a guest that is busy by itself.
    pub sleep_busy: bool,
}

impl Default for ThermalTimes {
    fn default() -> Self {
        Self { warm_after: After(30), cold_after: After(1800), sleep_busy: false }
    }
}

/// What one sandbox says in place of its host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ThermalRule {
    /// Seconds until it is paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_after: Option<After>,
    /// Seconds until it is put to sleep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cold_after: Option<After>,
    /// Whether it is done also while its guest is busy by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sleep_busy: Option<bool>,
}

impl ThermalRule {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What holds for this sandbox. A host that was started anew with other times may leave a rule that contradicts
    /// them: then nothing sleeps before it is paused.
    #[must_use]
    pub fn over(&self, host: ThermalTimes) -> ThermalTimes {
        let warm_after = self.warm_after.unwrap_or(host.warm_after);
        ThermalTimes {
            warm_after,
            cold_after: self.cold_after.unwrap_or(host.cold_after).max(warm_after),
            sleep_busy: self.sleep_busy.unwrap_or(host.sleep_busy),
        }
    }

    /// Refuses a rule by which a sandbox would be put to sleep before it is paused.
    ///
    /// # Errors
    /// With both numbers.
    pub fn check(&self, host: ThermalTimes) -> Result<(), InvalidSpec> {
        let (warm, cold) =
            (self.warm_after.unwrap_or(host.warm_after), self.cold_after.unwrap_or(host.cold_after));
        if cold >= warm {
            return Ok(());
        }
        Err(InvalidSpec {
            message: format!(
                "it would be put to sleep after {cold} s, and paused only after {warm}: cold-after is shorter than warm-after"
            ),
            hint: format!("give a cold-after of {warm} or more"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_of_seconds_or_never() {
        for (text, seconds) in [("0", Some(0)), ("30", Some(30)), ("never", None)] {
            let after: After = text.parse().unwrap();
            assert_eq!((after.as_seconds(), after.to_string()), (seconds, text.to_owned()));
        }
        for bad in ["", "-1", "1.5", "soon", "99999999999", "30s"] {
            assert!(bad.parse::<After>().unwrap_err().hint.contains("never"), "{bad}");
        }
        assert!(After::NEVER > After::seconds(u32::MAX - 1));
    }

    #[test]
    fn what_a_sandbox_says_goes_before_what_its_host_says() {
        let host = ThermalTimes::default();
        assert_eq!(ThermalRule::default().over(host), host);
        let rule = ThermalRule { warm_after: Some(After(5)), sleep_busy: Some(true), ..Default::default() };
        let times = rule.over(host);
        assert_eq!((times.warm_after, times.cold_after, times.sleep_busy), (After(5), After(1800), true));
    }

    #[test]
    fn nothing_is_put_to_sleep_before_it_is_paused() {
        let host = ThermalTimes::default();
        let rule = |warm, cold| ThermalRule { warm_after: warm, cold_after: cold, sleep_busy: None };
        for (rule, fine) in [
            (rule(None, None), true),
            (rule(Some(After(1800)), None), true),
            (rule(Some(After(1801)), None), false),
            (rule(Some(After::NEVER), None), false),
            (rule(Some(After::NEVER), Some(After::NEVER)), true),
            (rule(None, Some(After(29))), false),
            (rule(Some(After(0)), Some(After(0))), true),
        ] {
            assert_eq!(rule.check(host).is_ok(), fine, "{rule:?}");
            let times = rule.over(host);
            assert!(times.cold_after >= times.warm_after);
        }
    }
}
