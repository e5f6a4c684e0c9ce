//! `GET /events`: what happened and what happens, as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::{Stream, stream};
use sandbox::{EventView, Host};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use types::Owner;

use crate::auth::Whose;
use crate::extract::Params;
use crate::refusal::Refusal;
use crate::router::App;
use crate::tell;

/// How many kept events are read at a time.
const PAGE: u32 = 500;

/// Streams events: kept ones after `since`, then new ones as they happen.
///
/// Each event has its number as SSE id, so that a client that lost its connection can go on with `Last-Event-ID`, which
/// counts for more than `since`.
/// Without `since`, a following stream begins with the next event and one that does not follow with the first kept.
#[utoipa::path(
    get, path = "/events", tag = "host",
    params(
        ("since" = Option<String>, Query, description = "Number of the last event that is known, or a time (RFC 3339) from which on to tell"),
        ("follow" = Option<bool>, Query, description = "Wait for new events (default true)"),
    ),
    responses(
        (status = 200, description = "An Event per message", body = api::Event, content_type = "text/event-stream"),
        (status = 400, body = api::ErrorBody),
    )
)]
pub(crate) async fn events(
    State(app): State<App>,
    Whose(owner): Whose,
    headers: HeaderMap,
    mut query: Params,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refusal> {
    let follow = query.switch("follow")?.unwrap_or(true);
    let resumed = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let asked = query.since("since")?;
    query.done()?;
    // Subscribed before the first page is read, so that nothing falls between the two.
    let live = app.host.subscribe();
    let asked = asked.filter(|_| resumed.is_none()).map(|since| app.host.events_after(since)).transpose()?;
    let since = resumed.or(asked);
    let feed = Feed {
        replay: since.is_some() || !follow,
        last: since.unwrap_or(0),
        host: app.host,
        owner,
        follow,
        live,
        page: VecDeque::new(),
        leave: app.drain.begun(),
    };
    let messages = stream::unfold(feed, |mut feed| async move {
        let event = feed.next().await?;
        Some((Ok(message(event)), feed))
    });
    Ok(Sse::new(messages).keep_alive(KeepAlive::default()))
}

fn message(event: EventView) -> Event {
    let event = tell::event(event);
    Event::default().id(event.seq.to_string()).data(serde_json::to_string(&event).unwrap_or_default())
}

struct Feed {
    host: Host,
    /// Whose events these are; everybody's if nobody's name is here.
    owner: Option<Owner>,
    live: Receiver<EventView>,
    page: VecDeque<EventView>,
    last: u64,
    /// Whether kept events after `last` are still to be read.
    replay: bool,
    follow: bool,
    leave: CancellationToken,
}

impl Feed {
    fn wants(&self, event: &EventView) -> bool {
        self.owner.as_ref().is_none_or(|owner| event.owner == *owner)
            && (event.seq > self.last || event.seq == 0)
    }

    async fn next(&mut self) -> Option<EventView> {
        loop {
            if let Some(event) = self.page.pop_front() {
                self.last = self.last.max(event.seq);
                return Some(event);
            }
            if self.replay {
                match self.host.events_since(self.owner.as_ref(), self.last, PAGE) {
                    Ok(page) => {
                        self.replay = !page.is_empty();
                        self.page = page.into();
                    }
                    Err(error) => {
                        tracing::error!("events could not be read: {}", error.with_causes());
                        return None;
                    }
                }
                continue;
            }
            if !self.follow {
                return None;
            }
            tokio::select! {
                () = self.leave.cancelled() => return None,
                event = self.live.recv() => match event {
                    // Number 0 is an event that could not be kept.
                    Ok(event) if self.wants(&event) => {
                        self.page.push_back(event);
                    }
                    Ok(_) => {}
                    // A slow client catches up from the kept ones; if it has seen none yet, what it missed is gone.
                    Err(RecvError::Lagged(_)) => self.replay = self.last > 0,
                    Err(RecvError::Closed) => return None,
                },
            }
        }
    }
}
