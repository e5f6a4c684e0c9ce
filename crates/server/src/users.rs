//! `/users`: who may ask, and what they may have. For the admin.

use axum::Json as JsonReply;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use sandbox::{UserKey, UserView};
use types::{Counted, Owner, Quota};

use crate::auth::Admin;
use crate::extract::{Json, Params};
use crate::refusal::Refusal;
use crate::router::App;

/// The users, by name.
#[utoipa::path(
    get, path = "/users", tag = "users",
    responses((status = 200, body = Vec<api::User>), (status = 403, description = "Not the admin", body = api::ErrorBody))
)]
pub(crate) async fn list(
    _admin: Admin,
    State(app): State<App>,
    query: Params,
) -> Result<JsonReply<Vec<api::User>>, Refusal> {
    query.done()?;
    Ok(JsonReply(app.host.users().await?.into_iter().map(tell).collect()))
}

/// Makes a user. The key is told this once and kept nowhere.
#[utoipa::path(
    post, path = "/users", tag = "users", request_body = api::UserCreateRequest,
    responses(
        (status = 201, body = api::UserWithKey), (status = 400, body = api::ErrorBody),
        (status = 403, description = "Not the admin", body = api::ErrorBody),
        (status = 409, description = "The name is taken", body = api::ErrorBody),
    )
)]
pub(crate) async fn create(
    _admin: Admin,
    State(app): State<App>,
    Json(request): Json<api::UserCreateRequest>,
) -> Result<(StatusCode, JsonReply<api::UserWithKey>), Refusal> {
    let api::UserCreateRequest {
        name,
        max_sandboxes,
        max_memory_mb,
        max_cpus,
        max_disk_mb,
        max_volumes,
        max_snapshots,
        max_images,
    } = request;
    let quota =
        Quota { max_sandboxes, max_memory_mb, max_cpus, max_disk_mb, max_volumes, max_snapshots, max_images };
    let made = app.host.user_create(&name.parse()?, quota).await?;
    Ok((StatusCode::CREATED, JsonReply(tell_with_key(made))))
}

/// One user.
#[utoipa::path(
    get, path = "/users/{name}", tag = "users", params(("name" = String, Path, description = "Name")),
    responses(
        (status = 200, body = api::User), (status = 400, body = api::ErrorBody),
        (status = 403, description = "Not the admin", body = api::ErrorBody), (status = 404, body = api::ErrorBody),
    )
)]
pub(crate) async fn inspect(
    _admin: Admin,
    State(app): State<App>,
    Path(name): Path<String>,
    query: Params,
) -> Result<JsonReply<api::User>, Refusal> {
    query.done()?;
    Ok(JsonReply(tell(app.host.user(&named(&name)?).await?)))
}

/// Changes what a user may have. What they have already stays.
#[utoipa::path(
    patch, path = "/users/{name}", tag = "users", params(("name" = String, Path, description = "Name")),
    request_body = api::UserEditRequest,
    responses(
        (status = 200, body = api::User), (status = 400, body = api::ErrorBody),
        (status = 403, description = "Not the admin", body = api::ErrorBody), (status = 404, body = api::ErrorBody),
    )
)]
pub(crate) async fn edit(
    _admin: Admin,
    State(app): State<App>,
    Path(name): Path<String>,
    Json(request): Json<api::UserEditRequest>,
) -> Result<JsonReply<api::User>, Refusal> {
    let api::UserEditRequest {
        max_sandboxes,
        max_memory_mb,
        max_cpus,
        max_disk_mb,
        max_volumes,
        max_snapshots,
        max_images,
    } = request;
    let asked = [
        (Counted::Sandboxes, max_sandboxes),
        (Counted::Memory, max_memory_mb),
        (Counted::Cpus, max_cpus),
        (Counted::Disk, max_disk_mb),
        (Counted::Volumes, max_volumes),
        (Counted::Snapshots, max_snapshots),
        (Counted::Images, max_images),
    ];
    let limits: Vec<_> = asked.into_iter().filter_map(|(what, most)| Some((what, most?))).collect();
    Ok(JsonReply(tell(app.host.user_edit(&named(&name)?, &limits).await?)))
}

/// Gives a user another key, which is told this once. The old one opens nothing more, and what was opened with it is cut.
#[utoipa::path(
    post, path = "/users/{name}/rotate-key", tag = "users", params(("name" = String, Path, description = "Name")),
    responses(
        (status = 200, body = api::UserWithKey), (status = 400, body = api::ErrorBody),
        (status = 403, description = "Not the admin", body = api::ErrorBody), (status = 404, body = api::ErrorBody),
    )
)]
pub(crate) async fn rotate_key(
    _admin: Admin,
    State(app): State<App>,
    Path(name): Path<String>,
    query: Params,
) -> Result<JsonReply<api::UserWithKey>, Refusal> {
    query.done()?;
    Ok(JsonReply(tell_with_key(app.host.user_rotate_key(&named(&name)?).await?)))
}

/// Takes a user and their key away, and what is kept of what happened to them.
#[utoipa::path(
    delete, path = "/users/{name}", tag = "users",
    params(
        ("name" = String, Path, description = "Name"),
        ("purge" = Option<bool>, Query, description = "With everything that they have, but for backups in their store"),
    ),
    responses(
        (status = 204, description = "Gone"), (status = 400, body = api::ErrorBody),
        (status = 403, description = "Not the admin", body = api::ErrorBody), (status = 404, body = api::ErrorBody),
        (status = 409, description = "They have something; the message tells what", body = api::ErrorBody),
        (status = 503, description = "Something is being made for them", body = api::ErrorBody),
    )
)]
pub(crate) async fn delete(
    _admin: Admin,
    State(app): State<App>,
    Path(name): Path<String>,
    mut query: Params,
) -> Result<StatusCode, Refusal> {
    let purge = query.switch("purge")?.unwrap_or(false);
    query.done()?;
    app.host.user_delete(&named(&name)?, purge).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn named(name: &str) -> Result<Owner, Refusal> {
    Ok(name.parse()?)
}

fn tell(view: UserView) -> api::User {
    let UserView { name, quota, used, created_at, rotated_at } = view;
    let used = |what: Counted| used.get(&what).copied().unwrap_or_default();
    api::User {
        name: name.into(),
        max_sandboxes: quota.max_sandboxes,
        max_memory_mb: quota.max_memory_mb,
        max_cpus: quota.max_cpus,
        max_disk_mb: quota.max_disk_mb,
        max_volumes: quota.max_volumes,
        max_snapshots: quota.max_snapshots,
        max_images: quota.max_images,
        used: api::UserUsed {
            sandboxes: used(Counted::Sandboxes),
            memory_mb: used(Counted::Memory),
            cpus: used(Counted::Cpus),
            volumes: used(Counted::Volumes),
            snapshots: used(Counted::Snapshots),
            images: used(Counted::Images),
        },
        created_at: created_at.to_string(),
        key_created_at: rotated_at.to_string(),
    }
}

fn tell_with_key((view, UserKey(key)): (UserView, UserKey)) -> api::UserWithKey {
    api::UserWithKey { user: tell(view), key }
}
