//! The one channel on which facts come back: kept in the index, and sent to whoever listens.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use meta::{Index, NewEvent};
use serde_json::Value;
use tokio::sync::broadcast;
use types::{Owner, SandboxId, SandboxName, Timestamp};

use crate::error::Result;
use crate::view::EventView;

/// How many events a slow listener may lag behind before it is told that it missed some.
const LISTENER_BACKLOG: usize = 1024;

#[derive(Debug)]
pub(crate) struct Events {
    index: Arc<Mutex<Index>>,
    listeners: broadcast::Sender<EventView>,
    /// How many of each kind since the daemon started.
    counts: Mutex<BTreeMap<String, u64>>,
}

impl Events {
    pub(crate) fn new(index: Arc<Mutex<Index>>) -> Self {
        Self { index, listeners: broadcast::Sender::new(LISTENER_BACKLOG), counts: Mutex::default() }
    }

    /// Notes that something happened to a sandbox. A full disk must not fail the verb that already happened, so a
    /// failure to keep the event is logged and the listeners still hear of it (with number 0).
    pub(crate) fn sandbox(
        &self,
        kind: &'static str,
        owner: &Owner,
        id: &SandboxId,
        name: &SandboxName,
        detail: Value,
    ) {
        self.note(NewEvent {
            at: Timestamp::now(),
            owner: owner.clone(),
            sandbox_id: Some(id.clone()),
            sandbox_name: Some(name.clone()),
            kind: format!("sandbox.{kind}"),
            detail,
        });
    }

    /// Notes that something happened that is no sandbox's; as [`Events::sandbox`].
    pub(crate) fn host(&self, kind: &'static str, owner: &Owner, detail: Value) {
        self.note(NewEvent {
            at: Timestamp::now(),
            owner: owner.clone(),
            sandbox_id: None,
            sandbox_name: None,
            kind: kind.to_owned(),
            detail,
        });
    }

    /// How many of each kind since the daemon started.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, new: NewEvent) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(new.kind.clone()).or_default() += 1;
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let event = match index.append_event(&new) {
            Ok(event) => event,
            Err(error) => {
                tracing::error!(%error, kind = %new.kind, "an event could not be kept");
                meta::Event { seq: 0, event: new }
            }
        };
        let about = &event.event;
        tracing::info!(
            kind = %about.kind,
            sandbox = about.sandbox_name.as_ref().map(tracing::field::display),
            id = about.sandbox_id.as_ref().map(tracing::field::display),
            detail = %about.detail,
            "event"
        );
        // Sent while the index is held, so that listeners hear events in the order of their numbers. That nobody
        // listens is no error.
        let _listeners = self.listeners.send(view(event));
    }

    pub(crate) fn since(&self, seq: u64, limit: u32, owner: Option<&Owner>) -> Result<Vec<EventView>> {
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(index.events_since(seq, limit, owner)?.into_iter().map(view).collect())
    }

    /// The number that all events from `at` on are above.
    pub(crate) fn last_before(&self, at: Timestamp) -> Result<u64> {
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(index.last_event_before(at)?)
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<EventView> {
        self.listeners.subscribe()
    }
}

fn view(event: meta::Event) -> EventView {
    let meta::Event { seq, event } = event;
    EventView {
        seq,
        at: event.at,
        kind: event.kind,
        sandbox: event.sandbox_id.zip(event.sandbox_name.map(String::from)),
        owner: event.owner,
        detail: event.detail,
    }
}
