//! `/volumes/{name}/backups`, `/restore` and `/schedule`: backups of volumes.

use std::convert::Infallible;

use axum::Json as JsonReply;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use sandbox::{BackupId, BackupPlace, BackupProgress, Keep, Listed, PruneReport, Summary};
use serde::Serialize;
use tokio::sync::mpsc;
use types::VolumeName;

use crate::auth::Caller;
use crate::exec::{ndjson, wants_ndjson};
use crate::extract::{Json, Params};
use crate::refusal::Refusal;
use crate::router::App;
use crate::tell;

/// How many reports of progress may wait for a slow client; what comes then is dropped.
const BACKLOG: usize = 16;

/// Lists a volume's backups, oldest first; also of a volume that is gone. A damaged one is in the list and says so.
#[utoipa::path(
    get, path = "/volumes/{name}/backups", tag = "volumes",
    params(("name" = String, Path, description = "Name of the volume"),
        ("from" = Option<String>, Query, description = "Another store than this host's, by URL. For the admin only")),
    responses(
        (status = 200, body = Vec<api::Backup>), (status = 400, body = api::ErrorBody),
        (status = 404, body = api::ErrorBody),
        (status = 503, description = "The store cannot be reached or refuses", body = api::ErrorBody),
    )
)]
pub(crate) async fn list(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(name): Path<String>,
    mut params: Params,
) -> Result<JsonReply<Vec<api::Backup>>, Refusal> {
    let name: VolumeName = name.parse()?;
    let from = params.text("from")?;
    params.done()?;
    let listed = app.host.volume_backups(&owner, &name, place(from)).await?;
    Ok(JsonReply(listed.into_iter().map(|one| told(&name, one)).collect()))
}

/// Backs a volume up as it is at this moment, attached or not. Only what the store does not have is sent. A client that
/// goes away calls it off, and there is no backup then.
#[utoipa::path(
    post, path = "/volumes/{name}/backups", tag = "volumes",
    params(("name" = String, Path, description = "Name of the volume")),
    request_body = api::BackupRequest,
    responses(
        (status = 201, description = "The backup; as lines (200), how far it is comes before it",
         content((api::BackupReply = "application/json"), (api::BackupEvent = "application/x-ndjson"))),
        (status = 400, body = api::ErrorBody), (status = 404, body = api::ErrorBody),
        (status = 503, description = "Another backup of it is under way, or the store cannot be reached", body = api::ErrorBody),
        (status = 507, body = api::ErrorBody),
    )
)]
pub(crate) async fn create(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(request): Json<api::BackupRequest>,
) -> Result<Response, Refusal> {
    let name: VolumeName = name.parse()?;
    let to = place(request.to);
    let drain = app.drain.begun();
    let work = move |progress: Box<dyn Fn(BackupProgress) + Send + Sync>| async move {
        tokio::select! {
            report = app.host.volume_backup(&owner, &name, to, progress) => Ok(backup_reply(report?)),
            () = drain.cancelled_owned() => Err(shutting_down("backup")),
        }
    };
    if !wants_ndjson(&headers) {
        let reply = work(Box::new(|_| {})).await?;
        return Ok((StatusCode::CREATED, JsonReply(reply)).into_response());
    }
    Ok(followed(work, |step| match step {
        Step::Progress(progress) => api::BackupEvent::Progress(progress),
        Step::Done(reply) => api::BackupEvent::Backup(reply),
        Step::Failed(refusal) => api::BackupEvent::Error(refusal.detail()),
    }))
}

/// Puts a volume back to what a backup holds; makes it where it is gone. Everything is read and compared first, and the
/// volume is as before if anything is wrong.
#[utoipa::path(
    post, path = "/volumes/{name}/restore", tag = "volumes",
    params(("name" = String, Path, description = "Name of the volume")),
    request_body = api::RestoreRequest,
    responses(
        (status = 200, description = "The volume; as lines, how far it is comes before it",
         content((api::RestoreReply = "application/json"), (api::RestoreEvent = "application/x-ndjson"))),
        (status = 400, body = api::ErrorBody), (status = 404, body = api::ErrorBody),
        (status = 409, description = "`volume_busy`: a sandbox has it; `corrupt`, `conflict`: what is wrong with the backup", body = api::ErrorBody),
        (status = 503, description = "The store cannot be reached or refuses", body = api::ErrorBody),
        (status = 507, body = api::ErrorBody),
    )
)]
pub(crate) async fn restore(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(request): Json<api::RestoreRequest>,
) -> Result<Response, Refusal> {
    let name: VolumeName = name.parse()?;
    let id = id(&request.backup)?;
    let from = place(request.from);
    let drain = app.drain.begun();
    let work = move |progress: Box<dyn Fn(BackupProgress) + Send + Sync>| async move {
        tokio::select! {
            report = app.host.volume_restore(&owner, &name, &id, from, progress) => Ok(restore_reply(report?)),
            () = drain.cancelled_owned() => Err(shutting_down("restore")),
        }
    };
    if !wants_ndjson(&headers) {
        return Ok(JsonReply(work(Box::new(|_| {})).await?).into_response());
    }
    Ok(followed(work, |step| match step {
        Step::Progress(progress) => api::RestoreEvent::Progress(progress),
        Step::Done(reply) => api::RestoreEvent::Restored(Box::new(reply)),
        Step::Failed(refusal) => api::RestoreEvent::Error(refusal.detail()),
    }))
}

/// Removes one backup, damaged or not, and what only it needed.
#[utoipa::path(
    delete, path = "/volumes/{name}/backups/{id}", tag = "volumes",
    params(("name" = String, Path, description = "Name of the volume"), ("id" = String, Path, description = "Id of the backup"),
        ("from" = Option<String>, Query, description = "Another store than this host's, by URL. For the admin only")),
    responses(
        (status = 200, body = api::BackupPruneReply), (status = 400, body = api::ErrorBody),
        (status = 404, body = api::ErrorBody),
        (status = 503, description = "A backup of the volume is under way, or the store cannot be reached", body = api::ErrorBody),
    )
)]
pub(crate) async fn delete(
    State(app): State<App>,
    Caller(owner): Caller,
    Path((name, backup)): Path<(String, String)>,
    mut params: Params,
) -> Result<JsonReply<api::BackupPruneReply>, Refusal> {
    let from = params.text("from")?;
    params.done()?;
    let report = app.host.volume_backup_delete(&owner, &name.parse()?, &id(&backup)?, place(from)).await?;
    Ok(JsonReply(prune_reply(report, false)))
}

/// Removes the backups that are not to be kept, and what only they needed.
#[utoipa::path(
    post, path = "/volumes/{name}/backups/prune", tag = "volumes",
    params(("name" = String, Path, description = "Name of the volume")),
    request_body = api::BackupPruneRequest,
    responses(
        (status = 200, body = api::BackupPruneReply),
        (status = 400, description = "Nothing would be kept", body = api::ErrorBody), (status = 404, body = api::ErrorBody),
        (status = 503, description = "A backup of the volume is under way, or the store cannot be reached", body = api::ErrorBody),
    )
)]
pub(crate) async fn prune(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(name): Path<String>,
    Json(request): Json<api::BackupPruneRequest>,
) -> Result<JsonReply<api::BackupPruneReply>, Refusal> {
    let api::BackupPruneRequest { last, daily, weekly, dry_run, from } = request;
    let keep = Keep { last, daily, weekly };
    let report = app.host.volume_backup_prune(&owner, &name.parse()?, keep, dry_run, place(from)).await?;
    Ok(JsonReply(prune_reply(report, dry_run)))
}

/// Backs the volume up by itself from now on, and keeps so many backups.
#[utoipa::path(
    put, path = "/volumes/{name}/schedule", tag = "volumes",
    params(("name" = String, Path, description = "Name of the volume")),
    request_body = api::ScheduleRequest,
    responses(
        (status = 200, body = api::Volume),
        (status = 400, description = "No time that ever comes, or nothing is kept", body = api::ErrorBody),
        (status = 404, body = api::ErrorBody),
    )
)]
pub(crate) async fn schedule(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(name): Path<String>,
    Json(request): Json<api::ScheduleRequest>,
) -> Result<JsonReply<api::Volume>, Refusal> {
    let wish = Some((request.cron.as_str(), request.keep));
    Ok(JsonReply(tell::volume(app.host.volume_schedule(&owner, &name.parse()?, wish).await?)))
}

/// Backs the volume up by itself no more; its backups stay.
#[utoipa::path(
    delete, path = "/volumes/{name}/schedule", tag = "volumes",
    params(("name" = String, Path, description = "Name of the volume")),
    responses((status = 200, body = api::Volume), (status = 404, body = api::ErrorBody))
)]
pub(crate) async fn unschedule(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(name): Path<String>,
) -> Result<JsonReply<api::Volume>, Refusal> {
    Ok(JsonReply(tell::volume(app.host.volume_schedule(&owner, &name.parse()?, None).await?)))
}

/// What is told of work that is followed.
enum Step<T> {
    Progress(api::BackupProgress),
    Done(T),
    Failed(Refusal),
}

/// Does `work` while the answer is read, a line for each step.
fn followed<T, E, W>(
    work: impl FnOnce(Box<dyn Fn(BackupProgress) + Send + Sync>) -> W,
    line: impl Fn(Step<T>) -> E + Copy + Send + 'static,
) -> Response
where
    T: Send + 'static,
    E: Serialize,
    W: Future<Output = Result<T, Refusal>> + Send + 'static,
{
    let (tell, told) = mpsc::channel(BACKLOG);
    // One that does not fit is followed by another.
    let work = Box::pin(work(Box::new(move |progress| {
        let _ = tell.try_send(progress);
    })));
    let lines = stream::unfold(Some((work, told)), move |state| async move {
        let (mut work, mut told) = state?;
        let (step, rest) = tokio::select! {
            biased;
            Some(progress) = told.recv() => (Step::Progress(progress_reply(progress)), Some((work, told))),
            ended = &mut work => (ended.map_or_else(Step::Failed, Step::Done), None),
        };
        let mut text = serde_json::to_vec(&line(step)).unwrap_or_default();
        text.push(b'\n');
        Some((Ok::<_, Infallible>(Bytes::from(text)), rest))
    });
    ndjson(Body::from_stream(lines))
}

fn shutting_down(what: &str) -> Refusal {
    Refusal::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "shutting_down",
        format!("the daemon is shutting down, so the {what} was called off"),
    )
}

fn place(url: Option<String>) -> BackupPlace {
    url.map_or(BackupPlace::Usual, BackupPlace::At)
}

fn id(text: &str) -> Result<BackupId, Refusal> {
    text.parse().map_err(|error: sandbox::BackupIdError| {
        Refusal::bad_request(error.to_string()).hint("`bhatti volume backups V` lists them")
    })
}

fn progress_reply(progress: BackupProgress) -> api::BackupProgress {
    api::BackupProgress {
        done_bytes: progress.done.0,
        total_bytes: progress.total.0,
        moved_bytes: progress.moved.0,
    }
}

fn backup(summary: Summary) -> api::Backup {
    api::Backup {
        id: summary.id.into(),
        volume: summary.volume.into(),
        created_at: Some(summary.created_at.to_string()),
        size_bytes: Some(summary.size.0),
        data_bytes: Some(summary.data.0),
        sent_bytes: Some(summary.sent.0),
        error: None,
    }
}

fn told(volume: &VolumeName, listed: Listed) -> api::Backup {
    match listed.manifest {
        Ok(summary) => backup(summary),
        Err(error) => api::Backup {
            id: listed.id.into(),
            volume: volume.to_string(),
            created_at: None,
            size_bytes: None,
            data_bytes: None,
            sent_bytes: None,
            error: Some(error.message()),
        },
    }
}

fn backup_reply(report: sandbox::BackupReport) -> api::BackupReply {
    api::BackupReply {
        backup: backup(report.summary),
        store: report.store,
        chunks: report.chunks,
        new_chunks: report.new_chunks,
        moved_bytes: report.moved.0,
        clone: report.clone.to_string(),
        stall_ms: report.stall.map(tell::milliseconds),
        timings_ms: tell::timings(&report.timings),
    }
}

fn restore_reply(report: sandbox::RestoreReport) -> api::RestoreReply {
    api::RestoreReply {
        volume: tell::volume(report.view),
        backup: backup(report.summary),
        created: report.created,
        moved_bytes: report.moved.0,
        timings_ms: tell::timings(&report.timings),
    }
}

fn prune_reply(report: PruneReport, dry_run: bool) -> api::BackupPruneReply {
    let ids = |ids: Vec<BackupId>| ids.into_iter().map(String::from).collect();
    api::BackupPruneReply {
        dry_run,
        kept: ids(report.plan.keep),
        removed: ids(report.plan.remove),
        removed_chunks: report.chunks,
        freed_bytes: report.freed.0,
        unreadable: report.unreadable.iter().map(ToString::to_string).collect(),
    }
}
