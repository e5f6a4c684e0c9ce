//! `/images`: what sandboxes start from.

use axum::Json as JsonReply;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use futures_util::StreamExt as _;
use sandbox::PullWish;
use types::ImageName;

use crate::auth::{Caller, Whose};
use crate::extract::{Json, Params};
use crate::files::drain;
use crate::refusal::Refusal;
use crate::router::App;
use crate::tell;

/// Every begun task is told this way.
type Accepted = (StatusCode, JsonReply<api::Task>);

fn accepted(task: sandbox::TaskRecord) -> Accepted {
    (StatusCode::ACCEPTED, JsonReply(tell::task(task)))
}

/// The base images.
#[utoipa::path(get, path = "/images", tag = "images", responses((status = 200, body = Vec<api::ImageObject>)))]
pub(crate) async fn list(
    State(app): State<App>,
    Whose(owner): Whose,
    query: Params,
) -> Result<JsonReply<Vec<api::ImageObject>>, Refusal> {
    query.done()?;
    Ok(JsonReply(app.host.images(owner.as_ref()).await?.into_iter().map(tell::image).collect()))
}

/// One image, for this host's architecture.
#[utoipa::path(
    get, path = "/images/{name}", tag = "images", params(("name" = String, Path, description = "Name")),
    responses(
        (status = 200, body = api::ImageObject), (status = 400, body = api::ErrorBody),
        (status = 404, body = api::ErrorBody), (status = 409, description = "It is damaged", body = api::ErrorBody),
    )
)]
pub(crate) async fn inspect(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(name): Path<String>,
    query: Params,
) -> Result<JsonReply<api::ImageObject>, Refusal> {
    query.done()?;
    Ok(JsonReply(tell::image(app.host.image(&owner, &name.parse()?).await?)))
}

/// Removes an image's name, its templates, and what of its content nothing else needs.
#[utoipa::path(
    delete, path = "/images/{name}", tag = "images", params(("name" = String, Path, description = "Name")),
    responses(
        (status = 204, description = "It is gone"), (status = 400, body = api::ErrorBody),
        (status = 404, body = api::ErrorBody),
        (status = 409, description = "Sandboxes or snapshots were made from it; the message names them", body = api::ErrorBody),
    )
)]
pub(crate) async fn delete(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(name): Path<String>,
    query: Params,
) -> Result<StatusCode, Refusal> {
    query.done()?;
    app.host.image_delete(&owner, &name.parse()?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Fetches an image from a registry; only the layers that are not here yet are moved.
#[utoipa::path(
    post, path = "/images/pull", tag = "images", request_body = api::PullRequest,
    responses((status = 202, body = api::Task), (status = 400, body = api::ErrorBody))
)]
pub(crate) async fn pull(
    State(app): State<App>,
    Caller(owner): Caller,
    Json(request): Json<api::PullRequest>,
) -> Result<Accepted, Refusal> {
    let api::PullRequest { reference, name, auth } = request;
    let auth = auth.filter(|auth| !auth.is_empty());
    let wish = PullWish { reference, name: name.parse()?, auth };
    Ok(accepted(app.host.image_pull(&owner, wish).await?))
}

/// Makes an image of an archive: `docker save`, old or new, or an OCI layout; as it is, or with gzip or zstd.
#[utoipa::path(
    post, path = "/images/import", tag = "images",
    params(("name" = String, Query, description = "Name of the image; one that exists is replaced when the new one is whole")),
    request_body(content = Vec<u8>, content_type = "application/x-tar"),
    responses(
        (status = 202, body = api::Task), (status = 400, body = api::ErrorBody),
        (status = 507, description = "No room for the archive", body = api::ErrorBody),
    )
)]
pub(crate) async fn import(
    State(app): State<App>,
    Caller(owner): Caller,
    mut query: Params,
    request: Request,
) -> Result<Accepted, Refusal> {
    let name: ImageName = query.required("name")?.parse()?;
    query.done()?;
    let mut body = Body::into_data_stream(request.into_body());
    let taken = async {
        let mut upload = app.host.upload(&owner, &name).await?;
        while let Some(chunk) = body.next().await {
            let broken = |error| Refusal::bad_request(format!("the upload broke off: {error}"));
            upload.send(chunk.map_err(broken)?).await?;
        }
        Ok(app.host.image_import(&owner, name, upload).await?)
    };
    let taken: Result<sandbox::TaskRecord, Refusal> = taken.await;
    match taken {
        Ok(task) => Ok(accepted(task)),
        Err(refusal) => {
            drain(body).await;
            Err(refusal)
        }
    }
}

/// Makes an image of a sandbox's root disk as it is now; a running one goes on.
#[utoipa::path(
    post, path = "/images/save", tag = "images", request_body = api::SaveRequest,
    responses(
        (status = 202, body = api::Task), (status = 400, body = api::ErrorBody), (status = 404, body = api::ErrorBody),
    )
)]
pub(crate) async fn save(
    State(app): State<App>,
    Caller(owner): Caller,
    Json(request): Json<api::SaveRequest>,
) -> Result<Accepted, Refusal> {
    Ok(accepted(app.host.image_save(&owner, &request.sandbox, request.name.parse()?).await?))
}

/// Builds a declared image.
#[utoipa::path(
    post, path = "/images/build", tag = "images", request_body = api::BuildRequest,
    responses((status = 202, body = api::Task), (status = 400, body = api::ErrorBody))
)]
pub(crate) async fn build(
    State(app): State<App>,
    Caller(owner): Caller,
    Json(request): Json<api::BuildRequest>,
) -> Result<Accepted, Refusal> {
    let name = request.name.filter(|name| !name.is_empty()).map(|name| name.parse()).transpose()?;
    Ok(accepted(app.host.image_build(&owner, &request.tier, name).await?))
}
