//! `/fsck` and `/gc`: everything checked, and what nobody names removed.

use axum::Json as JsonReply;
use axum::extract::State;
use axum::http::StatusCode;
use types::Owner;

use crate::auth::Caller;
use crate::extract::Json;
use crate::refusal::Refusal;
use crate::router::App;
use crate::tell;

/// Checks every manifest, checksum, base and reference. Reads everything, so it takes as long as the disk does.
#[utoipa::path(
    post, path = "/fsck", tag = "host",
    request_body = api::FsckRequest,
    responses((status = 200, body = api::Fsck), (status = 404, description = "Not the admin", body = api::ErrorBody))
)]
pub(crate) async fn fsck(
    State(app): State<App>,
    Caller(owner): Caller,
    Json(request): Json<api::FsckRequest>,
) -> Result<JsonReply<api::Fsck>, Refusal> {
    admin(&owner)?;
    Ok(JsonReply(tell::fsck(app.host.fsck(request.repair).await?)))
}

/// Removes what no manifest names and no machine has open.
#[utoipa::path(
    post, path = "/gc", tag = "host",
    request_body = api::GcRequest,
    responses((status = 200, body = api::Gc), (status = 404, description = "Not the admin", body = api::ErrorBody))
)]
pub(crate) async fn gc(
    State(app): State<App>,
    Caller(owner): Caller,
    Json(request): Json<api::GcRequest>,
) -> Result<JsonReply<api::Gc>, Refusal> {
    admin(&owner)?;
    Ok(JsonReply(tell::gc(app.host.gc(request.dry_run).await?)))
}

fn admin(owner: &Owner) -> Result<(), Refusal> {
    if *owner == Owner::admin() {
        return Ok(());
    }
    Err(Refusal::new(StatusCode::NOT_FOUND, "not_found", "this is for the admin"))
}
