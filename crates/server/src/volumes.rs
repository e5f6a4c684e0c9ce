//! `/volumes`: disks that outlive sandboxes.

use axum::Json as JsonReply;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use types::{Mebibytes, VolumeName};

use crate::auth::{Caller, Whose};
use crate::extract::Json;
use crate::refusal::Refusal;
use crate::router::App;
use crate::{ask, tell};

type Reply = Result<JsonReply<api::VolumeReply>, Refusal>;

/// Lists volumes by name.
#[utoipa::path(get, path = "/volumes", tag = "volumes", responses((status = 200, body = Vec<api::Volume>)))]
pub(crate) async fn list(
    State(app): State<App>,
    whose: Whose,
) -> Result<JsonReply<Vec<api::Volume>>, Refusal> {
    let mut volumes = Vec::new();
    for owner in whose.owners(&app.host) {
        volumes.extend(app.host.volumes(&owner).await?.into_iter().map(tell::volume));
    }
    Ok(JsonReply(volumes))
}

/// Makes a volume with an empty ext4 filesystem. One that exists under this name with the same size is returned
/// unchanged (200).
#[utoipa::path(
    post, path = "/volumes", tag = "volumes",
    request_body = api::VolumeCreateRequest,
    responses(
        (status = 201, description = "Made", body = api::VolumeReply),
        (status = 200, description = "It was there already", body = api::VolumeReply),
        (status = 400, body = api::ErrorBody),
        (status = 409, description = "The name is taken by one of another size", body = api::ErrorBody),
        (status = 507, description = "Nothing is left", body = api::ErrorBody),
    )
)]
pub(crate) async fn create(
    State(app): State<App>,
    Caller(owner): Caller,
    Json(request): Json<api::VolumeCreateRequest>,
) -> Result<(StatusCode, JsonReply<api::VolumeReply>), Refusal> {
    let name: VolumeName = request.name.parse()?;
    let report = app.host.volume_create(&owner, &name, Mebibytes(request.size_mb)).await?;
    let status = if report.created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, JsonReply(tell::volume_report(report))))
}

/// One volume.
#[utoipa::path(
    get, path = "/volumes/{name}", tag = "volumes",
    params(("name" = String, Path, description = "Name")),
    responses(
        (status = 200, body = api::Volume), (status = 400, body = api::ErrorBody),
        (status = 404, body = api::ErrorBody), (status = 409, description = "Its record is damaged", body = api::ErrorBody),
    )
)]
pub(crate) async fn inspect(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(name): Path<String>,
) -> Result<JsonReply<api::Volume>, Refusal> {
    Ok(JsonReply(tell::volume(app.host.volume(&owner, &name.parse()?).await?)))
}

/// Removes a volume with all that is in it. Clones in snapshots stay.
#[utoipa::path(
    delete, path = "/volumes/{name}", tag = "volumes",
    params(("name" = String, Path, description = "Name")),
    responses(
        (status = 204, description = "Gone"), (status = 400, body = api::ErrorBody),
        (status = 404, body = api::ErrorBody),
        (status = 409, description = "It is in use; the message says by whom", body = api::ErrorBody),
    )
)]
pub(crate) async fn delete(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    app.host.volume_delete(&owner, &name.parse()?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Attaches a volume to a sandbox: plugged in and mounted while the guest runs. A sandbox that sleeps is woken; one that
/// is powered off gets it at its next start. Attached so already, it is left alone.
#[utoipa::path(
    post, path = "/volumes/{name}/attach", tag = "volumes",
    params(("name" = String, Path, description = "Name")),
    request_body = api::VolumeAttachRequest,
    responses(
        (status = 200, body = api::VolumeReply), (status = 400, body = api::ErrorBody),
        (status = 404, description = "No such volume or sandbox", body = api::ErrorBody),
        (status = 409, description = "`volume_busy`: somebody else has it; or it is attached otherwise already", body = api::ErrorBody),
        (status = 507, body = api::ErrorBody),
    )
)]
pub(crate) async fn attach(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(name): Path<String>,
    Json(request): Json<api::VolumeAttachRequest>,
) -> Reply {
    let api::VolumeAttachRequest { sandbox, mount, read_only } = request;
    let volume = ask::volume(api::VolumeSpec { name, mount, read_only })?;
    Ok(JsonReply(tell::volume_report(app.host.volume_attach(&owner, &sandbox, volume).await?)))
}

/// Takes a volume away from a sandbox: written out, unmounted, unplugged. Not attached there, it is left alone.
#[utoipa::path(
    post, path = "/volumes/{name}/detach", tag = "volumes",
    params(("name" = String, Path, description = "Name")),
    request_body = api::VolumeDetachRequest,
    responses(
        (status = 200, body = api::VolumeReply), (status = 400, body = api::ErrorBody),
        (status = 404, description = "No such volume or sandbox", body = api::ErrorBody),
        (status = 409, description = "`volume_busy`: a process in the guest uses it; the message names it", body = api::ErrorBody),
    )
)]
pub(crate) async fn detach(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(name): Path<String>,
    Json(request): Json<api::VolumeDetachRequest>,
) -> Reply {
    let report = app.host.volume_detach(&owner, &request.sandbox, &name.parse()?).await?;
    Ok(JsonReply(tell::volume_report(report)))
}

/// Makes a volume larger; its filesystem grows at once where it is attached, else when it is attached next.
#[utoipa::path(
    post, path = "/volumes/{name}/resize", tag = "volumes",
    params(("name" = String, Path, description = "Name")),
    request_body = api::VolumeResizeRequest,
    responses(
        (status = 200, body = api::VolumeReply),
        (status = 400, description = "Smaller than it is, or larger than the host's disk", body = api::ErrorBody),
        (status = 404, body = api::ErrorBody),
        (status = 409, description = "`volume_busy`: it is attached read-only", body = api::ErrorBody),
    )
)]
pub(crate) async fn resize(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(name): Path<String>,
    Json(request): Json<api::VolumeResizeRequest>,
) -> Reply {
    let report = app.host.volume_resize(&owner, &name.parse()?, Mebibytes(request.size_mb)).await?;
    Ok(JsonReply(tell::volume_report(report)))
}

/// Makes a volume that is as this one is at one moment, attached or not; a guest's writes wait for `stall_ms`.
#[utoipa::path(
    post, path = "/volumes/{name}/clone", tag = "volumes",
    params(("name" = String, Path, description = "Name")),
    request_body = api::VolumeCloneRequest,
    responses(
        (status = 201, description = "The clone", body = api::VolumeReply), (status = 400, body = api::ErrorBody),
        (status = 404, body = api::ErrorBody), (status = 409, description = "The name is taken", body = api::ErrorBody),
        (status = 507, description = "Nothing is left", body = api::ErrorBody),
    )
)]
pub(crate) async fn clone(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(name): Path<String>,
    Json(request): Json<api::VolumeCloneRequest>,
) -> Result<(StatusCode, JsonReply<api::VolumeReply>), Refusal> {
    let report = app.host.volume_clone(&owner, &name.parse()?, &request.name.parse()?).await?;
    Ok((StatusCode::CREATED, JsonReply(tell::volume_report(report))))
}
