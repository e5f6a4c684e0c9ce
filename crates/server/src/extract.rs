//! Reading bodies and queries so that whatever is wrong in them is told in JSON.

use std::str::FromStr;

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use types::Since;

use crate::refusal::Refusal;

/// The longest JSON body that is read.
pub(crate) const JSON_LIMIT: usize = 4 * 1024 * 1024;

/// A JSON body; an empty one is `{}`.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for Json<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Refusal> {
        let announced = request
            .headers()
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.parse::<u64>().ok());
        if announced.is_some_and(|length| length > JSON_LIMIT as u64) {
            return Err(too_large());
        }
        let bytes = collect(request.into_body()).await?;
        // A list would be taken for the fields in their order.
        let text: &[u8] = match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
            None => b"{}",
            Some(b'[') => return Err(Refusal::bad_request("request body: it is a list and not an object")),
            Some(_) => &bytes,
        };
        let value = serde_json::from_slice(text)
            .map_err(|error| Refusal::bad_request(format!("request body: {error}")))?;
        Ok(Self(value))
    }
}

fn too_large() -> Refusal {
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "the request body is longer than 4 MiB")
        .hint("send large contents with PUT /sandboxes/{id}/files")
}

async fn collect(body: Body) -> Result<Bytes, Refusal> {
    let mut stream = body.into_data_stream();
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await {
        let chunk =
            chunk.map_err(|error| Refusal::bad_request(format!("the request body broke off: {error}")))?;
        if all.len() + chunk.len() > JSON_LIMIT {
            return Err(too_large());
        }
        all.extend_from_slice(&chunk);
    }
    Ok(all.into())
}

/// The query of a request: each parameter is taken by name, and [`Params::done`] refuses what nobody took.
#[derive(Debug)]
pub(crate) struct Params(Vec<(String, String)>);

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = Refusal;
    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map_err(|error: QueryRejection| Refusal::bad_request(format!("query: {error}")))?;
        Ok(Self(pairs))
    }
}

impl Params {
    /// All values of a parameter that may be repeated.
    pub(crate) fn all(&mut self, name: &str) -> Vec<String> {
        let mut values = Vec::new();
        self.0.retain_mut(|(key, value)| {
            let wanted = key == name;
            if wanted {
                values.push(std::mem::take(value));
            }
            !wanted
        });
        values
    }

    /// The value of a parameter; `None` when it is missing or empty.
    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, Refusal> {
        let mut values = self.all(name);
        let value = values.pop();
        if !values.is_empty() {
            return Err(Refusal::bad_request(format!("query parameter `{name}` is given more than once")));
        }
        Ok(value.filter(|value| !value.is_empty()))
    }

    /// A parameter that must be there.
    pub(crate) fn required(&mut self, name: &str) -> Result<String, Refusal> {
        self.text(name)?.ok_or_else(|| Refusal::bad_request(format!("query parameter `{name}` is missing")))
    }

    /// A number.
    pub(crate) fn number<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, Refusal> {
        self.text(name)?
            .map(|text| {
                text.parse().map_err(|_| {
                    Refusal::bad_request(format!(
                        "query parameter `{name}`: {text:?} is not a number that fits"
                    ))
                })
            })
            .transpose()
    }

    /// From where on somebody wants to know.
    pub(crate) fn since(&mut self, name: &str) -> Result<Option<Since>, Refusal> {
        let parse = |text: String| text.parse();
        self.text(name)?
            .map(parse)
            .transpose()
            .map_err(|why: String| Refusal::bad_request(format!("query parameter `{name}`: {why}")))
    }

    /// A switch: `true`, `1` or `yes`; `false`, `0` or `no`; `None` when missing.
    pub(crate) fn switch(&mut self, name: &str) -> Result<Option<bool>, Refusal> {
        match self.text(name)?.as_deref() {
            None => Ok(None),
            Some("true" | "1" | "yes") => Ok(Some(true)),
            Some("false" | "0" | "no") => Ok(Some(false)),
            Some(other) => Err(Refusal::bad_request(format!(
                "query parameter `{name}`: {other:?} is neither true nor false"
            ))),
        }
    }

    /// Refuses parameters that nobody took.
    pub(crate) fn done(self) -> Result<(), Refusal> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => {
                let name: String = name.chars().take(80).collect();
                Err(Refusal::bad_request(format!("query parameter `{name}` is not known here")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(pairs: &[(&str, &str)]) -> Params {
        Params(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn a_misspelt_parameter_is_an_error() {
        let mut query = params(&[("path", "/a"), ("offest", "3")]);
        assert_eq!(query.required("path").unwrap(), "/a");
        assert!(query.done().unwrap_err().detail().message.contains("offest"));
    }

    #[test]
    fn repeated_missing_and_nonsensical_values_are_told_apart() {
        assert!(params(&[("a", "1"), ("a", "2")]).text("a").is_err());
        assert_eq!(params(&[("a", "1"), ("a", "2")]).all("a"), ["1", "2"]);
        assert!(params(&[]).required("a").unwrap_err().detail().message.contains("missing"));
        assert!(params(&[("a", "x")]).number::<u64>("a").is_err());
        assert!(params(&[("a", "maybe")]).switch("a").is_err());
        assert_eq!(params(&[("a", "")]).switch("a").unwrap(), None);
    }
}
