//! `POST /sandboxes/{id}/exec`: a command, whole or event by event.

use axum::Json as JsonReply;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::stream;

use crate::ask;
use crate::auth::Caller;
use crate::extract::Json;
use crate::refusal::Refusal;
use crate::router::App;
use crate::stream::{Command, Ending, Happening, error_event, shell_status};

/// How much of each of stdout and stderr a buffered answer holds.
pub(crate) const OUTPUT_LIMIT: usize = 10 * 1024 * 1024;
const CUT_MARKER: &str = "[bhatti: output cut at 10 MiB]\n";
pub(crate) const NDJSON: &str = "application/x-ndjson";

/// Runs a command in a sandbox, waking it if need be. A client that goes away takes the command with it.
#[utoipa::path(
    post, path = "/sandboxes/{id}/exec", tag = "exec",
    params(("id" = String, Path, description = "Name or id")),
    request_body = api::ExecRequest,
    responses(
        (status = 200, description = "The command ended, was detached, or could not be run (126, 127)",
         content(
            (api::ExecResponse = "application/json"),
            (api::ExecEvent = "application/x-ndjson"),
         )),
        (status = 400, body = api::ErrorBody), (status = 404, body = api::ErrorBody),
        (status = 502, description = "The stream to the guest broke off", body = api::ErrorBody),
    )
)]
pub(crate) async fn exec(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    Json(request): Json<api::ExecRequest>,
) -> Result<Response, Refusal> {
    let ask::Command { exec, stdin } = ask::exec(request)?;
    let detach = exec.detach;
    let streamed = wants_ndjson(&headers);
    let mut command = match app.host.exec(&owner, &id, exec).await {
        Ok(stream) => Command::new(stream),
        Err(error) if !streamed && shell_status(error.kind()).is_some() => {
            return Ok(JsonReply(Buffered::default().failed(&error, 0.0)).into_response());
        }
        Err(error) if streamed && shell_status(error.kind()).is_some() => {
            return Ok(ndjson(Body::from(line(&error_event(error)))));
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(bytes) = stdin {
        command.feed(bytes);
    }
    if streamed {
        Ok(ndjson(events(command, detach)))
    } else {
        Ok(buffered(command, detach).await?.into_response())
    }
}

pub(crate) fn wants_ndjson(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(|kind| kind.split(';').next().is_some_and(|k| k.trim() == NDJSON)))
}

pub(crate) fn ndjson(body: Body) -> Response {
    ([(header::CONTENT_TYPE, NDJSON), (header::CACHE_CONTROL, "no-store")], body).into_response()
}

/// One line a happening, each handed to the connection at once.
fn events(command: Command, detach: bool) -> Body {
    let lines = stream::unfold(Some(command), move |command| async move {
        let mut command = command?;
        let (event, last) = match command.next().await {
            Happening::Started { pid, session } => (api::ExecEvent::Started { pid, session }, detach),
            Happening::Stdout(bytes) => {
                let (data, data_base64) = text_or_base64(&bytes);
                (api::ExecEvent::Stdout { data, data_base64 }, false)
            }
            Happening::Stderr(bytes) => {
                let (data, data_base64) = text_or_base64(&bytes);
                (api::ExecEvent::Stderr { data, data_base64 }, false)
            }
            Happening::Ended(Ending::Exit { exit_code, timed_out }) => {
                let duration_ms = command.duration_ms();
                (api::ExecEvent::Exit { exit_code, timed_out, duration_ms }, true)
            }
            Happening::Ended(Ending::Failed(error)) => (error_event(error), true),
        };
        let rest = if last { None } else { Some(command) };
        Some((Ok::<_, std::convert::Infallible>(line(&event)), rest))
    });
    Body::from_stream(lines)
}

fn line(event: &api::ExecEvent) -> Bytes {
    let mut text = serde_json::to_vec(event).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

fn text_or_base64(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(BASE64.encode(bytes))),
    }
}

async fn buffered(mut command: Command, detach: bool) -> Result<JsonReply<api::ExecResponse>, Refusal> {
    let mut so_far = Buffered::default();
    loop {
        match command.next().await {
            Happening::Started { pid, session } => {
                so_far.pid = Some(pid);
                so_far.session = session;
                if detach {
                    return Ok(JsonReply(so_far.ended(None, false, command.duration_ms())));
                }
            }
            Happening::Stdout(bytes) => so_far.stdout.push(&bytes),
            Happening::Stderr(bytes) => so_far.stderr.push(&bytes),
            Happening::Ended(Ending::Exit { exit_code, timed_out }) => {
                return Ok(JsonReply(so_far.ended(Some(exit_code), timed_out, command.duration_ms())));
            }
            Happening::Ended(Ending::Failed(error)) if shell_status(error.kind()).is_some() => {
                return Ok(JsonReply(so_far.failed(&error, command.duration_ms())));
            }
            Happening::Ended(Ending::Failed(error)) => return Err(error.into()),
        }
    }
}

/// The answer while it is being put together.
#[derive(Debug, Default)]
struct Buffered {
    stdout: Capped,
    stderr: Capped,
    pid: Option<u32>,
    session: Option<String>,
}

impl Buffered {
    fn ended(self, exit_code: Option<i32>, timed_out: bool, duration_ms: f64) -> api::ExecResponse {
        let truncated = self.stdout.cut || self.stderr.cut;
        let (stdout, stdout_base64) = self.stdout.into_text();
        let (stderr, stderr_base64) = self.stderr.into_text();
        api::ExecResponse {
            exit_code,
            stdout,
            stderr,
            stdout_base64,
            stderr_base64,
            truncated,
            timed_out,
            duration_ms,
            session: self.session,
            pid: self.pid,
        }
    }

    /// What a shell would show for a program that is not there.
    fn failed(mut self, error: &sandbox::Error, duration_ms: f64) -> api::ExecResponse {
        self.stderr.push(format!("{}\n", error.with_causes()).as_bytes());
        self.ended(Some(shell_status(error.kind()).unwrap_or(1)), false, duration_ms)
    }
}

/// Output up to [`OUTPUT_LIMIT`]; the rest is read and dropped, so that the command goes on.
#[derive(Debug, Default)]
struct Capped {
    bytes: Vec<u8>,
    cut: bool,
}

impl Capped {
    fn push(&mut self, chunk: &[u8]) {
        let room = OUTPUT_LIMIT - self.bytes.len();
        self.cut |= chunk.len() > room;
        self.bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
    }

    /// The text, and the exact bytes where the text is not they.
    fn into_text(self) -> (String, Option<String>) {
        let (mut text, exact) = match String::from_utf8(self.bytes) {
            Ok(text) => (text, None),
            // The cut may have gone through a character.
            Err(error) if self.cut && error.utf8_error().error_len().is_none() => {
                let whole = error.utf8_error().valid_up_to();
                let mut bytes = error.into_bytes();
                bytes.truncate(whole);
                (String::from_utf8_lossy(&bytes).into_owned(), None)
            }
            Err(error) => {
                let bytes = error.into_bytes();
                (String::from_utf8_lossy(&bytes).into_owned(), Some(BASE64.encode(&bytes)))
            }
        };
        if self.cut {
            if !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str(CUT_MARKER);
        }
        (text, exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_past_the_limit_is_dropped_and_marked() {
        let mut capped = Capped::default();
        capped.push(&vec![b'x'; OUTPUT_LIMIT - 1]);
        assert!(!capped.cut);
        capped.push(b"yz");
        capped.push(b"more");
        let (text, exact) = capped.into_text();
        assert!(exact.is_none());
        assert!(text.ends_with("xy\n[bhatti: output cut at 10 MiB]\n"));
    }

    #[test]
    fn a_cut_through_a_character_leaves_text() {
        let mut capped = Capped::default();
        capped.push(&vec![b'x'; OUTPUT_LIMIT - 1]);
        capped.push("ä".as_bytes());
        let (text, exact) = capped.into_text();
        assert!(exact.is_none());
        assert!(text.ends_with("x\n[bhatti: output cut at 10 MiB]\n"));
    }

    #[test]
    fn bytes_that_are_no_text_are_there_exactly() {
        let mut capped = Capped::default();
        capped.push(&[0xff, b'a']);
        let (text, exact) = capped.into_text();
        assert_eq!(text, "\u{fffd}a");
        assert_eq!(BASE64.decode(exact.unwrap()).unwrap(), [0xff, b'a']);
    }

    #[test]
    fn ndjson_is_asked_for_among_other_kinds() {
        let mut headers = HeaderMap::new();
        assert!(!wants_ndjson(&headers));
        headers.insert(header::ACCEPT, "application/json, application/x-ndjson;q=0.9".parse().unwrap());
        assert!(wants_ndjson(&headers));
    }
}
