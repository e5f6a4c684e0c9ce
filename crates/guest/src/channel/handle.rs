//! What the holders of a stream have of the channel: the owner's end, and the way in.

use std::sync::Arc;

use tokio::sync::Notify;
use wire::{MAX_PAYLOAD, Message};

use super::{Core, DATA_ROOM, State};
use crate::error::{Error, ErrorKind, Result};
use crate::stream::{Stream, Told};

/// An open stream's owner. Dropped before the end, it tells the agent to cancel.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(super) core: Arc<Core>,
    pub(super) id: u32,
    pub(super) wake: Arc<Notify>,
    pub(super) op: &'static str,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let shared = &self.core.0;
        let mut state = shared.lock();
        let ended = state.streams.remove(&self.id).is_none_or(|stream| stream.ended());
        let fits = ended || shared.push_small(&mut state, self.id, &Message::Cancel);
        drop(state);
        self.wake.notify_waiters();
        shared.check(fits);
    }
}

impl Handle {
    pub(crate) fn op(&self) -> &'static str {
        self.op
    }

    /// The next thing the agent tells; `Ended` past its last word. Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Result<Told> {
        let (id, op, shared) = (self.id, self.op, &self.core.0);
        let mut fits = true;
        let told = shared.until(&self.wake, |state| {
            let stream = state.streams.get_mut(&id)?;
            let Some((told, grant)) = stream.take() else {
                let ended = stream.ended().then(|| Error::new(ErrorKind::Ended, op));
                return ended.or_else(|| state.broken(op)).map(Err);
            };
            if let Some(grant) = grant {
                fits = shared.push_small(state, id, &Message::Credit(grant));
            }
            Some(Ok(told))
        });
        let told = told.await;
        shared.check(fits);
        told
    }

    /// The sending half.
    pub(crate) fn input(&self) -> Input {
        Input { core: Arc::clone(&self.core), id: self.id, wake: Arc::clone(&self.wake), op: self.op }
    }
}

/// The way into an open stream. It outlives its stream harmlessly, and dropping it means nothing.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    core: Arc<Core>,
    id: u32,
    wake: Arc<Notify>,
    op: &'static str,
}

impl Input {
    /// Sends data as credit and room allow. Dropped on the way, it may have sent a part.
    pub(crate) async fn send(&self, data: &[u8]) -> Result<()> {
        let shared = &self.core.0;
        let mut rest = data;
        while !rest.is_empty() {
            // Two things to wait for, one after the other; the second look checks both.
            shared
                .until(&self.wake, |state| self.allowed(state).map_or(Some(()), |n| (n > 0).then_some(())))
                .await;
            let sent = shared.until(&shared.room, |state| {
                let allowed = match self.allowed(state) {
                    Ok(allowed) => allowed,
                    Err(error) => return Some(Err(error)),
                };
                if state.waiting() >= DATA_ROOM || state.detaching {
                    return None;
                }
                let len = usize::try_from(allowed).unwrap_or(MAX_PAYLOAD).min(MAX_PAYLOAD).min(rest.len());
                // Data fits its frame: this cannot fail. Another sender may have used the credit up: then 0.
                if len > 0
                    && state.push(self.id, &Message::Data(rest[..len].to_vec())).is_ok()
                    && let (Some(stream), Ok(len)) = (state.streams.get_mut(&self.id), u32::try_from(len))
                {
                    stream.sent(len);
                }
                Some(Ok(len))
            });
            rest = &rest[sent.await?..];
            shared.work.notify_one();
        }
        Ok(())
    }

    /// Credit for sending, or why nothing can be sent any more.
    fn allowed(&self, state: &State) -> Result<u32> {
        if let Some(error) = state.broken(self.op) {
            return Err(error);
        }
        let sendable = state.streams.get(&self.id).and_then(Stream::sendable);
        sendable.ok_or_else(|| Error::new(ErrorKind::Ended, self.op))
    }

    /// Says that no more data comes. Saying it twice, or after the end, is harmless.
    pub(crate) fn eof(&self) -> Result<()> {
        self.small(|stream| stream.eof().then_some(Message::Eof))
    }

    /// Sends a small message, unless the stream has ended.
    pub(crate) fn tell(&self, message: Message) -> Result<()> {
        self.small(|stream| (!stream.ended()).then_some(message))
    }

    fn small(&self, message: impl FnOnce(&mut Stream) -> Option<Message>) -> Result<()> {
        let shared = &self.core.0;
        let mut state = shared.lock();
        if let Some(error) = state.broken(self.op) {
            return Err(error);
        }
        let message = state.streams.get_mut(&self.id).and_then(message);
        let fits = message.is_none_or(|message| shared.push_small(&mut state, self.id, &message));
        drop(state);
        shared.check(fits);
        Ok(())
    }
}
