//! `/sandboxes`: making, looking at, changing, moving and destroying them.

use axum::Json as JsonReply;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use sandbox::Start;
use types::{Owner, SandboxName};

use crate::ask;
use crate::auth::{Caller, Whose};
use crate::extract::{Json, Params};
use crate::refusal::Refusal;
use crate::router::App;
use crate::{snapshots, tell};

/// How often another name is made up when somebody was faster in taking it.
pub(crate) const NAME_ATTEMPTS: usize = 8;

/// Lists sandboxes.
#[utoipa::path(
    get, path = "/sandboxes", tag = "sandboxes",
    params(("label" = Option<Vec<String>>, Query, description = "KEY=VALUE; repeated filters must all match")),
    responses((status = 200, body = Vec<api::Sandbox>), (status = 400, body = api::ErrorBody))
)]
pub(crate) async fn list(
    State(app): State<App>,
    Whose(owner): Whose,
    mut query: Params,
) -> Result<JsonReply<Vec<api::Sandbox>>, Refusal> {
    let labels = ask::label_filters(query.all("label"))?;
    query.done()?;
    Ok(JsonReply(app.host.list(owner.as_ref(), &labels).into_iter().map(tell::sandbox).collect()))
}

/// Creates a sandbox, fresh or `from` another or a snapshot. One that exists under this name with the same shape is
/// returned unchanged (200).
#[utoipa::path(
    post, path = "/sandboxes", tag = "sandboxes",
    request_body = api::CreateRequest,
    responses(
        (status = 201, description = "Created", body = api::SandboxReply),
        (status = 200, description = "It was there already", body = api::SandboxReply),
        (status = 400, body = api::ErrorBody), (status = 404, description = "No such image; nothing to start from", body = api::ErrorBody),
        (status = 409, description = "The name is taken by another shape; or `strict` and only the slow path is left", body = api::ErrorBody),
        (status = 503, description = "Busy, or not set up", body = api::ErrorBody), (status = 507, body = api::ErrorBody),
    )
)]
pub(crate) async fn create(
    State(app): State<App>,
    Caller(owner): Caller,
    Json(request): Json<api::CreateRequest>,
) -> Result<(StatusCode, JsonReply<api::SandboxReply>), Refusal> {
    if let Some(from) = request.from.clone() {
        return snapshots::create_from(&app, &owner, request, &from).await;
    }
    let report = match &request.name {
        Some(name) => {
            let name = name.parse()?;
            create_as(&app, request, name, owner).await?
        }
        None => create_with_free_name(&app, request, owner).await?,
    };
    let status = if report.created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, JsonReply(tell::report(report))))
}

async fn create_as(
    app: &App,
    request: api::CreateRequest,
    name: SandboxName,
    owner: Owner,
) -> Result<sandbox::Report, Refusal> {
    Ok(app.host.create(ask::create(request, name, owner)?).await?)
}

/// Somebody else may take the made-up name first; their sandbox must not be handed out as a new one.
async fn create_with_free_name(
    app: &App,
    request: api::CreateRequest,
    owner: Owner,
) -> Result<sandbox::Report, Refusal> {
    for _ in 0..NAME_ATTEMPTS {
        let name = app.host.free_name(&owner);
        let report = create_as(app, request.clone(), name, owner.clone()).await?;
        if report.created {
            return Ok(report);
        }
    }
    Err(no_free_name())
}

/// Somebody else was faster in taking each name that was made up.
pub(crate) fn no_free_name() -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "no free name was found").hint("give a `name`")
}

/// One sandbox.
#[utoipa::path(
    get, path = "/sandboxes/{id}", tag = "sandboxes",
    params(("id" = String, Path, description = "Name or id")),
    responses((status = 200, body = api::Sandbox), (status = 404, body = api::ErrorBody))
)]
pub(crate) async fn inspect(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(id): Path<String>,
) -> Result<JsonReply<api::Sandbox>, Refusal> {
    Ok(JsonReply(tell::sandbox(app.host.inspect(&owner, &id)?)))
}

/// Changes name, labels or `keep_hot`.
#[utoipa::path(
    patch, path = "/sandboxes/{id}", tag = "sandboxes",
    params(("id" = String, Path, description = "Name or id")),
    request_body = api::EditRequest,
    responses(
        (status = 200, body = api::Sandbox), (status = 400, body = api::ErrorBody),
        (status = 404, body = api::ErrorBody), (status = 409, description = "The name is taken", body = api::ErrorBody),
    )
)]
pub(crate) async fn edit(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(id): Path<String>,
    Json(request): Json<api::EditRequest>,
) -> Result<JsonReply<api::Sandbox>, Refusal> {
    Ok(JsonReply(tell::sandbox(app.host.edit(&owner, &id, ask::edit(request)?).await?)))
}

/// Destroys a sandbox with everything that it owns.
#[utoipa::path(
    delete, path = "/sandboxes/{id}", tag = "sandboxes",
    params(("id" = String, Path, description = "Name or id")),
    responses((status = 204, description = "Gone"), (status = 404, body = api::ErrorBody))
)]
pub(crate) async fn destroy(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    app.host.destroy(&owner, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Puts a sandbox to sleep: its memory goes to disk, its machine ends. One that sleeps is left alone.
#[utoipa::path(
    post, path = "/sandboxes/{id}/stop", tag = "sandboxes",
    params(("id" = String, Path, description = "Name or id")),
    request_body = api::StopRequest,
    responses(
        (status = 200, body = api::SandboxReply), (status = 404, body = api::ErrorBody),
        (status = 503, description = "Busy", body = api::ErrorBody), (status = 507, body = api::ErrorBody),
    )
)]
pub(crate) async fn stop(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(id): Path<String>,
    Json(api::StopRequest {}): Json<api::StopRequest>,
) -> Result<JsonReply<api::SandboxReply>, Refusal> {
    Ok(JsonReply(tell::report(app.host.stop(&owner, &id).await?)))
}

/// Wakes a sandbox. One that runs is left alone.
#[utoipa::path(
    post, path = "/sandboxes/{id}/start", tag = "sandboxes",
    params(("id" = String, Path, description = "Name or id")),
    request_body = api::StartRequest,
    responses(
        (status = 200, body = api::SandboxReply), (status = 404, body = api::ErrorBody),
        (status = 409, description = "A damaged memory image; or `strict` and only the slow path is left", body = api::ErrorBody),
        (status = 503, description = "Busy", body = api::ErrorBody), (status = 504, body = api::ErrorBody),
    )
)]
pub(crate) async fn start(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(id): Path<String>,
    Json(request): Json<api::StartRequest>,
) -> Result<JsonReply<api::SandboxReply>, Refusal> {
    let api::StartRequest { discard_memory, strict } = request;
    Ok(JsonReply(tell::report(app.host.start(&owner, &id, Start { discard_memory, strict }).await?)))
}

/// The sessions of a sandbox: its init command, shells and detached commands.
#[utoipa::path(
    get, path = "/sandboxes/{id}/sessions", tag = "exec",
    params(("id" = String, Path, description = "Name or id")),
    responses((status = 200, body = Vec<api::Session>), (status = 404, body = api::ErrorBody))
)]
pub(crate) async fn sessions(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(id): Path<String>,
) -> Result<JsonReply<Vec<api::Session>>, Refusal> {
    Ok(JsonReply(app.host.sessions(&owner, &id).await?.into_iter().map(tell::session).collect()))
}
