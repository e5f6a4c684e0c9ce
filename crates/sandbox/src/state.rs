//! What a sandbox can be, and what each thing that happens makes of it.
//!
//! ```text
//!           Booted                 Paused
//!   Off ──────────────► Hot ◄──────────────► Warm
//!    ▲ ▲     Ended       │       Resumed      │
//!    │ └─────────────────┼────────────────────┤ Ended
//!    │                   │ Slept              │ Slept
//!    │ MemoryDiscarded   ▼                    │
//!    ├──────────────── Cold ◄─────────────────┘
//!    │                   │ Woken ──► Hot
//!    │ MemoryDiscarded   │ Damaged
//!    └──────────────── Broken
//!
//!   Destroyed leads from every state to Gone; nothing leads out of Gone.
//! ```
//!
//! # Invariants
//! - `Hot` and `Warm` have a machine, the others have none.
//! - `Cold` has a memory image that is valid for its disk; `Off` has none and boots from the disk.
//! - `Broken` has something on disk that must not be used; only discarding the memory or destroying leads out.

use types::Thermal;

/// The state of one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// No machine, no memory image: the next start boots from the disk.
    Off,
    /// No machine; a memory image to wake from.
    Cold,
    /// A machine that runs.
    Hot,
    /// A machine that is paused.
    Warm,
    /// Damaged on disk.
    Broken,
    /// Destroyed.
    Gone,
}

/// What happened to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Happening {
    /// A machine booted from the disk.
    Booted,
    /// A machine woke from the memory image, which is thereby consumed.
    Woken,
    /// The memory image is durable and the machine is gone.
    Slept,
    /// The processors were stopped.
    Paused,
    /// The processors go on.
    Resumed,
    /// The machine ended by itself: power-off, panic, a killed VMM.
    Ended,
    /// A file of the sandbox was found damaged.
    Damaged,
    /// The memory image was given up.
    MemoryDiscarded,
    /// Everything was removed.
    Destroyed,
}

impl State {
    /// The state after `what`; `None` where that cannot happen.
    pub(crate) const fn next(self, what: Happening) -> Option<Self> {
        use Happening as H;
        match (self, what) {
            (Self::Off, H::Booted) | (Self::Cold, H::Woken) | (Self::Warm, H::Resumed) => Some(Self::Hot),
            (Self::Hot, H::Paused) => Some(Self::Warm),
            (Self::Hot | Self::Warm, H::Slept) => Some(Self::Cold),
            (Self::Hot | Self::Warm, H::Ended) => Some(Self::Off),
            (Self::Off | Self::Cold, H::Damaged) => Some(Self::Broken),
            (Self::Off | Self::Cold | Self::Broken, H::MemoryDiscarded) => Some(Self::Off),
            (Self::Off | Self::Cold | Self::Hot | Self::Warm | Self::Broken, H::Destroyed) => {
                Some(Self::Gone)
            }
            (Self::Off, H::Woken | H::Slept | H::Paused | H::Resumed | H::Ended)
            | (Self::Cold, H::Booted | H::Slept | H::Paused | H::Resumed | H::Ended)
            | (Self::Hot, H::Booted | H::Woken | H::Resumed | H::Damaged | H::MemoryDiscarded)
            | (Self::Warm, H::Booted | H::Woken | H::Paused | H::Damaged | H::MemoryDiscarded)
            | (
                Self::Broken,
                H::Booted | H::Woken | H::Slept | H::Paused | H::Resumed | H::Ended | H::Damaged,
            )
            | (
                Self::Gone,
                H::Booted
                | H::Woken
                | H::Slept
                | H::Paused
                | H::Resumed
                | H::Ended
                | H::Damaged
                | H::MemoryDiscarded
                | H::Destroyed,
            ) => None,
        }
    }

    /// What users are told about its cost.
    pub(crate) const fn thermal(self) -> Thermal {
        match self {
            Self::Hot => Thermal::Hot,
            Self::Warm => Thermal::Warm,
            Self::Off | Self::Cold | Self::Broken | Self::Gone => Thermal::Cold,
        }
    }

    /// Whether a machine exists.
    #[cfg(test)]
    pub(crate) const fn has_machine(self) -> bool {
        matches!(self, Self::Hot | Self::Warm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 6] = [State::Off, State::Cold, State::Hot, State::Warm, State::Broken, State::Gone];
    const HAPPENINGS: [Happening; 9] = [
        Happening::Booted,
        Happening::Woken,
        Happening::Slept,
        Happening::Paused,
        Happening::Resumed,
        Happening::Ended,
        Happening::Damaged,
        Happening::MemoryDiscarded,
        Happening::Destroyed,
    ];

    #[test]
    fn every_pair_of_state_and_happening_keeps_the_promises() {
        for state in STATES {
            for what in HAPPENINGS {
                let next = state.next(what);
                match what {
                    // A memory image is used only where there is one, and none is left afterwards.
                    Happening::Woken => assert_eq!(next.is_some(), state == State::Cold),
                    // A boot from the disk never passes over a memory image.
                    Happening::Booted => assert_eq!(next.is_some(), state == State::Off),
                    // Only a machine can sleep, pause or end.
                    Happening::Slept | Happening::Ended => {
                        assert_eq!(next.is_some(), state.has_machine(), "{state:?} {what:?}");
                    }
                    Happening::Paused => assert_eq!(next.is_some(), state == State::Hot),
                    Happening::Resumed => assert_eq!(next.is_some(), state == State::Warm),
                    // Nothing is found damaged, or given up, under a running machine.
                    Happening::Damaged => assert!(!(next.is_some() && state.has_machine())),
                    Happening::MemoryDiscarded => {
                        assert_eq!(next.is_some(), !state.has_machine() && state != State::Gone);
                    }
                    Happening::Destroyed => assert_eq!(next.is_some(), state != State::Gone),
                }
                assert!(state != State::Gone || next.is_none(), "nothing leads out of Gone");
            }
        }
    }

    #[test]
    fn a_sandbox_that_lost_its_machine_boots_from_the_disk() {
        let crashed = State::Hot.next(Happening::Ended).unwrap();
        assert_eq!(crashed, State::Off);
        assert_eq!(crashed.next(Happening::Woken), None);
        assert_eq!(crashed.next(Happening::Booted), Some(State::Hot));
    }
}
