//! Registries, as the OCI distribution specification has them: manifests and blobs, each compared with its digest.
//!
//! Asynchronous, unlike the rest: it waits for a network. What it fetches goes into files that the caller names.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::Once;
use std::time::Duration;

use futures_util::StreamExt as _;
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use sha2::{Digest as _, Sha256};
use types::Arch;

use crate::digest::Sha256Digest;
use crate::oci::{Blob, ImageManifest, Manifest, OciConfig};
use crate::{Error, ErrorKind, Result};

const OP: &str = "pull";
const CONNECT_WITHIN: Duration = Duration::from_secs(15);
/// How long a registry may say nothing.
const SILENCE: Duration = Duration::from_secs(60);
const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
];
const CONFIG_MAX: u64 = 8 << 20;
const INDEXES_MAX: usize = 4;

/// An image in a registry.
pub struct Registry {
    client: Client,
    reference: Reference,
    auth: RegistryAuth,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("reference", &self.reference.to_string()).finish_non_exhaustive()
    }
}

/// What is to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pull {
    /// The manifest's digest.
    pub digest: Sha256Digest,
    /// What it names.
    pub manifest: ImageManifest,
    /// The configuration, which was fetched.
    pub config: OciConfig,
    /// Bytes that were moved for it.
    pub moved: u64,
}

impl Registry {
    /// Names an image: `[http://]registry[:port]/name[:tag|@digest]`, a short name being Docker Hub's. Registries on this
    /// host, and those written with `http://`, are spoken to without TLS. `auth` is `USER:TOKEN`.
    ///
    /// # Errors
    /// `Input` when it is no such name.
    pub fn new(reference: &str, auth: Option<&str>) -> Result<Self> {
        let shown: String = reference.chars().take(200).collect();
        let bad = |why: String| {
            Err(Error::input(OP, Path::new(&shown), why)
                .way_out("use REGISTRY/NAME:TAG, such as docker.io/library/alpine:3.20"))
        };
        let (insecure, name) = match reference.split_once("://") {
            Some(("http", name)) => (true, name),
            Some(("https" | "docker", name)) => (false, name.trim_start_matches('/')),
            Some((scheme, _)) => return bad(format!("{scheme}: is no way to a registry")),
            None => (false, reference),
        };
        let parsed: Reference = match name.parse() {
            Ok(parsed) => parsed,
            Err(error) => return bad(format!("it is no name of an image: {error}")),
        };
        let plain = insecure || is_here(parsed.resolve_registry());
        let auth = match auth.map(|auth| auth.split_once(':')) {
            None => RegistryAuth::Anonymous,
            Some(Some((user, token))) if !user.is_empty() => {
                RegistryAuth::Basic(user.to_owned(), token.to_owned())
            }
            Some(_) => return bad("the credentials are not of the form USER:TOKEN".to_owned()),
        };
        static PROVIDER: Once = Once::new();
        // A second provider is refused, which is as well: there is one then.
        PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
        let config = ClientConfig {
            protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
            connect_timeout: Some(CONNECT_WITHIN),
            read_timeout: Some(SILENCE),
            user_agent: concat!("bhatti/", env!("CARGO_PKG_VERSION")),
            platform_resolver: None,
            ..ClientConfig::default()
        };
        let client = Client::try_from(config).map_err(|error| failed(&parsed, error))?;
        Ok(Self { client, reference: parsed, auth })
    }

    /// The whole name, for people and for records.
    #[must_use]
    pub fn name(&self) -> String {
        self.reference.whole()
    }

    /// Asks for the manifest of this architecture, and for the configuration.
    ///
    /// # Errors
    /// `NotFound`, `Denied`, `Registry`, and `Input` for what cannot be used.
    pub async fn resolve(&self, arch: Arch) -> Result<Pull> {
        let failed = |error| failed(&self.reference, error);
        self.client.auth(&self.reference, &self.auth, RegistryOperation::Pull).await.map_err(failed)?;
        let mut at = self.reference.clone();
        let mut moved = 0;
        for _ in 0..INDEXES_MAX {
            let (bytes, _) =
                self.client.pull_manifest_raw(&at, &self.auth, &MANIFEST_TYPES).await.map_err(failed)?;
            moved += u64::try_from(bytes.len()).unwrap_or(0);
            let digest = Sha256Digest::of(&bytes);
            if let Some(wanted) = at.digest()
                && wanted != digest.to_string()
            {
                return Err(mismatch("manifest", wanted, &digest));
            }
            match Manifest::parse(&bytes, arch)? {
                Manifest::Index(digest) => at = self.reference.clone_with_digest(digest.to_string()),
                Manifest::Image(manifest) => {
                    let config = self.config(&manifest.config, arch).await?;
                    moved += manifest.config.size;
                    return Ok(Pull { digest, manifest, config, moved });
                }
            }
        }
        Err(Error::input(OP, Path::new(&self.name()), "its indexes lead from one to another without end"))
    }

    async fn config(&self, blob: &Blob, arch: Arch) -> Result<OciConfig> {
        if blob.size > CONFIG_MAX {
            return Err(Error::input(OP, Path::new(&self.name()), "its configuration has more than 8 MiB"));
        }
        let mut bytes = Vec::new();
        let descriptor = descriptor(blob);
        let stream = self.client.pull_blob_stream(&self.reference, &descriptor).await;
        let mut stream = stream.map_err(|error| failed(&self.reference, error))?.stream;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| self.broken(&error))?;
            bytes.extend_from_slice(&chunk);
            if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > blob.size {
                break;
            }
        }
        let found = Sha256Digest::of(&bytes);
        if found != blob.digest {
            return Err(mismatch("configuration", &blob.digest.to_string(), &found));
        }
        OciConfig::parse(&bytes, arch)
    }

    /// Fetches what is missing of a blob at the end of the file `path`, and compares all of it with its digest. `told` is
    /// given the bytes that are there, and then those that come in. Gives the bytes that were moved; what was moved before an error stays in the file
    /// to be gone on with, but for a blob that is not what it should be, which is `Input`.
    ///
    /// # Errors
    /// `Registry`, `Denied`, `NotFound`, `NoSpace`; `Input` for a wrong digest.
    pub async fn fetch(&self, blob: &Blob, path: &Path, told: &(dyn Fn(u64) + Send + Sync)) -> Result<u64> {
        let io = |error: io::Error| Error::io("write", path, error);
        let mut file = File::options().read(true).append(true).open(path).map_err(io)?;
        let mut hash = Sha256::new();
        let mut there = rehash(&mut file, &mut hash).map_err(io)?;
        if there > blob.size {
            file.set_len(0).map_err(io)?;
            (there, hash) = (0, Sha256::new());
        }
        told(there);
        let mut moved = 0;
        if there < blob.size || blob.size == 0 {
            let descriptor = descriptor(blob);
            let failed = |error| failed(&self.reference, error);
            let mut stream = if there == 0 {
                self.client.pull_blob_stream(&self.reference, &descriptor).await.map_err(failed)?.stream
            } else {
                match self
                    .client
                    .pull_blob_stream_partial(&self.reference, &descriptor, there, None)
                    .await
                    .map_err(failed)?
                {
                    BlobResponse::Partial(rest) => rest.stream,
                    // A registry that knows no ranges sends all of it again.
                    BlobResponse::Full(all) => {
                        file.set_len(0).map_err(io)?;
                        (there, hash) = (0, Sha256::new());
                        all.stream
                    }
                }
            };
            while let Some(chunk) = stream.next().await {
                let chunk = chunk.map_err(|error| self.broken(&error))?;
                let length = u64::try_from(chunk.len()).unwrap_or(0);
                if there.saturating_add(length) > blob.size {
                    return Err(mismatch("layer", &blob.digest.to_string(), &Sha256Digest::of(&chunk)));
                }
                hash.update(&chunk);
                // A few hundred KiB into the page cache: shorter than the way to another thread.
                file.write_all(&chunk).map_err(io)?;
                there += length;
                moved += length;
                told(length);
            }
            if there < blob.size {
                let why = format!(
                    "{}: the registry ended a layer early, after {there} of {} bytes",
                    self.name(),
                    blob.size
                );
                return Err(Error::registry(ErrorKind::Registry, why).way_out("try again; what came is kept"));
            }
        }
        let found = Sha256Digest::from_bytes(&hash.finalize());
        if found == blob.digest {
            Ok(moved)
        } else {
            Err(mismatch("layer", &blob.digest.to_string(), &found))
        }
    }

    fn broken(&self, error: &io::Error) -> Error {
        let text = error.to_string();
        if text.to_ascii_lowercase().contains("digest") {
            return Error::input(
                OP,
                Path::new(&self.name()),
                format!("what the registry sent is not what it should be: {text}"),
            );
        }
        let why = format!("{}: the connection to the registry broke off: {}", self.name(), chain(error));
        Error::registry(ErrorKind::Registry, why).way_out("try again; what came is kept")
    }
}

/// Where a blob is said to be elsewhere, it is not looked for: nobody but the registry is asked.
fn descriptor(blob: &Blob) -> OciDescriptor {
    OciDescriptor {
        digest: blob.digest.to_string(),
        size: i64::try_from(blob.size).unwrap_or(i64::MAX),
        ..OciDescriptor::default()
    }
}

fn rehash(file: &mut File, hash: &mut Sha256) -> io::Result<u64> {
    file.seek(SeekFrom::Start(0))?;
    let (mut buffer, mut there) = (vec![0; 256 << 10], 0);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(there);
        }
        hash.update(&buffer[..read]);
        there += u64::try_from(read).unwrap_or(0);
    }
}

fn mismatch(what: &str, wanted: &str, found: &Sha256Digest) -> Error {
    let why = format!("the {what} is not what was asked for: its digest is {found} and not {wanted}");
    Error::input(OP, Path::new("the image"), why)
        .way_out("the registry is damaged, or somebody is in between; nothing was changed")
}

fn is_here(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let line = error.to_string();
        if !text.contains(&line) {
            text = format!("{text}: {line}");
        }
        cause = error.source();
    }
    text
}

/// What a registry's failure means to whoever wanted the image.
fn failed(reference: &Reference, error: OciDistributionError) -> Error {
    use oci_client::errors::OciErrorCode as Code;
    const CREDENTIALS: &str = "give credentials that may read it with --auth USER:TOKEN";
    let name = reference.whole();
    let denied = |detail: String| {
        Error::registry(ErrorKind::Denied, format!("{name}: the registry does not let us in{detail}"))
            .way_out(CREDENTIALS)
    };
    let missing = || {
        Error::registry(ErrorKind::NotFound, format!("{name}: the registry has no such image"))
            .way_out("check the name and the tag")
    };
    match &error {
        OciDistributionError::UnauthorizedError { .. } => denied(" (401)".to_owned()),
        OciDistributionError::AuthenticationFailure(_) => denied(" (its token service refuses)".to_owned()),
        OciDistributionError::ImageManifestNotFoundError(_) => missing(),
        OciDistributionError::ServerError { code: 401 | 403, .. } => denied(String::new()),
        OciDistributionError::ServerError { code: 404, .. } => missing(),
        OciDistributionError::RegistryError { envelope, .. } => {
            let has = |wanted: &[Code]| envelope.errors.iter().any(|error| wanted.contains(&error.code));
            if has(&[Code::Unauthorized, Code::Denied]) {
                denied(String::new())
            } else if has(&[Code::ManifestUnknown, Code::NameUnknown, Code::NotFound, Code::BlobUnknown]) {
                missing()
            } else {
                Error::registry(ErrorKind::Registry, format!("{name}: {}", chain(&error)))
            }
        }
        OciDistributionError::DigestError(error) => Error::input(
            OP,
            Path::new(&name),
            format!("what the registry sent is not what it should be: {error}"),
        ),
        OciDistributionError::UnsupportedMediaTypeError(kind) => {
            Error::input(OP, Path::new(&name), format!("the media type {kind:?} is not known here"))
        }
        OciDistributionError::RequestError(request) if request.is_connect() || request.is_timeout() => {
            let why = format!(
                "{name}: the registry {} cannot be reached: {}",
                reference.resolve_registry(),
                chain(&error)
            );
            Error::registry(ErrorKind::Registry, why).way_out(
                "check the name; a registry without TLS that is not on this host is written http://HOST/NAME",
            )
        }
        _ => Error::registry(ErrorKind::Registry, format!("{name}: the registry failed: {}", chain(&error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_understood_as_docker_does_and_others_refused() {
        let name = |text| Registry::new(text, None).map(|registry| registry.name());
        assert_eq!(name("alpine").unwrap(), "docker.io/library/alpine:latest");
        assert_eq!(name("http://10.0.0.1:5000/a/b:1").unwrap(), "10.0.0.1:5000/a/b:1");
        for bad in ["", "ftp://x/y", "UPPER/Case:1", "a b", "x@sha256:12"] {
            assert_eq!(name(bad).unwrap_err().kind(), ErrorKind::Input, "{bad}");
        }
        assert!(Registry::new("alpine", Some("no-colon")).is_err());
        for here in ["localhost", "localhost:5000", "127.0.0.1:1", "[::1]:5000"] {
            assert!(is_here(here), "{here}");
        }
        assert!(!is_here("localhost.example:5000") && !is_here("10.0.0.1"));
    }
}
