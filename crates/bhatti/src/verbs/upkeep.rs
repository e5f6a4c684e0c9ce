//! `fsck`, `gc`: through the daemon, or on a data directory that has none.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper::Method;
use tokio::net::UnixStream;
use types::Bytes;

use crate::args::{self, Global};
use crate::client::{self, Client};
use crate::failure::{FAILED, Failure, Result};
use crate::output;
use crate::progress::Waiting;

/// The data directory, if no daemon can be asked about it.
async fn without_daemon(global: &Global) -> Result<Option<PathBuf>> {
    let dir = client::data_dir(global)?;
    let told = global.url.as_deref().is_some_and(|url| !url.is_empty());
    if told || !dir.is_dir() || UnixStream::connect(dir.join("bhatti.sock")).await.is_ok() {
        return Ok(None);
    }
    Ok(Some(dir))
}

/// Runs blocking work on a thread of its own.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> sandbox::Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(error) => Err(Failure::new("internal", format!("a worker thread failed: {error}"))),
    }
}

pub async fn fsck(global: &Global, asked: args::Fsck) -> Result<u8> {
    let waiting = Waiting::begin("checking everything that is stored".to_owned());
    let found = match without_daemon(global).await? {
        None => {
            let request = api::FsckRequest { repair: asked.repair };
            Client::new(global)?.ask::<api::Fsck>(Method::POST, "/fsck", Some(&request)).await
        }
        Some(dir) => {
            let cancel = Arc::new(AtomicBool::new(false));
            let called_off = Arc::clone(&cancel);
            let check =
                apart(move || sandbox::Upkeep::open(&dir)?.fsck(asked.repair, &|_progress| {}, &called_off));
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
    };
    drop(waiting);
    let found = found?;
    if global.json {
        output::document(&found);
    } else {
        tell_findings(&found);
    }
    Ok(if found.clean { 0 } else { FAILED })
}

fn tell_findings(found: &api::Fsck) {
    for finding in &found.findings {
        output::line(format_args!(
            "{}: {} {}: {}",
            finding.severity, finding.kind, finding.name, finding.what
        ));
        let more = [
            (finding.path.is_empty(), format!("at {}", finding.path)),
            (finding.needed_by.is_empty(), format!("needed by {}", finding.needed_by.join(", "))),
            (finding.way_out.is_empty(), finding.way_out.clone()),
        ];
        for (_, line) in more.into_iter().filter(|(empty, _)| !empty) {
            output::line(format_args!("    {line}"));
        }
        match &finding.outcome {
            Some(outcome) => output::line(format_args!("    {outcome}")),
            None if finding.repairable => output::line("    `bhatti fsck --repair` takes care of it"),
            None => {}
        }
    }
    let read = Bytes(found.checked_bytes);
    output::line(match (found.complete, found.clean) {
        (false, _) => format!("called off after {read}"),
        (true, true) => format!("all well: {read} compared with their checksums"),
        (true, false) => format!("something is damaged; {read} were compared with their checksums"),
    });
}

pub async fn gc(global: &Global, asked: args::Gc) -> Result<u8> {
    let dry_run = asked.dry_run;
    let done = match without_daemon(global).await? {
        None => {
            let request = api::GcRequest { dry_run };
            Client::new(global)?.ask::<api::Gc>(Method::POST, "/gc", Some(&request)).await?
        }
        Some(dir) => server::gc_reply(apart(move || sandbox::Upkeep::open(&dir)?.gc(dry_run)).await?),
    };
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
        let size = Bytes(item.allocated_bytes);
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
