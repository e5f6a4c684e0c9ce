//! TLS on the TCP listeners: with a certificate that somebody has, or with one that is made here.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sandbox::OwnCertificate;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How long a client may take to agree on keys.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// Certificate and key, ready to be shown to clients.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// The certificate chain and the private key in these PEM files.
    ///
    /// # Errors
    /// When one cannot be read, holds nothing of the kind, or they do not belong together.
    pub fn from_files(cert: &Path, key: &Path) -> io::Result<Self> {
        let wrong = |path: &Path, why: String| io::Error::other(format!("{}: {why}", path.display()));
        let read = |path: &Path| fs::read(path).map_err(|error| wrong(path, error.to_string()));
        let chain = CertificateDer::pem_slice_iter(&read(cert)?)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| wrong(cert, format!("it is no PEM file: {error}")))?;
        if chain.is_empty() {
            return Err(wrong(cert, "there is no certificate in it".to_owned()));
        }
        let secret = PrivateKeyDer::from_pem_slice(&read(key)?)
            .map_err(|error| wrong(key, format!("there is no private key in it: {error}")))?;
        if fs::metadata(key)?.permissions().mode() & 0o007 != 0 {
            tracing::warn!(key = %key.display(), "everybody on this host can read the private key; chmod 600");
        }
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(chain, secret)
            .map_err(|error| wrong(cert, format!("it does not go with {}: {error}", key.display())))?;
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    /// A certificate for `names` (host names and addresses) that nobody but its own key vouches for.
    ///
    /// # Errors
    /// A name is none.
    pub fn self_signed(names: &[String]) -> io::Result<OwnCertificate> {
        let made = rcgen::generate_simple_self_signed(names).map_err(io::Error::other)?;
        let cert = format!("{}{}", heading(names), made.cert.pem());
        Ok(OwnCertificate { cert, key: made.key_pair.serialize_pem() })
    }

    /// Whether a certificate of [`self_signed`](Self::self_signed) is for these names.
    #[must_use]
    pub fn is_for(cert: &str, names: &[String]) -> bool {
        cert.starts_with(&heading(names))
    }

    /// Agrees on keys with a client.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        timeout(HANDSHAKE_WITHIN, self.0.accept(stream))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Stands before a certificate: text there is nobody's business but ours.
fn heading(names: &[String]) -> String {
    format!("bhatti, self-signed: {}\n", names.join(" "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_certificate_of_our_own_tells_for_whom_it_is() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let made = Tls::self_signed(&names(&["localhost", "127.0.0.1"])).unwrap();
        assert!(Tls::is_for(&made.cert, &names(&["localhost", "127.0.0.1"])));
        assert!(!Tls::is_for(&made.cert, &names(&["localhost"])));
        assert_ne!(made, Tls::self_signed(&names(&["localhost", "127.0.0.1"])).unwrap());
        assert!(Tls::self_signed(&names(&["no\u{e9}"])).is_err());
    }

    #[test]
    fn files_that_are_no_certificate_or_do_not_belong_together_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (cert, key) = (at("cert.pem"), at("key.pem"));
        let [one, other] = [(); 2].map(|()| Tls::self_signed(&["a".to_owned()]).unwrap());
        for (path, text) in
            [(&cert, &one.cert), (&key, &one.key), (&at("other"), &other.key), (&at("empty"), &String::new())]
        {
            fs::write(path, text).unwrap();
        }
        for (cert, key, told) in [
            (&at("none"), &key, "none"),
            (&at("empty"), &key, "no certificate"),
            (&cert, &at("empty"), "no private key"),
            (&cert, &cert, "no private key"),
            (&cert, &at("other"), "does not go with"),
        ] {
            let error = Tls::from_files(cert, key).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
        Tls::from_files(&cert, &key).unwrap();
    }
}
