//! The way to a daemon: requests over its unix socket or TCP, and what it answers.

mod connect;
mod events;
mod lines;
mod live;
mod tls;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

pub use connect::{Daemon, data_dir};
pub use events::EventReader;
pub use lines::LineReader;
pub use live::{Input, Live, Outcome};

use crate::args::Global;
use crate::failure::{Failure, Result};

/// The longest JSON answer that is read.
const ANSWER_LIMIT: usize = 256 * 1024 * 1024;

/// A request's body.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;
/// A WebSocket to the daemon.
pub type Socket = WebSocketStream<hyper_util::rt::TokioIo<hyper::upgrade::Upgraded>>;

/// A tunnel through the daemon to a port of a sandbox.
pub type Tunnel = hyper_util::rt::TokioIo<hyper::upgrade::Upgraded>;

/// A daemon that answers, asked one request at a connection.
#[derive(Debug)]
pub struct Client {
    daemon: Daemon,
}

impl Client {
    /// Knows where to look; connects with the first request.
    pub fn new(global: &Global) -> Result<Self> {
        Ok(Self { daemon: Daemon::find(global)? })
    }

    /// Asks and reads the whole answer as JSON.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        let bytes = match body {
            Some(body) => serde_json::to_vec(body).unwrap_or_default().into(),
            None => Bytes::new(),
        };
        let request = self.daemon.request(method, path).header(header::ACCEPT, "application/json");
        let request = request.body(whole(bytes)).map_err(|error| self.broken(&error))?;
        let response = self.checked(request).await?;
        let answer = read_answer(response.into_body()).await?;
        serde_json::from_slice(&answer).map_err(|error| {
            Failure::new("protocol", format!("{}: the answer makes no sense: {error}", self.daemon))
        })
    }

    /// Sends a body as it is read, and reads the whole answer as JSON.
    pub async fn ask_with<T: DeserializeOwned>(&self, method: Method, path: &str, body: Body) -> Result<T> {
        let response = self.send(method, path, body).await?;
        let answer = read_answer(response.into_body()).await?;
        serde_json::from_slice(&answer).map_err(|error| {
            Failure::new("protocol", format!("{}: the answer makes no sense: {error}", self.daemon))
        })
    }

    /// Asks with GET.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(Method::GET, path, None::<&()>).await
    }

    /// Asks for something that has no answer but that it is done.
    pub async fn delete(&self, path: &str) -> Result<()> {
        self.send(Method::DELETE, path, whole(Bytes::new())).await.map(drop)
    }

    /// Asks, and gives the answer as it comes in. Any status of 400 and above is a failure.
    pub async fn send(&self, method: Method, path: &str, body: Body) -> Result<Response<Incoming>> {
        let request = self.daemon.request(method, path).body(body).map_err(|error| self.broken(&error))?;
        self.checked(request).await
    }

    /// Asks with POST for documents that come line by line.
    pub async fn lines<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<LineReader<T>> {
        let body = whole(serde_json::to_vec(body).unwrap_or_default().into());
        let request = self.daemon.request(Method::POST, path).header(header::ACCEPT, "application/x-ndjson");
        let request = request.body(body).map_err(|error| self.broken(&error))?;
        Ok(LineReader::new(self.checked(request).await?))
    }

    /// Asks with GET for documents that come line by line.
    pub async fn lines_of<T: DeserializeOwned>(&self, path: &str) -> Result<LineReader<T>> {
        let request = self.daemon.request(Method::GET, path).header(header::ACCEPT, "application/x-ndjson");
        let request = request.body(whole(Bytes::new())).map_err(|error| self.broken(&error))?;
        Ok(LineReader::new(self.checked(request).await?))
    }

    async fn checked(&self, request: Request<Body>) -> Result<Response<Incoming>> {
        let mut connection = self.daemon.connect().await?;
        let response = connection.send_request(request).await.map_err(|error| self.broken(&error))?;
        if response.status().as_u16() < 400 {
            return Ok(response);
        }
        let status = response.status();
        let answer = read_answer(response.into_body()).await?;
        Err(match serde_json::from_slice::<api::ErrorBody>(&answer) {
            Ok(body) if status == StatusCode::UNAUTHORIZED => Failure::told(body.error)
                .hint("pass the key in <data-dir>/admin.key with --token or BHATTI_TOKEN"),
            Ok(body) => Failure::told(body.error),
            Err(_) => Failure::new("protocol", format!("{}: answered {status}; is it bhatti?", self.daemon)),
        })
    }

    /// Opens a WebSocket; a refusal comes as the failure that the daemon tells.
    pub async fn websocket(&self, path: &str) -> Result<Socket> {
        let key = generate_key();
        let request = self
            .daemon
            .request(Method::GET, path)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, &key)
            .body(whole(Bytes::new()))
            .map_err(|error| self.broken(&error))?;
        let response = self.checked(request).await?;
        let accepted = response.headers().get(header::SEC_WEBSOCKET_ACCEPT).map(HeaderValue::as_bytes);
        if response.status() != StatusCode::SWITCHING_PROTOCOLS
            || accepted != Some(derive_accept_key(key.as_bytes()).as_bytes())
        {
            return Err(Failure::new("protocol", format!("{}: does not speak WebSocket", self.daemon)));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|error| self.broken(&error))?;
        let io = hyper_util::rt::TokioIo::new(upgraded);
        Ok(WebSocketStream::from_raw_socket(io, Role::Client, None).await)
    }

    /// Opens a tunnel; a refusal comes as the failure that the daemon tells.
    pub async fn tunnel(&self, path: &str) -> Result<Tunnel> {
        let request = self
            .daemon
            .request(Method::GET, path)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "bhatti-tunnel")
            .body(whole(Bytes::new()))
            .map_err(|error| self.broken(&error))?;
        let response = self.checked(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(Failure::new("protocol", format!("{}: opens no tunnels", self.daemon)));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|error| self.broken(&error))?;
        Ok(hyper_util::rt::TokioIo::new(upgraded))
    }

    fn broken(&self, error: &(dyn std::error::Error + 'static)) -> Failure {
        broke_off(&self.daemon.to_string(), error)
    }
}

/// The failure of a connection that did not last.
pub fn broke_off(what: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    Failure::new("stream_broken", format!("{what}: the connection broke off: {text}"))
        .hint("see whether the daemon still runs, and its log")
}

/// A body that is there already.
pub fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// A body that is read while it is sent.
pub fn streamed(chunks: impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send + 'static) -> Body {
    StreamBody::new(chunks.map_ok(Frame::data).boxed()).boxed_unsync()
}

async fn read_answer(body: Incoming) -> Result<Bytes> {
    let limited = http_body_util::Limited::new(body, ANSWER_LIMIT);
    let collected = limited
        .collect()
        .await
        .map_err(|error| Failure::new("stream_broken", format!("the answer broke off: {error}")))?;
    Ok(collected.to_bytes())
}

/// A text as one segment of a path or one value of a query.
pub fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

/// The path of a sandbox.
pub fn sandbox_path(which: &str) -> String {
    format!("/sandboxes/{}", encode(which))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_user_types_stays_one_segment() {
        assert_eq!(sandbox_path("../a?b=c d"), "/sandboxes/..%2Fa%3Fb%3Dc%20d");
        assert_eq!(encode("web-1_2.3~ä"), "web-1_2.3~%C3%A4");
    }
}
