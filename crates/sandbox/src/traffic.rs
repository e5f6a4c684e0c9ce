//! Ports of guests: what listens, and connections to it.

use guest::Connection;
use types::Owner;

use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::lease::Leased;

impl Host {
    /// What listens for TCP connections in a sandbox, by port.
    ///
    /// # Errors
    /// Those of waking, `Conflict` when the agent in the guest's memory is older than this verb.
    pub async fn ports(&self, owner: &Owner, which: &str) -> Result<Vec<wire::Listener>> {
        let (guest, _lease) = self.lease(owner, which).await?;
        guest.ports().await.map_err(too_old)
    }

    /// Connects to a port of a sandbox, which is woken and stays hot for as long as the connection lives.
    ///
    /// # Errors
    /// Those of waking; `NotListening` when nobody listens on that port, `Timeout` when who does accepts nobody,
    /// `Conflict` when the agent in the guest's memory is older than this verb.
    pub async fn connect(&self, owner: &Owner, which: &str, port: u16) -> Result<Leased<Connection>> {
        let (guest, lease) = self.lease(owner, which).await?;
        match guest.connect(port).await {
            Ok(connection) => Ok(Leased::new(connection, lease)),
            Err(error) => {
                let error = too_old(error);
                Err(match error.kind() {
                    ErrorKind::NotListening => Error::new(
                        ErrorKind::NotListening,
                        format!("nobody listens on port {port} of {which}"),
                    )
                    .hint(format!("`bhatti ports {which}` shows what is listened on")),
                    _ => error,
                })
            }
        }
    }
}

fn too_old(error: guest::Error) -> Error {
    let unknown = error.said().is_some_and(|said| said.contains("does not know that request"));
    if unknown {
        return Error::new(ErrorKind::Conflict, "the agent in the guest's memory is older than this verb")
            .hint("boot the sandbox: `bhatti start NAME --discard-memory`");
    }
    error.into()
}
