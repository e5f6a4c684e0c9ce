//! `/tasks`: long work, followed and called off.

use std::convert::Infallible;

use axum::Json as JsonReply;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use futures_util::stream;

use crate::auth::{Caller, Whose};
use crate::exec::{ndjson, wants_ndjson};
use crate::extract::Params;
use crate::refusal::Refusal;
use crate::router::App;
use crate::tell;

/// The caller's tasks, the newest first. Those that ended long ago are forgotten.
#[utoipa::path(get, path = "/tasks", tag = "tasks", responses((status = 200, body = Vec<api::Task>)))]
pub(crate) async fn list(
    State(app): State<App>,
    Whose(owner): Whose,
    query: Params,
) -> Result<JsonReply<Vec<api::Task>>, Refusal> {
    query.done()?;
    Ok(JsonReply(app.host.tasks(owner.as_ref())?.into_iter().map(tell::task).collect()))
}

/// One task; as lines it is followed until it has ended.
#[utoipa::path(
    get, path = "/tasks/{id}", tag = "tasks", params(("id" = String, Path, description = "Id")),
    responses(
        (status = 200, description = "As it is; as lines, as it changes, the last being its end",
         content((api::Task = "application/json"), (api::Task = "application/x-ndjson"))),
        (status = 404, body = api::ErrorBody),
    )
)]
pub(crate) async fn inspect(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(id): Path<String>,
    query: Params,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    query.done()?;
    let mut state = app.host.follow_task(&owner, &id)?;
    if !wants_ndjson(&headers) {
        let task = state.borrow().clone();
        return Ok(JsonReply(tell::task(task)).into_response());
    }
    state.mark_changed();
    let lines = stream::unfold(Some(state), |state| async move {
        let mut state = state?;
        state.changed().await.ok()?;
        let task = state.borrow_and_update().clone();
        let ended = task.status.is_final();
        let mut line = serde_json::to_vec(&tell::task(task)).unwrap_or_default();
        line.push(b'\n');
        Some((Ok::<_, Infallible>(Bytes::from(line)), (!ended).then_some(state)))
    });
    Ok(ndjson(Body::from_stream(lines)))
}

/// Calls a task off and waits until it has ended; one that had ended stays as it is.
#[utoipa::path(
    delete, path = "/tasks/{id}", tag = "tasks", params(("id" = String, Path, description = "Id")),
    responses((status = 200, description = "As it ended", body = api::Task), (status = 404, body = api::ErrorBody))
)]
pub(crate) async fn cancel(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(id): Path<String>,
    query: Params,
) -> Result<JsonReply<api::Task>, Refusal> {
    query.done()?;
    Ok(JsonReply(tell::task(app.host.cancel_task(&owner, &id).await?)))
}
