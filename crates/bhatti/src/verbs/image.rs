//! `image`: lists and names at once, everything that takes long as a task.

use std::path::Path;

use hyper::Method;
use serde::Serialize;
use serde_json::json;
use types::Timestamp;

use super::lifecycle::{Several, confirmed};
use super::{file, task};
use crate::args::{Image, ImageDelete, ImageImport};
use crate::client::{Client, encode};
use crate::failure::{Failure, Result};
use crate::progress::Waiting;
use crate::{output, table, terminal};

pub async fn image(client: &Client, json: bool, asked: Image) -> Result<u8> {
    match asked {
        Image::List => list(client, json).await,
        Image::Inspect(which) => {
            let image: api::ImageObject = client.get(&path(which.image.as_str())).await?;
            output::document(&image);
            Ok(0)
        }
        Image::Build(asked) => {
            let request = api::BuildRequest { tier: asked.tier, name: asked.name.map(String::from) };
            follow(client, json, "/images/build", &request).await
        }
        Image::Pull(asked) => {
            let request =
                api::PullRequest { reference: asked.reference, name: asked.name.into(), auth: asked.auth };
            follow(client, json, "/images/pull", &request).await
        }
        Image::Save(asked) => {
            let request = api::SaveRequest { sandbox: asked.sandbox, name: asked.name.into() };
            follow(client, json, "/images/save", &request).await
        }
        Image::Import(asked) => import(client, json, asked).await,
        Image::Delete(asked) => delete(client, json, asked).await,
    }
}

fn path(name: &str) -> String {
    format!("/images/{}", encode(name))
}

async fn follow(client: &Client, json: bool, path: &str, request: &impl Serialize) -> Result<u8> {
    let begun: api::Task = client.ask(Method::POST, path, Some(request)).await?;
    told(json, &task::to_the_end(client, begun).await?)
}

fn told(json: bool, task: &api::Task) -> Result<u8> {
    if json {
        output::document(task);
        return Ok(0);
    }
    let result = task.result.clone().unwrap_or_default();
    for warning in result["warnings"].as_array().into_iter().flatten().filter_map(|text| text.as_str()) {
        eprintln!("warning: {}: {warning}", task.subject);
    }
    let image = &result["image"];
    let id: String = image["id"].as_str().unwrap_or_default().chars().take(12).collect();
    let size = table::bytes(image["allocated_bytes"].as_u64().unwrap_or(0));
    let moved = match (result["moved_bytes"].as_u64(), result["reused_layers"].as_u64()) {
        (Some(moved), Some(reused)) => {
            format!(", {} moved, {reused} of {} layers were here", table::bytes(moved), result["layers"])
        }
        _ => String::new(),
    };
    output::line(format!("{}: {id}, {size} on disk{moved}", task.subject));
    Ok(0)
}

async fn import(client: &Client, json: bool, asked: ImageImport) -> Result<u8> {
    let ImageImport { tar, name } = asked;
    let path = format!("/images/import?name={}", encode(name.as_str()));
    let from = (tar != Path::new("-")).then_some(tar);
    let waiting = Waiting::begin("sending the archive".to_owned());
    // Ctrl-C while it is sent ends this program, and with it the upload, of which nothing is kept.
    let begun: api::Task = client.ask_with(Method::POST, &path, file::source(from.as_deref())?).await?;
    drop(waiting);
    told(json, &task::to_the_end(client, begun).await?)
}

async fn delete(client: &Client, json: bool, asked: ImageDelete) -> Result<u8> {
    let ImageDelete { images, yes } = asked;
    let names: Vec<String> = images.iter().map(ToString::to_string).collect();
    let question = format!("delete image {}?", names.join(", "));
    if !yes && terminal::can_ask() && !confirmed(&question)? {
        return Err(Failure::new("declined", "nothing was deleted"));
    }
    let mut several = Several::new(json, &names);
    for image in &names {
        match client.delete(&path(image)).await {
            Ok(()) => {
                several.done(json!({ "image": image, "deleted": true }), format!("image {image} is gone"))
            }
            Err(failure) => several.failed(failure)?,
        }
    }
    Ok(several.finish())
}

async fn list(client: &Client, json: bool) -> Result<u8> {
    let images: Vec<api::ImageObject> = client.get("/images").await?;
    if json {
        output::document(&images);
        return Ok(0);
    }
    let now = Timestamp::now();
    let rows: Vec<_> = images
        .into_iter()
        .map(|image| {
            vec![
                image.name,
                image.arch,
                image.id.chars().take(12).collect(),
                table::bytes(image.size_bytes),
                table::bytes(image.allocated_bytes),
                table::age(&image.created_at, now),
                image.source,
            ]
        })
        .collect();
    output::bytes(
        table::render(&["NAME", "ARCH", "ID", "SIZE", "ON DISK", "AGE", "SOURCE"], &rows).as_bytes(),
    );
    Ok(0)
}
