//! `exec` and `shell`: a command or a terminal of the guest, live.

use std::io::IsTerminal as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::Method;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{self, Pair};
use crate::client::{Client, Input, Live, Outcome, encode, sandbox_path};
use crate::failure::{FAILED, Failure, Result};
use crate::{output, terminal};

pub async fn exec(client: &Client, json: bool, asked: args::Exec) -> Result<u8> {
    let path = format!("{}/exec", sandbox_path(&asked.sandbox));
    let detach = asked.detach;
    let input = match (asked.tty, asked.stdin) {
        (true, _) if std::io::stdin().is_terminal() => Input::Terminal { detachable: false },
        (true, _) => Input::PipeToTerminal { detachable: false },
        (false, true) => Input::Pipe,
        (false, false) => Input::None,
    };
    let request = api::ExecRequest {
        cmd: asked.command,
        timeout_sec: asked.timeout,
        env: asked.env.into_iter().map(|Pair(key, value)| (key, value)).collect(),
        cwd: asked.cwd.unwrap_or_default(),
        user: asked.user.unwrap_or_default(),
        detach,
        stdin: input != Input::None && !asked.tty,
        tty: asked.tty.then(tty),
        ..api::ExecRequest::default()
    };
    if detach {
        let reply: api::ExecResponse = client.ask(Method::POST, &path, Some(&request)).await?;
        return Ok(detached(&reply, json));
    }
    end_on_signals();
    let mut live = Live::new(client.websocket(&path).await?);
    live.request(&request).await?;
    let raw = if matches!(input, Input::Terminal { .. }) { terminal::Raw::enter() } else { None };
    if json {
        return collected(live, input).await;
    }
    let (outcome, _, _) = live.run(input, output::bytes, output::error_bytes).await?;
    drop(raw);
    match outcome {
        Outcome::Exit { exit_code, .. } => Ok(status(exit_code)),
        Outcome::Failed { failure, exit_code } => Err(Failure { exit: status(exit_code), ..failure }),
        Outcome::Detached => Ok(0),
    }
}

fn detached(reply: &api::ExecResponse, json: bool) -> u8 {
    if json {
        output::document(reply);
    } else if let Some(session) = &reply.session {
        output::line(session);
    } else {
        output::error_bytes(reply.stderr.as_bytes());
    }
    // One that could not be started has its status already.
    reply.exit_code.map_or(0, status)
}

/// With `--json` the answer is the document that `POST .../exec` would give.
async fn collected(live: Live, input: Input) -> Result<u8> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let ran = live.run(input, |b| stdout.extend_from_slice(b), |b| stderr.extend_from_slice(b)).await?;
    let (outcome, session, pid) = ran;
    let (exit_code, timed_out, duration_ms) = match outcome {
        Outcome::Exit { exit_code, timed_out, duration_ms } => (exit_code, timed_out, duration_ms),
        Outcome::Failed { failure, exit_code } => return Err(Failure { exit: status(exit_code), ..failure }),
        Outcome::Detached => (0, false, 0.0),
    };
    let ((stdout, stdout_base64), (stderr, stderr_base64)) = (text(stdout), text(stderr));
    output::document(&api::ExecResponse {
        exit_code: Some(exit_code),
        stdout,
        stderr,
        stdout_base64,
        stderr_base64,
        truncated: false,
        timed_out,
        duration_ms,
        session,
        pid,
    });
    Ok(status(exit_code))
}

/// The text, and the exact bytes where the text is not they.
fn text(bytes: Vec<u8>) -> (String, Option<String>) {
    match String::from_utf8(bytes) {
        Ok(text) => (text, None),
        Err(error) => {
            let bytes = error.into_bytes();
            (String::from_utf8_lossy(&bytes).into_owned(), Some(BASE64.encode(&bytes)))
        }
    }
}

pub async fn shell(client: &Client, json: bool, asked: args::Shell) -> Result<u8> {
    if json {
        return Err(Failure::new("usage", "a shell has no JSON").hint("use `bhatti exec SB --json -- CMD`"));
    }
    let name = &asked.sandbox;
    let api::TtySize { rows, cols, term } = tty();
    let mut path = format!("{}/shell?rows={rows}&cols={cols}&new={}", sandbox_path(name), asked.new);
    for (key, value) in [("term", term), ("session", asked.session), ("user", asked.user)] {
        if let Some(value) = value {
            path.push_str(&format!("&{key}={}", encode(&value)));
        }
    }
    end_on_signals();
    let live = Live::new(client.websocket(&path).await?);
    let raw = terminal::Raw::enter();
    let input = match raw {
        Some(_) => Input::Terminal { detachable: true },
        None => Input::PipeToTerminal { detachable: true },
    };
    let (outcome, session, _) = live.run(input, output::bytes, output::error_bytes).await?;
    drop(raw);
    match outcome {
        Outcome::Exit { exit_code, .. } => Ok(status(exit_code)),
        Outcome::Failed { failure, exit_code } => {
            let back = format!("`bhatti shell {name}` takes the session up again");
            let failure = if failure.hint.is_empty() { failure.hint(back) } else { failure };
            Err(Failure { exit: status(exit_code), ..failure })
        }
        Outcome::Detached => {
            let session = session.map(|session| format!(" --session {session}")).unwrap_or_default();
            eprintln!("\ndetached; `bhatti shell {name}{session}` comes back");
            Ok(0)
        }
    }
}

fn tty() -> api::TtySize {
    let (rows, cols) = terminal::size().unwrap_or((24, 80));
    api::TtySize { rows, cols, term: std::env::var("TERM").ok().filter(|term| !term.is_empty()) }
}

fn status(exit_code: i32) -> u8 {
    u8::try_from(exit_code).unwrap_or(FAILED)
}

/// Ends the program on the signals that ask for it, whatever else it waits for. The daemon sees the connection go
/// and kills what ran.
fn end_on_signals() {
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let Ok(mut received) = signal(kind) else { continue };
        tokio::spawn(async move {
            if received.recv().await.is_some() {
                terminal::restore();
                std::process::exit(128 + kind.as_raw_value());
            }
        });
    }
}
