//! When a sandbox is paused and put to sleep by itself: a pure function of what is known of it.
//!
//! ```text
//!          idle for warm_after              idle for cold_after, or the host is short of memory
//!   Hot ─────────────────────────► Warm ─────────────────────────► Cold
//!    └──────────── idle for cold_after, or short of memory ───────────┘
//! ```
//!
//! # Invariants
//! - What has work in flight, or is to stay hot, is left alone whatever else is true.
//! - A warm sandbox is never asked anything: everything that is decided about it is known without its guest.
//! - A busy guest is left alone unless its rule says otherwise; a guest of which it is not known yet counts as busy.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;
use types::{After, ThermalTimes};

use crate::state::State;

/// From which share of one processor on a guest counts as busy, in percent. An idle one takes 1 to 5 under emulation.
pub(crate) const BUSY_PERCENT: u32 = 20;

/// How long at least the load is measured before it is believed.
const LOAD_WINDOW: Duration = Duration::from_secs(1);

/// How a host treats what is idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThermalConfig {
    /// When sandboxes without a rule of their own are paused and put to sleep.
    pub times: ThermalTimes,
    /// How often each sandbox is looked at.
    pub tick: Duration,
}

impl Default for ThermalConfig {
    fn default() -> Self {
        Self { times: ThermalTimes::default(), tick: Duration::from_secs(1) }
    }
}

/// What is known of one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) state: State,
    pub(crate) keep_hot: bool,
    /// Requests and attached sessions in flight.
    pub(crate) leases: usize,
    /// The end of the last work.
    pub(crate) idle_since: Instant,
    /// Percent of one processor that the guest took since; `None` while it has not been measured for long enough.
    pub(crate) load: Option<u32>,
    /// Detached commands that run; `None` when the guest was not asked.
    pub(crate) commands: Option<usize>,
    /// The host is short of memory, and this sandbox is next to give up its own.
    pub(crate) short_of_memory: bool,
    /// An attempt failed lately; until then none is made.
    pub(crate) not_before: Option<Instant>,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing.
    Stay,
    /// Ask the guest what runs in it, then decide again.
    Ask,
    /// Stop its processors.
    Pause,
    /// Write its memory and end its machine.
    Sleep,
}

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    NoMachine,
    KeepHot,
    InUse(usize),
    FailedLately,
    RecentlyUsed(After),
    PausedRecently(After),
    LoadUnknown,
    Busy(u32),
    CommandsUnknown,
    CommandsRun(usize),
    Idle(After),
    ShortOfMemory,
}

/// What is to be done, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) action: Action,
    pub(crate) reason: Reason,
}

/// Decides about one sandbox. `busy_percent` is the load from which on a guest counts as busy.
pub(crate) fn decide(facts: &Facts, now: Instant, times: ThermalTimes, busy_percent: u32) -> Decision {
    let stay = |reason| Decision { action: Action::Stay, reason };
    let hot = match facts.state {
        State::Off | State::Cold | State::Broken | State::Gone => return stay(Reason::NoMachine),
        State::Hot => true,
        State::Warm => false,
    };
    if facts.leases > 0 {
        return stay(Reason::InUse(facts.leases));
    }
    if facts.keep_hot {
        return stay(Reason::KeepHot);
    }
    if facts.not_before.is_some_and(|until| now < until) {
        return stay(Reason::FailedLately);
    }
    let idle = now.saturating_duration_since(facts.idle_since);
    let past = |after: After| after.duration().is_some_and(|after| idle >= after);
    let (action, reason) = if facts.short_of_memory {
        (Action::Sleep, Reason::ShortOfMemory)
    } else if past(times.cold_after) {
        (Action::Sleep, Reason::Idle(times.cold_after))
    } else if hot && past(times.warm_after) {
        (Action::Pause, Reason::Idle(times.warm_after))
    } else if hot {
        return stay(Reason::RecentlyUsed(times.warm_after));
    } else {
        return stay(Reason::PausedRecently(times.cold_after));
    };
    // What is paused does nothing, so only a running guest can be busy.
    if hot && !times.sleep_busy {
        match facts.load {
            None => return stay(Reason::LoadUnknown),
            Some(percent) if percent >= busy_percent => return stay(Reason::Busy(percent)),
            Some(_) => {}
        }
        match facts.commands {
            None => return Decision { action: Action::Ask, reason: Reason::CommandsUnknown },
            Some(0) => {}
            Some(running) => return stay(Reason::CommandsRun(running)),
        }
    }
    Decision { action, reason }
}

impl Action {
    /// The word for it in JSON.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Stay | Self::Ask => "stay",
            Self::Pause => "pause",
            Self::Sleep => "sleep",
        }
    }
}

impl Reason {
    /// Whether the guest works by itself: from its end on the times count.
    pub(crate) const fn is_work(self) -> bool {
        matches!(self, Self::Busy(_) | Self::CommandsRun(_))
    }

    /// Whether it is the same but for its numbers: then it is no news.
    pub(crate) fn alike(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMachine => f.write_str("it has no machine"),
            Self::KeepHot => f.write_str("it is to be kept hot"),
            Self::InUse(leases) => write!(f, "{leases} requests or sessions are in flight"),
            Self::FailedLately => f.write_str("an attempt failed lately; it is tried again later"),
            Self::RecentlyUsed(after) => write!(f, "it was in use less than {after} s ago"),
            Self::PausedRecently(after) => write!(f, "it is paused, and was in use less than {after} s ago"),
            Self::LoadUnknown => f.write_str("it is not known yet whether its guest is busy"),
            Self::Busy(percent) => write!(f, "its guest takes {percent} % of a processor by itself"),
            Self::CommandsUnknown => f.write_str("its guest did not say what runs in it"),
            Self::CommandsRun(running) => write!(f, "{running} detached commands run in it"),
            Self::Idle(after) => write!(f, "nobody used it for {after} s"),
            Self::ShortOfMemory => f.write_str("the host is short of memory"),
        }
    }
}

/// Measures how much processor time a guest takes while nobody works in it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LoadMeter {
    idle_since: Option<Instant>,
    /// The beginning of the window that is measured, and of the one before it.
    samples: [Option<(Instant, Duration)>; 2],
    percent: Option<u32>,
}

impl LoadMeter {
    /// Takes a sample: the processor time that the machine took in all its life. Work since the last one starts the
    /// measurement anew.
    pub(crate) fn sample(&mut self, now: Instant, cpu: Duration, idle_since: Instant) -> Option<u32> {
        if self.idle_since != Some(idle_since) {
            *self = Self { idle_since: Some(idle_since), samples: [None, Some((now, cpu))], percent: None };
        }
        let [before, begun] = self.samples;
        if let Some((at, spent)) = before.or(begun) {
            let wall = now.saturating_duration_since(at);
            if wall >= LOAD_WINDOW {
                let share = cpu.saturating_sub(spent).as_millis() * 100 / wall.as_millis().max(1);
                self.percent = Some(u32::try_from(share).unwrap_or(u32::MAX));
            }
        }
        if begun.is_some_and(|(at, _)| now.saturating_duration_since(at) >= LOAD_WINDOW) {
            self.samples = [begun, Some((now, cpu))];
        }
        self.percent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 6] = [State::Off, State::Cold, State::Hot, State::Warm, State::Broken, State::Gone];

    fn times(warm: u32, cold: u32, sleep_busy: bool) -> ThermalTimes {
        ThermalTimes { warm_after: After::seconds(warm), cold_after: After::seconds(cold), sleep_busy }
    }

    /// Every combination of everything that is looked at, with both times at 30 and 1800 seconds.
    fn combinations(now: Instant) -> Vec<(Facts, ThermalTimes)> {
        let mut all = Vec::new();
        for state in STATES {
            for bits in 0..32u32 {
                let is = |bit: u32| bits & (1 << bit) != 0;
                for idle in [0, 29, 30, 1799, 1800, 90_000] {
                    for load in [None, Some(0), Some(BUSY_PERCENT - 1), Some(BUSY_PERCENT), Some(400)] {
                        for commands in [None, Some(0), Some(2)] {
                            let facts = Facts {
                                state,
                                keep_hot: is(0),
                                leases: if is(1) { 3 } else { 0 },
                                idle_since: now.checked_sub(Duration::from_secs(idle)).unwrap(),
                                load,
                                commands,
                                short_of_memory: is(2),
                                not_before: is(3).then(|| now + Duration::from_secs(1)),
                            };
                            all.push((facts, times(30, 1800, is(4))));
                        }
                    }
                }
            }
        }
        all
    }

    #[test]
    fn every_combination_keeps_the_promises() {
        let now = Instant::now() + Duration::from_secs(100_000);
        for (facts, times) in combinations(now) {
            let Decision { action, reason } = decide(&facts, now, times, BUSY_PERCENT);
            let case = format!("{facts:?} {times:?}: {action:?} {reason:?}");
            let idle = (now - facts.idle_since).as_secs();
            let machine = facts.state.has_machine();
            let pinned = facts.leases > 0 || facts.keep_hot || facts.not_before.is_some();
            let wanted = match facts.state {
                _ if !machine || pinned => Action::Stay,
                _ if facts.short_of_memory || idle >= 1800 => Action::Sleep,
                State::Hot if idle >= 30 => Action::Pause,
                _ => Action::Stay,
            };
            let running = facts.state == State::Hot && !times.sleep_busy && wanted != Action::Stay;
            let expected = if running && facts.load.is_none_or(|load| load >= BUSY_PERCENT) {
                Action::Stay
            } else if running && facts.commands.is_none() {
                Action::Ask
            } else if running && facts.commands != Some(0) {
                Action::Stay
            } else {
                wanted
            };
            assert_eq!(action, expected, "{case}");
            assert!(!reason.to_string().is_empty() && !action.as_str().is_empty());
            // A warm guest is never asked.
            assert!(action != Action::Ask || facts.state == State::Hot, "{case}");
        }
    }

    #[test]
    fn the_reason_is_the_one_that_decided() {
        let now = Instant::now() + Duration::from_secs(100_000);
        let idle = Facts {
            state: State::Hot,
            keep_hot: false,
            leases: 0,
            idle_since: now - Duration::from_secs(60),
            load: Some(1),
            commands: Some(0),
            short_of_memory: false,
            not_before: None,
        };
        let reason = |facts: Facts, times| decide(&facts, now, times, BUSY_PERCENT).reason;
        let usual = times(30, 1800, false);
        let since = |seconds| now - Duration::from_secs(seconds);
        for (facts, times, expected) in [
            (idle, usual, Reason::Idle(After::seconds(30))),
            (Facts { state: State::Cold, ..idle }, usual, Reason::NoMachine),
            (Facts { keep_hot: true, ..idle }, usual, Reason::KeepHot),
            (Facts { keep_hot: true, leases: 2, ..idle }, usual, Reason::InUse(2)),
            (Facts { idle_since: since(3), ..idle }, usual, Reason::RecentlyUsed(After::seconds(30))),
            (Facts { state: State::Warm, ..idle }, usual, Reason::PausedRecently(After::seconds(1800))),
            (Facts { idle_since: since(1800), ..idle }, usual, Reason::Idle(After::seconds(1800))),
            (Facts { load: None, ..idle }, usual, Reason::LoadUnknown),
            (Facts { load: Some(55), ..idle }, usual, Reason::Busy(55)),
            (Facts { load: Some(55), ..idle }, times(30, 1800, true), Reason::Idle(After::seconds(30))),
            (Facts { commands: Some(1), ..idle }, usual, Reason::CommandsRun(1)),
            (Facts { commands: None, ..idle }, usual, Reason::CommandsUnknown),
            (Facts { short_of_memory: true, ..idle }, usual, Reason::ShortOfMemory),
            (Facts { not_before: Some(now + LOAD_WINDOW), ..idle }, usual, Reason::FailedLately),
            (idle, times(u32::MAX, u32::MAX, false), Reason::RecentlyUsed(After::NEVER)),
            (idle, times(0, 0, false), Reason::Idle(After::seconds(0))),
        ] {
            assert_eq!(reason(facts, times), expected, "{facts:?}");
        }
    }

    #[test]
    fn load_is_measured_over_idle_time_only() {
        let mut meter = LoadMeter::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let cpu = Duration::from_millis;
        assert_eq!(meter.sample(at(0), cpu(5000), start), None);
        assert_eq!(meter.sample(at(500), cpu(5400), start), None, "too short to be believed");
        assert_eq!(meter.sample(at(1000), cpu(5500), start), Some(50));
        assert_eq!(meter.sample(at(1001), cpu(5500), start), Some(49));
        // What was long ago is forgotten: only the last one or two windows count.
        assert_eq!(meter.sample(at(2000), cpu(5500), start), Some(25));
        assert_eq!(meter.sample(at(3000), cpu(5500), start), Some(0));
        // Somebody worked: what that took is not the guest's own.
        assert_eq!(meter.sample(at(3100), cpu(9000), at(3050)), None);
        assert_eq!(meter.sample(at(4100), cpu(9010), at(3050)), Some(1));
    }
}
