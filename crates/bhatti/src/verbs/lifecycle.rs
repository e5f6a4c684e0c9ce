//! `stop`, `start`, `destroy`: each for several sandboxes, going on after a failure.

use std::io::Write as _;

use hyper::Method;
use serde_json::{Value, json};

use super::create::warn;
use crate::args;
use crate::client::{Client, sandbox_path};
use crate::failure::{FAILED, Failure, Result};
use crate::{output, table, terminal};

/// What came of each thing: a single one is shown and fails by itself, of several each is told.
pub struct Several {
    json: bool,
    alone: bool,
    documents: Vec<Value>,
    failed: bool,
}

impl Several {
    pub fn new(json: bool, names: &[String]) -> Self {
        Self { json, alone: names.len() == 1, documents: Vec::new(), failed: false }
    }

    pub fn done(&mut self, document: Value, sentence: impl std::fmt::Display) {
        if self.json {
            self.documents.push(document);
        } else {
            output::line(sentence);
        }
    }

    /// Fails at once when there is only one; otherwise tells and goes on.
    pub fn failed(&mut self, failure: Failure) -> Result<()> {
        if self.alone {
            return Err(failure);
        }
        eprintln!("{failure}");
        self.documents.push(failure.document());
        self.failed = true;
        Ok(())
    }

    pub fn finish(mut self) -> u8 {
        if self.json {
            if self.alone && self.documents.len() == 1 {
                output::document(&self.documents.remove(0));
            } else {
                output::document(&self.documents);
            }
        }
        if self.failed { FAILED } else { 0 }
    }
}

fn document(reply: &api::SandboxReply) -> Value {
    serde_json::to_value(reply).unwrap_or_default()
}

pub async fn stop(client: &Client, json: bool, asked: args::Stop) -> Result<u8> {
    let mut several = Several::new(json, &asked.sandboxes);
    for which in &asked.sandboxes {
        let path = format!("{}/stop", sandbox_path(which));
        match client.ask::<api::SandboxReply>(Method::POST, &path, Some(&api::StopRequest {})).await {
            Ok(reply) => {
                several.done(document(&reply), stopped(&reply));
                for warning in &reply.warnings {
                    eprintln!("warning: {warning}");
                }
            }
            Err(failure) => several.failed(failure)?,
        }
    }
    Ok(several.finish())
}

fn stopped(reply: &api::SandboxReply) -> String {
    let name = &reply.sandbox.name;
    if !reply.changed {
        return format!("{name} was asleep already");
    }
    let took = reply.timings_ms.get("total").map(|ms| table::milliseconds(*ms)).unwrap_or_default();
    let bytes = reply.sandbox.last_transition.as_ref().map(|last| &last.bytes);
    let part = |what: &str| bytes.and_then(|bytes| bytes.get(what)).map(|n| table::bytes(*n));
    match (part("stored"), part("private")) {
        (Some(stored), Some(private)) => {
            format!("{name} is asleep: {took}, {stored} kept of {private} of memory")
        }
        _ => format!("{name} is asleep: {took}"),
    }
}

pub async fn start(client: &Client, json: bool, asked: args::Start) -> Result<u8> {
    let args::Start { sandboxes, discard_memory, strict } = asked;
    let mut several = Several::new(json, &sandboxes);
    for which in &sandboxes {
        let path = format!("{}/start", sandbox_path(which));
        let request = api::StartRequest { discard_memory, strict };
        match client.ask::<api::SandboxReply>(Method::POST, &path, Some(&request)).await {
            Ok(reply) => {
                several.done(document(&reply), started(&reply));
                warn(&reply);
            }
            Err(failure) => several.failed(failure)?,
        }
    }
    Ok(several.finish())
}

fn started(reply: &api::SandboxReply) -> String {
    let name = &reply.sandbox.name;
    if !reply.changed {
        return format!("{name} was awake already");
    }
    let how = match reply.sandbox.boot.as_str() {
        "resume" => "resumed where it was",
        "cold_boot" => "booted from its disk",
        other => other,
    };
    let took = reply.timings_ms.get("total").map(|ms| table::milliseconds(*ms)).unwrap_or_default();
    format!("{name} is awake: {how} in {took}")
}

pub async fn destroy(client: &Client, json: bool, asked: args::Destroy) -> Result<u8> {
    let args::Destroy { sandboxes, yes } = asked;
    let question = format!("destroy {} with everything in it?", sandboxes.join(", "));
    if !yes && terminal::can_ask() && !confirmed(&question)? {
        return Err(Failure::new("declined", "nothing was destroyed"));
    }
    let mut several = Several::new(json, &sandboxes);
    for which in &sandboxes {
        match client.delete(&sandbox_path(which)).await {
            Ok(()) => {
                several.done(json!({ "sandbox": which, "destroyed": true }), format!("{which} is gone"))
            }
            Err(failure) => several.failed(failure)?,
        }
    }
    Ok(several.finish())
}

/// Asks a person.
pub fn confirmed(question: &str) -> Result<bool> {
    eprint!("{question} [y/N] ");
    let _unseen = std::io::stderr().flush();
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(|error| Failure::io("the answer", &error))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
