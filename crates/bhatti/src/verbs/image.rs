//! `image list`.

use types::Timestamp;

use crate::args::Image;
use crate::client::Client;
use crate::failure::Result;
use crate::{output, table};

pub async fn image(client: &Client, json: bool, asked: Image) -> Result<u8> {
    let Image::List = asked;
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
            ]
        })
        .collect();
    output::bytes(table::render(&["NAME", "ARCH", "ID", "SIZE", "ON DISK", "AGE"], &rows).as_bytes());
    Ok(0)
}
