//! `/usage`: where the bytes are.

use std::path::PathBuf;

use axum::Json;
use axum::extract::{Path, State};
use types::Owner;

use crate::auth::{Caller, Whose};
use crate::extract::Params;
use crate::refusal::Refusal;
use crate::router::App;

/// What everything takes on the disk. Files that are being written are written out first.
#[utoipa::path(
    get, path = "/usage", tag = "host",
    responses((status = 200, body = api::Usage), (status = 400, body = api::ErrorBody))
)]
pub(crate) async fn usage(
    State(app): State<App>,
    Whose(owner): Whose,
    query: Params,
) -> Result<Json<api::Usage>, Refusal> {
    query.done()?;
    // Who keeps the host sees all of it; everybody else what is theirs.
    Ok(Json(tell(app.host.usage(owner.as_ref()).await?)))
}

/// What a sandbox takes on the disk, and the shared objects that it lies on.
#[utoipa::path(
    get, path = "/sandboxes/{id}/usage", tag = "sandboxes",
    params(("id" = String, Path, description = "Name or id")),
    responses((status = 200, body = api::Usage), (status = 404, body = api::ErrorBody))
)]
pub(crate) async fn of_sandbox(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(id): Path<String>,
    query: Params,
) -> Result<Json<api::Usage>, Refusal> {
    query.done()?;
    Ok(Json(tell(app.host.sandbox_usage(&owner, &id).await?)))
}

fn tell(usage: sandbox::Usage) -> api::Usage {
    let owner = |owner: Option<Owner>| owner.map(String::from);
    api::Usage {
        exact: usage.exact,
        note: usage.note,
        method: usage.method.as_str().to_owned(),
        total: figures(usage.total),
        owners: (usage.owners.into_iter())
            .map(|of| api::OwnerUsage { owner: owner(of.owner), figures: figures(of.figures) })
            .collect(),
        sandboxes: (usage.sandboxes.into_iter())
            .map(|of| api::SandboxUsage {
                id: of.id,
                name: of.name.map(String::from),
                owner: owner(of.owner),
                figures: figures(of.figures),
                files: files(of.files),
                lies_on: paths(&of.lies_on),
            })
            .collect(),
        snapshots: (usage.snapshots.into_iter())
            .map(|of| api::SnapshotUsage {
                name: of.name,
                owner: owner(of.owner),
                figures: figures(of.figures),
                files: files(of.files),
                lies_on: paths(&of.lies_on),
            })
            .collect(),
        objects: (usage.objects.into_iter())
            .map(|of| api::ObjectUsage {
                kind: of.kind.as_str().to_owned(),
                name: of.name,
                path: of.path.display().to_string(),
                owner: owner(of.owner),
                figures: figures(of.figures),
                files: files(of.files),
            })
            .collect(),
    }
}

fn figures(figures: sandbox::Figures) -> api::UsageFigures {
    // Three digits after the point say all that there is to say of a ratio.
    let rounded = |ratio: f64| (ratio * 1e3).round() / 1e3;
    api::UsageFigures {
        apparent_bytes: figures.apparent.0,
        referenced_bytes: figures.referenced.0,
        unique_bytes: figures.unique.0,
        physical_bytes: figures.physical.0,
        exclusive_bytes: figures.exclusive.0,
        dedup_ratio: rounded(figures.dedup_ratio()),
        compression_ratio: rounded(figures.compression_ratio()),
    }
}

fn paths(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.display().to_string()).collect()
}

fn files(files: Vec<sandbox::FileUsage>) -> Vec<api::FileUsage> {
    let tell = |file: sandbox::FileUsage| api::FileUsage {
        kind: file.kind.as_str().to_owned(),
        path: file.path.display().to_string(),
        figures: figures(file.figures),
    };
    files.into_iter().map(tell).collect()
}
