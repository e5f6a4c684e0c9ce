//! The envelope of what is stored as JSON, the same as that of the records in a data directory: format, version,
//! checksum of the exact bytes of the body, body.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{Error, ErrorKind, Result};

/// What a record is, and the one version that this program writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Format {
    pub(crate) name: &'static str,
    pub(crate) version: u32,
}

#[derive(Deserialize)]
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
    let (name, version) = (format.name, format.version);
    format!("{{\"format\":\"{name}\",\"version\":{version},\"blake3\":\"{blake3}\",\"body\":{body}}}\n")
        .into_bytes()
}

pub(crate) fn decode<T: DeserializeOwned>(format: Format, bytes: &[u8], object: &str) -> Result<T> {
    let damaged = |reason: &str| Error::new(ErrorKind::Damaged, "read", object).because(reason);
    let envelope: Envelope<'_> = match serde_json::from_slice(bytes) {
        Ok(envelope) => envelope,
        Err(error) => {
            if let Ok(found) = serde_json::from_slice::<Version>(bytes) {
                check_version(format, &found, object)?;
            }
            return Err(damaged("it is no record of bhatti, or it is cut or damaged").caused_by(error));
        }
    };
    check_version(format, &Version { format: envelope.format, version: envelope.version }, object)?;
    if blake3::hash(envelope.body.get().as_bytes()).to_hex().as_str() != envelope.blake3 {
        return Err(damaged("its checksum does not match its content"));
    }
    serde_json::from_str(envelope.body.get())
        .map_err(|error| damaged("its content is not that of its version").caused_by(error))
}

fn check_version(format: Format, found: &Version, object: &str) -> Result<()> {
    let damaged = |reason: String| Error::new(ErrorKind::Damaged, "read", object).because(reason);
    if found.format != format.name {
        return Err(damaged(format!("it is a {:?} record where a {:?} belongs", found.format, format.name)));
    }
    if found.version > format.version {
        return Err(Error::new(ErrorKind::TooNew, "read", object)
            .because(format!(
                "it has version {} of {:?}, and this bhatti reads up to {}",
                found.version, found.format, format.version
            ))
            .hint_to("use the newer bhatti that wrote it"));
    }
    if found.version == 0 {
        return Err(damaged("no version 0 was ever written".to_owned()));
    }
    Ok(())
}
