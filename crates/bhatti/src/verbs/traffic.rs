//! `ports`, `forward`, `publish`, `unpublish`.

use std::net::Ipv4Addr;
use std::sync::Arc;

use hyper::Method;
use serde_json::json;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use types::Timestamp;

use crate::args::{Forward, Publish, Unpublish, Which};
use crate::client::{Client, encode, sandbox_path};
use crate::failure::{Failure, Result};
use crate::{output, table};

pub async fn ports(client: &Client, json: bool, asked: Which) -> Result<u8> {
    let ports: Vec<api::Port> = client.get(&format!("{}/ports", sandbox_path(&asked.sandbox))).await?;
    if json {
        output::document(&ports);
        return Ok(0);
    }
    let rows: Vec<_> = ports
        .into_iter()
        .map(|port| {
            vec![
                port.port.to_string(),
                port.protocol,
                port.address,
                port.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
                port.process.unwrap_or_else(|| "-".to_owned()),
            ]
        })
        .collect();
    output::bytes(table::render(&["PORT", "PROTOCOL", "ADDRESS", "PID", "PROCESS"], &rows).as_bytes());
    Ok(0)
}

/// Listens until Ctrl-C; each connection is a tunnel of its own.
pub async fn forward(client: Client, json: bool, asked: Forward) -> Result<u8> {
    let Forward { sandbox, port, host_port } = asked;
    // That there is such a sandbox, without waking it.
    let found: api::Sandbox = client.get(&sandbox_path(&sandbox)).await?;
    let at = (Ipv4Addr::LOCALHOST, host_port.unwrap_or(port));
    let listener = TcpListener::bind(at).await.map_err(|error| {
        Failure::new("listen", format!("cannot listen on {}:{}: {error}", at.0, at.1))
            .hint("give another port as HOSTPORT, 0 for any that is free")
    })?;
    let address = listener.local_addr().map_err(|error| Failure::io("the listener", &error))?;
    if json {
        output::json_line(&json!({ "sandbox": found.name, "port": port, "address": address.to_string() }));
    } else {
        output::line(format!("forwarding {address} to port {port} of {}; Ctrl-C ends it", found.name));
    }
    let client = Arc::new(client);
    let path = format!("{}/tunnel/{port}", sandbox_path(&found.id));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = tokio::signal::ctrl_c() => return Ok(0),
        };
        let (near, _) = accepted.map_err(|error| Failure::io("the listener", &error))?;
        let (client, path) = (Arc::clone(&client), path.clone());
        tokio::spawn(async move {
            if let Err(failure) = tunnel(&client, &path, near).await {
                eprintln!("{failure}");
            }
        });
    }
}

async fn tunnel(client: &Client, path: &str, mut near: TcpStream) -> Result<()> {
    let _unsupported = near.set_nodelay(true);
    let mut far = client.tunnel(path).await?;
    // That either side breaks off is seen by both.
    let _ended = copy_bidirectional(&mut near, &mut far).await;
    Ok(())
}

pub async fn publish(client: &Client, json: bool, asked: Publish) -> Result<u8> {
    let Publish { sandbox, port, alias } = asked;
    let (Some(sandbox), Some(port)) = (&sandbox, port) else {
        let path = match &sandbox {
            Some(sandbox) => format!("{}/publish", sandbox_path(sandbox)),
            None => "/published".to_owned(),
        };
        let published: Vec<api::Publication> = client.get(&path).await?;
        show(json, published);
        return Ok(0);
    };
    let request = api::PublishRequest { port, alias: alias.map(String::from) };
    let path = format!("{}/publish", sandbox_path(sandbox));
    let publication: api::Publication = client.ask(Method::POST, &path, Some(&request)).await?;
    if json {
        output::document(&publication);
        return Ok(0);
    }
    if publication.url.is_none() {
        eprintln!("the daemon does not serve what is published; start it with `serve --publish-listen`");
    }
    output::line(publication.url.unwrap_or(publication.alias));
    Ok(0)
}

pub async fn unpublish(client: &Client, json: bool, asked: Unpublish) -> Result<u8> {
    let Unpublish { which, port, alias } = asked;
    let published: Vec<api::Publication> = client.get("/published").await?;
    // An alias may be given in place of the sandbox; a sandbox of that name comes first.
    let named = published.iter().any(|one| one.sandbox == which || one.sandbox_id.starts_with(&which));
    let by_alias = published.iter().find(|one| one.alias == which).filter(|_| !named && alias.is_none());
    let (sandbox, alias) = match by_alias {
        Some(one) => (one.sandbox_id.clone(), Some(one.alias.clone())),
        None => (which, alias.map(String::from)),
    };
    let queries: Vec<String> =
        [alias.map(|alias| format!("alias={}", encode(&alias))), port.map(|port| format!("port={port}"))]
            .into_iter()
            .flatten()
            .collect();
    let path = format!("{}/publish?{}", sandbox_path(&sandbox), queries.join("&"));
    let gone: Vec<api::Publication> = client.ask(Method::DELETE, &path, None::<&()>).await?;
    if json {
        output::document(&gone);
    } else {
        for one in gone {
            output::line(format!("{} is no longer published as {}", one.sandbox, one.alias));
        }
    }
    Ok(0)
}

fn show(json: bool, published: Vec<api::Publication>) {
    if json {
        return output::document(&published);
    }
    let now = Timestamp::now();
    let rows: Vec<_> = published
        .into_iter()
        .map(|one| {
            let age = table::age(&one.created_at, now);
            vec![one.alias, one.sandbox, one.port.to_string(), age, one.url.unwrap_or_else(|| "-".to_owned())]
        })
        .collect();
    output::bytes(table::render(&["ALIAS", "SANDBOX", "PORT", "AGE", "URL"], &rows).as_bytes());
}
