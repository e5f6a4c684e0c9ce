//! `/snapshots`, and making sandboxes out of sandboxes: snapshot, resume, fork, create `from`.

use axum::Json as JsonReply;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use sandbox::ErrorKind;
use types::{Owner, SandboxName, SnapshotName};

use crate::ask::{self, Copy};
use crate::auth::{Caller, Whose};
use crate::extract::Json;
use crate::refusal::Refusal;
use crate::router::App;
use crate::sandboxes::{NAME_ATTEMPTS, no_free_name};
use crate::tell;

/// Makes a named snapshot of a sandbox. One that runs goes on; it stands still for `timings_ms.pause`. Commands and
/// streams under way do not notice. A caller who goes away does not call it off.
#[utoipa::path(
    post, path = "/sandboxes/{id}/snapshots", tag = "snapshots",
    params(("id" = String, Path, description = "Name or id")),
    request_body = api::SnapshotRequest,
    responses(
        (status = 201, description = "Made, durably", body = api::SnapshotReply),
        (status = 400, body = api::ErrorBody), (status = 404, body = api::ErrorBody),
        (status = 409, description = "The name is taken, or the sandbox is broken", body = api::ErrorBody),
        (status = 503, description = "Busy", body = api::ErrorBody),
        (status = 507, description = "Nothing is left; the sandbox goes on", body = api::ErrorBody),
    )
)]
pub(crate) async fn create(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(id): Path<String>,
    Json(request): Json<api::SnapshotRequest>,
) -> Result<(StatusCode, JsonReply<api::SnapshotReply>), Refusal> {
    let report = app.host.snapshot_create(&owner, &id, ask::snapshot(request)?).await?;
    Ok((StatusCode::CREATED, JsonReply(tell::snapshot_report(report))))
}

/// Lists snapshots by name.
#[utoipa::path(
    get, path = "/snapshots", tag = "snapshots",
    responses((status = 200, body = Vec<api::Snapshot>))
)]
pub(crate) async fn list(
    State(app): State<App>,
    whose: Whose,
) -> Result<JsonReply<Vec<api::Snapshot>>, Refusal> {
    let mut snapshots = Vec::new();
    for owner in whose.owners(&app.host) {
        snapshots.extend(app.host.snapshots(&owner).await?.into_iter().map(tell::snapshot));
    }
    Ok(JsonReply(snapshots))
}

/// One snapshot.
#[utoipa::path(
    get, path = "/snapshots/{name}", tag = "snapshots",
    params(("name" = String, Path, description = "Name")),
    responses(
        (status = 200, body = api::Snapshot), (status = 400, body = api::ErrorBody),
        (status = 404, body = api::ErrorBody), (status = 409, description = "It is damaged", body = api::ErrorBody),
    )
)]
pub(crate) async fn inspect(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(name): Path<String>,
) -> Result<JsonReply<api::Snapshot>, Refusal> {
    Ok(JsonReply(tell::snapshot(app.host.snapshot(&owner, &snapshot_name(&name)?).await?)))
}

/// Removes a snapshot. Sandboxes that were made from it keep what they need.
#[utoipa::path(
    delete, path = "/snapshots/{name}", tag = "snapshots",
    params(("name" = String, Path, description = "Name")),
    responses(
        (status = 204, description = "Gone"), (status = 400, body = api::ErrorBody),
        (status = 404, body = api::ErrorBody),
        (status = 503, description = "Something is being made from it", body = api::ErrorBody),
    )
)]
pub(crate) async fn delete(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    app.host.snapshot_delete(&owner, &snapshot_name(&name)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a sandbox of a snapshot: it goes on where its source was, as itself. One of a disk alone boots.
#[utoipa::path(
    post, path = "/snapshots/{name}/resume", tag = "snapshots",
    params(("name" = String, Path, description = "Name")),
    request_body = api::ResumeRequest,
    responses(
        (status = 201, description = "Made", body = api::SandboxReply),
        (status = 400, body = api::ErrorBody), (status = 404, body = api::ErrorBody),
        (status = 409, description = "The name is taken; the snapshot is damaged; or `strict` and only the slow path is left", body = api::ErrorBody),
        (status = 503, description = "Busy", body = api::ErrorBody), (status = 507, body = api::ErrorBody),
    )
)]
pub(crate) async fn resume(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(name): Path<String>,
    Json(request): Json<api::ResumeRequest>,
) -> Result<(StatusCode, JsonReply<api::SandboxReply>), Refusal> {
    let snapshot = snapshot_name(&name)?;
    let api::ResumeRequest { name, labels, keep_hot, disk_size_mb, strict } = request;
    let copy = Copy::new(labels, keep_hot, disk_size_mb, strict)?;
    let report = resume_as(&app, &owner, &snapshot, name.as_deref(), copy).await?;
    Ok((StatusCode::CREATED, JsonReply(tell::report(report))))
}

/// Makes live copies of a sandbox, which goes on. All of them are made, or none.
#[utoipa::path(
    post, path = "/sandboxes/{id}/fork", tag = "snapshots",
    params(("id" = String, Path, description = "Name or id")),
    request_body = api::ForkRequest,
    responses(
        (status = 201, description = "Made; the first copy is also told at the top", body = api::ForkReply),
        (status = 400, body = api::ErrorBody), (status = 404, body = api::ErrorBody),
        (status = 409, description = "A name is taken; the sandbox is broken; or `strict` and only the slow path is left", body = api::ErrorBody),
        (status = 503, description = "Busy", body = api::ErrorBody), (status = 507, body = api::ErrorBody),
    )
)]
pub(crate) async fn fork(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(id): Path<String>,
    Json(request): Json<api::ForkRequest>,
) -> Result<(StatusCode, JsonReply<api::ForkReply>), Refusal> {
    let api::ForkRequest { name, count, labels, keep_hot, disk_size_mb, strict } = request;
    let count = ask::copies(count)?;
    let copy = Copy::new(labels, keep_hot, disk_size_mb, strict)?;
    let reports = fork_as(&app, &owner, &id, name.as_deref(), count, copy).await?;
    let sandboxes: Vec<_> = reports.into_iter().map(tell::report).collect();
    let first = sandboxes.first().cloned().ok_or_else(|| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "a fork made no sandbox")
    })?;
    Ok((StatusCode::CREATED, JsonReply(api::ForkReply { first, sandboxes })))
}

/// `POST /sandboxes` with `from`: one fork of a sandbox, or the resume of a snapshot.
pub(crate) async fn create_from(
    app: &App,
    owner: &Owner,
    request: api::CreateRequest,
    from: &str,
) -> Result<(StatusCode, JsonReply<api::SandboxReply>), Refusal> {
    ask::only_what_a_copy_takes(&request)?;
    let api::CreateRequest { name, labels, keep_hot, disk_size_mb, strict, .. } = request;
    let copy = Copy::new(labels, keep_hot, disk_size_mb, strict)?;
    let name = name.map(|name| name.parse::<SandboxName>()).transpose()?;
    let source = source(app, owner, from).await;
    if let Some(name) = &name
        && let Some(there) = there_already(app, owner, name)
    {
        return unchanged(there, source.as_ref().ok(), copy.disk_size);
    }
    let name = name.as_ref().map(SandboxName::as_str);
    let report = match source? {
        Source::Sandbox(view) => {
            let made = fork_as(app, owner, view.id.as_str(), name, 1, copy).await?;
            made.into_iter().next().ok_or_else(|| {
                Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "a fork made no sandbox")
            })?
        }
        Source::Snapshot(view) => resume_as(app, owner, &view.name, name, copy).await?,
    };
    Ok((StatusCode::CREATED, JsonReply(tell::report(report))))
}

/// What a sandbox may be made from.
enum Source {
    Sandbox(Box<sandbox::SandboxView>),
    Snapshot(Box<sandbox::SnapshotView>),
}

impl Source {
    /// Image, processors, memory: what a copy has in common with it.
    fn shape(&self) -> (&types::ImageName, u32, types::Mebibytes) {
        match self {
            Self::Sandbox(view) => (&view.image, view.cpus, view.memory),
            Self::Snapshot(view) => (&view.image, view.cpus, view.memory),
        }
    }
}

/// A sandbox of that name or id before a snapshot of that name before a sandbox whose id begins so.
async fn source(app: &App, owner: &Owner, from: &str) -> Result<Source, Refusal> {
    let found = app.host.inspect(owner, from);
    if let Ok(view) = &found
        && (view.name.as_str() == from || view.id.as_str() == from)
    {
        return Ok(Source::Sandbox(Box::new(view.clone())));
    }
    if let Ok(name) = from.parse::<SnapshotName>() {
        match app.host.snapshot(owner, &name).await {
            Ok(view) => return Ok(Source::Snapshot(Box::new(view))),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    match found {
        Ok(view) => Ok(Source::Sandbox(Box::new(view))),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let shown: String = from.chars().take(80).collect();
            let message = format!("there is neither a sandbox nor a snapshot {shown:?}");
            Err(Refusal::new(StatusCode::NOT_FOUND, "not_found", message)
                .hint("`bhatti list` and `bhatti snapshot list` show those that are there"))
        }
        Err(error) => Err(error.into()),
    }
}

/// The sandbox of exactly that name.
fn there_already(app: &App, owner: &Owner, name: &SandboxName) -> Option<sandbox::SandboxView> {
    app.host.inspect(owner, name.as_str()).ok().filter(|view| view.name == *name)
}

/// What a create of a name that exists gives: the sandbox unchanged, if it can be what was asked for.
fn unchanged(
    there: sandbox::SandboxView,
    source: Option<&Source>,
    disk_size: Option<types::Mebibytes>,
) -> Result<(StatusCode, JsonReply<api::SandboxReply>), Refusal> {
    let shape = (&there.image, there.cpus, there.memory);
    if source.is_some_and(|source| source.shape() != shape)
        || disk_size.is_some_and(|size| size != there.disk_size)
    {
        let message = format!("there is a sandbox named {} already, of another shape", there.name);
        return Err(Refusal::new(StatusCode::CONFLICT, ErrorKind::Conflict.code(), message)
            .hint("choose another name, or destroy that one first"));
    }
    let reply = api::SandboxReply {
        sandbox: tell::sandbox(there),
        changed: false,
        timings_ms: Default::default(),
        warnings: Vec::new(),
    };
    Ok((StatusCode::OK, JsonReply(reply)))
}

async fn resume_as(
    app: &App,
    owner: &Owner,
    snapshot: &SnapshotName,
    name: Option<&str>,
    copy: Copy,
) -> Result<sandbox::Report, Refusal> {
    for _ in 0..NAME_ATTEMPTS {
        let name_now = match name {
            Some(name) => name.parse()?,
            None => app.host.free_name(owner),
        };
        let made = app.host.snapshot_resume(owner, snapshot, copy.clone().resume(name_now.clone())).await;
        match made {
            Err(error) if name.is_none() && was_taken(app, owner, &[name_now], &error) => {}
            made => return Ok(made?),
        }
    }
    Err(no_free_name())
}

async fn fork_as(
    app: &App,
    owner: &Owner,
    which: &str,
    name: Option<&str>,
    count: u32,
    copy: Copy,
) -> Result<Vec<sandbox::Report>, Refusal> {
    for _ in 0..NAME_ATTEMPTS {
        let names = match name {
            Some(name) => ask::copy_names(name, count)?,
            None => ask::copy_names(app.host.free_name(owner).as_str(), count)?,
        };
        match app.host.fork(owner, which, copy.clone().fork(names.clone())).await {
            Err(error) if name.is_none() && was_taken(app, owner, &names, &error) => {}
            made => return Ok(made?),
        }
    }
    Err(no_free_name())
}

/// Whether a verb was refused because somebody else was faster in taking a name that was made up.
fn was_taken(app: &App, owner: &Owner, names: &[SandboxName], error: &sandbox::Error) -> bool {
    error.kind() == ErrorKind::Conflict && names.iter().any(|name| there_already(app, owner, name).is_some())
}

/// A snapshot's name in a path.
fn snapshot_name(text: &str) -> Result<SnapshotName, Refusal> {
    Ok(text.parse()?)
}
