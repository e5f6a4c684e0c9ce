//! `fsck`, `gc`: through the daemon, or on a data directory that has none.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::UnixStream;
use types::Bytes;

use crate::args::{self, Global};
use crate::client::{self, Client};
use crate::failure::{FAILED, Failure, INTERRUPTED, Result};
use crate::output;
use crate::progress::{Reading, Waiting};
use crate::socket::ShortPath;

/// The data directory, if no daemon can be asked about it.
async fn without_daemon(global: &Global) -> Result<Option<PathBuf>> {
    let dir = client::data_dir(global)?;
    if global.url.as_deref().is_some_and(|url| !url.is_empty()) {
        return Ok(None);
    }
    let answers = match ShortPath::new(&dir.join("bhatti.sock")) {
        Ok(socket) => UnixStream::connect(socket.path()).await.is_ok(),
        Err(_) => false,
    };
    Ok((!answers).then_some(dir))
}

/// Runs blocking work on a thread of its own.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> sandbox::Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(error) => Err(Failure::new("internal", format!("a worker thread failed: {error}"))),
    }
}

pub async fn fsck(global: &Global, asked: args::Fsck) -> Result<u8> {
    let repair = asked.repair && !asked.dry_run;
    let found = match without_daemon(global).await? {
        None => through_daemon(global, repair).await?,
        Some(dir) => directly(dir, repair).await?,
    };
    if global.json {
        output::document(&found);
    } else {
        for finding in &found.findings {
            output::line(told(finding));
        }
        output::line(summary(&found));
    }
    Ok(match (found.complete, found.clean) {
        (true, true) => 0,
        (true, false) => FAILED,
        (false, _) => INTERRUPTED,
    })
}

async fn through_daemon(global: &Global, repair: bool) -> Result<api::Fsck> {
    let bar = Reading::begin();
    let request = api::FsckRequest { repair };
    let mut lines = Client::new(global)?.lines::<api::FsckEvent>("/fsck", &request).await?;
    // Ctrl-C ends this program, and with its connection the check.
    while let Some(event) = lines.next().await? {
        match event {
            api::FsckEvent::Progress { what, done_bytes, total_bytes } => {
                bar.at(&what, done_bytes, total_bytes)
            }
            api::FsckEvent::Report(report) => return Ok(report),
            api::FsckEvent::Error(error) => return Err(Failure::told(error)),
        }
    }
    Err(Failure::new("stream_broken", "the check broke off").hint("see whether the daemon still runs"))
}

async fn directly(dir: PathBuf, repair: bool) -> Result<api::Fsck> {
    let cancel = Arc::new(AtomicBool::new(false));
    let called_off = Arc::clone(&cancel);
    let check = apart(move || {
        let upkeep = sandbox::Upkeep::open(&dir)?;
        let bar = Reading::begin();
        let watch = |at: sandbox::FsckProgress| bar.at(&at.what, at.done.0, at.total.0);
        upkeep.fsck(repair, &watch, &called_off)
    });
    tokio::pin!(check);
    let report = tokio::select! {
        report = &mut check => report,
        _interrupt = tokio::signal::ctrl_c() => {
            cancel.store(true, Ordering::Relaxed);
            check.await
        }
    };
    report.map(server::fsck_reply)
}

/// A finding in as many lines as it needs.
fn told(finding: &api::Finding) -> String {
    let api::Finding { severity, kind, name, path, what, way_out, needed_by, repair, outcome } = finding;
    // A stray is called by its path.
    let place = if name == path { String::new() } else { format!("{path}: ") };
    let mut text = format!("{severity}: {kind} {name}: {place}{what}");
    let mut more = |line: String| {
        text.push_str("\n    ");
        text.push_str(&line);
    };
    if !needed_by.is_empty() {
        more(format!("needed by {}", needed_by.join(", ")));
    }
    if !way_out.is_empty() && outcome.is_none() {
        more(way_out.clone());
    }
    match (outcome, repair) {
        (Some(outcome), _) => more(format!("repair: {outcome}")),
        (None, Some(repair)) => more(format!("`bhatti fsck --repair` {repair}")),
        (None, None) => {}
    }
    text
}

fn summary(found: &api::Fsck) -> String {
    let count = |number: usize, one: &str| match number {
        1 => format!("1 {one}"),
        number => format!("{number} {one}s"),
    };
    let left = [
        (found.errors, count(found.errors, "error")),
        (found.warnings, count(found.warnings, "warning")),
        (found.notes, count(found.notes, "note")),
    ];
    let left: Vec<_> = left.into_iter().filter(|(number, _)| *number > 0).map(|(_, text)| text).collect();
    let result = match (found.complete, left.is_empty()) {
        (false, true) => "called off".to_owned(),
        (false, false) => format!("called off; {}", left.join(", ")),
        (true, true) => "all well".to_owned(),
        (true, false) => left.join(", "),
    };
    let repaired = found.findings.iter().filter_map(|finding| finding.outcome.as_deref());
    let repaired = match repaired.filter(|outcome| !outcome.starts_with("failed: ")).count() {
        0 => String::new(),
        number => format!(", {number} repaired"),
    };
    let checked = &found.checked;
    format!(
        "{result}{repaired}; looked at {} sandboxes, {} snapshots, {} images, {} templates, {} layers, {} bases, {}",
        checked.sandboxes,
        checked.snapshots,
        checked.images,
        checked.templates,
        checked.layers,
        checked.bases,
        Bytes(checked.bytes)
    )
}

pub async fn gc(global: &Global, asked: args::Gc) -> Result<u8> {
    let dry_run = asked.dry_run;
    let waiting = Waiting::begin("looking for what nobody needs".to_owned());
    let done = match without_daemon(global).await? {
        None => {
            let request = api::GcRequest { dry_run };
            Client::new(global)?.ask::<api::Gc>(hyper::Method::POST, "/gc", Some(&request)).await
        }
        Some(dir) => apart(move || sandbox::Upkeep::open(&dir)?.gc(dry_run)).await.map(server::gc_reply),
    };
    drop(waiting);
    let done = done?;
    if global.json {
        output::document(&done);
    } else {
        tell_gc(&done);
    }
    Ok(if done.failed.is_empty() { 0 } else { FAILED })
}

fn tell_gc(done: &api::Gc) {
    let verb = if done.dry_run { "would remove" } else { "removed" };
    for item in &done.removed {
        let size = Bytes(item.frees_bytes);
        output::line(format_args!("{verb} {} {} ({size}): {}", item.kind, item.name, item.why));
    }
    for item in &done.kept {
        output::line(format_args!("kept {} {}: {}", item.kind, item.name, item.why));
    }
    for record in &done.unreadable {
        output::line(format_args!("kept what it may name: {record}"));
    }
    for failed in &done.failed {
        eprintln!("error: {failed}");
    }
    let freed = Bytes(done.freed_bytes);
    output::line(match (done.dry_run, done.removed.is_empty()) {
        (_, true) => "nothing is there that nobody needs".to_owned(),
        (true, false) => format!("{freed} would be free"),
        (false, false) => format!("{freed} are free again"),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding() -> api::Finding {
        api::Finding {
            severity: "error".into(),
            kind: "base".into(),
            name: "ab12".into(),
            path: "bases/ab12.ram".into(),
            what: "its content is not what its name says".into(),
            way_out: "restore the file from a backup".into(),
            needed_by: vec!["sandbox web-1".into(), "snapshot one".into()],
            repair: None,
            outcome: None,
        }
    }

    #[test]
    fn a_finding_names_the_file_whom_it_harms_and_the_way_out() {
        assert_eq!(
            told(&finding()),
            "error: base ab12: bases/ab12.ram: its content is not what its name says\n    \
             needed by sandbox web-1, snapshot one\n    restore the file from a backup"
        );
        let stray = api::Finding {
            severity: "warning".into(),
            kind: "stray".into(),
            name: "layers/x".into(),
            path: "layers/x".into(),
            what: "bhatti makes nothing of this name".into(),
            way_out: String::new(),
            needed_by: Vec::new(),
            repair: Some("moves it to quarantine/".into()),
            outcome: None,
        };
        assert_eq!(
            told(&stray),
            "warning: stray layers/x: bhatti makes nothing of this name\n    \
             `bhatti fsck --repair` moves it to quarantine/"
        );
        let done = api::Finding { outcome: Some("moved to quarantine/x".into()), ..stray };
        assert!(told(&done).ends_with("\n    repair: moved to quarantine/x"));
    }

    #[test]
    fn the_last_line_counts_what_is_left_and_what_was_repaired() {
        let mut found = api::Fsck {
            clean: true,
            complete: true,
            errors: 0,
            warnings: 0,
            notes: 0,
            findings: Vec::new(),
            checked: api::Checked { sandboxes: 2, bytes: 3 << 20, ..Default::default() },
        };
        assert!(summary(&found).starts_with("all well; looked at 2 sandboxes"));
        found.errors = 1;
        found.notes = 2;
        found.findings.push(api::Finding { outcome: Some("removed".into()), ..finding() });
        found.findings.push(api::Finding { outcome: Some("failed: busy".into()), ..finding() });
        assert!(
            summary(&found).starts_with("1 error, 2 notes, 1 repaired; looked at"),
            "{}",
            summary(&found)
        );
        found.complete = false;
        assert!(summary(&found).starts_with("called off; 1 error"));
    }
}
