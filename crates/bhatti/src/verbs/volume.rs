//! `volume`: disks that outlive sandboxes.

use std::io::IsTerminal as _;

use hyper::Method;
use serde::Serialize;
use serde_json::json;
use types::{Timestamp, VolumeName};

use super::backups;
use super::lifecycle::{Several, confirmed};
use crate::args::{self, Volume};
use crate::client::{Client, encode};
use crate::failure::{Failure, Result};
use crate::progress::Waiting;
use crate::{output, table, terminal};

pub async fn volume(client: &Client, json: bool, asked: Volume) -> Result<u8> {
    match asked {
        Volume::Create(args::VolumeCreate { volume, size }) => {
            let request = api::VolumeCreateRequest { name: volume.into(), size_mb: size };
            change(client, json, "/volumes", &request, |reply| match reply.changed {
                true => format!("volume {} is ready, with {}", reply.volume.name, size_of(&reply.volume)),
                false => {
                    format!("volume {} was there already, with {}", reply.volume.name, size_of(&reply.volume))
                }
            })
            .await
        }
        Volume::List => list(client, json).await,
        Volume::Inspect(asked) => inspect(client, json, asked).await,
        Volume::Attach(args::VolumeAttach { volume, sandbox, mount }) => {
            let path = format!("{}/attach", path(&volume));
            let args::MountArg { path: mount, read_only } = mount;
            let how = if read_only { ", read-only" } else { "" };
            let request =
                api::VolumeAttachRequest { sandbox: sandbox.clone(), mount: mount.clone(), read_only };
            change(client, json, &path, &request, |reply| match reply.changed {
                true => format!("volume {volume} is on {mount} of {sandbox}{how}{}", took(reply)),
                false => format!("volume {volume} was on {mount} of {sandbox} already{how}"),
            })
            .await
        }
        Volume::Detach(args::VolumeDetach { volume, sandbox }) => {
            let path = format!("{}/detach", path(&volume));
            let request = api::VolumeDetachRequest { sandbox: sandbox.clone() };
            change(client, json, &path, &request, |reply| match reply.changed {
                true => format!("volume {volume} is detached from {sandbox}{}", took(reply)),
                false => format!("volume {volume} was not attached to {sandbox}"),
            })
            .await
        }
        Volume::Resize(args::VolumeResize { volume, size }) => {
            let path = format!("{}/resize", path(&volume));
            let request = api::VolumeResizeRequest { size_mb: size };
            change(client, json, &path, &request, |reply| match reply.changed {
                true => format!("volume {volume} has {} now", size_of(&reply.volume)),
                false => format!("volume {volume} had {} already", size_of(&reply.volume)),
            })
            .await
        }
        Volume::Clone(args::VolumeClone { volume, name }) => {
            let waiting = Waiting::begin(format!("clone {name} of volume {volume}"));
            let path = format!("{}/clone", path(&volume));
            let request = api::VolumeCloneRequest { name: name.into() };
            let made = client.ask::<api::VolumeReply>(Method::POST, &path, Some(&request)).await;
            drop(waiting);
            tell(json, &made?, cloned);
            Ok(0)
        }
        Volume::Backup(asked) => backups::backup(client, json, asked).await,
        Volume::Backups(asked) => backups::list(client, json, asked).await,
        Volume::Restore(asked) => backups::restore(client, json, asked).await,
        Volume::BackupDelete(asked) => backups::delete(client, json, asked).await,
        Volume::BackupPrune(asked) => backups::prune(client, json, asked).await,
        Volume::Schedule(asked) => backups::schedule(client, json, asked).await,
        Volume::Delete(asked) => delete(client, json, asked).await,
    }
}

pub(super) fn path(volume: &VolumeName) -> String {
    format!("/volumes/{}", encode(volume.as_str()))
}

fn size_of(volume: &api::Volume) -> String {
    table::mebibytes(volume.size_mb)
}

fn took(reply: &api::VolumeReply) -> String {
    reply.timings_ms.get("total").map(|ms| format!(" in {}", table::milliseconds(*ms))).unwrap_or_default()
}

fn cloned(reply: &api::VolumeReply) -> String {
    let way = reply.clone.as_deref().unwrap_or("copy");
    let stall =
        reply.stall_ms.map(|ms| format!(", the guest's writes waited for {}", table::milliseconds(ms)));
    format!(
        "volume {} is ready{}: cloned by {way}{}",
        reply.volume.name,
        took(reply),
        stall.unwrap_or_default()
    )
}

async fn change(
    client: &Client,
    json: bool,
    path: &str,
    request: &impl Serialize,
    sentence: impl FnOnce(&api::VolumeReply) -> String,
) -> Result<u8> {
    let reply: api::VolumeReply = client.ask(Method::POST, path, Some(request)).await?;
    tell(json, &reply, sentence);
    Ok(0)
}

fn tell(json: bool, reply: &api::VolumeReply, sentence: impl FnOnce(&api::VolumeReply) -> String) {
    if json {
        output::document(reply);
    } else {
        output::line(sentence(reply));
    }
    for warning in &reply.warnings {
        eprintln!("warning: {warning}");
    }
}

async fn list(client: &Client, json: bool) -> Result<u8> {
    let volumes: Vec<api::Volume> = client.get("/volumes").await?;
    if json {
        output::document(&volumes);
        return Ok(0);
    }
    if volumes.is_empty() && std::io::stdout().is_terminal() {
        eprintln!("no volumes; `bhatti volume create V --size MB` makes one");
        return Ok(0);
    }
    let now = Timestamp::now();
    let rows: Vec<_> = volumes
        .into_iter()
        .map(|volume| {
            let users: Vec<String> = volume.attached_to.iter().map(user).collect();
            vec![
                volume.name,
                table::mebibytes(volume.size_mb),
                table::bytes(volume.allocated_bytes),
                if users.is_empty() { "-".to_owned() } else { users.join(" ") },
                table::age(&volume.created_at, now),
            ]
        })
        .collect();
    output::bytes(table::render(&["NAME", "SIZE", "ON DISK", "ATTACHED TO", "AGE"], &rows).as_bytes());
    Ok(0)
}

fn user(attachment: &api::VolumeAttachment) -> String {
    let how = if attachment.read_only { ":ro" } else { "" };
    format!("{}:{}{how}", attachment.sandbox, attachment.mount)
}

async fn inspect(client: &Client, json: bool, asked: args::VolumeWhich) -> Result<u8> {
    let volume: api::Volume = client.get(&path(&asked.volume)).await?;
    if json {
        output::document(&volume);
        return Ok(0);
    }
    let created = format!("{} ({} ago)", volume.created_at, table::age(&volume.created_at, Timestamp::now()));
    let users: Vec<String> = volume.attached_to.iter().map(user).collect();
    let mut lines = vec![
        ("name", volume.name),
        ("owner", volume.owner),
        ("size", format!("{} MiB", volume.size_mb)),
        ("on disk", table::bytes(volume.allocated_bytes)),
        ("attached to", if users.is_empty() { "nobody".to_owned() } else { users.join(" ") }),
        ("created", created),
    ];
    if let Some(id) = volume.made_for {
        lines.push(("goes with", format!("sandbox {id}, unless it is detached before")));
    }
    if let Some(schedule) = volume.schedule {
        lines.push(("backed up", backups::scheduled(&schedule)));
        if let Some(error) = schedule.last_error {
            lines.push(("last backup", format!("failed: {error}")));
        }
    }
    for (what, value) in lines {
        output::line(format!("{:<12} {value}", format!("{what}:")));
    }
    Ok(0)
}

async fn delete(client: &Client, json: bool, asked: args::VolumeDelete) -> Result<u8> {
    let args::VolumeDelete { volumes, yes } = asked;
    let names: Vec<String> = volumes.iter().map(ToString::to_string).collect();
    let question = format!("delete volume {} with all that is in it?", names.join(", "));
    if !yes && terminal::can_ask() && !confirmed(&question)? {
        return Err(Failure::new("declined", "nothing was deleted"));
    }
    let mut several = Several::new(json, &names);
    for volume in &volumes {
        match client.delete(&path(volume)).await {
            Ok(()) => {
                several
                    .done(json!({ "volume": volume, "deleted": true }), format!("volume {volume} is gone"));
            }
            Err(failure) => several.failed(failure)?,
        }
    }
    Ok(several.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_is_told_with_how_it_was_made_and_what_the_guest_noticed() {
        let mut reply = api::VolumeReply {
            volume: api::Volume {
                name: "copy".into(),
                owner: "admin".into(),
                size_mb: 1024,
                allocated_bytes: 1 << 20,
                created_at: "2025-01-01T00:00:00.000Z".into(),
                attached_to: Vec::new(),
                made_for: None,
                schedule: None,
            },
            changed: true,
            clone: Some("reflink".into()),
            stall_ms: Some(12.34),
            timings_ms: [("total".to_owned(), 81.0)].into(),
            warnings: Vec::new(),
        };
        let told = "volume copy is ready in 81 ms: cloned by reflink, the guest's writes waited for 12 ms";
        assert_eq!(cloned(&reply), told);
        reply.stall_ms = None;
        assert_eq!(cloned(&reply), "volume copy is ready in 81 ms: cloned by reflink");
    }
}
