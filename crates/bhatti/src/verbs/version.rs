//! `version`.

use serde_json::json;

use crate::client::Client;
use crate::failure::Result;
use crate::output;

/// Tells this program's version always, and the daemon's when there is one.
pub async fn version(client: &Client, json: bool) -> Result<u8> {
    let daemon = client.get::<api::Version>("/version").await;
    let mine = env!("CARGO_PKG_VERSION");
    if json {
        output::document(&json!({
            "version": mine,
            "daemon": daemon.as_ref().ok(),
            "daemon_error": daemon.as_ref().err().map(|failure| &failure.message),
        }));
        return Ok(0);
    }
    output::line(format!("bhatti {mine}"));
    match daemon {
        Ok(daemon) => output::line(format!(
            "daemon {} with {} ({}), data in {}",
            daemon.version, daemon.vmm, daemon.accel, daemon.data_dir
        )),
        Err(failure) => output::line(format!("daemon: {}", failure.message)),
    }
    Ok(0)
}
