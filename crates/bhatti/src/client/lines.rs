//! Answers that are one JSON document a line, as they come in.

use std::marker::PhantomData;

use http_body_util::BodyExt as _;
use hyper::Response;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use super::broke_off;
use crate::failure::{Failure, Result};

/// Reads documents one by one.
#[derive(Debug)]
pub struct LineReader<T> {
    body: Incoming,
    text: Vec<u8>,
    what: PhantomData<T>,
}

impl<T: DeserializeOwned> LineReader<T> {
    pub(super) fn new(response: Response<Incoming>) -> Self {
        Self { body: response.into_body(), text: Vec::new(), what: PhantomData }
    }

    /// The next document; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<T>> {
        loop {
            if let Some(end) = self.text.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                let document = serde_json::from_slice(&line).map_err(|error| {
                    Failure::new("protocol", format!("the answer makes no sense: {error}"))
                })?;
                return Ok(Some(document));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(broke_off("the answer", &error)),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.text.extend_from_slice(data);
                    }
                }
            }
        }
    }
}
