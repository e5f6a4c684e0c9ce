//! A connection into a guest as a byte stream, for HTTP to be spoken over.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use sandbox::{Connection, Leased};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

/// What waits in the pipe, in each direction.
const ROOM: usize = 64 * 1024;
/// How long what was written last may take to reach the guest once nobody holds our end any more.
const LINGER: Duration = Duration::from_secs(2);

/// Our end. Dropped, the connection ends, and with it the lease that keeps the sandbox hot.
#[derive(Debug)]
pub(crate) struct GuestIo {
    pipe: DuplexStream,
    ended: Arc<AtomicBool>,
    _held: DropGuard,
}

/// Their end: notes whether the guest's direction was ended, or just broke off.
struct Far {
    pipe: DuplexStream,
    ended: Arc<AtomicBool>,
}

/// Opens the pipe; `cut` breaks it off at once.
pub(crate) fn pipe(connection: Leased<Connection>, cut: CancellationToken) -> GuestIo {
    let (near, far) = duplex(ROOM);
    let (ended, held) = (Arc::new(AtomicBool::new(false)), CancellationToken::new());
    let far = Far { pipe: far, ended: Arc::clone(&ended) };
    let gone = held.clone();
    tokio::spawn(async move {
        let mut carried = pin!(connection.consume(|connection| connection.carry(far)));
        let outcome = tokio::select! {
            biased;
            () = cut.cancelled() => None,
            outcome = carried.as_mut() => Some(outcome),
            () = gone.cancelled() => tokio::select! {
                () = cut.cancelled() => None,
                outcome = timeout(LINGER, carried) => outcome.ok(),
            },
        };
        if let Some(Err(error)) = outcome {
            tracing::debug!(%error, "a connection to a guest broke off");
        }
    });
    GuestIo { pipe: near, ended, _held: held.drop_guard() }
}

impl AsyncRead for GuestIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        std::task::ready!(Pin::new(&mut this.pipe).poll_read(cx, buffer))?;
        let at_end = room > 0 && buffer.filled().len() == before;
        // A stream that broke off must not look like one that is complete.
        if at_end && !this.ended.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for GuestIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().pipe).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().pipe).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().pipe).poll_shutdown(cx)
    }
}

impl AsyncRead for Far {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().pipe).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Far {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().pipe).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().pipe).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Before the end can be seen.
        this.ended.store(true, Ordering::Release);
        Pin::new(&mut this.pipe).poll_shutdown(cx)
    }
}
