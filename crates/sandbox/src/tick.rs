//! Looking at a sandbox every now and then, by its owner, and doing what `thermal` decides.
//!
//! Each owner has its own clock: what is decided about one sandbox, and done, waits for no other.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use types::{ThermalTimes, Timestamp};

use crate::actor::{Actor, Start, no_machine};
use crate::error::Result;
use crate::state::State;
use crate::thermal::{Action, BUSY_PERCENT, Decision, Facts, LoadMeter, Reason, decide};
use crate::view::DecisionView;

/// How long a guest may take to say what runs in it.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How long a guest in which commands run, or that does not answer, is not asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// How long nothing is tried after a pause or a stop that failed.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// What an owner remembers between two looks.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// The next look; `None` before the first.
    next: Option<Instant>,
    load: LoadMeter,
    not_before: Option<Instant>,
    /// What the guest last said of its detached commands, and until when that is good enough.
    commands: Option<(Option<usize>, Instant)>,
    last: Option<(Decision, Timestamp)>,
    /// The sessions of a guest that is paused, as it told them before.
    pub(crate) sessions: Option<Vec<wire::SessionInfo>>,
}

impl Watch {
    /// When to look next: never at what has no machine.
    pub(crate) fn next_look(&mut self, state: State) -> Option<Instant> {
        match state {
            State::Hot | State::Warm => Some(*self.next.get_or_insert_with(Instant::now)),
            State::Off | State::Cold | State::Broken | State::Gone => None,
        }
    }

    pub(crate) fn last_decision(&self) -> Option<DecisionView> {
        self.last.map(|(decision, at)| DecisionView {
            action: decision.action.as_str(),
            reason: decision.reason.to_string(),
            at,
        })
    }

    /// Whether it is another one than last time, not counting its numbers.
    fn is_news(&self, decision: Decision) -> bool {
        self.last
            .is_none_or(|(last, _)| last.action != decision.action || !last.reason.alike(decision.reason))
    }
}

impl Actor {
    /// Looks at the sandbox, decides, and does it.
    pub(crate) async fn look(&mut self) {
        let now = Instant::now();
        self.watch.next = Some(now + self.services.config.thermal.tick);
        let facts = self.facts(now, false);
        self.decide_and_act(facts, now).await;
    }

    /// Goes to sleep unless somebody uses it or its guest is busy; whether it did.
    pub(crate) async fn relieve(&mut self) -> bool {
        let now = Instant::now();
        let facts = self.facts(now, true);
        self.decide_and_act(facts, now).await;
        self.state == State::Cold
    }

    async fn decide_and_act(&mut self, mut facts: Facts, now: Instant) {
        let times = self.times();
        let mut decision = decide(&facts, now, times, BUSY_PERCENT);
        if decision.action == Action::Ask {
            // Only this task gives leases: nobody begins anything while the guest answers.
            let running = self.running_commands().await;
            facts.commands = running;
            decision = decide(&facts, now, times, BUSY_PERCENT);
            self.watch.commands = match running {
                Some(0) => None,
                running => Some((running, Instant::now() + ASK_AGAIN_AFTER)),
            };
        } else if decision.reason == Reason::CommandsUnknown {
            decision.action = Action::Stay;
        }
        if decision.reason.is_work() {
            self.shared.activity.touch();
        }
        self.note(decision);
        if let Err(error) = self.carry_out(decision).await {
            self.watch.not_before = Some(Instant::now() + TRY_AGAIN_AFTER);
            tracing::warn!(error = %error.with_causes(), sandbox = %self.manifest.name, "could not {}: {}", decision.action.as_str(), decision.reason);
        }
    }

    async fn carry_out(&mut self, decision: Decision) -> Result<()> {
        match decision.action {
            Action::Stay | Action::Ask => return Ok(()),
            Action::Pause => {
                self.pause(true).await?;
                self.event("paused", json!({ "why": decision.reason.to_string() }));
            }
            Action::Sleep => drop(self.stop().await?),
        }
        Ok(())
    }

    fn facts(&mut self, now: Instant, short_of_memory: bool) -> Facts {
        let (leases, idle_since) = (self.shared.activity.leases(), self.shared.activity.idle_since());
        let hot = self.running.as_ref().filter(|_| self.state == State::Hot);
        // A machine that cannot be looked at is one that ends; that is told elsewhere.
        let load = hot.filter(|_| leases == 0).and_then(|running| running.machine.cpu_time().ok());
        let load = load.and_then(|cpu| self.watch.load.sample(now, cpu, idle_since));
        let fresh = |(_, until): &(Option<usize>, Instant)| now < *until;
        Facts {
            state: self.state,
            keep_hot: self.manifest.keep_hot,
            leases,
            idle_since,
            load,
            commands: self.watch.commands.filter(fresh).and_then(|(commands, _)| commands),
            short_of_memory,
            not_before: self.watch.not_before,
        }
    }

    /// Remembers a decision, and says what is new in it.
    fn note(&mut self, decision: Decision) {
        let (name, action, reason) = (&self.manifest.name, decision.action.as_str(), decision.reason);
        if !self.watch.is_news(decision) {
            // The numbers of the day before are no lie, and those of now are better.
            if let Some((last, _)) = &mut self.watch.last
                && *last != decision
            {
                *last = decision;
                self.publish();
            }
            return;
        }
        match decision.action {
            Action::Stay | Action::Ask => tracing::debug!(sandbox = %name, action, "{reason}"),
            Action::Pause | Action::Sleep => tracing::info!(sandbox = %name, action, "{reason}"),
        }
        self.watch.last = Some((decision, Timestamp::now()));
        self.publish();
    }

    /// How many detached commands run in the guest; `None` when it does not say.
    async fn running_commands(&self) -> Option<usize> {
        let sessions = self.ask_sessions().await?;
        let open = |session: &&wire::SessionInfo| {
            session.exit.is_none() && (session.attached || session.kind == wire::SessionKind::Exec)
        };
        Some(sessions.iter().filter(open).count())
    }

    /// The sessions of a guest that runs, if it answers in time.
    pub(crate) async fn ask_sessions(&self) -> Option<Vec<wire::SessionInfo>> {
        let guest = &self.running.as_ref()?.guest;
        match tokio::time::timeout(ANSWER_WITHIN, guest.sessions()).await {
            Ok(Ok(sessions)) => Some(sessions),
            Ok(Err(error)) => {
                tracing::debug!(%error, sandbox = %self.manifest.name, "its guest did not say what runs in it");
                None
            }
            Err(_elapsed) => None,
        }
    }

    /// The sessions, without waking what is paused.
    pub(crate) async fn sessions(&mut self) -> Result<Vec<wire::SessionInfo>> {
        if self.state == State::Warm
            && let Some(sessions) = &self.watch.sessions
        {
            return Ok(sessions.clone());
        }
        self.ensure_hot(Start::default()).await?;
        self.shared.activity.touch();
        let guest = self.running.as_ref().ok_or_else(no_machine)?.guest.clone();
        Ok(guest.sessions().await?)
    }

    /// When it is paused and put to sleep.
    pub(crate) fn times(&self) -> ThermalTimes {
        self.manifest.thermal.over(self.services.config.thermal.times)
    }
}
