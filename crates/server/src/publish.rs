//! Publishing: the verbs, and the second listener, which serves by the `Host` header and asks for no key.

use std::sync::Arc;

use axum::Json as JsonReply;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::Response;

use crate::auth::{Caller, Whose};
use crate::extract::{Json, Params};
use crate::forward::{Way, forward};
use crate::metrics::count_published;
use crate::refusal::Refusal;
use crate::router::App;
use crate::tell;

/// Where what is published is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// The domain that aliases are put before.
    pub domain: String,
    /// The port.
    pub port: u16,
    /// Whether TLS is spoken there.
    pub tls: bool,
}

impl Site {
    /// Where an alias is served.
    pub(crate) fn url(&self, alias: &str) -> String {
        let (scheme, usual) = if self.tls { ("https", 443) } else { ("http", 80) };
        match self.port {
            port if port == usual => format!("{scheme}://{alias}.{}/", self.domain),
            port => format!("{scheme}://{alias}.{}:{port}/", self.domain),
        }
    }

    /// The alias that a `Host` header names: `<alias>.<domain>` or the alias alone.
    fn alias_of(&self, host: &str) -> Option<String> {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let domain = self.domain.to_ascii_lowercase();
        let alias = match name.strip_suffix(&domain).and_then(|name| name.strip_suffix('.')) {
            Some(alias) => alias.to_owned(),
            None => name,
        };
        (!alias.is_empty() && !alias.contains('.')).then_some(alias)
    }
}

/// The routes of the second listener.
pub(crate) fn site_router(app: App) -> Router {
    let counted = middleware::from_fn_with_state(Arc::clone(&app.requests), count_published);
    Router::new().fallback(serve_alias).layer(DefaultBodyLimit::disable()).layer(counted).with_state(app)
}

async fn serve_alias(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let unknown =
        || Refusal::new(StatusCode::NOT_FOUND, "not_found", "nothing is published under this host name");
    let site = app.site.as_ref().ok_or_else(unknown)?;
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| request.uri().authority().map(|authority| authority.as_str()));
    let alias = host.and_then(|host| site.alias_of(host)).ok_or_else(unknown)?;
    let admitted = app.host.admit(&alias)?;
    let cut = admitted.cut();
    let connection = tokio::select! {
        connection = app.host.connect_published(admitted) => connection?,
        () = cut.cancelled() => return Err(unknown()),
    };
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    forward(&app, request, connection, Way { path, prefix: None, authorization: true, cut }).await
}

/// Publishes a port of a sandbox under an alias. One that is published so already is returned unchanged (200).
#[utoipa::path(
    post, path = "/sandboxes/{id}/publish", tag = "traffic",
    params(("id" = String, Path, description = "Name or id")),
    request_body = api::PublishRequest,
    responses(
        (status = 201, description = "Published", body = api::Publication),
        (status = 200, description = "It was published already", body = api::Publication),
        (status = 400, body = api::ErrorBody), (status = 404, body = api::ErrorBody),
        (status = 409, description = "The alias is taken or reserved", body = api::ErrorBody),
    )
)]
pub(crate) async fn publish(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(id): Path<String>,
    Json(request): Json<api::PublishRequest>,
) -> Result<(StatusCode, JsonReply<api::Publication>), Refusal> {
    let api::PublishRequest { port, alias } = request;
    let alias = alias.map(|alias| alias.parse()).transpose()?;
    let (publication, new) = app.host.publish(&owner, &id, port, alias).await?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, JsonReply(tell::publication(publication, app.site.as_deref()))))
}

/// What is published of a sandbox.
#[utoipa::path(
    get, path = "/sandboxes/{id}/publish", tag = "traffic",
    params(("id" = String, Path, description = "Name or id")),
    responses((status = 200, body = Vec<api::Publication>), (status = 404, body = api::ErrorBody))
)]
pub(crate) async fn of_sandbox(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(id): Path<String>,
) -> Result<JsonReply<Vec<api::Publication>>, Refusal> {
    Ok(JsonReply(listed(&app, app.host.published(&owner, Some(&id))?)))
}

/// All that is published.
#[utoipa::path(
    get, path = "/published", tag = "traffic",
    responses((status = 200, body = Vec<api::Publication>))
)]
pub(crate) async fn all(
    State(app): State<App>,
    whose: Whose,
    query: Params,
) -> Result<JsonReply<Vec<api::Publication>>, Refusal> {
    query.done()?;
    let mut published = Vec::new();
    for owner in whose.owners(&app.host) {
        published.extend(app.host.published(&owner, None)?);
    }
    Ok(JsonReply(listed(&app, published)))
}

/// Takes back what is published of a sandbox, all of it or what the query names; open connections are cut.
#[utoipa::path(
    delete, path = "/sandboxes/{id}/publish", tag = "traffic",
    params(
        ("id" = String, Path, description = "Name or id"),
        ("alias" = Option<String>, Query, description = "Only this alias"),
        ("port" = Option<u16>, Query, description = "Only this port"),
    ),
    responses((status = 200, description = "What was taken back", body = Vec<api::Publication>), (status = 404, body = api::ErrorBody))
)]
pub(crate) async fn unpublish(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(id): Path<String>,
    mut query: Params,
) -> Result<JsonReply<Vec<api::Publication>>, Refusal> {
    let (alias, port) = (query.text("alias")?, query.number("port")?);
    query.done()?;
    Ok(JsonReply(listed(&app, app.host.unpublish(&owner, &id, alias, port).await?)))
}

fn listed(app: &App, publications: Vec<sandbox::Publication>) -> Vec<api::Publication> {
    publications.into_iter().map(|one| tell::publication(one, app.site.as_deref())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_is_named_with_its_domain_or_alone_in_any_case_and_with_any_port() {
        let site = Site { domain: "apps.example".to_owned(), port: 8081, tls: false };
        for host in ["Blog.apps.example", "blog.Apps.Example:8081", "blog", "blog:80", "blog.apps.example."] {
            assert_eq!(site.alias_of(host).as_deref(), Some("blog"), "{host}");
        }
        for host in ["", "apps.example", ".apps.example", "a.b.apps.example", "blog.elsewhere", "[::1]:80"] {
            assert!(site.alias_of(host).is_none_or(|alias| alias.parse::<types::Alias>().is_err()), "{host}");
        }
        assert_eq!(site.url("blog"), "http://blog.apps.example:8081/");
        assert_eq!(Site { port: 80, ..site.clone() }.url("blog"), "http://blog.apps.example/");
        let secure = Site { tls: true, ..site };
        assert_eq!(secure.url("blog"), "https://blog.apps.example:8081/");
        assert_eq!(Site { port: 443, ..secure }.url("blog"), "https://blog.apps.example/");
    }
}
