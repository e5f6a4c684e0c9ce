//! `fork`: live copies of a sandbox.

use hyper::Method;

use super::create::{sentence, warn};
use crate::args::{self, Copied, Pair};
use crate::client::{Client, sandbox_path};
use crate::failure::Result;
use crate::output;
use crate::progress::Waiting;

pub async fn fork(client: &Client, json: bool, asked: args::Fork) -> Result<u8> {
    let args::Fork { sandbox, name, count, copy } = asked;
    let Copied { label, keep_hot, disk_size, strict } = copy;
    let request = api::ForkRequest {
        name: name.map(String::from),
        count,
        labels: label.into_iter().map(|Pair(key, value)| (key, value)).collect(),
        keep_hot,
        disk_size_mb: disk_size,
        strict,
    };
    let what = if count == 1 { "a copy".to_owned() } else { format!("{count} copies") };
    let waiting = Waiting::begin(format!("{what} of {sandbox}"));
    let path = format!("{}/fork", sandbox_path(&sandbox));
    let made = client.ask::<api::ForkReply>(Method::POST, &path, Some(&request)).await;
    drop(waiting);
    let reply = made?;
    if json {
        output::document(&reply);
    } else {
        reply.sandboxes.iter().for_each(|sandbox| output::line(sentence(sandbox)));
    }
    // What is true of the host is told once.
    warn(&reply.first);
    for copy in reply.sandboxes.iter().skip(1) {
        for warning in &copy.warnings {
            eprintln!("warning: {}: {warning}", copy.sandbox.name);
        }
    }
    Ok(0)
}
