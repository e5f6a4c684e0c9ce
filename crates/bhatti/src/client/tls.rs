//! TLS towards a daemon: whom to trust, and what to say when that fails.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::failure::{Failure, Result};

const AGREE_WITHIN: Duration = Duration::from_secs(10);

/// Agrees on keys with the daemon at `authority` (host and port), which must show a certificate that `cacert` holds or has
/// signed; that this host trusts without.
pub(super) async fn agree(
    stream: TcpStream,
    authority: &str,
    cacert: Option<&Path>,
) -> Result<TlsStream<TcpStream>> {
    let failed = |why: String| Failure::new("tls", format!("https://{authority}: {why}"));
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host).trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(error.to_string()))?;
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(error.to_string()))?;
    let config = match cacert {
        Some(path) => builder.with_root_certificates(roots(path)?).with_no_client_auth(),
        None => {
            builder.with_platform_verifier().map_err(|error| failed(error.to_string()))?.with_no_client_auth()
        }
    };
    let agreed =
        tokio::time::timeout(AGREE_WITHIN, TlsConnector::from(Arc::new(config)).connect(name, stream));
    agreed.await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())).map_err(|error| {
        failed(error.to_string())
            .hint("a daemon with a certificate of its own is trusted with --cacert <data-dir>/tls/cert.pem")
    })
}

fn roots(path: &Path) -> Result<RootCertStore> {
    let failed = |why: String| Failure::new("usage", format!("--cacert {}: {why}", path.display()));
    let text = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(&text) {
        let added = cert
            .map_err(|error| error.to_string())
            .and_then(|cert| roots.add(cert).map_err(|error| error.to_string()));
        added.map_err(failed)?;
    }
    match roots.is_empty() {
        true => Err(failed("there is no certificate in it".to_owned())),
        false => Ok(roots),
    }
}
