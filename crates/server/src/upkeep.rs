//! `/fsck` and `/gc`: everything checked, and what nobody names removed.

use std::convert::Infallible;

use axum::Json as JsonReply;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use sandbox::{FsckProgress, FsckReport, Gc, Severity};
use tokio::sync::mpsc;

use crate::auth::Admin;
use crate::exec::{ndjson, wants_ndjson};
use crate::extract::Json;
use crate::refusal::Refusal;
use crate::router::App;

/// How many reports of progress may wait for a slow client; what comes then is dropped.
const BACKLOG: usize = 16;

/// Checks every manifest, checksum, base and reference. Reads everything, so it takes as long as the disk does. A client
/// that goes away calls it off.
#[utoipa::path(
    post, path = "/fsck", tag = "host",
    request_body = api::FsckRequest,
    responses(
        (status = 200, description = "What was found; as lines, how far it is comes before it",
         content((api::Fsck = "application/json"), (api::FsckEvent = "application/x-ndjson"))),
        (status = 400, body = api::ErrorBody),
        (status = 403, description = "Not the admin", body = api::ErrorBody),
    )
)]
pub(crate) async fn fsck(
    _admin: Admin,
    State(app): State<App>,
    headers: HeaderMap,
    Json(request): Json<api::FsckRequest>,
) -> Result<Response, Refusal> {
    if !wants_ndjson(&headers) {
        return Ok(JsonReply(checked(&app, request.repair, |_| {}).await?).into_response());
    }
    let (tell, told) = mpsc::channel(BACKLOG);
    let check = Box::pin(async move {
        // One that does not fit is followed by another.
        let progress = move |progress| drop(tell.try_send(progress));
        checked(&app, request.repair, progress).await
    });
    let lines = stream::unfold(Some((check, told)), |state| async move {
        let (mut check, mut told) = state?;
        let (event, rest) = tokio::select! {
            biased;
            Some(progress) = told.recv() => (event(progress), Some((check, told))),
            ended = &mut check => {
                let event = match ended {
                    Ok(report) => api::FsckEvent::Report(report),
                    Err(refusal) => api::FsckEvent::Error(refusal.detail()),
                };
                (event, None)
            }
        };
        Some((Ok::<_, Infallible>(line(&event)), rest))
    });
    Ok(ndjson(Body::from_stream(lines)))
}

/// Checks until it is done, or the daemon ends.
async fn checked(
    app: &App,
    repair: bool,
    progress: impl Fn(FsckProgress) + Send + 'static,
) -> Result<api::Fsck, Refusal> {
    tokio::select! {
        report = app.host.fsck(repair, progress) => Ok(fsck_reply(report?)),
        () = app.drain.begun().cancelled_owned() => Err(Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "shutting_down",
            "the daemon is shutting down, so the check was called off",
        )),
    }
}

fn event(progress: FsckProgress) -> api::FsckEvent {
    let FsckProgress { what, done, total } = progress;
    api::FsckEvent::Progress { what, done_bytes: done.0, total_bytes: total.0 }
}

fn line(event: &api::FsckEvent) -> Bytes {
    let mut text = serde_json::to_vec(event).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

/// Removes what no manifest names and no machine has open.
#[utoipa::path(
    post, path = "/gc", tag = "host",
    request_body = api::GcRequest,
    responses(
        (status = 200, body = api::Gc), (status = 400, body = api::ErrorBody),
        (status = 403, description = "Not the admin", body = api::ErrorBody),
    )
)]
pub(crate) async fn gc(
    _admin: Admin,
    State(app): State<App>,
    Json(request): Json<api::GcRequest>,
) -> Result<JsonReply<api::Gc>, Refusal> {
    Ok(JsonReply(gc_reply(app.host.gc(request.dry_run).await?)))
}

/// A check, as it is told.
#[must_use]
pub fn fsck_reply(report: FsckReport) -> api::Fsck {
    let [errors, warnings, notes] =
        [Severity::Error, Severity::Warning, Severity::Note].map(|severity| report.left(severity));
    let findings = report.findings.into_iter().map(|finding| api::Finding {
        severity: finding.severity.as_str().to_owned(),
        kind: finding.subject.kind().to_owned(),
        name: finding.subject.name(),
        path: finding.path.display().to_string(),
        what: finding.what,
        way_out: finding.way_out,
        needed_by: finding.needed_by,
        repair: finding.repair.map(|repair| repair.says().to_owned()),
        outcome: finding.outcome.map(|outcome| match outcome {
            sandbox::Outcome::Done(what) => what,
            sandbox::Outcome::Failed(why) => format!("failed: {why}"),
        }),
    });
    let checked = report.checked;
    api::Fsck {
        clean: report.complete && errors == 0,
        complete: report.complete,
        errors,
        warnings,
        notes,
        findings: findings.collect(),
        checked: api::Checked {
            sandboxes: checked.sandboxes,
            snapshots: checked.snapshots,
            images: checked.images,
            kernels: checked.kernels,
            templates: checked.templates,
            layers: checked.layers,
            bases: checked.bases,
            bytes: checked.bytes.0,
        },
    }
}

/// What gc did, as it is told.
#[must_use]
pub fn gc_reply(gc: Gc) -> api::Gc {
    let items = |items: Vec<sandbox::GcItem>| {
        let items = items.into_iter().map(|item| api::GcItem {
            kind: item.kind.as_str().to_owned(),
            name: item.name,
            why: item.why,
            allocated_bytes: item.allocated.0,
            frees_bytes: item.frees.0,
        });
        items.collect()
    };
    api::Gc {
        dry_run: gc.dry_run,
        removed: items(gc.removed),
        kept: items(gc.kept),
        unreadable: gc.unreadable,
        failed: gc.failed,
        freed_bytes: gc.freed.0,
    }
}
