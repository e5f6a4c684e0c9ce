//! Taking connections on TCP and on the unix socket, and letting them end.
//!
//! # Shutting down
//! 1. No new connection is taken; idle ones are closed.
//! 2. Event streams and shells are closed: both can be taken up again.
//! 3. Commands and transfers under way have [`DRAIN_WITHIN`] to end; then they are cut off, and their clients see a
//!    stream that broke off.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use sandbox::Host;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::auth::AdminKey;
use crate::cord::Cord;
use crate::forward::Peer;
use crate::pace::{Paces, UserPace};
use crate::publish::{Site, site_router};
use crate::router::{App, Door, Drain, with_state};
use crate::tls::Tls;

/// How many connections are served at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 2048;
/// How long a client may take to send the head of a request, which bounds idle connections too.
const HEAD_WITHIN: Duration = Duration::from_secs(60);
/// The longest head of a request.
const MAX_HEAD: usize = 64 * 1024;
/// How long requests under way may take after a shutdown was asked for.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);
/// How long the cut-off ones may take to tell their guests.
const CUT_WITHIN: Duration = Duration::from_secs(1);

/// Where requests come in.
#[derive(Debug)]
pub struct Listeners {
    /// TCP, where there is one.
    pub tcp: Option<TcpListener>,
    /// The unix socket, where there is one.
    pub unix: Option<UnixListener>,
    /// For what is published, where that is served.
    pub published: Option<Published>,
    /// What is spoken on both TCP listeners; plain HTTP without.
    pub tls: Option<Tls>,
    /// How much each user may ask for.
    pub pace: UserPace,
}

/// The second listener.
#[derive(Debug)]
pub struct Published {
    /// Where its requests come in.
    pub tcp: TcpListener,
    /// The domain that aliases are put before.
    pub domain: String,
}

/// Serves `host` until `stop` is done, then drains.
///
/// # Errors
/// When the address of a TCP listener cannot be told.
pub async fn serve(
    host: Host,
    listeners: Listeners,
    key: AdminKey,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let drain = Drain::default();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut accepting = JoinSet::new();
    let site = match &listeners.published {
        Some(Published { tcp, domain }) => {
            let (domain, port) = (domain.clone(), tcp.local_addr()?.port());
            Some(Arc::new(Site { domain, port, tls: listeners.tls.is_some() }))
        }
        None => None,
    };
    let paces = Arc::new(Paces::new(listeners.pace));
    let app = App { host, drain: drain.clone(), site, requests: Arc::default(), key: Some(key), paces };
    if let Some(Published { tcp, .. }) = listeners.published {
        let routes = site_router(app.clone());
        // Slots of its own: strangers must not keep the owner out.
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        accepting.spawn(accept(Source::Tcp(tcp, listeners.tls.clone()), routes, slots, drain.clone()));
    }
    if let Some(tcp) = listeners.tcp {
        let loopback = tcp.local_addr()?.ip().is_loopback();
        let routes = with_state(app.clone(), Door::Tcp { key, loopback });
        accepting.spawn(accept(Source::Tcp(tcp, listeners.tls), routes, Arc::clone(&slots), drain.clone()));
    }
    if let Some(unix) = listeners.unix {
        let routes = with_state(app, Door::Unix);
        accepting.spawn(accept(Source::Unix(unix), routes, slots, drain.clone()));
    }
    stop.await;
    accepting.shutdown().await;
    drain.begun().cancel();
    if timeout(DRAIN_WITHIN, drain.idle()).await.is_err() {
        tracing::warn!("requests were still under way after {} s and are cut off", DRAIN_WITHIN.as_secs());
    }
    drain.over().cancel();
    let _late = timeout(CUT_WITHIN, drain.idle()).await;
    Ok(())
}

enum Source {
    Tcp(TcpListener, Option<Tls>),
    Unix(UnixListener),
}

async fn accept(source: Source, routes: Router, slots: Arc<Semaphore>, drain: Drain) {
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let (routes, drain) = (routes.clone(), drain.clone());
        let taken = match &source {
            Source::Tcp(tcp, tls) => tcp.accept().await.map(|(stream, peer)| {
                // Answers are small and somebody waits for each.
                let _unsupported = stream.set_nodelay(true);
                let peer = Peer { address: Some(peer.ip().to_canonical()), tls: tls.is_some() };
                match tls.clone() {
                    None => tokio::spawn(connection(stream, peer, routes, drain, slot)),
                    Some(tls) => tokio::spawn(async move {
                        match tls.accept(stream).await {
                            Ok(stream) => connection(stream, peer, routes, drain, slot).await,
                            Err(error) => tracing::debug!(%error, "a client did not agree on keys"),
                        }
                    }),
                }
            }),
            Source::Unix(unix) => unix
                .accept()
                .await
                .map(|(stream, _)| tokio::spawn(connection(stream, Peer::default(), routes, drain, slot))),
        };
        if let Err(error) = taken {
            // Out of file descriptors, most likely: others will end.
            tracing::warn!(%error, "a connection could not be taken");
            sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn connection<S>(stream: S, peer: Peer, routes: Router, drain: Drain, slot: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let _busy = drain.busy();
    let _slot = slot;
    let routes = TowerToHyperService::new(routes);
    let cord = Cord::default();
    let stream = cord.tie(stream);
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(cord.clone());
        routes.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let (begun, over) = (drain.begun(), drain.over());
    let mut told = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                // A client that breaks off is its own business; dropping the connection drops what ran for it.
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection broke off");
                }
                return;
            }
            () = begun.cancelled(), if !told => {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
            () = over.cancelled() => return,
        }
    }
}
