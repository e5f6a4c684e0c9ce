//! `bench`: the measured tables, on this host, by this program.

use bench::{Options, Suite};

use crate::args::{self, BenchSuite, Global};
use crate::client::data_dir;
use crate::failure::{Failure, Result};
use crate::output;

pub async fn bench(global: &Global, asked: args::Bench) -> Result<u8> {
    let program = std::env::current_exe().map_err(|error| {
        Failure::new("failed", format!("bench: this program cannot be found again: {error}"))
    })?;
    let suites = match asked.suite {
        BenchSuite::Create | BenchSuite::Wake => vec![Suite::Life],
        BenchSuite::Exec => vec![Suite::Exec],
        BenchSuite::Density => vec![Suite::Density],
        BenchSuite::All => vec![Suite::Life, Suite::Exec, Suite::Density],
    };
    let options = Options { program, data_dir: data_dir(global)?, suites, runs: usize::from(asked.runs) };
    // It blocks: it waits for one thing at a time and measures it.
    let report =
        tokio::task::spawn_blocking(move || bench::run(&options, &|step| eprintln!("bench: {step}")))
            .await
            .map_err(|error| Failure::new("failed", format!("bench: {error}")))?
            .map_err(|error| Failure::new("failed", format!("bench: {error}")))?;
    if let Some(dir) = asked.out {
        let written = std::fs::create_dir_all(&dir)
            .and_then(|()| std::fs::write(dir.join("performance.md"), report.to_string()))
            .and_then(|()| std::fs::write(dir.join("performance.json"), serde_json::to_vec_pretty(&report)?));
        written.map_err(|error| Failure::new("failed", format!("bench: {}: {error}", dir.display())))?;
    }
    if global.json {
        output::document(&report);
    } else {
        output::line(&report);
    }
    Ok(0)
}
