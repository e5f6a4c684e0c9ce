//! The crate graph as ARCHITECTURE.md draws it, against the one that cargo sees.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::step::{cargo, output};

/// Room to the rooms that it may use.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// Only what the table allows is used; every room is in the table; tests may use `testkit` besides.
pub fn check(root: &Path) -> Result<String> {
    let text = std::fs::read_to_string(root.join("ARCHITECTURE.md")).context("read ARCHITECTURE.md")?;
    let allowed = table(&text)?;
    let metadata = output(root, &cargo(), &["metadata", "--locked", "--no-deps", "--format-version", "1"])?;
    let (used, used_by_tests) = edges(&metadata)?;
    let wrong = differences(&allowed, &used, &used_by_tests);
    if !wrong.is_empty() {
        bail!("against the table in ARCHITECTURE.md:\n  {}", wrong.join("\n  "));
    }
    Ok(format!("{} crates, {} edges", used.len(), used.values().map(BTreeSet::len).sum::<usize>()))
}

/// Reads the block fenced by "```crates": a line `room: room room` each.
fn table(text: &str) -> Result<Graph> {
    let block = text
        .split_once("```crates\n")
        .and_then(|(_, rest)| rest.split_once("```"))
        .context("ARCHITECTURE.md has no block fenced by ```crates")?
        .0;
    block
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            let (room, uses) =
                line.split_once(':').with_context(|| format!("{line:?} is not `room: rooms`"))?;
            Ok((room.trim().to_owned(), uses.split_whitespace().map(str::to_owned).collect()))
        })
        .collect()
}

/// The workspace's own edges: of the code, and of its tests beyond that.
fn edges(metadata: &str) -> Result<(Graph, Graph)> {
    let metadata: serde_json::Value = serde_json::from_str(metadata).context("read cargo's metadata")?;
    let (mut code, mut tests) = (Graph::new(), Graph::new());
    let short = |name: &str| name.strip_prefix("bhatti-").unwrap_or(name).to_owned();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let room = short(package["name"].as_str().unwrap_or_default());
        code.entry(room.clone()).or_default();
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            // Only the workspace's own have a path.
            if dependency["path"].is_null() {
                continue;
            }
            let to = short(dependency["name"].as_str().unwrap_or_default());
            let graph = if dependency["kind"] == "dev" { &mut tests } else { &mut code };
            graph.entry(room.clone()).or_default().insert(to);
        }
    }
    Ok((code, tests))
}

fn differences(allowed: &Graph, code: &Graph, tests: &Graph) -> Vec<String> {
    let nothing = BTreeSet::new();
    let mut wrong = Vec::new();
    for (room, uses) in code {
        let Some(may) = allowed.get(room) else {
            wrong.push(format!("{room} is not in the table"));
            continue;
        };
        for to in uses.difference(may) {
            wrong.push(format!("{room} uses {to}"));
        }
        for to in tests.get(room).unwrap_or(&nothing).difference(may) {
            if to != "testkit" && to != room {
                wrong.push(format!("{room}'s tests use {to}"));
            }
        }
    }
    wrong.extend(
        allowed.keys().filter(|room| !code.contains_key(*room)).map(|room| format!("{room} does not exist")),
    );
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_that_the_table_does_not_have_is_named() {
        let allowed = table("x\n```crates\na:\nb: a\nc: a b\n```\ny").unwrap();
        let metadata = r#"{"packages": [
            {"name": "bhatti-a", "dependencies": [{"name": "bhatti-b", "path": "/b", "kind": null}]},
            {"name": "bhatti-b", "dependencies": [{"name": "serde", "kind": null},
                {"name": "bhatti-testkit", "path": "/t", "kind": "dev"},
                {"name": "bhatti-c", "path": "/c", "kind": "dev"}]},
            {"name": "bhatti-d", "dependencies": []}]}"#;
        let (code, tests) = edges(metadata).unwrap();
        let wrong = differences(&allowed, &code, &tests);
        assert_eq!(wrong, ["a uses b", "b's tests use c", "d is not in the table", "c does not exist"]);
    }

    #[test]
    fn a_page_without_the_table_is_refused() {
        assert!(table("# nothing").is_err());
        assert!(table("```crates\na b\n```").is_err());
    }
}
