//! `secret set|list|delete`.

use std::io::Read as _;

use hyper::Method;
use serde_json::json;
use types::Timestamp;

use super::lifecycle::confirmed;
use crate::args::{Secret, SecretDelete, SecretSet};
use crate::client::{Client, encode};
use crate::failure::{Failure, Result};
use crate::{output, table, terminal};

/// More than any value may have, so that the daemon says so and not this program's memory.
const MOST_READ: u64 = 1 << 20;

pub async fn secret(client: &Client, json: bool, asked: Secret) -> Result<u8> {
    match asked {
        Secret::Set(asked) => set(client, json, asked).await,
        Secret::List => list(client, json).await,
        Secret::Delete(asked) => delete(client, json, asked).await,
    }
}

async fn set(client: &Client, json: bool, asked: SecretSet) -> Result<u8> {
    let value = match asked.value {
        Some(value) => value,
        None => read_value()?,
    };
    let request = api::SecretRequest { name: asked.name.into(), value };
    let secret: api::Secret = client.ask(Method::POST, "/secrets", Some(&request)).await?;
    if json {
        output::document(&secret);
        return Ok(0);
    }
    output::line(format!("{} is set", secret.name));
    if !secret.used_by.is_empty() {
        output::line(format!("{} will have it after the next start", secret.used_by.join(", ")));
    }
    Ok(0)
}

fn read_value() -> Result<String> {
    let mut value = String::new();
    let read = std::io::stdin().lock().take(MOST_READ).read_to_string(&mut value);
    read.map_err(|error| Failure::io("the value on stdin", &error))?;
    if value.ends_with('\n') {
        value.pop();
    }
    Ok(value)
}

async fn list(client: &Client, json: bool) -> Result<u8> {
    let secrets: Vec<api::Secret> = client.get("/secrets").await?;
    if json {
        output::document(&secrets);
        return Ok(0);
    }
    let now = Timestamp::now();
    let rows: Vec<_> = secrets
        .into_iter()
        .map(|secret| {
            let (created, updated) =
                (table::age(&secret.created_at, now), table::age(&secret.updated_at, now));
            let used_by = if secret.used_by.is_empty() { "-".to_owned() } else { secret.used_by.join(", ") };
            vec![secret.name, created, updated, used_by]
        })
        .collect();
    output::bytes(table::render(&["NAME", "CREATED", "UPDATED", "USED BY"], &rows).as_bytes());
    Ok(0)
}

async fn delete(client: &Client, json: bool, asked: SecretDelete) -> Result<u8> {
    let SecretDelete { name, force, yes } = asked;
    if !yes && terminal::can_ask() && !confirmed(&format!("delete the secret {name}?"))? {
        return Err(Failure::new("declined", "nothing was deleted"));
    }
    client.delete(&format!("/secrets/{}?force={force}", encode(name.as_str()))).await?;
    if json {
        output::document(&json!({ "deleted": name }));
    } else {
        output::line(format!("{name} is deleted"));
    }
    Ok(0)
}
