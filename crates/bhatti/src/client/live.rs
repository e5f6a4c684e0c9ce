//! A command or shell over a WebSocket: the guest's output here, this program's input there.

use std::io::Read as _;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::SplitSink;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::Message;

use super::{Socket, broke_off};
use crate::failure::{Failure, Result};
use crate::terminal;

/// Ctrl+\, which detaches from a shell.
const DETACH: u8 = 0x1c;
/// Ctrl+D, the end of input on a terminal.
const END_OF_INPUT: &[u8] = &[4];
/// How long a script's shell must have said nothing before it is left.
const QUIET: Duration = Duration::from_secs(1);
const STDOUT: u8 = 1;
const STDERR: u8 = 2;

/// What is sent of this program's stdin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Nothing.
    None,
    /// Bytes as they are, then an end.
    Pipe,
    /// What is typed at a raw terminal; Ctrl+\ detaches where that makes sense.
    Terminal {
        /// Whether Ctrl+\ is ours.
        detachable: bool,
    },
    /// Bytes as they are for a guest's terminal, which knows no end but Ctrl+D. Ctrl+\ among them, where it makes
    /// sense, detaches once the output has been quiet for [`QUIET`]: a script cannot see when its line was obeyed.
    PipeToTerminal {
        /// Whether Ctrl+\ is ours.
        detachable: bool,
    },
}

/// How it ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// With an exit status.
    Exit {
        /// As a shell tells it.
        exit_code: i32,
        /// Killed because its time was over.
        timed_out: bool,
        /// From start to exit as the daemon saw it.
        duration_ms: f64,
    },
    /// It could not be run, with the status that a shell would give; or the stream broke off (1).
    Failed {
        /// What went wrong.
        failure: Failure,
        /// 126, 127 or 1.
        exit_code: i32,
    },
    /// Ctrl+\ was pressed.
    Detached,
}

/// A running stream and what is known of it.
#[derive(Debug)]
pub struct Live {
    socket: Socket,
    /// The session, once it is known.
    pub session: Option<String>,
    /// The process in the guest, once it is known.
    pub pid: Option<u32>,
}

enum Outgoing {
    Input(Bytes),
    Control(api::ShellControl),
    Detach,
}

impl Live {
    pub fn new(socket: Socket) -> Self {
        Self { socket, session: None, pid: None }
    }

    /// Says what to run; the first message on the exec WebSocket.
    pub async fn request(&mut self, request: &api::ExecRequest) -> Result<()> {
        let text = serde_json::to_string(request).unwrap_or_default();
        self.socket.send(Message::text(text)).await.map_err(|error| broke_off("the daemon", &error))
    }

    /// Carries bytes both ways until an end; output goes to `stdout` and `stderr`.
    pub async fn run(
        self,
        input: Input,
        mut stdout: impl FnMut(&[u8]),
        mut stderr: impl FnMut(&[u8]),
    ) -> Result<(Outcome, Option<String>, Option<u32>)> {
        let Self { socket, mut session, mut pid } = self;
        let (out, mut incoming) = socket.split();
        let (send, queue) = mpsc::channel(8);
        if input != Input::None {
            read_stdin(input, send.clone());
        }
        if matches!(input, Input::Terminal { .. }) {
            tokio::spawn(follow_size(send.clone()));
        }
        // Held here, so that the writer does not end before the stream does.
        let _open = send;
        let mut writer = tokio::spawn(write(out, queue));
        let mut writing = true;
        let mut leaving = None;
        let outcome = loop {
            let message = tokio::select! {
                message = incoming.next() => message,
                ended = &mut writer, if writing => {
                    writing = false;
                    // Without a detach the reason is on the other half, if anywhere.
                    leaving = ended.ok().flatten();
                    if leaving.is_some() && matches!(input, Input::Terminal { .. }) {
                        break Outcome::Detached;
                    }
                    continue;
                }
                () = sleep(QUIET), if leaving.is_some() => break Outcome::Detached,
            };
            match message {
                Some(Ok(Message::Binary(bytes))) => match bytes.split_first() {
                    Some((&STDOUT, output)) => stdout(output),
                    Some((&STDERR, output)) => stderr(output),
                    _ => {}
                },
                Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                    Ok(api::ExecEvent::Started { pid: number, session: name }) => {
                        pid = Some(number);
                        session = name.or(session);
                    }
                    Ok(api::ExecEvent::Exit { exit_code, timed_out, duration_ms }) => {
                        break Outcome::Exit { exit_code, timed_out, duration_ms };
                    }
                    Ok(api::ExecEvent::Error { code, message, hint, exit_code }) => {
                        break Outcome::Failed {
                            failure: Failure::new(&code, message).hint(hint),
                            exit_code,
                        };
                    }
                    Ok(api::ExecEvent::Stdout { .. } | api::ExecEvent::Stderr { .. }) | Err(_) => {}
                },
                Some(Ok(Message::Close(frame))) => {
                    let why = frame.map(|frame| frame.reason.to_string()).filter(|reason| !reason.is_empty());
                    break gone(
                        why.unwrap_or_else(|| "the daemon closed it without an exit status".to_owned()),
                    );
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => break gone(error.to_string()),
                None => break gone("the daemon went away".to_owned()),
            }
        };
        writer.abort();
        if let Some(mut out) = leaving {
            let _gone = out.send(Message::Close(None)).await;
        }
        Ok((outcome, session, pid))
    }
}

fn gone(why: String) -> Outcome {
    let failure = Failure::new("stream_broken", format!("the stream broke off: {why}"));
    Outcome::Failed { failure, exit_code: 1 }
}

/// Sends what is queued; gives its half back when it ended because of a detach.
async fn write(
    mut out: SplitSink<Socket, Message>,
    mut queue: mpsc::Receiver<Outgoing>,
) -> Option<SplitSink<Socket, Message>> {
    while let Some(outgoing) = queue.recv().await {
        let message = match outgoing {
            Outgoing::Input(bytes) => Message::Binary(bytes),
            Outgoing::Control(control) => Message::text(serde_json::to_string(&control).unwrap_or_default()),
            Outgoing::Detach => return Some(out),
        };
        if out.send(message).await.is_err() {
            return None;
        }
    }
    None
}

/// Reads stdin on a thread of its own, which nobody waits for: a read of a terminal cannot be called off.
fn read_stdin(input: Input, send: mpsc::Sender<Outgoing>) {
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin();
        let mut buffer = vec![0u8; 32 * 1024];
        loop {
            let length = match stdin.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(length) => length,
            };
            let bytes = &buffer[..length];
            let detach = match input {
                Input::Terminal { detachable: true } | Input::PipeToTerminal { detachable: true } => {
                    bytes.iter().position(|byte| *byte == DETACH)
                }
                _ => None,
            };
            let typed = Bytes::copy_from_slice(&bytes[..detach.unwrap_or(length)]);
            if !typed.is_empty() && send.blocking_send(Outgoing::Input(typed)).is_err() {
                return;
            }
            if detach.is_some() {
                let _ended = send.blocking_send(Outgoing::Detach);
                return;
            }
        }
        let end = match input {
            Input::Pipe => Outgoing::Control(api::ShellControl::Eof),
            Input::None | Input::Terminal { .. } | Input::PipeToTerminal { .. } => {
                Outgoing::Input(Bytes::from_static(END_OF_INPUT))
            }
        };
        let _ended = send.blocking_send(end);
    });
}

/// Tells the guest's terminal whenever ours changes its size.
async fn follow_size(send: mpsc::Sender<Outgoing>) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    while changes.recv().await.is_some() {
        if let Some((rows, cols)) = terminal::size()
            && send.send(Outgoing::Control(api::ShellControl::Resize { rows, cols })).await.is_err()
        {
            return;
        }
    }
}
