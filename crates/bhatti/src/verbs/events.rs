//! `events`.

use bytes::Bytes;
use hyper::Method;

use crate::args::Events;
use crate::client::{Client, EventReader, whole};
use crate::failure::Result;
use crate::output;

pub async fn events(client: &Client, json: bool, asked: Events) -> Result<u8> {
    let Events { since, follow } = asked;
    let mut path = format!("/events?follow={follow}");
    if let Some(since) = since {
        path.push_str(&format!("&since={since}"));
    }
    let response = client.send(Method::GET, &path, whole(Bytes::new())).await?;
    let mut reader = EventReader::new(response);
    let mut all = Vec::new();
    while let Some(event) = reader.next().await? {
        match (json, follow) {
            // What has no end cannot be one document.
            (true, true) => output::json_line(&event),
            (true, false) => all.push(event),
            (false, _) => output::line(sentence(&event)),
        }
    }
    if json && !follow {
        output::document(&all);
    }
    Ok(0)
}

fn sentence(event: &api::Event) -> String {
    let subject = event.name.as_deref().or(event.sandbox.as_deref()).unwrap_or("-");
    let mut text = format!("{:>6}  {}  {:<24}  {subject}", event.seq, event.at, event.kind);
    let empty = event.detail.is_null() || event.detail.as_object().is_some_and(serde_json::Map::is_empty);
    if !empty {
        text.push_str(&format!("  {}", event.detail));
    }
    text
}
