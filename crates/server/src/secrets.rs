//! `/secrets`: set, listed without their values, deleted.

use axum::Json as JsonReply;
use axum::extract::{Path, State};
use axum::http::StatusCode;

use crate::auth::{Caller, Whose};
use crate::extract::{Json, Params};
use crate::refusal::Refusal;
use crate::router::App;
use crate::tell;

/// The secrets, by name. Their values are never told.
#[utoipa::path(get, path = "/secrets", tag = "secrets", responses((status = 200, body = Vec<api::Secret>)))]
pub(crate) async fn list(
    State(app): State<App>,
    whose: Whose,
    query: Params,
) -> Result<JsonReply<Vec<api::Secret>>, Refusal> {
    query.done()?;
    let mut secrets = Vec::new();
    for owner in whose.owners(&app.host) {
        secrets.extend(app.host.secrets(&owner)?.into_iter().map(tell::secret));
    }
    Ok(JsonReply(secrets))
}

/// Sets a secret, new or in place of its last value.
///
/// It is encrypted where it is kept. A sandbox that was created with its name gets it as an environment variable, with
/// the value of the moment in which it was created, last woken, booted or copied.
#[utoipa::path(
    post, path = "/secrets", tag = "secrets", request_body = api::SecretRequest,
    responses(
        (status = 201, description = "It is new", body = api::Secret),
        (status = 200, description = "It has another value now", body = api::Secret),
        (status = 400, body = api::ErrorBody),
        (status = 503, description = "The key cannot be used", body = api::ErrorBody),
    )
)]
pub(crate) async fn set(
    State(app): State<App>,
    Caller(owner): Caller,
    Json(request): Json<api::SecretRequest>,
) -> Result<(StatusCode, JsonReply<api::Secret>), Refusal> {
    let api::SecretRequest { name, value } = request;
    let (secret, new) = app.host.set_secret(&owner, &name.parse()?, value).await?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, JsonReply(tell::secret(secret))))
}

/// Forgets a secret.
#[utoipa::path(
    delete, path = "/secrets/{name}", tag = "secrets",
    params(
        ("name" = String, Path, description = "Name"),
        ("force" = Option<bool>, Query, description = "Also while sandboxes use it, which then go on without it"),
    ),
    responses(
        (status = 204), (status = 404, body = api::ErrorBody),
        (status = 409, description = "A sandbox uses it", body = api::ErrorBody),
    )
)]
pub(crate) async fn delete(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(name): Path<String>,
    mut query: Params,
) -> Result<StatusCode, Refusal> {
    let force = query.switch("force")?.unwrap_or(false);
    query.done()?;
    app.host.delete_secret(&owner, &name.parse()?, force).await?;
    Ok(StatusCode::NO_CONTENT)
}
