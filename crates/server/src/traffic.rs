//! Ports of a sandbox: what listens, the reverse proxy, and the tunnel of `bhatti forward`.

use axum::Json as JsonReply;
use axum::extract::{Path, Request, State};
use axum::http::header::{self, HeaderValue};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;

use crate::auth::Caller;
use crate::forward::{Way, forward};
use crate::refusal::Refusal;
use crate::router::App;
use crate::tell;

/// The protocol of a tunnel: bytes as they are.
pub(crate) const TUNNEL: &str = "bhatti-tunnel";

/// What listens for TCP connections in a sandbox, which is woken.
#[utoipa::path(
    get, path = "/sandboxes/{id}/ports", tag = "traffic",
    params(("id" = String, Path, description = "Name or id")),
    responses((status = 200, body = Vec<api::Port>), (status = 404, body = api::ErrorBody))
)]
pub(crate) async fn ports(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(id): Path<String>,
) -> Result<JsonReply<Vec<api::Port>>, Refusal> {
    Ok(JsonReply(app.host.ports(&owner, &id).await?.into_iter().map(tell::port).collect()))
}

/// Passes a request of any method, or a WebSocket, on to a service that listens on a port of the sandbox's loopback.
///
/// The sandbox is woken and stays awake until the answer is complete. The rest of the path and the query go through as
/// they are; `Authorization` is the daemon's and does not. `X-Forwarded-Prefix` tells the service what was taken off the path.
#[utoipa::path(
    get, path = "/sandboxes/{id}/proxy/{port}/{path}", tag = "traffic",
    params(
        ("id" = String, Path, description = "Name or id"),
        ("port" = u16, Path, description = "Port on the sandbox's loopback"),
        ("path" = String, Path, description = "What the service is asked for"),
    ),
    responses(
        (status = 200, description = "What the service answers"),
        (status = 404, description = "No such sandbox", body = api::ErrorBody),
        (status = 502, description = "Nobody listens on that port, or the service broke off", body = api::ErrorBody),
        (status = 504, description = "The service does not accept or does not answer", body = api::ErrorBody),
    )
)]
pub(crate) async fn proxy(
    State(app): State<App>,
    Caller(owner): Caller,
    request: Request,
) -> Result<Response, Refusal> {
    let Asked { id, port, prefix, path } = Asked::of(request.uri())?;
    let connection = app.host.connect(&owner, &id, port).await?;
    let way = Way { path, prefix: Some(prefix), authorization: false, cut: CancellationToken::new() };
    forward(&app, request, connection, way).await
}

/// A path below `/proxy`, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    id: String,
    port: u16,
    prefix: String,
    path: String,
}

impl Asked {
    /// From the path as it was sent, so that what is encoded there stays so.
    fn of(uri: &Uri) -> Result<Self, Refusal> {
        let sent = uri.path();
        let mut parts = sent.splitn(6, '/').skip(2);
        let (id, port) = (parts.next().unwrap_or_default(), parts.nth(1).unwrap_or_default());
        let prefix = format!("/sandboxes/{id}/proxy/{port}");
        let rest = sent.strip_prefix(&prefix).filter(|rest| !rest.is_empty()).unwrap_or("/");
        let path = match uri.query() {
            Some(query) => format!("{rest}?{query}"),
            None => rest.to_owned(),
        };
        // Names and ids have nothing that would be encoded.
        Ok(Self { id: id.to_owned(), port: parse_port(port)?, prefix, path })
    }
}

fn parse_port(text: &str) -> Result<u16, Refusal> {
    text.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
        let shown: String = text.chars().take(20).collect();
        Refusal::bad_request(format!("{shown:?} is not a port")).hint("use 1 to 65535")
    })
}

/// Turns the connection into one to a port of the sandbox, byte for byte, after `Upgrade: bhatti-tunnel`.
///
/// The sandbox is woken and stays awake until both directions have ended; either may end first.
#[utoipa::path(
    get, path = "/sandboxes/{id}/tunnel/{port}", tag = "traffic",
    params(
        ("id" = String, Path, description = "Name or id"),
        ("port" = u16, Path, description = "Port on the sandbox's loopback"),
    ),
    responses(
        (status = 101, description = "The tunnel is open"),
        (status = 400, body = api::ErrorBody), (status = 404, body = api::ErrorBody),
        (status = 502, description = "Nobody listens on that port", body = api::ErrorBody),
        (status = 504, body = api::ErrorBody),
    )
)]
pub(crate) async fn tunnel(
    State(app): State<App>,
    Caller(owner): Caller,
    Path((id, port)): Path<(String, String)>,
    mut request: Request,
) -> Result<Response, Refusal> {
    let port = parse_port(&port)?;
    if request.headers().get(header::UPGRADE).is_none_or(|value| value != TUNNEL) {
        return Err(
            Refusal::bad_request("this path wants `Upgrade: bhatti-tunnel`").hint("use `bhatti forward`")
        );
    }
    // Before the upgrade, so that a refusal is an HTTP status.
    let connection = app.host.connect(&owner, &id, port).await?;
    let client = hyper::upgrade::on(&mut request);
    let (busy, over) = (app.drain.busy(), app.drain.over());
    tokio::spawn(async move {
        let _busy = busy;
        let carried = async {
            let Ok(client) = client.await else { return };
            let carried = connection.consume(|connection| connection.carry(TokioIo::new(client))).await;
            if let Err(error) = carried {
                tracing::debug!(%error, "a tunnel broke off");
            }
        };
        tokio::select! {
            () = carried => {}
            () = over.cancelled() => {}
        }
    });
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(TUNNEL));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_a_path_goes_on_as_it_was_sent() {
        let of = |text: &str| Asked::of(&text.parse().unwrap());
        let asked = of("/sandboxes/web/proxy/8080/a%2Fb//c?x=%20&y").unwrap();
        assert_eq!((asked.id.as_str(), asked.port), ("web", 8080));
        assert_eq!(
            (asked.prefix.as_str(), asked.path.as_str()),
            ("/sandboxes/web/proxy/8080", "/a%2Fb//c?x=%20&y")
        );
        assert_eq!(of("/sandboxes/web/proxy/80").unwrap().path, "/");
        assert_eq!(of("/sandboxes/web/proxy/80/").unwrap().path, "/");
        assert_eq!(of("/sandboxes/web/proxy/80?q").unwrap().path, "/?q");
        for bad in ["/sandboxes/web/proxy/0/", "/sandboxes/web/proxy/65536/", "/sandboxes/web/proxy/x/"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
