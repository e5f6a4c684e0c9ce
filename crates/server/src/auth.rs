//! Who asks: whoever holds the admin key over TCP, whoever can open the unix socket.

use std::net::IpAddr;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use types::Owner;

use crate::refusal::Refusal;

/// The admin key, kept as its BLAKE3 hash so that comparing takes the same time for every wrong key.
#[derive(Clone, Copy)]
pub struct AdminKey(blake3::Hash);

impl AdminKey {
    /// Remembers the key with this text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(blake3::hash(text.trim().as_bytes()))
    }

    fn is(&self, text: &str) -> bool {
        // `blake3::Hash` compares in constant time.
        self.0 == blake3::hash(text.as_bytes())
    }
}

/// How TCP requests are checked.
#[derive(Clone, Copy)]
pub(crate) struct TcpRules {
    pub(crate) key: AdminKey,
    /// Listening on loopback only: then a request with a foreign `Host` comes from a web page that rebound its name.
    pub(crate) loopback: bool,
}

/// Whoever asks, as the owner that they act for.
#[derive(Debug, Clone)]
pub(crate) struct Caller(pub(crate) Owner);

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Refusal;
    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        parts.extensions.get::<Self>().cloned().ok_or_else(unauthorized)
    }
}

/// On the unix socket the file's mode has decided already.
pub(crate) async fn unix_door(mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(Caller(Owner::admin()));
    next.run(request).await
}

/// On TCP everything but `/health` needs the key.
pub(crate) async fn tcp_door(
    State(rules): State<TcpRules>,
    mut request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    if rules.loopback && !host_is_local(request.headers()) {
        return Err(Refusal::bad_request("the Host header names another machine")
            .hint("use http://127.0.0.1:PORT or http://localhost:PORT"));
    }
    if request.uri().path() != "/health" {
        match bearer(request.headers()) {
            Some(token) if rules.key.is(token) => {
                request.extensions_mut().insert(Caller(Owner::admin()));
            }
            _ => return Err(unauthorized()),
        }
    }
    Ok(next.run(request).await)
}

fn unauthorized() -> Refusal {
    Refusal::new(StatusCode::UNAUTHORIZED, "unauthorized", "the key is missing or wrong")
        .hint("send `Authorization: Bearer KEY` with the key in <data-dir>/admin.key")
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn host_is_local(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else {
        return true;
    };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        let mut map = HeaderMap::new();
        map.insert(name, value.parse().unwrap());
        map
    }

    #[test]
    fn a_key_is_taken_with_and_without_a_trailing_newline_in_its_file() {
        let key = AdminKey::new("bht_abc\n");
        assert!(key.is("bht_abc"));
        assert!(!key.is("bht_abd"));
        assert!(!key.is(""));
    }

    #[test]
    fn the_bearer_scheme_is_read_in_any_case_and_no_other_scheme() {
        assert_eq!(bearer(&headers(header::AUTHORIZATION, "bearer x")), Some("x"));
        assert_eq!(bearer(&headers(header::AUTHORIZATION, "Basic x")), None);
        assert_eq!(bearer(&HeaderMap::new()), None);
    }

    #[test]
    fn a_rebound_name_is_not_local() {
        for local in ["localhost:8080", "127.0.0.1", "[::1]:8080", "10.0.0.5:80"] {
            assert!(host_is_local(&headers(header::HOST, local)), "{local}");
        }
        assert!(!host_is_local(&headers(header::HOST, "evil.example:8080")));
    }
}
