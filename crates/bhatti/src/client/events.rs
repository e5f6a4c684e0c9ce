//! Server-sent events, as far as the daemon uses them: `data:` lines between empty lines.

use http_body_util::BodyExt as _;
use hyper::Response;
use hyper::body::Incoming;

use super::broke_off;
use crate::failure::{Failure, Result};

/// Reads events one by one.
#[derive(Debug)]
pub struct EventReader {
    body: Incoming,
    text: Vec<u8>,
}

impl EventReader {
    /// Reads the body of `GET /events`.
    pub fn new(response: Response<Incoming>) -> Self {
        Self { body: response.into_body(), text: Vec::new() }
    }

    /// The next event; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<api::Event>> {
        loop {
            while let Some(message) = take_message(&mut self.text) {
                if let Some(data) = message_data(&message) {
                    let event = serde_json::from_str(&data).map_err(|error| {
                        Failure::new("protocol", format!("an event makes no sense: {error}"))
                    })?;
                    return Ok(Some(event));
                }
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(broke_off("events", &error)),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.text.extend_from_slice(data);
                    }
                }
            }
        }
    }
}

fn take_message(text: &mut Vec<u8>) -> Option<String> {
    let end = text.windows(2).position(|pair| pair == b"\n\n")?;
    let message: Vec<u8> = text.drain(..end + 2).collect();
    Some(String::from_utf8_lossy(&message).into_owned())
}

/// The data of a message; `None` for comments, which keep the connection alive.
fn message_data(message: &str) -> Option<String> {
    let lines: Vec<_> = message
        .lines()
        .filter_map(|line| line.strip_prefix("data:"))
        .map(|data| data.strip_prefix(' ').unwrap_or(data))
        .collect();
    if lines.is_empty() { None } else { Some(lines.join("\n")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_however_they_arrive_and_comments_are_none() {
        let mut text = b": keep\n\nid: 1\ndata: {\"a\":\ndata: 1}\n\nid: 2\nda".to_vec();
        assert_eq!(message_data(&take_message(&mut text).unwrap()), None);
        assert_eq!(message_data(&take_message(&mut text).unwrap()).unwrap(), "{\"a\":\n1}");
        assert_eq!(take_message(&mut text), None);
        text.extend_from_slice(b"ta: x\n\n");
        assert_eq!(message_data(&take_message(&mut text).unwrap()).unwrap(), "x");
    }
}
