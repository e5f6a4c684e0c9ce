//! Routes about the host itself: health, version, the description of this interface.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use types::Accel;

use crate::auth::Caller;
use crate::openapi::openapi_json;
use crate::refusal::Refusal;
use crate::router::App;

/// This program's version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Answers when the daemon does; needs no key.
#[utoipa::path(get, path = "/health", tag = "host", security(()), responses((status = 200, body = api::Health)))]
pub(crate) async fn health() -> Json<api::Health> {
    Json(api::Health { status: "ok".to_owned(), version: VERSION.to_owned() })
}

/// What runs here.
#[utoipa::path(get, path = "/version", tag = "host", responses(
    (status = 200, body = api::Version), (status = 503, description = "No VMM is installed", body = api::ErrorBody),
))]
pub(crate) async fn version(State(app): State<App>, _caller: Caller) -> Result<Json<api::Version>, Refusal> {
    let info = app.host.info().await?;
    Ok(Json(api::Version {
        version: VERSION.to_owned(),
        vmm: info.vmm,
        accel: info.accel.to_string(),
        security_boundary: info.accel == Accel::Kvm,
        data_dir: info.data_dir.display().to_string(),
    }))
}

/// This interface as OpenAPI 3.1.
pub(crate) async fn openapi(_caller: Caller) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], openapi_json())
}

/// Every path that is not there.
pub(crate) async fn not_found() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "not_found", "there is no such path").hint("see GET /openapi.json")
}

/// Every method that a path does not have.
pub(crate) async fn wrong_method() -> Refusal {
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path does not take that method")
        .hint("see the `allow` header and GET /openapi.json")
}
