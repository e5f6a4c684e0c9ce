//! `create`.

use std::os::unix::fs::PermissionsExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::Method;

use crate::args::{self, FileArg, Pair};
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::progress::Waiting;
use crate::{output, table};

pub async fn create(client: &Client, json: bool, asked: args::Create) -> Result<u8> {
    let request = request(asked)?;
    let waiting = request.from.as_ref().map(|from| Waiting::begin(format!("a sandbox from {from}")));
    let made = client.ask::<api::SandboxReply>(Method::POST, "/sandboxes", Some(&request)).await;
    drop(waiting);
    let reply = made?;
    if json {
        output::document(&reply);
    } else {
        output::line(sentence(&reply));
    }
    warn(&reply);
    Ok(0)
}

fn request(asked: args::Create) -> Result<api::CreateRequest> {
    Ok(api::CreateRequest {
        name: asked.name.map(String::from),
        image: asked.image.into(),
        cpus: asked.cpus,
        memory_mb: asked.memory,
        disk_size_mb: asked.disk_size,
        env: asked.env.into_iter().map(|Pair(key, value)| (key, value)).collect(),
        secrets: asked.secret.into_iter().map(String::from).collect(),
        net: asked.net.map(|mode| mode.to_string()),
        egress: (!asked.egress.is_empty()).then_some(asked.egress),
        net_rate: asked.net_rate.map(|rate| rate.to_string()),
        disk_rate: asked.disk_rate.map(|rate| rate.to_string()),
        files: asked.file.into_iter().map(file).collect::<Result<_>>()?,
        volumes: asked
            .volume
            .into_iter()
            .map(|volume| api::VolumeSpec {
                name: volume.name,
                mount: volume.mount,
                read_only: volume.read_only,
            })
            .collect(),
        init: asked.init,
        keep_hot: asked.keep_hot,
        warm_after_sec: asked.idle.warm_after.map(args::AfterArg::asked),
        cold_after_sec: asked.idle.cold_after.map(args::AfterArg::asked),
        sleep_busy: asked.idle.busy(),
        labels: asked.label.into_iter().map(|Pair(key, value)| (key, value)).collect(),
        from: asked.from,
        strict: asked.strict,
    })
}

fn file(asked: FileArg) -> Result<api::FileSpec> {
    let FileArg { local, guest, mode } = asked;
    let failed = |error: std::io::Error| Failure::io(format!("--file {}", local.display()), &error);
    let content = std::fs::read(&local).map_err(failed)?;
    let mode = match mode {
        Some(mode) => mode,
        // A script that runs here should run there.
        None => format!("{:04o}", std::fs::metadata(&local).map_err(failed)?.permissions().mode() & 0o777),
    };
    Ok(api::FileSpec { path: guest, content_base64: BASE64.encode(content), mode: Some(mode) })
}

/// What became of a sandbox that was to be made.
pub fn sentence(reply: &api::SandboxReply) -> String {
    let api::Sandbox { name, id, boot, clone, accel, status, thermal, .. } = &reply.sandbox;
    if !reply.changed {
        return format!("{name} ({id}) was there already: {status}, {thermal}");
    }
    let began = match boot.as_str() {
        "template" => format!("cloned from a template by {clone}"),
        "cold_boot" => format!("booted from a disk made by {clone}"),
        "standby" => "taken from the machines that stood by".to_owned(),
        "resume" => format!("goes on where the snapshot was made, disk by {clone}"),
        "fork" => format!("goes on where its source is, disk by {clone}"),
        other => other.to_owned(),
    };
    let total = reply.timings_ms.get("total").map(|ms| format!(" in {}", table::milliseconds(*ms)));
    format!("{name} ({id}) is ready{}: {began}, {accel}", total.unwrap_or_default())
}

/// What the daemon wants to be known, on stderr.
pub fn warn(reply: &api::SandboxReply) {
    if reply.changed && reply.sandbox.accel == "tcg" {
        eprintln!("warning: software emulation (tcg): slow, and no security boundary; see `bhatti doctor`");
    }
    for warning in &reply.warnings {
        eprintln!("warning: {warning}");
    }
}
