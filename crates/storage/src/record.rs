//! The envelope of every JSON file in the store: format, version, checksum, body.
//!
//! ```json
//! {"format":"bhatti-sandbox","version":1,"blake3":"<64 hex>","body":{...}}
//! ```
//! The checksum covers the exact bytes of the body, so that it depends on no JSON library's ordering. The version is
//! looked at before the body: a newer one is refused by name instead of by its first unknown field.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::{Error, ErrorKind, Result};

/// What a record is, and the one version that this program writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Format {
    pub(crate) name: &'static str,
    pub(crate) version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    format: String,
    version: u32,
    blake3: String,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// The fields that every version has, for the refusal of those to come.
#[derive(Deserialize)]
struct Version {
    format: String,
    version: u32,
}

pub(crate) fn encode<T: Serialize>(format: Format, body: &T) -> Vec<u8> {
    let body = serde_json::to_string_pretty(body).expect("records have text keys and no failing serializer");
    let blake3 = blake3::hash(body.as_bytes()).to_hex();
    let mut text = format!(
        "{{\"format\":\"{}\",\"version\":{},\"blake3\":\"{blake3}\",\"body\":",
        format.name, format.version
    );
    text.push_str(&body);
    text.push_str("}\n");
    text.into_bytes()
}

pub(crate) fn decode<T: DeserializeOwned>(format: Format, bytes: &[u8], path: &Path) -> Result<T> {
    let corrupt = |reason: &str| Error::new(ErrorKind::Corrupt, "read", path).because(reason);
    let envelope: Envelope<'_> = match serde_json::from_slice(bytes) {
        Ok(envelope) => envelope,
        Err(error) => {
            if let Ok(found) = serde_json::from_slice::<Version>(bytes) {
                check_version(format, &found.format, found.version, path)?;
            }
            return Err(corrupt("it is not a record of bhatti, or it is damaged").caused_by(error));
        }
    };
    check_version(format, &envelope.format, envelope.version, path)?;
    if blake3::hash(envelope.body.get().as_bytes()).to_hex().as_str() != envelope.blake3 {
        return Err(corrupt("its checksum does not match its content"));
    }
    serde_json::from_str(envelope.body.get())
        .map_err(|error| corrupt("its content is not that of its version").caused_by(error))
}

/// Reads a record's file.
pub(crate) fn read<T: DeserializeOwned>(format: Format, path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(|error| Error::io("read", path, error))?;
    decode(format, &bytes, path)
}

fn check_version(format: Format, name: &str, version: u32, path: &Path) -> Result<()> {
    if name != format.name {
        return Err(Error::new(ErrorKind::Corrupt, "read", path)
            .because(format!("it is a {name:?} record where a {:?} belongs", format.name)));
    }
    if version > format.version {
        return Err(Error::new(ErrorKind::TooNew, "read", path)
            .because(format!(
                "it has version {version} of {name:?}, and this bhatti reads up to {}",
                format.version
            ))
            .hint_to("use the newer bhatti that wrote it"));
    }
    if version == 0 {
        return Err(Error::new(ErrorKind::Corrupt, "read", path).because("no version 0 was ever written"));
    }
    Ok(())
}
