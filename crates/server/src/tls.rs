//! TLS on the TCP listeners: with a certificate that somebody has, or with one that is made here once and kept.

use std::fs;
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
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

    /// A certificate for `names` (host names and addresses) that nobody but itself vouches for, kept in `dir`: made when
    /// there is none, or one for other names. Returns where it is, too: clients are to trust that file.
    ///
    /// # Errors
    /// When it cannot be made, written or read.
    pub fn self_signed(dir: &Path, names: &[String]) -> io::Result<(Self, PathBuf)> {
        let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
        // Text before the first line of dashes is nobody's business but ours.
        let heading = format!("bhatti, self-signed: {}\n", names.join(" "));
        let kept = fs::read_to_string(&cert).is_ok_and(|text| text.starts_with(&heading));
        if !kept || !key.exists() {
            let made = rcgen::generate_simple_self_signed(names).map_err(io::Error::other)?;
            match fs::create_dir(dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            // The key first: a certificate that is there has one.
            put(&key, made.signing_key.serialize_pem().as_bytes(), 0o600)?;
            put(&cert, format!("{heading}{}", made.cert.pem()).as_bytes(), 0o644)?;
        }
        Ok((Self::from_files(&cert, &key)?, cert))
    }

    /// Agrees on keys with a client.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        timeout(HANDSHAKE_WITHIN, self.0.accept(stream))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Puts a file in place of another, in one step.
fn put(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let staged = path.with_extension("pem.new");
    match fs::remove_file(&staged) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&staged)?;
    io::Write::write_all(&mut file, bytes)?;
    file.sync_all()?;
    fs::rename(&staged, path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_certificate_of_our_own_is_kept_until_it_is_to_be_for_other_names() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("tls");
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let (_, path) = Tls::self_signed(&dir, &names(&["localhost", "127.0.0.1"])).unwrap();
        let first = fs::read(&path).unwrap();
        assert_eq!(fs::metadata(dir.join("key.pem")).unwrap().permissions().mode() & 0o777, 0o600);
        Tls::self_signed(&dir, &names(&["localhost", "127.0.0.1"])).unwrap();
        assert_eq!(fs::read(&path).unwrap(), first);
        Tls::self_signed(&dir, &names(&["localhost"])).unwrap();
        assert_ne!(fs::read(&path).unwrap(), first);
    }

    #[test]
    fn files_that_are_no_certificate_or_do_not_belong_together_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (_, cert) = Tls::self_signed(&at("one"), &["a".to_owned()]).unwrap();
        Tls::self_signed(&at("other"), &["a".to_owned()]).unwrap();
        fs::write(at("empty"), "").unwrap();
        let key = at("one/key.pem");
        for (cert, key, told) in [
            (&at("none"), &key, "none"),
            (&at("empty"), &key, "no certificate"),
            (&cert, &at("empty"), "no private key"),
            (&cert, &cert, "no private key"),
            (&cert, &at("other/key.pem"), "does not go with"),
        ] {
            let error = Tls::from_files(cert, key).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
        Tls::from_files(&cert, &key).unwrap();
    }
}
