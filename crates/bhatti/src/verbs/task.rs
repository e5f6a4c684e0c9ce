//! Tasks followed to their end: progress on a terminal, Ctrl-C calls them off.

use hyper::Method;

use crate::client::{Client, encode};
use crate::failure::{Failure, INTERRUPTED, Result};
use crate::progress::Reading;

/// Follows a task until it has ended. One that did not come to its goal is a failure, as it was told.
pub async fn to_the_end(client: &Client, begun: api::Task) -> Result<api::Task> {
    let path = format!("/tasks/{}", encode(&begun.id));
    let bar = Reading::begin();
    let following = async {
        let mut lines = client.lines_of::<api::Task>(&path).await?;
        let mut last = begun.clone();
        while let Some(task) = lines.next().await? {
            let api::TaskProgress { what, done_bytes, total_bytes } = &task.progress;
            bar.at(&format!("{}: {what}", task.subject), *done_bytes, *total_bytes);
            last = task;
        }
        Ok::<_, Failure>(last)
    };
    let ended = tokio::select! {
        ended = following => ended?,
        _interrupt = tokio::signal::ctrl_c() => client.ask(Method::DELETE, &path, None::<&()>).await?,
    };
    drop(bar);
    match ended.status.as_str() {
        "done" => Ok(ended),
        "cancelled" => Err(Failure {
            exit: INTERRUPTED,
            ..Failure::new("cancelled", format!("{}: it was called off; nothing was changed", ended.subject))
        }),
        "failed" => {
            let subject = &ended.subject;
            let error = ended.error.clone().unwrap_or_else(|| api::ErrorDetail {
                code: "internal".to_owned(),
                message: "it failed and does not say why".to_owned(),
                hint: String::new(),
            });
            Err(Failure::told(api::ErrorDetail {
                message: format!("image {subject}: {}", error.message),
                ..error
            }))
        }
        status => Err(Failure::new("stream_broken", format!("the task broke off while it was {status}"))
            .hint("see whether the daemon still runs")),
    }
}
