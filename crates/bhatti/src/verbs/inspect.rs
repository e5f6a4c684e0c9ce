//! `list`, `inspect`, `edit`, `ps`: looking at sandboxes and changing what is said about them.

use std::io::IsTerminal as _;

use hyper::Method;
use types::Timestamp;

use crate::args::{self, Pair, Which};
use crate::client::{Client, encode, sandbox_path};
use crate::failure::Result;
use crate::{output, table};

pub async fn list(client: &Client, json: bool, asked: args::List) -> Result<u8> {
    let filters: Vec<_> = asked
        .label
        .iter()
        .map(|Pair(key, value)| format!("label={}", encode(&format!("{key}={value}"))))
        .collect();
    let path = if filters.is_empty() {
        "/sandboxes".to_owned()
    } else {
        format!("/sandboxes?{}", filters.join("&"))
    };
    let sandboxes: Vec<api::Sandbox> = client.get(&path).await?;
    if json {
        output::document(&sandboxes);
        return Ok(0);
    }
    if sandboxes.is_empty() && std::io::stdout().is_terminal() {
        eprintln!("no sandboxes; `bhatti create` makes one");
        return Ok(0);
    }
    let now = Timestamp::now();
    let others = sandboxes.iter().any(|sandbox| sandbox.owner != "admin");
    let rows: Vec<_> = sandboxes
        .into_iter()
        .map(|sandbox| {
            let mut row = vec![
                sandbox.name,
                sandbox.id,
                sandbox.image,
                status(&sandbox.status, &sandbox.thermal),
                sandbox.cpus.to_string(),
                table::mebibytes(sandbox.memory_mb),
                table::age(&sandbox.created_at, now),
                table::labels(&sandbox.labels),
            ];
            row.extend(others.then_some(sandbox.owner));
            row
        })
        .collect();
    let mut header = vec!["NAME", "ID", "IMAGE", "STATUS", "CPUS", "MEMORY", "AGE", "LABELS"];
    header.extend(others.then_some("OWNER"));
    output::bytes(table::render(&header, &rows).as_bytes());
    Ok(0)
}

fn status(status: &str, thermal: &str) -> String {
    if status == "running" { format!("{status} ({thermal})") } else { status.to_owned() }
}

pub async fn inspect(client: &Client, json: bool, asked: Which) -> Result<u8> {
    let sandbox: api::Sandbox = client.get(&sandbox_path(&asked.sandbox)).await?;
    show(json, &sandbox);
    Ok(0)
}

pub async fn edit(client: &Client, json: bool, asked: args::Edit) -> Result<u8> {
    let keep_hot = match (asked.keep_hot, asked.no_keep_hot) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        (false, false) => None,
    };
    let request = api::EditRequest {
        name: asked.name.map(String::from),
        keep_hot,
        warm_after_sec: asked.idle.warm_after.map(args::AfterArg::asked),
        cold_after_sec: asked.idle.cold_after.map(args::AfterArg::asked),
        sleep_busy: asked.idle.busy(),
        net_rate: asked.net_rate.map(|rate| rate.to_string()),
        disk_rate: asked.disk_rate.map(|rate| rate.to_string()),
        labels: asked.label.into_iter().map(|Pair(key, value)| (key, value)).collect(),
    };
    let sandbox: api::Sandbox =
        client.ask(Method::PATCH, &sandbox_path(&asked.sandbox), Some(&request)).await?;
    show(json, &sandbox);
    Ok(0)
}

fn show(json: bool, sandbox: &api::Sandbox) {
    if json {
        output::document(sandbox);
        return;
    }
    let now = Timestamp::now();
    let ago = |at: &str| format!("{at} ({} ago)", table::age(at, now));
    let mut lines = vec![
        ("name", sandbox.name.clone()),
        ("id", sandbox.id.clone()),
        ("owner", sandbox.owner.clone()),
        ("image", sandbox.image.clone()),
        ("status", status(&sandbox.status, &sandbox.thermal)),
        ("cpus", sandbox.cpus.to_string()),
        ("memory", format!("{} MiB", sandbox.memory_mb)),
        ("disk", format!("{} MiB ({}){}", sandbox.disk_size_mb, sandbox.clone, rate(&sandbox.disk_rate))),
        ("network", network(sandbox)),
        ("keep hot", if sandbox.keep_hot { "yes" } else { "no" }.to_owned()),
        ("idle", idle(sandbox)),
        ("labels", table::labels(&sandbox.labels)),
        ("began by", format!("{} ({})", sandbox.boot, sandbox.accel)),
        ("generation", sandbox.generation.to_string()),
        ("created", ago(&sandbox.created_at)),
        ("last active", ago(&sandbox.last_active_at)),
    ];
    if let Some(error) = &sandbox.error {
        lines.push(("error", error.clone()));
    }
    if let Some(decision) = &sandbox.last_decision {
        lines.push(("decided", format!("{}: {}, {}", decision.action, decision.reason, ago(&decision.at))));
    }
    if let Some(last) = &sandbox.last_transition {
        let total = last.timings_ms.get("total").map(|ms| format!(" in {}", table::milliseconds(*ms)));
        let bytes: Vec<_> =
            last.bytes.iter().map(|(what, n)| format!("{} {what}", table::bytes(*n))).collect();
        let bytes = if bytes.is_empty() { String::new() } else { format!(", {}", bytes.join(", ")) };
        lines.push((
            "last change",
            format!("{}{}{bytes}, {}", last.verb, total.unwrap_or_default(), ago(&last.at)),
        ));
    }
    for (what, value) in lines {
        output::line(format!("{:<12} {value}", format!("{what}:")));
    }
}

/// How it reaches the world, and what of it.
fn network(sandbox: &api::Sandbox) -> String {
    match &sandbox.ip {
        Some(ip) => {
            format!(
                "{} ({ip}), reaches {}{}",
                sandbox.net,
                sandbox.egress.join(", "),
                rate(&sandbox.net_rate)
            )
        }
        None => sandbox.net.clone(),
    }
}

/// What it may move in a second, if that is limited.
fn rate(rate: &str) -> String {
    if rate == types::Rate::UNLIMITED.to_string() {
        String::new()
    } else {
        format!(", at most {rate} a second")
    }
}

/// When it is paused and put to sleep.
fn idle(sandbox: &api::Sandbox) -> String {
    let after = |seconds: Option<u32>| seconds.map_or("never".to_owned(), |it| format!("after {it} s"));
    let busy = if sandbox.sleep_busy { ", busy or not" } else { "" };
    format!("warm {}, cold {}{busy}", after(sandbox.warm_after_sec), after(sandbox.cold_after_sec))
}

pub async fn sessions(client: &Client, json: bool, asked: Which) -> Result<u8> {
    let sessions: Vec<api::Session> =
        client.get(&format!("{}/sessions", sandbox_path(&asked.sandbox))).await?;
    if json {
        output::document(&sessions);
        return Ok(0);
    }
    let now = Timestamp::now();
    let rows: Vec<_> = sessions
        .into_iter()
        .map(|session| {
            let state = match (session.exit_code, session.attached) {
                (Some(code), _) => format!("exited ({code})"),
                (None, true) => "attached".to_owned(),
                (None, false) => "running".to_owned(),
            };
            vec![
                session.id,
                session.kind,
                session.pid.to_string(),
                state,
                table::age(&session.started_at, now),
                session.command.join(" "),
            ]
        })
        .collect();
    output::bytes(table::render(&["SESSION", "KIND", "PID", "STATE", "AGE", "COMMAND"], &rows).as_bytes());
    Ok(0)
}
