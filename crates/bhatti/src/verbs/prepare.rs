//! `setup` and `doctor`: what is done to and said of this host, without a daemon.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use sandbox::{Cancel, HostConfig, SetupConfig, SetupStep, Verdict};
use serde_json::json;

use crate::args::{self, Global, Storage};
use crate::client::data_dir;
use crate::failure::{FAILED, Result};
use crate::verbs::loop_storage;
use crate::{output, terminal};

/// The guest's agent, as built by this program's build script.
static AGENT: &[u8] = include_bytes!(env!("BHATTI_AGENT"));

pub async fn setup(global: &Global, asked: args::Setup) -> Result<u8> {
    let data_dir = data_dir(global)?;
    let cancel = Cancel::new();
    let asked_to_stop = cancel.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            asked_to_stop.cancel();
        }
    });
    let shown = Shown::new(terminal::can_draw());
    let storage = loop_storage::prepare(&data_dir, &asked, cancel.clone(), shown.clone()).await?;
    if !global.json {
        storage.tell();
    }
    if storage.is_all(&asked) {
        if global.json {
            output::document(&json!({ "storage": storage.document() }));
        }
        return Ok(0);
    }
    let host = HostConfig { qemu: asked.qemu, ..HostConfig::new(&data_dir) };
    let config = SetupConfig {
        host,
        agent: AGENT,
        agent_version: env!("CARGO_PKG_VERSION"),
        kernel: asked.kernel.zip(asked.modules),
        force: asked.force,
    };
    let report = sandbox::setup(config, cancel, move |step| shown.step(step)).await?;
    let advice = match asked.storage {
        Storage::Auto => sandbox::loop_advice(data_dir).await,
        Storage::Here | Storage::BtrfsLoop => None,
    };
    if global.json {
        output::document(&json!({
            "kernel": report.kernel,
            "image": report.image,
            "accel": report.accel.as_str(),
            "why_not_kvm": report.why_not_kvm,
            "changed": report.changed,
            "storage": storage.document(),
            "advice": advice,
        }));
        return Ok(0);
    }
    output::line(format!(
        "ready: Linux {}, image minimal ({}), {}; `bhatti serve` starts the daemon",
        report.kernel,
        report.image.chars().take(12).collect::<String>(),
        report.accel
    ));
    if !report.why_not_kvm.is_empty() {
        eprintln!(
            "warning: software emulation (tcg), because {}: slow, and no security boundary",
            report.why_not_kvm
        );
    }
    if let Some(advice) = advice {
        eprintln!("note: {advice}");
    }
    Ok(0)
}

/// Progress on stderr: a bar for the step at hand on a terminal, a line for each step that ended elsewhere.
#[derive(Clone)]
pub(super) struct Shown {
    bar: Option<Arc<Mutex<ProgressBar>>>,
}

impl Shown {
    fn new(draw: bool) -> Self {
        Self { bar: draw.then(|| Arc::new(Mutex::new(ProgressBar::hidden()))) }
    }

    pub(super) fn step(&self, step: SetupStep) {
        match step {
            SetupStep::Begin { what } => match self.bar() {
                Some(mut bar) => *bar = spinner(what),
                None => eprintln!("{what} ..."),
            },
            SetupStep::Progress(progress) => {
                if let Some(bar) = self.bar() {
                    if progress.total > 0 {
                        bar.set_message(format!("{} ({}/{})", progress.step, progress.done, progress.total));
                    } else {
                        bar.set_message(progress.step);
                    }
                }
            }
            SetupStep::End { what, result, took } => {
                if let Some(bar) = self.bar() {
                    bar.finish_and_clear();
                }
                eprintln!("{what}: {result} ({:.1} s)", took.as_secs_f64());
            }
        }
    }

    fn bar(&self) -> Option<std::sync::MutexGuard<'_, ProgressBar>> {
        self.bar.as_ref().map(|bar| bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

fn spinner(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_prefix(what);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}: {wide_msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

pub async fn doctor(global: &Global, asked: args::Doctor) -> Result<u8> {
    let config = HostConfig { qemu: asked.qemu, ..HostConfig::new(data_dir(global)?) };
    let report = sandbox::doctor(config).await?;
    let healthy = report.healthy();
    if global.json {
        let checks: Vec<_> = report
            .checks
            .iter()
            .map(|check| {
                json!({
                    "name": check.name,
                    "status": check.verdict.as_str(),
                    "found": check.found,
                    "cost": check.cost,
                    "fix": check.fix,
                })
            })
            .collect();
        output::document(&json!({ "healthy": healthy, "checks": checks }));
    } else {
        let width = report.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
        for check in &report.checks {
            let mark = match check.verdict {
                Verdict::Ok => "  ok",
                Verdict::Warn => "warn",
                Verdict::Fail => "FAIL",
            };
            output::line(format!("{mark}  {:<width$}  {}", check.name, check.found));
            for (what, text) in [("costs", &check.cost), ("fix", &check.fix)] {
                if !text.is_empty() {
                    output::line(format!("      {:<width$}  {what}: {text}", ""));
                }
            }
        }
    }
    Ok(if healthy { 0 } else { FAILED })
}
