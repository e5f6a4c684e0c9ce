//! The house rules, one step each; all of them run, whatever fails.

use std::collections::BTreeSet;
use std::ffi::OsStr;

use anyhow::{Result, bail, ensure};

use crate::graph;
use crate::links;
use crate::sources::Sources;
use crate::step::{Steps, cargo, output};

/// The agent is in every guest and starts first: it stays small.
const AGENT_PACKAGES_BELOW: usize = 40;
const LOCKED_PACKAGES_AT_MOST: usize = 420;

/// Runs all of them.
pub fn run(steps: &Steps) {
    let root = steps.root();
    steps.run("format", || steps.cargo(&["fmt", "--all", "--check"], &[]));
    steps.run("lints", || {
        steps.cargo(
            &["clippy", "--quiet", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"],
            &[],
        )
    });
    steps.run("docs", || {
        let env = [("RUSTDOCFLAGS", OsStr::new("-D warnings -A rustdoc::private_intra_doc_links"))];
        steps.cargo(&["doc", "--quiet", "--locked", "--workspace", "--no-deps"], &env)
    });
    steps.run("crate graph", || graph::check(root));
    steps.run("dependencies", || dependencies(steps));
    steps.run("shell scripts", || {
        for script in Sources::read(root)?.with_extension("sh").chain([".ci/run"]) {
            steps.program("bash", &["-n", script], &[])?;
        }
        Ok(String::new())
    });
    steps.run("sources", || Sources::read(root)?.check(root));
    steps.run("links", || links::check(root));
    // Optional, because it is a program of its own.
    if output(root, &cargo(), &["deny", "--version"]).is_ok() {
        steps.run("licences and sources of dependencies", || {
            steps.cargo(&["deny", "--log-level", "error", "check", "licenses", "sources", "bans"], &[])
        });
    }
}

fn dependencies(steps: &Steps) -> Result<String> {
    let root = steps.root();
    let tree = [
        "tree",
        "--locked",
        "--package",
        "bhatti-agent",
        "--edges",
        "normal,build",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ];
    let tree = output(root, &cargo(), &tree)?;
    let agent: BTreeSet<_> = tree.lines().filter_map(|line| line.split(" (").next()).collect();
    ensure!(
        agent.len() < AGENT_PACKAGES_BELOW,
        "the agent has {} packages; fewer than {AGENT_PACKAGES_BELOW} are allowed",
        agent.len()
    );
    let lock = std::fs::read_to_string(root.join("Cargo.lock"))?;
    let locked = lock.lines().filter(|line| *line == "[[package]]").count();
    if locked > LOCKED_PACKAGES_AT_MOST {
        bail!("{locked} packages are locked; at most {LOCKED_PACKAGES_AT_MOST} are allowed");
    }
    if let Some(line) = lock.lines().find(|line| line.starts_with("source = \"git")) {
        bail!("no dependency may come from git: {line}");
    }
    Ok(format!("{locked} locked packages, {} of them in the agent", agent.len()))
}
