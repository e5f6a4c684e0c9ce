//! A connection to a port of the guest, carried over one stream of its channel.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use wire::{MAX_PAYLOAD, Reply};

use crate::channel::{Handle, Input};
use crate::error::{Error, ErrorKind, Result};
use crate::exec::unexpected;
use crate::stream::Told;

/// A connection that was made. Dropped, it is cut off in the guest, too.
#[derive(Debug)]
pub struct Connection {
    handle: Handle,
}

impl Connection {
    /// Waits until the agent has connected.
    pub(crate) async fn begin(mut handle: Handle) -> Result<Self> {
        match handle.next().await? {
            Told::Started(_) => Ok(Self { handle }),
            Told::Failed(failure) => Err(Error::refused(handle.op(), &failure)),
            _ => Err(unexpected(handle.op())),
        }
    }

    /// Carries bytes between the service and `near` until both directions have ended. The end of either direction is
    /// passed on by itself; neither waits for the other. What one side does not take stays with the other: at most a
    /// window each way is kept here.
    ///
    /// # Errors
    /// `Refused` when the service reset it, `Closed` or `Protocol` when the channel broke, and `Ended` when `near` could
    /// not be written to or read from.
    pub async fn carry(self, near: impl AsyncRead + AsyncWrite) -> Result<()> {
        let Self { mut handle } = self;
        let op = handle.op();
        let (reader, writer) = tokio::io::split(near);
        let input = handle.input();
        let (mut sending, mut receiving) =
            (std::pin::pin!(send(input, reader, op)), std::pin::pin!(receive(&mut handle, writer)));
        tokio::select! {
            sent = &mut sending => sent?,
            // The service's last word: what `near` may still say reaches nobody.
            received = &mut receiving => return received,
        }
        receiving.await
    }
}

async fn send(input: Input, mut near: impl AsyncRead + Unpin, op: &'static str) -> Result<()> {
    let mut buffer = vec![0; MAX_PAYLOAD];
    loop {
        let len = near.read(&mut buffer).await.map_err(|error| near_broke(op, error))?;
        if len == 0 {
            return input.eof();
        }
        match input.send(&buffer[..len]).await {
            // The service takes no more: what it says goes on.
            Err(error) if error.kind() == ErrorKind::Ended => return Ok(()),
            sent => sent?,
        }
    }
}

async fn receive(handle: &mut Handle, mut near: impl AsyncWrite + Unpin) -> Result<()> {
    let op = handle.op();
    loop {
        match handle.next().await? {
            Told::Stdout(data) => {
                near.write_all(&data).await.map_err(|error| near_broke(op, error))?;
                near.flush().await.map_err(|error| near_broke(op, error))?;
            }
            Told::Eof => near.shutdown().await.map_err(|error| near_broke(op, error))?,
            Told::Reply(Reply::Done) => return Ok(()),
            Told::Failed(failure) => return Err(Error::refused(op, &failure)),
            _ => return Err(unexpected(op)),
        }
    }
}

fn near_broke(op: &'static str, error: io::Error) -> Error {
    Error::because(ErrorKind::Ended, op, error)
}
