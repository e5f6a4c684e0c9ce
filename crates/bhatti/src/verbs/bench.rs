//! `bench`: the measured tables, on this host, by this program.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bench::{Filesystem, Options, Suite};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{self, BenchFilesystem, BenchSuite, Global};
use crate::client::data_dir;
use crate::failure::{Failure, Result};
use crate::output;

pub async fn bench(global: &Global, asked: args::Bench) -> Result<u8> {
    let program = std::env::current_exe().map_err(|error| {
        Failure::new("failed", format!("bench: this program cannot be found again: {error}"))
    })?;
    let suites = match asked.suite {
        BenchSuite::Create => vec![Suite::Life],
        BenchSuite::Wake => vec![Suite::Wake],
        BenchSuite::Exec => vec![Suite::Exec],
        BenchSuite::Density => vec![Suite::Density],
        BenchSuite::Snapshot => vec![Suite::Snapshot],
        BenchSuite::Storage => vec![Suite::Storage],
        BenchSuite::Images => vec![Suite::Images],
        BenchSuite::Scaling => vec![Suite::Scaling],
        BenchSuite::All => vec![
            Suite::Life,
            Suite::Wake,
            Suite::Exec,
            Suite::Density,
            Suite::Scaling,
            Suite::Images,
            Suite::Storage,
        ],
    };
    let on = |filesystem: &BenchFilesystem| match filesystem {
        BenchFilesystem::Here => Filesystem::Here,
        BenchFilesystem::Ext4 => Filesystem::Ext4,
        BenchFilesystem::Btrfs => Filesystem::Btrfs,
        BenchFilesystem::Xfs => Filesystem::Xfs,
    };
    let data_dir = data_dir(global)?;
    let beside = data_dir.parent().map_or_else(|| PathBuf::from("."), PathBuf::from);
    let options = Options {
        program,
        scratch: asked.out.clone().unwrap_or(beside),
        data_dir,
        command: command(&suites, &asked),
        suites,
        runs: usize::from(asked.runs),
        on: asked.on.iter().map(on).collect(),
        against: asked.against,
        cancel: end_on_signals()?,
    };
    // It blocks: it waits for one thing at a time and measures it.
    let report =
        tokio::task::spawn_blocking(move || bench::run(&options, &|step| eprintln!("bench: {step}")))
            .await
            .map_err(|error| Failure::new("failed", format!("bench: {error}")))?
            .map_err(|error| Failure::new("failed", format!("bench: {error}")))?;
    if let Some(dir) = asked.out {
        let written = std::fs::create_dir_all(&dir)
            .and_then(|()| std::fs::write(dir.join("performance.md"), report.page("plots")))
            .and_then(|()| std::fs::write(dir.join("performance.json"), serde_json::to_vec_pretty(&report)?));
        written.map_err(|error| Failure::new("failed", format!("bench: {}: {error}", dir.display())))?;
        bench::write_plots(&report, &dir.join("plots"))
            .map_err(|error| Failure::new("failed", format!("bench: {error}")))?;
    }
    if global.json {
        output::document(&report);
    } else {
        output::line(&report);
    }
    Ok(0)
}

/// What was asked for, to be typed elsewhere.
fn command(suites: &[Suite], asked: &args::Bench) -> String {
    let suite = match suites {
        [one] => one.name(),
        _ => "all",
    };
    format!("bhatti bench --suite {suite} --runs {}", asked.runs)
}

/// True from the first signal on that asks for the end: mounts and machines are to go first. A second one does not wait.
fn end_on_signals() -> Result<Arc<AtomicBool>> {
    let cancel = Arc::new(AtomicBool::new(false));
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let mut signals = signal(kind).map_err(|error| Failure::io("waiting for signals", &error))?;
        let cancel = Arc::clone(&cancel);
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                if cancel.swap(true, Ordering::Relaxed) {
                    std::process::exit(130);
                }
                eprintln!("bench: ending; what was made is removed first");
            }
        });
    }
    Ok(cancel)
}
