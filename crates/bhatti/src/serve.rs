//! The daemon, put together: this is the only place that knows both the sandboxes and the way to them.
//!
//! # Order
//! 1. [`Host::open`] takes the data directory (a second daemon ends here), tidies, and takes over running machines.
//! 2. The key is read or made; then TCP and the unix socket are bound. The lock of step 1 makes it safe to replace a
//!    socket that is there: nobody else can be listening on it.
//! 3. `ready` is said, on stdout and to systemd, when both accept.
//! 4. After SIGTERM or SIGINT: no new connections, a bounded drain, then the machines are left or put to sleep. A
//!    second signal ends the program at once; machines outlive it in any case.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sandbox::{
    Host, HostConfig, NetDefault, Pace, Prefetch, PublishLimits, Rates, SecretsKeyText, ThermalConfig,
};
use server::{AdminKey, Listeners, Published, Tls, UserPace};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use types::{Accel, Mebibytes, StorageLayout, ThermalTimes};

use crate::args::{Accelerator, Confine, Global, Groups, Layout, Listen, Net, ReadAhead, Serve};
use crate::client::data_dir;
use crate::failure::{Failure, Result, USAGE};
use crate::socket::ShortPath;
use crate::{notify, output};

/// What the process between a VMM and passt is called on the command line; nobody types it.
pub const NET_RELAY: &str = "net-relay";

/// Runs until a signal asks for the end.
pub async fn serve(global: &Global, asked: Serve) -> Result<u8> {
    if asked.cold_after < asked.warm_after {
        return Err(Failure {
            exit: USAGE,
            ..Failure::new("usage", "--cold-after: is shorter than --warm-after")
                .hint("make it at least as long")
        });
    }
    refuse_plain_text(&asked)?;
    log_to_stderr();
    let host = Host::open(config(global, &asked)?).await?;
    match listen_and_serve(&host, &asked).await {
        Ok(()) => {
            tracing::info!(stop_all = asked.stop_all, "the daemon ends");
            host.shutdown(asked.stop_all).await?;
            Ok(0)
        }
        Err(failure) => {
            // What brought us here is what the user must know; machines keep running.
            let _second = host.shutdown(false).await;
            Err(failure)
        }
    }
}

async fn listen_and_serve(host: &Host, asked: &Serve) -> Result<()> {
    let key = AdminKey::new(&host.admin_key(fresh_key()?).await?);
    let tls = tls(host, asked).await?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let (tcp, address) = match &asked.listen {
        Listen::None => (None, None),
        Listen::At(at) => {
            let (listener, address) = bind_tcp(at, "--listen").await?;
            (Some(listener), Some(address))
        }
    };
    let published = match &asked.publish_listen {
        Listen::None => None,
        Listen::At(at) => {
            let (tcp, address) = bind_tcp(at, "--publish-listen").await?;
            output::line(format!("bhatti: serving what is published on {scheme}://{address}"));
            Some(Published { tcp, domain: asked.publish_domain.clone() })
        }
    };
    let socket = host.socket_path();
    let unix = bind_unix(&socket)
        .map_err(|error| Failure::new("listen", format!("cannot listen on {}: {error}", socket.display())))?;
    let mut ends = Ends::listen()?;
    match address {
        Some(address) => {
            output::line(format!("bhatti: ready on {scheme}://{address} and {}", socket.display()))
        }
        None => output::line(format!("bhatti: ready on {}", socket.display())),
    }
    notify::ready();
    let stop = async move {
        ends.first().await;
        // Whoever asks twice does not want to wait.
        tokio::spawn(async move {
            ends.first().await;
            std::process::exit(130);
        });
    };
    let pace = UserPace {
        requests: Pace { rate: asked.user_rate, burst: asked.user_rate.saturating_mul(2) },
        changes: Pace { rate: asked.user_changes, burst: asked.user_changes.saturating_mul(5) },
        connections: asked.user_connections.into(),
    };
    let listeners = Listeners { tcp, unix: Some(unix), published, tls, pace };
    let served = server::serve(host.clone(), listeners, key, stop).await;
    let _gone_already = std::fs::remove_file(&socket);
    served.map_err(|error| Failure::io("serving", &error))
}

/// Keys and what guests say are not for everybody between here and the client.
fn refuse_plain_text(asked: &Serve) -> Result<()> {
    let secret = asked.insecure || asked.tls_cert.is_some() || asked.tls_self_signed;
    for (flag, listen) in [("--listen", &asked.listen), ("--publish-listen", &asked.publish_listen)] {
        if let Listen::At(at) = listen
            && !secret
            && !at.ip().is_loopback()
        {
            return Err(Failure {
                exit: USAGE,
                ..Failure::new(
                    "usage",
                    format!("{flag} {at}: others could listen in, and TLS is not asked for"),
                )
                .hint(
                    "give --tls-cert and --tls-key, or --tls-self-signed; --insecure where something \
                         before the daemon speaks TLS",
                )
            });
        }
    }
    Ok(())
}

/// What the TCP listeners show to clients, if they speak TLS.
async fn tls(host: &Host, asked: &Serve) -> Result<Option<Tls>> {
    let failed = |error: std::io::Error| Failure::new("tls", format!("TLS: {error}"));
    if let (Some(cert), Some(key)) = (&asked.tls_cert, &asked.tls_key) {
        return Tls::from_files(cert, key).map(Some).map_err(failed);
    }
    if !asked.tls_self_signed {
        return Ok(None);
    }
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let host_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let listened = match &asked.listen {
        Listen::At(at) if !at.ip().is_unspecified() => Some(at.ip().to_string()),
        _ => None,
    };
    for name in [host_name].into_iter().chain(listened).chain(asked.tls_name.iter().cloned()) {
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    let wanted = names.clone();
    let kept = host.own_certificate(move |cert| Tls::is_for(cert, &wanted), move || Tls::self_signed(&names));
    let [cert, key] = kept.await?;
    let tls = Tls::from_files(&cert, &key).map_err(failed)?;
    output::line(format!("bhatti: clients trust this host with --cacert {}", cert.display()));
    Ok(Some(tls))
}

async fn bind_tcp(at: &SocketAddr, flag: &str) -> Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(at).await.map_err(|error| {
        Failure::new("listen", format!("cannot listen on {at}: {error}"))
            .hint(format!("stop what listens there, or give another address with {flag}"))
    })?;
    let address = listener.local_addr().map_err(|error| Failure::io("the TCP listener", &error))?;
    Ok((listener, address))
}

fn config(global: &Global, asked: &Serve) -> Result<HostConfig> {
    Ok(HostConfig {
        data_dir: data_dir(global)?,
        qemu: asked.qemu.clone(),
        layout: match asked.storage_layout {
            Layout::Auto => None,
            Layout::Overlay => Some(StorageLayout::Overlay),
            Layout::Reflink => Some(StorageLayout::Reflink),
        },
        accel: match asked.accel {
            Accelerator::Auto => None,
            Accelerator::Kvm => Some(Accel::Kvm),
            Accelerator::Tcg => Some(Accel::Tcg),
        },
        boot_timeout: Duration::from_secs(asked.boot_timeout),
        thermal: ThermalConfig {
            times: ThermalTimes {
                warm_after: asked.warm_after,
                cold_after: asked.cold_after,
                sleep_busy: asked.sleep_busy,
            },
            tick: Duration::from_millis(asked.thermal_tick.into()),
        },
        wakes: NonZeroUsize::new(asked.wakes.into()).unwrap_or(NonZeroUsize::MIN),
        wake_wait: Duration::from_secs(asked.wake_wait.into()),
        max_memory: asked.max_memory.map(Mebibytes),
        standby: asked.standby.try_into().unwrap_or(usize::MAX),
        prefetch: match asked.prefetch {
            ReadAhead::Off => Prefetch::Off,
            ReadAhead::Auto => Prefetch::Auto,
            ReadAhead::All => Prefetch::All,
        },
        spare_vmms: asked.spare_vmms.into(),
        proc: asked.proc.clone(),
        publish: PublishLimits {
            pace: Pace { rate: asked.publish_rate, burst: asked.publish_rate.saturating_mul(2) },
            wakes: usize::from(asked.publish_wakes),
        },
        backup_to: asked.backup_to.clone(),
        cgroups: asked.cgroups == Groups::Auto,
        confine: asked.confine == Confine::Auto,
        rates: Rates { net: asked.net_rate, disk: asked.disk_rate },
        net: match asked.net {
            Net::Auto => NetDefault::Auto,
            Net::User => NetDefault::User,
            Net::Bridge => NetDefault::Bridge,
            Net::None => NetDefault::None,
        },
        // This very program, also when its file has been replaced since it was started.
        net_relay: vec!["/proc/self/exe".to_owned(), NET_RELAY.to_owned()],
        secrets_key: secrets_key()?,
    })
}

/// The key of secrets from outside the data directory: the environment, or a credential that systemd passes on.
fn secrets_key() -> Result<Option<SecretsKeyText>> {
    if let Ok(text) = std::env::var("BHATTI_SECRETS_KEY") {
        return Ok(Some(SecretsKeyText(text)));
    }
    let Some(dir) = std::env::var_os("CREDENTIALS_DIRECTORY") else { return Ok(None) };
    match std::fs::read_to_string(Path::new(&dir).join("secrets.key")) {
        Ok(text) => Ok(Some(SecretsKeyText(text))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::io("the credential secrets.key", &error)),
    }
}

/// `bht_` and 43 characters that stand for 32 random bytes.
fn fresh_key() -> Result<String> {
    let mut secret = [0u8; 32];
    getrandom::fill(&mut secret)
        .map_err(|error| Failure::new("internal", format!("the kernel's random generator: {error}")))?;
    Ok(format!("bht_{}", URL_SAFE_NO_PAD.encode(secret)))
}

/// Binds the socket with mode 0600, in place of one that a daemon before us left.
fn bind_unix(path: &Path) -> std::io::Result<UnixListener> {
    let short = ShortPath::new(path)?;
    match std::fs::remove_file(short.path()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(short.path())?;
    // Until here the directory's mode of 0700 keeps others out.
    std::fs::set_permissions(short.path(), std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("BHATTI_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let started =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr);
    // Only a second subscriber in this process could be in the way, and there is none.
    let _first = started.try_init();
}

/// The signals that end the daemon.
struct Ends {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Ends {
    fn listen() -> Result<Self> {
        let failed = |error| Failure::io("signals", &error);
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
        })
    }

    async fn first(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_key_has_its_form_and_is_never_the_same() {
        let (one, two) = (fresh_key().unwrap(), fresh_key().unwrap());
        assert_eq!(one.len(), 4 + 43);
        assert!(one.starts_with("bht_"));
        assert_ne!(one, two);
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_the_new_one_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bhatti.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let _listener = bind_unix(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(tokio::net::UnixStream::connect(&path).await.is_ok());
    }
}
