//! The WebSockets: a shell session that survives its client, and a command with live input.

use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::response::Response;
use sandbox::wire;
use tokio::time::timeout;

use crate::ask;
use crate::auth::Caller;
use crate::extract::Params;
use crate::refusal::Refusal;
use crate::router::App;
use crate::stream::{Command, error_event, refusal_event};
use crate::websocket::{bridge, refuse, upgrade};

/// How long a client may take to say what it wants to run.
const REQUEST_WITHIN: Duration = Duration::from_secs(30);

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

/// Attaches to a shell session, made when there is none. Closing the WebSocket detaches.
///
/// Server messages: text = ExecEvent, binary = a byte 1 and terminal output. Client messages: binary = input,
/// text = ShellControl.
#[utoipa::path(
    get, path = "/sandboxes/{id}/shell", tag = "exec",
    params(
        ("id" = String, Path, description = "Name or id"),
        ("session" = Option<String>, Query, description = "Session to attach to; the latest free shell, or a new one, when missing"),
        ("new" = Option<bool>, Query, description = "Begin a new session"),
        ("rows" = Option<u16>, Query, description = "Lines of the terminal"),
        ("cols" = Option<u16>, Query, description = "Columns of the terminal"),
        ("term" = Option<String>, Query, description = "Value of TERM"),
        ("user" = Option<String>, Query, description = "User of a new session"),
    ),
    responses(
        (status = 101, description = "WebSocket"),
        (status = 400, body = api::ErrorBody), (status = 404, body = api::ErrorBody),
    )
)]
pub(crate) async fn shell(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(id): Path<String>,
    mut query: Params,
    wanted: Upgrade,
) -> Result<Response, Refusal> {
    let session = query.text("session")?;
    let new = query.switch("new")?.unwrap_or(false);
    if session.is_some() && new {
        return Err(Refusal::bad_request("`session` and `new` exclude each other"));
    }
    let (rows, cols) = (query.number("rows")?.unwrap_or(0), query.number("cols")?.unwrap_or(0));
    let tty = ask::terminal(rows, cols, query.text("term")?);
    let user = query.text("user")?;
    query.done()?;
    let wanted = upgrade(wanted)?;
    let request =
        wire::Session { id: session, new, argv: None, env: Default::default(), cwd: None, user, tty };
    // Before the upgrade, so that a refusal is an HTTP status.
    let stream = app.host.session(&owner, &id, request).await?;
    let (busy, leave) = (app.drain.busy(), app.drain.begun());
    Ok(wanted.on_upgrade(move |socket| async move {
        let _busy = busy;
        // A session outlives its client, so a shutdown need not wait for it.
        bridge(socket, Command::new(stream), leave).await;
    }))
}

/// Runs a command with live input. The first text message is an ExecRequest; then as for the shell, with stderr as
/// binary messages that begin with a byte 2. Closing the WebSocket kills the command.
#[utoipa::path(
    get, path = "/sandboxes/{id}/exec", tag = "exec",
    params(("id" = String, Path, description = "Name or id")),
    responses(
        (status = 101, description = "WebSocket"),
        (status = 400, body = api::ErrorBody), (status = 404, body = api::ErrorBody),
    )
)]
pub(crate) async fn live_exec(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(id): Path<String>,
    wanted: Upgrade,
) -> Result<Response, Refusal> {
    let wanted = upgrade(wanted)?;
    app.host.inspect(&owner, &id)?;
    let (busy, leave) = (app.drain.busy(), app.drain.over());
    Ok(wanted.on_upgrade(move |mut socket| async move {
        let _busy = busy;
        let exec = match first_message(&mut socket).await.and_then(ask::live_exec) {
            Ok(exec) => exec,
            Err(refusal) => return refuse(socket, &refusal_event(refusal, 1)).await,
        };
        match app.host.exec(&owner, &id, exec).await {
            Ok(stream) => bridge(socket, Command::new(stream), leave).await,
            Err(error) => refuse(socket, &error_event(error)).await,
        }
    }))
}

async fn first_message(socket: &mut WebSocket) -> Result<api::ExecRequest, Refusal> {
    let wait = async {
        loop {
            match socket.recv().await {
                Some(Ok(Message::Text(text))) => {
                    return serde_json::from_str(&text)
                        .map_err(|error| Refusal::bad_request(format!("first message: {error}")));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                _ => return Err(Refusal::bad_request("the first message must be an ExecRequest as text")),
            }
        }
    };
    timeout(REQUEST_WITHIN, wait)
        .await
        .unwrap_or_else(|_| Err(Refusal::bad_request("no ExecRequest came within 30 seconds")))
}
