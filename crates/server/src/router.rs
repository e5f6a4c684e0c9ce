//! Which path leads to which verb, and through which door a request came.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderValue, header};
use axum::middleware;
use axum::response::Response;
use axum::routing::{any, delete, get, post, put};
use sandbox::Host;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::auth::{AdminKey, TcpRules, UnixRules, tcp_door, unix_door};
use crate::metrics::{Requests, count};
use crate::pace::{Paces, UserPace, pace};
use crate::publish::Site;
use crate::{
    backups, events, exec, files, host, images, metrics, publish, sandboxes, secrets, shell, snapshots,
    tasks, traffic, upkeep, usage, users, volumes,
};

/// What every route has at hand.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) host: Host,
    pub(crate) drain: Drain,
    /// Where what is published is served, if anywhere.
    pub(crate) site: Option<Arc<Site>>,
    /// Requests of all doors.
    pub(crate) requests: Arc<Requests>,
    /// The admin key, where there is one.
    pub(crate) key: Option<AdminKey>,
    /// How much each user may ask for.
    pub(crate) paces: Arc<Paces>,
}

/// How the daemon's end is told to requests that would go on for ever, and theirs to the daemon.
#[derive(Clone, Default)]
pub(crate) struct Drain {
    begun: CancellationToken,
    over: CancellationToken,
    tracker: TaskTracker,
}

impl Drain {
    /// Called once no new connection is taken: what can be taken up again later should end now.
    pub(crate) fn begun(&self) -> CancellationToken {
        self.begun.clone()
    }

    /// Called when the time for finishing is over.
    pub(crate) fn over(&self) -> CancellationToken {
        self.over.clone()
    }

    /// Held by work that outlives its HTTP request.
    pub(crate) fn busy(&self) -> TaskTrackerToken {
        self.tracker.token()
    }

    /// Waits until nothing is busy any more.
    pub(crate) async fn idle(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// How requests come in, which decides who may ask.
#[derive(Clone, Copy)]
pub enum Door {
    /// The unix socket: its mode has decided, unless a key is shown.
    Unix,
    /// TCP: the key decides.
    Tcp {
        /// The key that must be sent.
        key: AdminKey,
        /// Listening on loopback only; requests for other host names are then refused.
        loopback: bool,
    },
}

/// All routes over `host`, behind `door`, for users who each ask at `pace`.
pub fn router(host: Host, door: Door, pace: UserPace) -> Router {
    let paces = Arc::new(Paces::new(pace));
    let (drain, requests) = (Drain::default(), Arc::default());
    with_state(App { host, drain, site: None, requests, key: None, paces }, door)
}

/// Tells browsers that an answer is data: nothing to be framed, sniffed, run, or kept.
async fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'; sandbox"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

pub(crate) fn with_state(app: App, door: Door) -> Router {
    let (host, admin) = (app.host.clone(), app.key);
    let (requests, paces) = (Arc::clone(&app.requests), Arc::clone(&app.paces));
    // What a service in a sandbox says of its own pages is its business.
    let proxied = Router::new()
        .route("/sandboxes/{id}/proxy/{port}", any(traffic::proxy))
        .route("/sandboxes/{id}/proxy/{port}/", any(traffic::proxy))
        .route("/sandboxes/{id}/proxy/{port}/{*path}", any(traffic::proxy));
    let routes = Router::new()
        .route("/health", get(host::health))
        .route("/version", get(host::version))
        .route("/openapi.json", get(host::openapi))
        .route("/metrics", get(metrics::metrics))
        .route("/events", get(events::events))
        .route("/images", get(images::list))
        .route("/images/pull", post(images::pull))
        .route("/images/import", post(images::import))
        .route("/images/save", post(images::save))
        .route("/images/build", post(images::build))
        .route("/images/{name}", get(images::inspect).delete(images::delete))
        .route("/tasks", get(tasks::list))
        .route("/tasks/{id}", get(tasks::inspect).delete(tasks::cancel))
        .route("/sandboxes", get(sandboxes::list).post(sandboxes::create))
        .route("/sandboxes/{id}", get(sandboxes::inspect).patch(sandboxes::edit).delete(sandboxes::destroy))
        .route("/sandboxes/{id}/stop", post(sandboxes::stop))
        .route("/sandboxes/{id}/start", post(sandboxes::start))
        .route("/sandboxes/{id}/fork", post(snapshots::fork))
        .route("/sandboxes/{id}/snapshots", post(snapshots::create))
        .route("/sandboxes/{id}/usage", get(usage::of_sandbox))
        .route("/usage", get(usage::usage))
        .route("/fsck", post(upkeep::fsck))
        .route("/gc", post(upkeep::gc))
        .route("/snapshots", get(snapshots::list))
        .route("/snapshots/{name}", get(snapshots::inspect).delete(snapshots::delete))
        .route("/snapshots/{name}/resume", post(snapshots::resume))
        .route("/volumes", get(volumes::list).post(volumes::create))
        .route("/volumes/{name}", get(volumes::inspect).delete(volumes::delete))
        .route("/volumes/{name}/attach", post(volumes::attach))
        .route("/volumes/{name}/detach", post(volumes::detach))
        .route("/volumes/{name}/resize", post(volumes::resize))
        .route("/volumes/{name}/clone", post(volumes::clone))
        .route("/volumes/{name}/backups", get(backups::list).post(backups::create))
        .route("/volumes/{name}/backups/prune", post(backups::prune))
        .route("/volumes/{name}/backups/{id}", delete(backups::delete))
        .route("/volumes/{name}/restore", post(backups::restore))
        .route("/volumes/{name}/schedule", put(backups::schedule).delete(backups::unschedule))
        .route("/sandboxes/{id}/exec", post(exec::exec).get(shell::live_exec))
        .route("/sandboxes/{id}/shell", get(shell::shell))
        .route("/sandboxes/{id}/sessions", get(sandboxes::sessions))
        .route("/sandboxes/{id}/ports", get(traffic::ports))
        .route("/sandboxes/{id}/tunnel/{port}", get(traffic::tunnel))
        .route(
            "/sandboxes/{id}/publish",
            get(publish::of_sandbox).post(publish::publish).delete(publish::unpublish),
        )
        .route("/users", get(users::list).post(users::create))
        .route("/users/{name}", get(users::inspect).patch(users::edit).delete(users::delete))
        .route("/users/{name}/rotate-key", post(users::rotate_key))
        .route("/secrets", get(secrets::list).post(secrets::set))
        .route("/secrets/{name}", delete(secrets::delete))
        .route("/published", get(publish::all))
        .route("/sandboxes/{id}/files", get(files::read).head(files::head).put(files::write))
        .fallback(host::not_found)
        .method_not_allowed_fallback(host::wrong_method)
        .layer(middleware::map_response(harden))
        .merge(proxied)
        .layer(middleware::from_fn_with_state(paces, pace))
        // Each route bounds its own body: JSON at 4 MiB, uploads by the guest's disk.
        .layer(DefaultBodyLimit::disable())
        .with_state(app);
    let behind_door = match door {
        Door::Unix => routes.layer(middleware::from_fn_with_state(UnixRules { key: admin, host }, unix_door)),
        Door::Tcp { key, loopback } => {
            routes.layer(middleware::from_fn_with_state(TcpRules { key, host, loopback }, tcp_door))
        }
    };
    // Outside the door, so that who is not let in is counted, too.
    behind_door.layer(middleware::from_fn_with_state(requests, count))
}
