//! A command's stream over a WebSocket: output one way, input and control the other.
//!
//! # Messages
//! | from | kind | what |
//! |---|---|---|
//! | client | binary | input |
//! | client | text | [`api::ShellControl`] |
//! | server | binary | a byte 1 (stdout, terminal) or 2 (stderr), then output |
//! | server | text | [`api::ExecEvent`]: started, exit, error |
//!
//! Input is read by a task of its own, because a client may wait for output to be taken before it reads on, and
//! neither direction may hold the other up.

use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use sandbox::StdinSender;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::refusal::Refusal;
use crate::stream::{Command, Ending, Happening, error_event};

/// The longest message from a client: input comes in smaller pieces.
const MAX_MESSAGE: usize = 1024 * 1024;
/// How often a quiet connection is tried. A client that vanished while its input waits for the guest is noticed by
/// nothing else.
const PING_EVERY: Duration = Duration::from_secs(5);
/// How long a client may take to answer the closing message.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

const STDOUT: u8 = 1;
const STDERR: u8 = 2;

/// The upgrade, or why there is none, in JSON.
pub(crate) fn upgrade(
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<WebSocketUpgrade, Refusal> {
    upgrade.map(|upgrade| upgrade.max_message_size(MAX_MESSAGE).max_frame_size(MAX_MESSAGE)).map_err(
        |error| {
            Refusal::bad_request(format!("this path wants a WebSocket: {error}"))
                .hint("connect with a WebSocket client, e.g. `bhatti shell`")
        },
    )
}

/// Why the bridge came to its end.
enum End {
    /// The command did, or its stream broke.
    Command(api::ExecEvent),
    /// The client went away.
    Client,
    /// The daemon is about to.
    Daemon,
}

/// Carries `command` over `socket` until either ends or `leave` is called.
pub(crate) async fn bridge(socket: WebSocket, mut command: Command, leave: CancellationToken) {
    let (mut out, incoming) = socket.split();
    let (send_control, mut control) = mpsc::channel(16);
    let input = AbortOnDropHandle::new(tokio::spawn(read(incoming, command.stdin(), send_control)));
    let mut ping = interval(PING_EVERY);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let end = loop {
        let message = tokio::select! {
            happening = command.next() => match happening {
                Happening::Started { pid, session } => text(&api::ExecEvent::Started { pid, session }),
                Happening::Stdout(bytes) => output(STDOUT, &bytes),
                Happening::Stderr(bytes) => output(STDERR, &bytes),
                Happening::Ended(Ending::Exit { exit_code, timed_out }) => {
                    let duration_ms = command.duration_ms();
                    break End::Command(api::ExecEvent::Exit { exit_code, timed_out, duration_ms });
                }
                Happening::Ended(Ending::Failed(error)) => break End::Command(error_event(error)),
            },
            asked = control.recv() => match asked {
                Some(asked) => {
                    command.control(asked);
                    continue;
                }
                None => break End::Client,
            },
            _ = ping.tick() => Message::Ping(Bytes::new()),
            () = leave.cancelled() => break End::Daemon,
        };
        if out.send(message).await.is_err() {
            break End::Client;
        }
    };
    match end {
        End::Command(event) => {
            let _gone = out.send(text(&event)).await;
            close(out, input, close_code::NORMAL, "").await;
        }
        End::Daemon => {
            // Drops the stream first, so that the guest is told while there still is a channel to it.
            drop(command);
            close(out, input, close_code::AWAY, "the daemon is shutting down").await;
        }
        End::Client => {}
    }
}

/// Tells a client the one thing that there is to tell, and closes.
pub(crate) async fn refuse(mut socket: WebSocket, event: &api::ExecEvent) {
    let _gone = socket.send(text(event)).await;
    let _gone = socket.send(Message::Close(None)).await;
    let _silent = timeout(CLOSE_WITHIN, async { while let Some(Ok(_)) = socket.recv().await {} }).await;
}

/// Closes, and reads on until the client has closed too: unread input would make the kernel reset the connection and
/// the last messages could be lost.
async fn close(
    mut out: SplitSink<WebSocket, Message>,
    input: AbortOnDropHandle<()>,
    code: u16,
    reason: &'static str,
) {
    let _gone = out.send(Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await;
    let _silent = timeout(CLOSE_WITHIN, input).await;
}

/// Takes messages until the client closes or vanishes; then drops `control`, which tells the bridge.
async fn read(
    mut incoming: SplitStream<WebSocket>,
    stdin: Option<StdinSender>,
    control: mpsc::Sender<api::ShellControl>,
) {
    let mut open = stdin;
    while let Some(Ok(message)) = incoming.next().await {
        match message {
            // A command that has ended or closed its input is no reason to stop reading.
            Message::Binary(bytes) => {
                if let Some(stdin) = &open
                    && stdin.send(bytes).await.is_err()
                {
                    open = None;
                }
            }
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(api::ShellControl::Eof) => {
                    if let Some(stdin) = open.take() {
                        let _ended = stdin.eof();
                    }
                }
                Ok(asked) => {
                    let _ended = control.send(asked).await;
                }
                Err(error) => tracing::debug!(%error, "a control message was not understood"),
            },
            Message::Close(_) => break,
        }
    }
}

fn text(event: &api::ExecEvent) -> Message {
    Message::Text(serde_json::to_string(event).unwrap_or_default().into())
}

fn output(which: u8, bytes: &[u8]) -> Message {
    let mut message = BytesMut::with_capacity(1 + bytes.len());
    message.put_u8(which);
    message.extend_from_slice(bytes);
    Message::Binary(message.freeze())
}
