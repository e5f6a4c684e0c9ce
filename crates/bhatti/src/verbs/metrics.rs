//! `metrics`.

use http_body_util::BodyExt as _;
use hyper::Method;

use crate::client::{Client, broke_off, whole};
use crate::failure::Result;
use crate::output;

pub async fn metrics(client: &Client, json: bool) -> Result<u8> {
    if json {
        output::document(&client.get::<api::Metrics>("/metrics").await?);
        return Ok(0);
    }
    let response = client.send(Method::GET, "/metrics", whole(bytes::Bytes::new())).await?;
    let text = response.into_body().collect().await.map_err(|error| broke_off("metrics", &error))?;
    output::bytes(&text.to_bytes());
    Ok(0)
}
