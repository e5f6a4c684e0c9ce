//! Who asks, and for whom: the holder of a key over TCP, whoever can open the unix socket.
//!
//! The admin acts for itself, or for the user that `?owner=NAME` names; lists show it everybody's things when it names
//! nobody. A user acts for themselves: what is others' is not there for them.

use std::net::IpAddr;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, StatusCode, Uri, header, uri};
use axum::middleware::Next;
use axum::response::Response;
use sandbox::Host;
use types::Owner;

use crate::cord::Cord;
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
#[derive(Clone)]
pub(crate) struct TcpRules {
    pub(crate) key: AdminKey,
    /// Who knows the users' keys.
    pub(crate) host: Host,
    /// Listening on loopback only: then a request with a foreign `Host` comes from a web page that rebound its name.
    pub(crate) loopback: bool,
}

/// How requests on the unix socket are checked.
#[derive(Clone)]
pub(crate) struct UnixRules {
    pub(crate) key: Option<AdminKey>,
    pub(crate) host: Host,
}

/// Who asks, and for whom.
#[derive(Debug, Clone)]
struct Asker {
    acts_for: Owner,
    admin: bool,
    /// Whether it was said for whom.
    named: bool,
}

fn asker(parts: &Parts) -> Result<&Asker, Refusal> {
    parts.extensions.get().ok_or_else(unauthorized)
}

/// Whom a request is counted against; nobody for the admin's.
pub(crate) fn restrained(extensions: &Extensions) -> Option<&Owner> {
    extensions.get::<Asker>().filter(|asker| !asker.admin).map(|asker| &asker.acts_for)
}

/// Whose things a request is about.
#[derive(Debug, Clone)]
pub(crate) struct Caller(pub(crate) Owner);

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Refusal;
    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        Ok(Self(asker(parts)?.acts_for.clone()))
    }
}

/// Whose things a list shows: everybody's for the admin who names nobody.
#[derive(Debug, Clone)]
pub(crate) struct Whose(pub(crate) Option<Owner>);

impl Whose {
    /// All of them, for lists that are made for one owner after the other.
    pub(crate) fn owners(self, host: &Host) -> Vec<Owner> {
        self.0.map_or_else(|| host.owners(), |owner| vec![owner])
    }
}

impl<S: Sync> FromRequestParts<S> for Whose {
    type Rejection = Refusal;
    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        let asker = asker(parts)?;
        Ok(Self((!asker.admin || asker.named).then(|| asker.acts_for.clone())))
    }
}

/// That the admin asks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Admin;

impl<S: Sync> FromRequestParts<S> for Admin {
    type Rejection = Refusal;
    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        if asker(parts)?.admin { Ok(Self) } else { Err(forbidden("this is for the admin")) }
    }
}

/// On the unix socket the file's mode has decided already; who shows a key is its holder all the same.
pub(crate) async fn unix_door(
    State(rules): State<UnixRules>,
    mut request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let owner = match bearer(request.headers()) {
        Some(key) if request.uri().path() != "/health" => holder(&rules.host, rules.key, key, &request)?,
        _ => Owner::admin(),
    };
    let_in(&mut request, owner)?;
    Ok(next.run(request).await)
}

/// Whose key this is; the connection ends with it.
fn holder(host: &Host, admin: Option<AdminKey>, key: &str, request: &Request) -> Result<Owner, Refusal> {
    let cord = request.extensions().get::<Cord>();
    if admin.is_some_and(|admin| admin.is(key)) {
        cord.inspect(|cord| cord.let_go());
        return Ok(Owner::admin());
    }
    let holder = host.key_holder(key).ok_or_else(unauthorized)?;
    cord.inspect(|cord| cord.hold(&holder));
    Ok(holder.owner)
}

/// On TCP everything but `/health` needs a key.
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
        let key = bearer(request.headers()).ok_or_else(unauthorized)?;
        let owner = holder(&rules.host, Some(rules.key), key, &request)?;
        let_in(&mut request, owner)?;
    }
    Ok(next.run(request).await)
}

/// Notes who asks and for whom, which is taken out of the query.
fn let_in(request: &mut Request, owner: Owner) -> Result<(), Refusal> {
    let admin = owner == Owner::admin();
    let named = match wanted_owner(request.uri())? {
        None => None,
        Some((wanted, _)) if !admin && wanted != owner => {
            return Err(forbidden("only the admin acts for others").hint("leave `owner` out"));
        }
        Some((wanted, rest)) => {
            *request.uri_mut() = rest;
            Some(wanted)
        }
    };
    let asker = Asker { admin, named: named.is_some(), acts_for: named.unwrap_or(owner) };
    request.extensions_mut().insert(asker);
    Ok(())
}

/// The owner that a query names, and the rest of it. What goes on to a service in a sandbox is not looked into.
fn wanted_owner(uri: &Uri) -> Result<Option<(Owner, Uri)>, Refusal> {
    let Some(query) = uri.query().filter(|_| uri.path().split('/').nth(3) != Some("proxy")) else {
        return Ok(None);
    };
    let (named, others): (Vec<&str>, Vec<&str>) =
        query.split('&').partition(|pair| *pair == "owner" || pair.starts_with("owner="));
    let mut named = named.iter().filter_map(|pair| pair.strip_prefix("owner=").filter(|it| !it.is_empty()));
    let Some(owner) = named.next() else { return Ok(None) };
    if named.next().is_some() {
        return Err(Refusal::bad_request("query parameter `owner` is given more than once"));
    }
    let path = uri.path();
    let path = if others.is_empty() { path.to_owned() } else { format!("{path}?{}", others.join("&")) };
    let mut parts: uri::Parts = uri.clone().into_parts();
    let broken = |error: String| Refusal::bad_request(format!("the path: {error}"));
    parts.path_and_query = Some(path.parse().map_err(|error: uri::InvalidUri| broken(error.to_string()))?);
    let rest = Uri::from_parts(parts).map_err(|error| broken(error.to_string()))?;
    Ok(Some((owner.parse()?, rest)))
}

fn forbidden(message: &str) -> Refusal {
    Refusal::new(StatusCode::FORBIDDEN, "forbidden", message)
}

fn unauthorized() -> Refusal {
    Refusal::new(StatusCode::UNAUTHORIZED, "unauthorized", "the key is missing, wrong or revoked").hint(
        "send `Authorization: Bearer KEY` with a key of `bhatti user create`, or that in <data-dir>/admin.key",
    )
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

    #[test]
    fn an_owner_is_taken_out_of_the_query_and_never_out_of_a_services() {
        let read = |text: &str| {
            let found = wanted_owner(&text.parse().unwrap()).map_err(|refusal| refusal.detail().message);
            found.map(|found| found.map(|(owner, rest)| (String::from(owner), rest.to_string())))
        };
        let alice = |rest: &str| Ok(Some(("alice".to_owned(), rest.to_owned())));
        assert_eq!(read("/sandboxes?owner=alice"), alice("/sandboxes"));
        assert_eq!(read("/sandboxes?label=a=b&owner=alice&label=c"), alice("/sandboxes?label=a=b&label=c"));
        for none in
            ["/sandboxes", "/sandboxes?owner=", "/sandboxes?owners=a", "/sandboxes/a/proxy/80/x?owner=a"]
        {
            assert_eq!(read(none), Ok(None), "{none}");
        }
        assert!(read("/sandboxes?owner=a&owner=b").unwrap_err().contains("more than once"));
        assert!(read("/sandboxes?owner=%2e%2e").unwrap_err().contains("owner"));
    }
}
