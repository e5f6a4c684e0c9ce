//! One HTTP request on to a service in a guest, and its answer back; WebSockets and other upgrades, too.
//!
//! # What is changed on the way
//! Headers that are about one connection only are dropped (RFC 9110, section 7.6.1), `X-Forwarded-For`, `-Proto`, `-Host` and
//! `-Prefix` are set, and nothing else is touched. What a client says in `X-Forwarded-*` is believed of this host only.
//! Bodies go through piece by piece in both directions, each as soon as it is there.

use std::net::IpAddr;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{StatusCode, Uri, Version};
use axum::response::Response;
use futures_util::{Stream, StreamExt as _};
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use sandbox::{Connection, Leased};
use tokio::io::copy_bidirectional;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::pipe::pipe;
use crate::refusal::Refusal;
use crate::router::App;

/// How long a service may take to answer once it has the whole request.
const ANSWER_WITHIN: Duration = Duration::from_secs(300);

/// Headers that are about one connection.
const OF_ONE_CONNECTION: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Who sent a request, as far as the connection tells.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Peer {
    /// `None` on the unix socket.
    pub(crate) address: Option<IpAddr>,
    /// Whether it came over TLS.
    pub(crate) tls: bool,
}

/// How a request is to go on.
#[derive(Debug)]
pub(crate) struct Way {
    /// What the service is asked for: path and query as they were sent.
    pub(crate) path: String,
    /// What was taken off the path.
    pub(crate) prefix: Option<String>,
    /// Whether `Authorization` is meant for the service; it is the daemon's key otherwise.
    pub(crate) authorization: bool,
    /// Breaks everything off.
    pub(crate) cut: CancellationToken,
}

/// Sends a request over `connection` and gives the answer as it comes in.
pub(crate) async fn forward(
    app: &App,
    mut request: Request,
    connection: Leased<Connection>,
    way: Way,
) -> Result<Response, Refusal> {
    let wanted = upgrade_wanted(request.headers());
    let client = wanted.as_ref().map(|_| hyper::upgrade::on(&mut request));
    let (request, sent) = onward(request, &way, wanted.as_ref())?;
    let io = TokioIo::new(pipe(connection, way.cut.clone()));
    let broken = |error: hyper::Error| {
        tracing::debug!(%error, "a service did not answer");
        bad_gateway("the service in the sandbox broke the connection off before it answered")
    };
    let (mut sender, connection) = http1::handshake::<_, Body>(io).await.map_err(broken)?;
    tokio::spawn(connection.with_upgrades());
    let late = async {
        sent.cancelled().await;
        tokio::time::sleep(ANSWER_WITHIN).await;
    };
    let mut response = tokio::select! {
        response = sender.send_request(request) => response.map_err(broken)?,
        () = late => {
            return Err(Refusal::new(
                StatusCode::GATEWAY_TIMEOUT,
                "timeout",
                format!("the service in the sandbox did not answer within {} s", ANSWER_WITHIN.as_secs()),
            ));
        }
    };
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let token = response.headers().get(header::UPGRADE).cloned();
    strip(response.headers_mut());
    if switched {
        let (Some(client), Some(token)) = (client, token) else {
            return Err(bad_gateway(
                "the service in the sandbox changed the protocol without being asked to",
            ));
        };
        join(app, client, hyper::upgrade::on(&mut response), way.cut);
        upgrade_to(response.headers_mut(), token);
    }
    Ok(response.map(Body::new))
}

fn bad_gateway(message: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_GATEWAY, "bad_gateway", message)
        .hint("see the service's own log in the sandbox")
}

/// The request as the service sees it, and what is called once all of it was sent.
fn onward(
    request: Request,
    way: &Way,
    wanted: Option<&HeaderValue>,
) -> Result<(Request, CancellationToken), Refusal> {
    let (mut parts, body) = request.into_parts();
    let peer = parts.extensions.get::<Peer>().copied().unwrap_or_default();
    forwarded(&mut parts.headers, peer, way.prefix.as_deref());
    strip(&mut parts.headers);
    // The answer to it is ours: the body is read as soon as the service takes it.
    parts.headers.remove(header::EXPECT);
    if !way.authorization {
        parts.headers.remove(header::AUTHORIZATION);
    }
    match wanted {
        Some(token) => upgrade_to(&mut parts.headers, token.clone()),
        // One connection for one request: a service that keeps it open would keep the sandbox awake.
        None => {
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
    parts.uri = way.path.parse::<Uri>().map_err(|error| Refusal::bad_request(format!("path: {error}")))?;
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    let sent = CancellationToken::new();
    let whole = sent.clone();
    if axum::body::HttpBody::is_end_stream(&body) {
        whole.cancel();
        return Ok((Request::from_parts(parts, body), sent));
    }
    let length = axum::body::HttpBody::size_hint(&body).exact();
    let body = Body::from_stream(noted(body, whole.drop_guard()));
    // Without a length the body would go out in chunks, which is as good, but the client said it.
    if let Some(length) = length {
        parts.headers.insert(header::CONTENT_LENGTH, length.into());
    }
    Ok((Request::from_parts(parts, body), sent))
}

/// The body's pieces; the guard is dropped with the last one.
fn noted(body: Body, guard: DropGuard) -> impl Stream<Item = Result<Bytes, axum::Error>> {
    let mut guard = Some(guard);
    let ended = futures_util::stream::poll_fn(move |_| {
        drop(guard.take());
        std::task::Poll::Ready(None)
    });
    body.into_data_stream().chain(ended)
}

/// The protocol that is asked for, if the request is one for another protocol.
fn upgrade_wanted(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    headers.get(header::UPGRADE).filter(|_| asked).cloned()
}

fn upgrade_to(headers: &mut HeaderMap, token: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, token);
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// Drops what is about one connection only, including what `Connection` names.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> =
        tokens(headers, &header::CONNECTION).filter_map(|token| token.parse().ok()).collect();
    let fixed = OF_ONE_CONNECTION.map(HeaderName::from_static);
    for name in named.iter().chain(&fixed) {
        headers.remove(name);
    }
}

/// Tells the service who asked and for what.
fn forwarded(headers: &mut HeaderMap, peer: Peer, prefix: Option<&str>) {
    let [for_, proto, host, prefix_] =
        ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-prefix"]
            .map(HeaderName::from_static);
    let local = peer.address.is_none_or(|address| address.is_loopback());
    if !local {
        for name in [&for_, &proto, &host, &prefix_, &header::FORWARDED] {
            headers.remove(name);
        }
    }
    let own = peer.address.map(|address| address.to_string());
    let earlier: Vec<&str> = tokens(headers, &for_).collect();
    let chain: Vec<&str> = earlier.into_iter().chain(own.as_deref()).collect();
    if let Ok(value) = HeaderValue::from_str(&chain.join(", "))
        && !chain.is_empty()
    {
        headers.insert(for_, value);
    }
    if !headers.contains_key(&proto) {
        headers.insert(proto, HeaderValue::from_static(if peer.tls { "https" } else { "http" }));
    }
    if let Some(asked) = headers.get(header::HOST).cloned()
        && !headers.contains_key(&host)
    {
        headers.insert(host, asked);
    }
    if let Some(prefix) = prefix {
        let before = headers.get(&prefix_).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if let Ok(value) = HeaderValue::from_str(&format!("{}{prefix}", before.trim_end_matches('/'))) {
            headers.insert(prefix_, value);
        }
    }
}

/// Carries bytes between client and service once both speak the other protocol.
fn join(app: &App, client: OnUpgrade, service: OnUpgrade, cut: CancellationToken) {
    let (busy, over) = (app.drain.busy(), app.drain.over());
    tokio::spawn(async move {
        let _busy = busy;
        let joined = async {
            let (client, service) = tokio::try_join!(client, service)?;
            let (mut client, mut service) = (TokioIo::new(client), TokioIo::new(service));
            // That either breaks off is its own business.
            let _ended = copy_bidirectional(&mut client, &mut service).await;
            Ok::<_, hyper::Error>(())
        };
        tokio::select! {
            _ = joined => {}
            () = cut.cancelled() => {}
            () = over.cancelled() => {}
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        map
    }

    #[test]
    fn what_is_about_one_connection_does_not_go_on() {
        let mut map = headers(&[
            ("connection", "close, X-Mine"),
            ("x-mine", "1"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("accept", "*/*"),
        ]);
        strip(&mut map);
        assert_eq!(map, headers(&[("accept", "*/*")]));
    }

    #[test]
    fn strangers_cannot_say_who_they_are_and_this_host_can() {
        let said = [("host", "a.example"), ("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "https")];
        let mut map = headers(&said);
        let from = |address: &str, tls| Peer { address: Some(address.parse().unwrap()), tls };
        forwarded(&mut map, from("10.0.0.9", false), Some("/sandboxes/x/proxy/80"));
        assert_eq!(map["x-forwarded-for"], "10.0.0.9");
        assert_eq!(map["x-forwarded-proto"], "http");
        assert_eq!(map["x-forwarded-host"], "a.example");
        assert_eq!(map["x-forwarded-prefix"], "/sandboxes/x/proxy/80");
        let mut map = headers(&said);
        forwarded(&mut map, from("127.0.0.1", false), None);
        assert_eq!(map["x-forwarded-for"], "1.2.3.4, 127.0.0.1");
        assert_eq!(map["x-forwarded-proto"], "https");
        assert!(!map.contains_key("x-forwarded-prefix"));
        let mut map = headers(&[("host", "a.example")]);
        forwarded(&mut map, from("10.0.0.9", true), None);
        assert_eq!(map["x-forwarded-proto"], "https");
    }

    #[test]
    fn an_upgrade_is_one_only_if_the_connection_header_says_so() {
        assert!(upgrade_wanted(&headers(&[("upgrade", "websocket")])).is_none());
        let both = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(upgrade_wanted(&both).unwrap(), "websocket");
    }

    #[tokio::test]
    async fn the_key_of_the_daemon_stays_here_and_a_sent_body_is_noted() {
        let way = |authorization| Way {
            path: "/a%2Fb?c=d".to_owned(),
            prefix: None,
            authorization,
            cut: CancellationToken::new(),
        };
        let request = || {
            Request::builder()
                .method("POST")
                .uri("/sandboxes/x/proxy/80/a%2Fb?c=d")
                .header("authorization", "Bearer k")
                .body(Body::from("hello"))
                .unwrap()
        };
        let (kept, _sent) = onward(request(), &way(true), None).unwrap();
        assert_eq!(kept.headers()["authorization"], "Bearer k");
        let (request, sent) = onward(request(), &way(false), None).unwrap();
        assert!(!request.headers().contains_key("authorization"));
        assert_eq!(request.uri(), "/a%2Fb?c=d");
        assert_eq!(request.headers()["content-length"], "5");
        assert!(!sent.is_cancelled());
        let mut body = request.into_body().into_data_stream();
        while let Some(piece) = body.next().await {
            assert_eq!(piece.unwrap(), "hello");
        }
        assert!(sent.is_cancelled());
    }
}
