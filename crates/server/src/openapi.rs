//! This interface described as OpenAPI 3.1, from the routes themselves.

use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

use crate::{
    backups, events, exec, files, host, images, metrics, publish, sandboxes, secrets, shell, snapshots,
    tasks, traffic, upkeep, usage, users, volumes,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "bhatti",
        description = "Many Linux microVMs on one host. Over TCP every path but /health needs `Authorization: Bearer KEY`; \
                       the unix socket needs no key and is the admin's. A user's key shows and changes that user's things; \
                       what is others' answers 404, and what is for the admin 403. The admin acts for a user with `?owner=NAME`; lists \
                       show it everybody's things without."
    ),
    paths(
        host::health, host::version, metrics::metrics, events::events,
        images::list, images::inspect, images::delete, images::pull, images::import, images::save, images::build,
        tasks::list, tasks::inspect, tasks::cancel,
        usage::usage, usage::of_sandbox, upkeep::fsck, upkeep::gc,
        sandboxes::list, sandboxes::create, sandboxes::inspect, sandboxes::edit, sandboxes::destroy,
        sandboxes::stop, sandboxes::start, sandboxes::sessions, snapshots::fork,
        snapshots::create, snapshots::list, snapshots::inspect, snapshots::delete, snapshots::resume,
        volumes::list, volumes::create, volumes::inspect, volumes::delete, volumes::attach, volumes::detach,
        volumes::resize, volumes::clone,
        backups::list, backups::create, backups::delete, backups::prune, backups::restore, backups::schedule,
        backups::unschedule,
        exec::exec, shell::live_exec, shell::shell,
        files::read, files::head, files::write,
        traffic::ports, traffic::proxy, traffic::tunnel,
        users::list, users::create, users::inspect, users::edit, users::rotate_key, users::delete,
        secrets::list, secrets::set, secrets::delete, publish::publish, publish::of_sandbox, publish::unpublish, publish::all,
    ),
    components(schemas(api::ExecEvent, api::BackupEvent, api::RestoreEvent, api::FsckEvent, api::ShellControl, api::FileEntry)),
    modifiers(&Bearer),
    security(("key" = [])),
)]
struct Description;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        openapi.components.get_or_insert_default().add_security_scheme("key", scheme);
    }
}

/// The description as JSON text, ending in a newline.
#[must_use]
pub fn openapi_json() -> String {
    let mut text = Description::openapi().to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}
