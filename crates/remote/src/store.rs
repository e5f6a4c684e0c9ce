//! The object store that was handed over, by its URL.

use std::fmt;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use types::{Nonce, Owner, VolumeName};

use crate::shelf::Shelf;
use crate::{Error, ErrorKind, Result};

const OP: &str = "open the backup store";
/// A request that takes longer has failed. A chunk is a quarter of a MiB.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// A request that failed for a moment's reason is sent again; whoever waits is told within this time.
const RETRY_TIMEOUT: Duration = Duration::from_secs(30);

/// What a URL leaves open; all of it is for S3. What is `None` comes from the environment (`AWS_ENDPOINT_URL`,
/// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`).
#[derive(Clone, Default)]
pub struct StoreOptions {
    /// Where the S3 service is, such as `https://s3.example.org` or `http://127.0.0.1:9000`. Plain HTTP is spoken only
    /// when this says so.
    pub endpoint: Option<String>,
    /// The region, `us-east-1` when nothing says another.
    pub region: Option<String>,
    /// Access key and secret key.
    pub keys: Option<(String, String)>,
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreOptions")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("access_key", &self.keys.as_ref().map(|(access, _)| access))
            .finish_non_exhaustive()
    }
}

/// A directory or a bucket with backups in it.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) objects: Arc<dyn ObjectStore>,
    pub(crate) host: Option<Nonce>,
    url: String,
}

impl Store {
    /// By URL: `file:///directory` or `s3://bucket/prefix`. Nothing is asked of an S3 store yet; a directory is made
    /// when its parent is there.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a URL that is neither, or lacks what S3 needs; [`ErrorKind::Io`] when the directory
    /// cannot be made.
    pub fn open(url: &str, options: &StoreOptions) -> Result<Self> {
        if let Some(dir) = url.strip_prefix("file://") {
            if !dir.starts_with('/') || dir.contains('%') {
                return Err(invalid(url, "a directory is given as file:///absolute/path, without % in it"));
            }
            Self::directory(Path::new(dir))
        } else if let Some(rest) = url.strip_prefix("s3://") {
            bucket(url, rest, options)
        } else {
            Err(invalid(url, "it is neither file:///directory nor s3://bucket/prefix"))
        }
    }

    /// A directory, made with mode 0700 when it is not there. What is written into it is synced.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when it cannot be made or is no directory.
    pub fn directory(dir: &Path) -> Result<Self> {
        let shown = dir.display().to_string();
        match std::fs::DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(Error::io(OP, shown, error));
            }
            _ => {}
        }
        if !dir.is_dir() {
            return Err(invalid(&shown, "it is no directory"));
        }
        let objects = LocalFileSystem::new_with_prefix(dir)
            .map_err(|error| Error::store(OP, shown.as_str(), error))?
            .with_fsync(true);
        Ok(Self { objects: Arc::new(objects), host: None, url: format!("file://{shown}") })
    }

    /// As used by a host of that name, which this process alone works for: its locks that nobody here holds count no more.
    #[must_use]
    pub fn of_host(self, host: Nonce) -> Self {
        Self { host: Some(host), ..self }
    }

    /// What it was opened by, without any key.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The part of one volume.
    #[must_use]
    pub fn shelf(&self, owner: &Owner, volume: &VolumeName) -> Shelf {
        Shelf::new(self.clone(), owner.clone(), volume.clone())
    }
}

fn bucket(url: &str, rest: &str, options: &StoreOptions) -> Result<Store> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() || bucket.contains(['@', '?', '#']) {
        return Err(invalid(url, "a bucket is given as s3://bucket or s3://bucket/prefix"));
    }
    // reqwest takes the process' provider; a second installation is the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &options.region {
        builder = builder.with_region(region);
    }
    if let Some((access, secret)) = &options.keys {
        builder = builder.with_access_key_id(access).with_secret_access_key(secret);
    }
    let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint).unwrap_or_default();
    let plain = endpoint.starts_with("http://");
    let client = ClientOptions::new().with_timeout(REQUEST_TIMEOUT).with_allow_http(plain);
    let retry = RetryConfig { max_retries: 3, retry_timeout: RETRY_TIMEOUT, ..RetryConfig::default() };
    let objects = builder
        .with_client_options(client)
        .with_retry(retry)
        .build()
        .map_err(|error| invalid(url, "the S3 store cannot be set up").caused_by(error))?;
    let objects: Arc<dyn ObjectStore> = match prefix.trim_matches('/') {
        "" => Arc::new(objects),
        prefix => {
            let prefix = object_store::path::Path::parse(prefix)
                .map_err(|error| invalid(url, "its prefix is no path").caused_by(error))?;
            Arc::new(PrefixStore::new(objects, prefix))
        }
    };
    Ok(Store { objects, host: None, url: url.to_owned() })
}

fn invalid(what: &str, why: &str) -> Error {
    Error::new(ErrorKind::Invalid, OP, what).because(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_that_are_no_store_say_what_one_looks_like() {
        let open = |url: &str| Store::open(url, &StoreOptions::default()).unwrap_err();
        for (url, why) in [
            ("", "neither"),
            ("/srv/backups", "neither"),
            ("http://example.org", "neither"),
            ("file://relative", "file:///absolute"),
            ("s3://", "s3://bucket"),
            ("s3:///prefix", "s3://bucket"),
            ("s3://key@bucket", "s3://bucket"),
        ] {
            let error = open(url);
            assert_eq!(error.kind(), ErrorKind::Invalid, "{url}");
            assert!(error.to_string().contains(why), "{error}");
        }
        assert_eq!(open("file:///nowhere/at/all").kind(), ErrorKind::Io);
    }

    #[test]
    fn secrets_are_not_shown() {
        let options =
            StoreOptions { keys: Some(("access".into(), "secret".into())), ..StoreOptions::default() };
        let shown = format!("{options:?}");
        assert!(shown.contains("access") && !shown.contains("\"secret\""), "{shown}");
    }
}
