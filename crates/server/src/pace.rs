//! How much one user may ask for: requests a second, by class, and connections at a time.
//!
//! The admin is not held back: who can restart the daemon needs no protection from themselves.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use sandbox::{Bucket, Pace};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use types::Owner;

use crate::auth::restrained;
use crate::cord::Cord;
use crate::metrics::class;
use crate::refusal::Refusal;

/// The bounds for each user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserPace {
    /// Requests of any kind.
    pub requests: Pace,
    /// Requests that make, change or end something.
    pub changes: Pace,
    /// Connections at a time, and so answers, shells and tunnels under way.
    pub connections: usize,
}

impl UserPace {
    /// Nobody is held back.
    pub const NONE: Self = Self {
        requests: Pace { rate: 0, burst: 0 },
        changes: Pace { rate: 0, burst: 0 },
        connections: Semaphore::MAX_PERMITS,
    };
}

/// What each user has left.
#[derive(Debug)]
pub(crate) struct Paces {
    bounds: UserPace,
    /// Held for a look only.
    users: Mutex<HashMap<Owner, User>>,
}

#[derive(Debug)]
struct User {
    requests: Bucket,
    changes: Bucket,
    connections: Arc<Semaphore>,
}

impl Paces {
    pub(crate) fn new(bounds: UserPace) -> Self {
        Self { bounds, users: Mutex::default() }
    }

    fn of<T>(&self, owner: &Owner, look: impl FnOnce(&mut User) -> T) -> T {
        let UserPace { requests, changes, connections } = self.bounds;
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        look(users.entry(owner.clone()).or_insert_with(|| User {
            requests: Bucket::new(requests),
            changes: Bucket::new(changes),
            connections: Arc::new(Semaphore::new(connections)),
        }))
    }

    /// Lets a request through, or says which bound it meets.
    fn admit(&self, owner: &Owner, changes: bool, now: Instant) -> Result<(), Refusal> {
        let UserPace { requests: all, changes: few, .. } = self.bounds;
        let (pace, what) = self.of(owner, |user| match user.requests.take(all, now) {
            false => (Some(all), "requests"),
            true if changes && !user.changes.take(few, now) => (Some(few), "changes"),
            true => (None, ""),
        });
        match pace {
            None => Ok(()),
            Some(pace) => Err(too_many(format!(
                "{owner} asks for more than {} {what} a second ({} at once)",
                pace.rate, pace.burst
            ))
            .hint("try again in a second")),
        }
    }

    /// A place among the user's connections.
    fn seat(&self, owner: &Owner) -> Result<OwnedSemaphorePermit, Refusal> {
        let connections = self.of(owner, |user| Arc::clone(&user.connections));
        connections.try_acquire_owned().map_err(|_| {
            too_many(format!("{owner} has {} connections open", self.bounds.connections))
                .hint("close some, or use one for more than one request")
        })
    }
}

fn too_many(message: String) -> Refusal {
    Refusal::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", message)
}

/// Holds users to their pace.
pub(crate) async fn pace(
    State(paces): State<Arc<Paces>>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    if let Some(owner) = restrained(request.extensions()) {
        let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
        let changes = *request.method() != Method::GET && class(request.method(), path) == "change";
        paces.admit(owner, changes, Instant::now())?;
        if let Some(cord) = request.extensions().get::<Cord>() {
            cord.sit(|| paces.seat(owner))?;
        }
    }
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn each_user_has_a_pace_of_their_own_by_class_and_a_number_of_connections() {
        let pace = |rate, burst| Pace { rate, burst };
        let paces = Paces::new(UserPace { requests: pace(10, 5), changes: pace(1, 2), connections: 2 });
        let (alice, bob): (Owner, Owner) = ("alice".parse().unwrap(), "bob".parse().unwrap());
        let now = Instant::now();
        let ask = |who, changes| paces.admit(who, changes, now).map_err(|refusal| refusal.detail().message);
        let outcomes: Vec<bool> = (0..3).map(|_| ask(&alice, true).is_ok()).collect();
        assert_eq!(outcomes, [true, true, false]);
        assert!(ask(&alice, true).unwrap_err().contains("1 changes a second"));
        assert!(ask(&alice, false).is_ok());
        assert!(ask(&alice, false).unwrap_err().contains("10 requests a second"));
        assert!(ask(&bob, true).is_ok());

        let seats = (paces.seat(&alice).unwrap(), paces.seat(&alice).unwrap());
        assert_eq!(paces.seat(&alice).unwrap_err().status(), StatusCode::TOO_MANY_REQUESTS);
        assert!(paces.seat(&bob).is_ok());
        drop(seats);
        assert!(paces.seat(&alice).is_ok());
    }
}
