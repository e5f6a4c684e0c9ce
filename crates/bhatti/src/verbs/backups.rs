//! `volume backup`, `backups`, `restore`, `backup-delete`, `backup-prune`, `schedule`.

use std::io::IsTerminal as _;

use hyper::Method;
use serde_json::json;
use types::{Bytes, Timestamp, VolumeName};

use super::lifecycle::{Several, confirmed};
use super::volume::path;
use crate::args;
use crate::client::{Client, encode};
use crate::failure::{Failure, Result};
use crate::progress::Reading;
use crate::{output, table, terminal};

pub(super) async fn backup(client: &Client, json: bool, asked: args::VolumeBackup) -> Result<u8> {
    let args::VolumeBackup { volume, to } = asked;
    let bar = Reading::begin();
    let request = api::BackupRequest { to };
    let mut lines = client.lines(&format!("{}/backups", path(&volume)), &request).await?;
    // Ctrl-C ends this program, and with its connection the backup.
    while let Some(event) = lines.next().await? {
        match event {
            api::BackupEvent::Progress(at) => tell_progress(&bar, "volume", &volume, at),
            api::BackupEvent::Error(error) => return Err(Failure::told(error)),
            api::BackupEvent::Backup(reply) => {
                drop(bar);
                if json {
                    output::document(&reply);
                } else {
                    output::line(backed_up(&reply));
                }
                return Ok(0);
            }
        }
    }
    Err(broke_off("backup"))
}

fn tell_progress(bar: &Reading, what: &str, volume: &VolumeName, at: api::BackupProgress) {
    let api::BackupProgress { done_bytes, total_bytes, moved_bytes } = at;
    bar.at(&format!("of {what} {volume}, {} moved", Bytes(moved_bytes)), done_bytes, total_bytes);
}

fn broke_off(what: &str) -> Failure {
    Failure::new("stream_broken", format!("the {what} broke off")).hint("see whether the daemon still runs")
}

fn backed_up(reply: &api::BackupReply) -> String {
    let backup = &reply.backup;
    let took = reply.timings_ms.get("total").copied().unwrap_or_default();
    let stall = reply
        .stall_ms
        .map(|ms| format!("; the guest's writes were held for {}", table::milliseconds(ms)))
        .unwrap_or_default();
    format!(
        "backup {} of volume {} is in {}: {} of data, {} sent in {}{stall}",
        backup.id,
        backup.volume,
        reply.store,
        Bytes(backup.data_bytes.unwrap_or_default()),
        Bytes(backup.sent_bytes.unwrap_or_default()),
        table::milliseconds(took),
    )
}

pub(super) async fn list(client: &Client, json: bool, asked: args::VolumeBackups) -> Result<u8> {
    let args::VolumeBackups { volume, from } = asked;
    let backups: Vec<api::Backup> =
        client.get(&format!("{}/backups{}", path(&volume), query(from.as_deref()))).await?;
    if json {
        output::document(&backups);
        return Ok(0);
    }
    if backups.is_empty() && std::io::stdout().is_terminal() {
        eprintln!("no backups; `bhatti volume backup {volume}` makes one");
        return Ok(0);
    }
    let now = Timestamp::now();
    let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), table::bytes);
    let rows: Vec<_> = backups
        .into_iter()
        .map(|backup| {
            vec![
                backup.id,
                bytes(backup.size_bytes),
                bytes(backup.data_bytes),
                bytes(backup.sent_bytes),
                backup.created_at.map_or_else(|| "-".to_owned(), |at| table::age(&at, now)),
                backup.error.map_or_else(String::new, |error| format!("damaged: {error}")),
            ]
        })
        .collect();
    output::bytes(table::render(&["ID", "SIZE", "DATA", "SENT", "AGE", ""], &rows).as_bytes());
    Ok(0)
}

fn query(from: Option<&str>) -> String {
    from.map(|url| format!("?from={}", encode(url))).unwrap_or_default()
}

pub(super) async fn restore(client: &Client, json: bool, asked: args::VolumeRestore) -> Result<u8> {
    let args::VolumeRestore { volume, backup, from, yes } = asked;
    let question = format!("replace all that is in volume {volume} by backup {backup}?");
    if !yes && terminal::can_ask() && !confirmed(&question)? {
        return Err(Failure::new("declined", "nothing was restored"));
    }
    let bar = Reading::begin();
    let request = api::RestoreRequest { backup, from };
    let mut lines = client.lines(&format!("{}/restore", path(&volume)), &request).await?;
    while let Some(event) = lines.next().await? {
        match event {
            api::RestoreEvent::Progress(at) => tell_progress(&bar, "backup of", &volume, at),
            api::RestoreEvent::Error(error) => return Err(Failure::told(error)),
            api::RestoreEvent::Restored(reply) => {
                drop(bar);
                if json {
                    output::document(&reply);
                } else {
                    let took = reply.timings_ms.get("total").copied().unwrap_or_default();
                    output::line(format!(
                        "volume {volume} is as backup {} has it: {} of data, compared, in {}",
                        reply.backup.id,
                        Bytes(reply.backup.data_bytes.unwrap_or_default()),
                        table::milliseconds(took),
                    ));
                }
                return Ok(0);
            }
        }
    }
    Err(broke_off("restore"))
}

pub(super) async fn delete(client: &Client, json: bool, asked: args::VolumeBackupDelete) -> Result<u8> {
    let args::VolumeBackupDelete { volume, backups, from, yes } = asked;
    let question = format!("delete backup {} of volume {volume}?", backups.join(", "));
    if !yes && terminal::can_ask() && !confirmed(&question)? {
        return Err(Failure::new("declined", "nothing was deleted"));
    }
    let mut several = Several::new(json, &backups);
    for id in &backups {
        let path = format!("{}/backups/{}{}", path(&volume), encode(id), query(from.as_deref()));
        match client.ask::<api::BackupPruneReply>(Method::DELETE, &path, None::<&()>).await {
            Ok(reply) => {
                warn_unreadable(&reply);
                let freed = Bytes(reply.freed_bytes);
                let said = format!("backup {id} is gone, {freed} are free again");
                several.done(json!({ "backup": id, "deleted": true, "freed_bytes": freed }), said);
            }
            Err(failure) => several.failed(failure)?,
        }
    }
    Ok(several.finish())
}

pub(super) async fn prune(client: &Client, json: bool, asked: args::VolumeBackupPrune) -> Result<u8> {
    let args::VolumeBackupPrune { volume, keep, daily, weekly, dry_run, from, yes } = asked;
    let question = format!("delete all other backups of volume {volume}?");
    if !dry_run && !yes && terminal::can_ask() && !confirmed(&question)? {
        return Err(Failure::new("declined", "nothing was deleted"));
    }
    let request = api::BackupPruneRequest { last: keep, daily, weekly, dry_run, from };
    let path = format!("{}/backups/prune", path(&volume));
    let reply: api::BackupPruneReply = client.ask(Method::POST, &path, Some(&request)).await?;
    warn_unreadable(&reply);
    if json {
        output::document(&reply);
        return Ok(0);
    }
    let verb = if reply.dry_run { "would remove" } else { "removed" };
    for id in &reply.removed {
        output::line(format_args!("{verb} {id}"));
    }
    for id in &reply.kept {
        output::line(format_args!("kept {id}"));
    }
    if !reply.dry_run {
        output::line(format_args!("{} are free again", Bytes(reply.freed_bytes)));
    }
    Ok(0)
}

fn warn_unreadable(reply: &api::BackupPruneReply) {
    for error in &reply.unreadable {
        eprintln!("warning: {error}; while it is there, nothing is freed");
    }
}

pub(super) async fn schedule(client: &Client, json: bool, asked: args::VolumeSchedule) -> Result<u8> {
    let args::VolumeSchedule { volume, cron, keep, off: _ } = asked;
    let path = format!("{}/schedule", path(&volume));
    let reply: api::Volume = match cron {
        Some(cron) => client.ask(Method::PUT, &path, Some(&api::ScheduleRequest { cron, keep })).await?,
        None => client.ask(Method::DELETE, &path, None::<&()>).await?,
    };
    if json {
        output::document(&reply);
    } else {
        let how = reply.schedule.as_ref().map_or_else(|| "by itself no more".to_owned(), scheduled);
        output::line(format!("volume {volume} is backed up {how}"));
    }
    Ok(0)
}

/// Such as `at 30 3 * * * (UTC), 7 are kept; next at ...`.
pub(super) fn scheduled(schedule: &api::Schedule) -> String {
    let next = schedule.next_at.as_ref().map(|at| format!("; next at {at}")).unwrap_or_default();
    format!("at {} (UTC), {} are kept{next}", schedule.cron, schedule.keep)
}
