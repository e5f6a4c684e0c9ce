//! `snapshot`: keeping a sandbox as it is, and making sandboxes of what was kept.

use std::io::IsTerminal as _;

use hyper::Method;
use serde_json::json;
use types::Timestamp;

use super::create::{sentence, warn};
use super::lifecycle::{Several, confirmed};
use crate::args::{self, Copied, Pair, Snapshot};
use crate::client::{Client, encode, sandbox_path};
use crate::failure::{Failure, Result};
use crate::progress::Waiting;
use crate::{output, table, terminal};

pub async fn snapshot(client: &Client, json: bool, asked: Snapshot) -> Result<u8> {
    match asked {
        Snapshot::Create(asked) => create(client, json, asked).await,
        Snapshot::List => list(client, json).await,
        Snapshot::Inspect(asked) => inspect(client, json, asked).await,
        Snapshot::Resume(asked) => resume(client, json, asked).await,
        Snapshot::Delete(asked) => delete(client, json, asked).await,
    }
}

fn path(snapshot: &types::SnapshotName) -> String {
    format!("/snapshots/{}", encode(snapshot.as_str()))
}

async fn create(client: &Client, json: bool, asked: args::SnapshotCreate) -> Result<u8> {
    let args::SnapshotCreate { sandbox, name, disk_only } = asked;
    let waiting = Waiting::begin(format!("snapshot {name} of {sandbox}"));
    let request = api::SnapshotRequest { name: name.into(), disk_only };
    let path = format!("{}/snapshots", sandbox_path(&sandbox));
    let made = client.ask::<api::SnapshotReply>(Method::POST, &path, Some(&request)).await;
    drop(waiting);
    let reply = made?;
    if json {
        output::document(&reply);
    } else {
        output::line(created(&reply));
    }
    for warning in &reply.warnings {
        eprintln!("warning: {warning}");
    }
    Ok(0)
}

fn created(reply: &api::SnapshotReply) -> String {
    let api::Snapshot { name, source_name, disk_only, private_bytes, stored_bytes, pause_ms, .. } =
        &reply.snapshot;
    let total = reply.timings_ms.get("total").map(|ms| format!(" in {}", table::milliseconds(*ms)));
    let kept = if *disk_only {
        "its disk".to_owned()
    } else {
        format!("{} kept of {} of memory", table::bytes(*stored_bytes), table::bytes(*private_bytes))
    };
    let paused = if *pause_ms > 0.0 {
        format!(", the guest stood still for {}", table::milliseconds(*pause_ms))
    } else {
        String::new()
    };
    format!("{name} is kept of {source_name}{}: {kept}{paused}", total.unwrap_or_default())
}

async fn list(client: &Client, json: bool) -> Result<u8> {
    let snapshots: Vec<api::Snapshot> = client.get("/snapshots").await?;
    if json {
        output::document(&snapshots);
        return Ok(0);
    }
    if snapshots.is_empty() && std::io::stdout().is_terminal() {
        eprintln!("no snapshots; `bhatti snapshot create SB --name N` makes one");
        return Ok(0);
    }
    let now = Timestamp::now();
    let rows: Vec<_> = snapshots
        .into_iter()
        .map(|snapshot| {
            let stored =
                if snapshot.disk_only { "-".to_owned() } else { table::bytes(snapshot.stored_bytes) };
            vec![
                snapshot.name,
                snapshot.source_name,
                snapshot.image,
                if snapshot.disk_only { "disk" } else { "disk and memory" }.to_owned(),
                snapshot.cpus.to_string(),
                table::mebibytes(snapshot.memory_mb),
                table::mebibytes(snapshot.disk_size_mb),
                stored,
                table::age(&snapshot.created_at, now),
                table::labels(&snapshot.labels),
            ]
        })
        .collect();
    let header =
        ["NAME", "SOURCE", "IMAGE", "KEEPS", "CPUS", "MEMORY", "DISK", "MEMORY KEPT", "AGE", "LABELS"];
    output::bytes(table::render(&header, &rows).as_bytes());
    Ok(0)
}

async fn inspect(client: &Client, json: bool, asked: args::SnapshotWhich) -> Result<u8> {
    let snapshot: api::Snapshot = client.get(&path(&asked.snapshot)).await?;
    if json {
        output::document(&snapshot);
        return Ok(0);
    }
    let created =
        format!("{} ({} ago)", snapshot.created_at, table::age(&snapshot.created_at, Timestamp::now()));
    let mut lines = vec![
        ("name", snapshot.name),
        ("owner", snapshot.owner),
        ("source", format!("{} ({})", snapshot.source_name, snapshot.source_id)),
        ("image", snapshot.image),
        ("keeps", if snapshot.disk_only { "disk" } else { "disk and memory" }.to_owned()),
        ("cpus", snapshot.cpus.to_string()),
        ("memory", format!("{} MiB", snapshot.memory_mb)),
        ("disk", format!("{} MiB", snapshot.disk_size_mb)),
        ("labels", table::labels(&snapshot.labels)),
        ("made under", snapshot.accel),
        ("created", created),
    ];
    if !snapshot.disk_only {
        let kept =
            format!("{} of {}", table::bytes(snapshot.stored_bytes), table::bytes(snapshot.private_bytes));
        lines.push(("memory kept", kept));
        lines.push(("pause", table::milliseconds(snapshot.pause_ms)));
    }
    for (what, value) in lines {
        output::line(format!("{:<12} {value}", format!("{what}:")));
    }
    Ok(0)
}

async fn resume(client: &Client, json: bool, asked: args::SnapshotResume) -> Result<u8> {
    let args::SnapshotResume { snapshot, name, copy } = asked;
    let Copied { label, keep_hot, disk_size, strict } = copy;
    let request = api::ResumeRequest {
        name: name.map(String::from),
        labels: label.into_iter().map(|Pair(key, value)| (key, value)).collect(),
        keep_hot,
        disk_size_mb: disk_size,
        strict,
    };
    let waiting = Waiting::begin(format!("a sandbox of snapshot {snapshot}"));
    let path = format!("{}/resume", path(&snapshot));
    let made = client.ask::<api::SandboxReply>(Method::POST, &path, Some(&request)).await;
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

async fn delete(client: &Client, json: bool, asked: args::SnapshotDelete) -> Result<u8> {
    let args::SnapshotDelete { snapshots, yes } = asked;
    let names: Vec<String> = snapshots.iter().map(ToString::to_string).collect();
    let question = format!("delete snapshot {}? Sandboxes made from it stay.", names.join(", "));
    if !yes && terminal::can_ask() && !confirmed(&question)? {
        return Err(Failure::new("declined", "nothing was deleted"));
    }
    let mut several = Several::new(json, &names);
    for snapshot in &snapshots {
        match client.delete(&path(snapshot)).await {
            Ok(()) => several.done(
                json!({ "snapshot": snapshot, "deleted": true }),
                format!("snapshot {snapshot} is gone"),
            ),
            Err(failure) => several.failed(failure)?,
        }
    }
    Ok(several.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(disk_only: bool, pause_ms: f64) -> api::SnapshotReply {
        api::SnapshotReply {
            snapshot: api::Snapshot {
                name: "base".into(),
                owner: "admin".into(),
                source_id: "0123456789abcdef".into(),
                source_name: "dev".into(),
                created_at: "2025-01-01T00:00:00.000Z".into(),
                disk_only,
                image: "minimal".into(),
                cpus: 1,
                memory_mb: 512,
                disk_size_mb: 1024,
                labels: Default::default(),
                accel: "tcg".into(),
                pause_ms,
                private_bytes: 3 << 20,
                stored_bytes: 1 << 20,
            },
            timings_ms: [("total".to_owned(), 81.0), ("pause".to_owned(), pause_ms)].into(),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn a_snapshot_is_told_with_what_it_keeps_and_what_the_guest_noticed() {
        assert_eq!(
            created(&reply(false, 12.34)),
            "base is kept of dev in 81 ms: 1.0 MiB kept of 3.0 MiB of memory, the guest stood still for 12 ms"
        );
        assert_eq!(created(&reply(true, 0.0)), "base is kept of dev in 81 ms: its disk");
    }
}
