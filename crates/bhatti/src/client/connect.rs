//! Where the daemon is, with which key, and a connection to it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Method;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header;
use hyper::http::request;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use types::Owner;

use super::{Body, broke_off, tls};
use crate::args::Global;
use crate::failure::{Failure, Result};
use crate::socket::ShortPath;

/// Where a daemon listens when nobody says otherwise.
const DEFAULT_AUTHORITY: &str = "127.0.0.1:8080";
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// One place where a daemon may be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Unix(PathBuf),
    Tcp { authority: String, tls: bool },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp { authority, tls: false } => write!(f, "http://{authority}"),
            Self::Tcp { authority, tls: true } => write!(f, "https://{authority}"),
        }
    }
}

/// The places to look at, in order, and the key to show.
#[derive(Debug)]
pub struct Daemon {
    places: Vec<Place>,
    token: Option<String>,
    /// Whom to act for.
    owner: Option<Owner>,
    /// A certificate to trust in place of those that this host trusts.
    cacert: Option<PathBuf>,
}

impl fmt::Display for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places: Vec<_> = self.places.iter().map(Place::to_string).collect();
        f.write_str(&places.join(" or "))
    }
}

impl Daemon {
    /// `--url`; else the data directory's socket, then the usual TCP address.
    pub fn find(global: &Global) -> Result<Self> {
        let data_dir = data_dir(global)?;
        let places = match global.url.as_deref().filter(|url| !url.is_empty()) {
            Some(url) => vec![parse_url(url)?],
            None => vec![Place::Unix(data_dir.join("bhatti.sock")), Place::plain(DEFAULT_AUTHORITY)],
        };
        // Another daemon's socket needs no key, and would not know this one.
        let elsewhere = global.url.is_some() && matches!(places.as_slice(), [Place::Unix(_)]);
        let here = !elsewhere && places.iter().all(Place::is_here);
        let token = match &global.token {
            Some(token) if !token.is_empty() => Some(token.trim().to_owned()),
            // This host's key is no business of another host.
            _ if here => {
                std::fs::read_to_string(data_dir.join("admin.key")).ok().map(|key| key.trim().to_owned())
            }
            _ => None,
        };
        Ok(Self { places, token, owner: global.owner.clone(), cacert: global.cacert.clone() })
    }

    /// A request to be completed: its line, host and key.
    pub fn request(&self, method: Method, path: &str) -> request::Builder {
        let host = self.places.iter().find_map(|place| match place {
            Place::Tcp { authority, .. } => Some(authority.as_str()),
            Place::Unix(_) => None,
        });
        let path = match &self.owner {
            Some(owner) => format!("{path}{}owner={owner}", if path.contains('?') { '&' } else { '?' }),
            None => path.to_owned(),
        };
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, host.unwrap_or("localhost"))
            .header(header::USER_AGENT, concat!("bhatti/", env!("CARGO_PKG_VERSION")));
        match &self.token {
            Some(token) => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        }
    }

    /// A connection to the first place that answers.
    pub async fn connect(&self) -> Result<SendRequest<Body>> {
        let mut reason: Option<io::Error> = None;
        for place in &self.places {
            let attempt = async {
                match place {
                    Place::Unix(path) => {
                        let stream = UnixStream::connect(ShortPath::new(path)?.path()).await?;
                        Ok(speak(stream, place).await)
                    }
                    Place::Tcp { authority, tls } => {
                        let stream =
                            tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(authority.as_str()))
                                .await
                                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
                        stream.set_nodelay(true)?;
                        if !tls {
                            return Ok(speak(stream, place).await);
                        }
                        Ok(match tls::agree(stream, authority, self.cacert.as_deref()).await {
                            Ok(stream) => speak(stream, place).await,
                            Err(failure) => Err(failure),
                        })
                    }
                }
            };
            match attempt.await {
                Ok(connection) => return connection,
                // The first place is the one that was meant.
                Err(error) => reason = reason.or(Some(error)),
            }
        }
        let reason = reason.map_or_else(|| "nowhere to look".to_owned(), |error| error.to_string());
        Err(Failure::new("no_daemon", format!("no daemon answers at {self}: {reason}"))
            .hint("start one with `bhatti serve`"))
    }
}

impl Place {
    fn plain(authority: &str) -> Self {
        Self::Tcp { authority: authority.to_owned(), tls: false }
    }

    fn is_here(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp { authority, .. } => {
                let host = authority.rsplit_once(':').map_or(authority.as_str(), |(host, _)| host);
                let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
                host == "localhost" || address.is_ok_and(|address| address.is_loopback())
            }
        }
    }
}

async fn speak<S>(stream: S, place: &Place) -> Result<SendRequest<Body>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) =
        handshake(TokioIo::new(stream)).await.map_err(|error| broke_off(&place.to_string(), &error))?;
    // Ends with the connection; what goes wrong is told to whoever waits for an answer.
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}

fn parse_url(url: &str) -> Result<Place> {
    let wrong = |why: &str| {
        Failure { exit: crate::failure::USAGE, ..Failure::new("usage", format!("--url {url:?}: {why}")) }
            .hint("use http://HOST:PORT, https://HOST:PORT or unix:/PATH")
    };
    if let Some(path) = url.strip_prefix("unix:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        return Ok(Place::Unix(PathBuf::from(path)));
    }
    let (tls, authority) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
        (Some(authority), _) => (false, authority),
        (_, Some(authority)) => (true, authority),
        _ => return Err(wrong("it is neither http, https nor unix")),
    };
    let authority = authority.trim_end_matches('/');
    if authority.is_empty() || authority.contains(['/', '?', '#', '@']) {
        return Err(wrong("it has more or less than a host and a port"));
    }
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let authority = if has_port { authority.to_owned() } else { format!("{authority}:8080") };
    Ok(Place::Tcp { authority, tls })
}

/// `--data-dir`; else the usual place for this user.
pub fn data_dir(global: &Global) -> Result<PathBuf> {
    if let Some(dir) = global.data_dir.as_ref().filter(|dir| !dir.as_os_str().is_empty()) {
        // Absolute, because the daemon and its machines have other working directories.
        return std::path::absolute(dir).map_err(|error| Failure::io(dir.display(), &error));
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/bhatti"));
    }
    let from = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base =
        from("XDG_DATA_HOME").or_else(|| from("HOME").map(|home| home.join(Path::new(".local/share"))));
    base.map(|base| base.join("bhatti")).ok_or_else(|| {
        Failure::new("usage", "neither XDG_DATA_HOME nor HOME says where data is kept")
            .hint("give --data-dir")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn global(url: Option<&str>, dir: &Path) -> Global {
        Global {
            json: false,
            url: url.map(str::to_owned),
            token: None,
            owner: None,
            cacert: None,
            data_dir: Some(dir.to_owned()),
        }
    }

    #[test]
    fn urls_are_unix_paths_or_a_host_and_a_port() {
        assert_eq!(parse_url("unix:/run/b.sock").unwrap(), Place::Unix("/run/b.sock".into()));
        assert_eq!(parse_url("unix:///run/b.sock").unwrap(), Place::Unix("/run/b.sock".into()));
        assert_eq!(parse_url("http://h:1/").unwrap(), Place::plain("h:1"));
        assert_eq!(parse_url("http://[::1]:1").unwrap(), Place::plain("[::1]:1"));
        assert_eq!(parse_url("http://h").unwrap(), Place::plain("h:8080"));
        let secure = Place::Tcp { authority: "h:443".into(), tls: true };
        assert_eq!(parse_url("https://h:443").unwrap(), secure);
        for bad in ["https://", "h:1", "http://", "http://u@h", "http://h/x"] {
            assert_eq!(parse_url(bad).unwrap_err().exit, crate::failure::USAGE, "{bad}");
        }
    }

    #[test]
    fn the_key_of_this_host_is_shown_to_daemons_of_this_host_only() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("admin.key"), "bht_x\n").unwrap();
        let token = |url| Daemon::find(&global(url, dir.path())).unwrap().token;
        assert_eq!(token(None).as_deref(), Some("bht_x"));
        assert_eq!(token(Some("unix:/run/other.sock")), None);
        assert_eq!(token(Some("http://localhost:9")).as_deref(), Some("bht_x"));
        assert_eq!(token(Some("http://[::1]:9")).as_deref(), Some("bht_x"));
        assert_eq!(token(Some("http://10.0.0.1:9")), None);
        assert_eq!(token(Some("http://127.0.0.1.evil.example:9")), None);
    }
}
