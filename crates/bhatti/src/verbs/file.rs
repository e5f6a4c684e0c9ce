//! `file read|write|ls|stat`.

use std::path::Path;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::BodyExt as _;
use hyper::Method;
use types::Timestamp;

use crate::args::{File, FilePath, FileRead, FileWrite};
use crate::client::{Body, Client, broke_off, encode, sandbox_path, streamed, whole};
use crate::failure::{Failure, Result};
use crate::{output, table};

/// How much is read at a time of what is written to a guest.
const CHUNK: usize = 128 * 1024;

pub async fn file(client: &Client, json: bool, asked: File) -> Result<u8> {
    match asked {
        File::Read(asked) => read(client, json, asked).await,
        File::Write(asked) => write(client, json, asked).await,
        File::Ls(asked) => list(client, json, asked).await,
        File::Stat(asked) => stat(client, json, asked).await,
    }
}

fn path(file: &FilePath) -> String {
    format!("{}/files?path={}", sandbox_path(&file.sandbox), encode(&file.path))
}

async fn read(client: &Client, json: bool, asked: FileRead) -> Result<u8> {
    if json {
        return Err(
            Failure::new("usage", "a file's bytes have no JSON").hint("use `bhatti file stat --json`")
        );
    }
    let mut path = path(&asked.file);
    let (line_offset, line_limit) = asked.lines.map(|lines| (lines.from - 1, lines.count)).unzip();
    let range = [
        ("offset", asked.offset),
        ("limit", asked.limit),
        ("line_offset", line_offset),
        ("line_limit", line_limit),
        ("max_bytes", asked.max_bytes),
    ];
    for (key, value) in range {
        if let Some(value) = value {
            path.push_str(&format!("&{key}={value}"));
        }
    }
    let response = client.send(Method::GET, &path, whole(Bytes::new())).await?;
    let truncated = response.headers().contains_key(api::FILE_TRUNCATED_HEADER);
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broke_off(&asked.file.path, &error))?;
        if let Some(data) = frame.data_ref() {
            output::bytes(data);
        }
    }
    if truncated {
        eprintln!("warning: {} goes on after --max-bytes", asked.file.path);
    }
    Ok(0)
}

async fn write(client: &Client, json: bool, asked: FileWrite) -> Result<u8> {
    let mut path = path(&asked.file);
    if let Some(mode) = &asked.mode {
        path.push_str(&format!("&mode={mode}"));
    }
    if asked.mkdirs {
        path.push_str("&mkdirs=true");
    }
    let response = client.send(Method::PUT, &path, source(asked.local.as_deref())?).await?;
    let answer = response.into_body().collect().await.map_err(|error| broke_off(&asked.file.path, &error))?;
    let stat: api::FileStat = serde_json::from_slice(&answer.to_bytes())
        .map_err(|error| Failure::new("protocol", format!("the answer makes no sense: {error}")))?;
    if json {
        output::document(&stat);
    }
    Ok(0)
}

/// The bytes of a local file or of stdin, read on a thread of its own a few chunks ahead.
pub fn source(local: Option<&Path>) -> Result<Body> {
    let (mut from, what): (Box<dyn std::io::Read + Send>, String) = match local {
        Some(path) => {
            let failed = |error| Failure::io(path.display(), &error);
            let file = std::fs::File::open(path).map_err(failed)?;
            // Said here, because a read of it would look like an upload that broke off.
            if file.metadata().map_err(failed)?.is_dir() {
                return Err(Failure::new("io", format!("{}: is a directory", path.display())));
            }
            (Box::new(file), path.display().to_string())
        }
        None => (Box::new(std::io::stdin()), "stdin".to_owned()),
    };
    let (send, queue) = tokio::sync::mpsc::channel(4);
    std::thread::spawn(move || {
        loop {
            let mut chunk = vec![0u8; CHUNK];
            let read = match from.read(&mut chunk) {
                Ok(0) => return,
                Ok(length) => {
                    chunk.truncate(length);
                    Ok(Bytes::from(chunk))
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                // Breaks the request off, so that half a file is never taken for a whole one.
                Err(error) => Err(std::io::Error::new(error.kind(), format!("{what}: {error}"))),
            };
            let last = read.is_err();
            if send.blocking_send(read).is_err() || last {
                return;
            }
        }
    });
    Ok(streamed(stream::unfold(queue, |mut queue| async move { Some((queue.recv().await?, queue)) })))
}

async fn list(client: &Client, json: bool, asked: FilePath) -> Result<u8> {
    let entries: Vec<api::FileEntry> = client.get(&format!("{}&ls=true", path(&asked))).await?;
    if json {
        output::document(&entries);
        return Ok(0);
    }
    let now = Timestamp::now();
    let rows: Vec<_> = entries
        .into_iter()
        .map(|api::FileEntry { name, stat }| {
            let mark = if stat.kind == "directory" { "/" } else { "" };
            let target = stat.target.as_ref().map(|target| format!(" -> {target}")).unwrap_or_default();
            vec![
                stat.mode.clone(),
                format!("{}:{}", stat.uid, stat.gid),
                stat.size_bytes.to_string(),
                table::age(&stat.modified_at, now),
                format!("{}{mark}{target}", printable(&name)),
            ]
        })
        .collect();
    output::bytes(table::render(&["MODE", "OWNER", "BYTES", "AGE", "NAME"], &rows).as_bytes());
    Ok(0)
}

async fn stat(client: &Client, json: bool, asked: FilePath) -> Result<u8> {
    let stat: api::FileStat = client.get(&format!("{}&stat=true", path(&asked))).await?;
    if json {
        output::document(&stat);
        return Ok(0);
    }
    let target = stat.target.as_ref().map(|target| format!(" -> {}", printable(target))).unwrap_or_default();
    output::line(format!(
        "{}{target}: {}, {} bytes, mode {}, owner {}:{}, modified {}",
        asked.path, stat.kind, stat.size_bytes, stat.mode, stat.uid, stat.gid, stat.modified_at
    ));
    Ok(0)
}

/// A name that a guest chose, without what a terminal would obey.
fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
