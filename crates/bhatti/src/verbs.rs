//! What each verb does: one module for each group.

mod backups;
mod bench;
mod completion;
mod create;
mod du;
mod events;
mod exec;
mod file;
mod fork;
mod image;
mod inspect;
mod lifecycle;
mod loop_storage;
mod metrics;
mod prepare;
mod secret;
mod snapshot;
mod task;
mod traffic;
mod upkeep;
mod user;
mod version;
mod volume;

use crate::args::{Cli, Verb};
use crate::client::Client;
use crate::failure::Result;
use crate::{reference, serve};

/// Does what was asked; gives this program's exit status.
pub async fn run(cli: Cli) -> Result<u8> {
    let Cli { global, verb } = cli;
    let json = global.json;
    let client = || Client::new(&global);
    match verb {
        Verb::Setup(asked) => prepare::setup(&global, asked).await,
        Verb::Doctor(asked) => prepare::doctor(&global, asked).await,
        Verb::Bench(asked) => bench::bench(&global, asked).await,
        Verb::Serve(asked) => serve::serve(&global, asked).await,
        Verb::Create(asked) => create::create(&client()?, json, asked).await,
        Verb::List(asked) => inspect::list(&client()?, json, asked).await,
        Verb::Inspect(asked) => inspect::inspect(&client()?, json, asked).await,
        Verb::Edit(asked) => inspect::edit(&client()?, json, asked).await,
        Verb::Ps(asked) => inspect::sessions(&client()?, json, asked).await,
        Verb::Destroy(asked) => lifecycle::destroy(&client()?, json, asked).await,
        Verb::Stop(asked) => lifecycle::stop(&client()?, json, asked).await,
        Verb::Start(asked) => lifecycle::start(&client()?, json, asked).await,
        Verb::Exec(asked) => exec::exec(&client()?, json, asked).await,
        Verb::Shell(asked) => exec::shell(&client()?, json, asked).await,
        Verb::Snapshot(asked) => snapshot::snapshot(&client()?, json, asked).await,
        Verb::Volume(asked) => volume::volume(&client()?, json, asked).await,
        Verb::Fork(asked) => fork::fork(&client()?, json, asked).await,
        Verb::Ports(asked) => traffic::ports(&client()?, json, asked).await,
        Verb::Forward(asked) => traffic::forward(client()?, json, asked).await,
        Verb::Publish(asked) => traffic::publish(&client()?, json, asked).await,
        Verb::Unpublish(asked) => traffic::unpublish(&client()?, json, asked).await,
        Verb::Secret(asked) => secret::secret(&client()?, json, asked).await,
        Verb::User(asked) => user::user(&client()?, json, asked).await,
        Verb::Du(asked) => du::du(&global, asked).await,
        Verb::Fsck(asked) => upkeep::fsck(&global, asked).await,
        Verb::Gc(asked) => upkeep::gc(&global, asked).await,
        Verb::File(asked) => file::file(&client()?, json, asked).await,
        Verb::Image(asked) => image::image(&client()?, json, asked).await,
        Verb::Events(asked) => events::events(&client()?, json, asked).await,
        Verb::Metrics => metrics::metrics(&client()?, json).await,
        Verb::Completion(asked) => completion::completion(asked),
        Verb::Version => version::version(&client()?, json).await,
        Verb::Docs(asked) => reference::write(asked.which),
    }
}
