//! A connection that ends when the key is revoked with which it was last asked something: answers that still flow,
//! WebSockets and tunnels break off, for all of them are this connection.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use sandbox::KeyHolder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

/// The handle on a connection that each of its requests carries.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cord {
    cut: CancellationToken,
    ended: CancellationToken,
    /// Held for a look only.
    held: Arc<Mutex<Option<Hold>>>,
}

#[derive(Debug)]
struct Hold {
    by: KeyHolder,
    let_go: CancellationToken,
    /// Its place among the connections of the key's owner.
    seat: Option<OwnedSemaphorePermit>,
}

impl Cord {
    /// Cuts the connection once that key is revoked, unless it is asked something with another key before.
    pub(crate) fn hold(&self, by: &KeyHolder) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.as_ref().is_some_and(|held| held.by.owner == by.owner && !held.by.revoked.is_cancelled()) {
            return;
        }
        let let_go = CancellationToken::new();
        if let Some(old) = held.replace(Hold { by: by.clone(), let_go: let_go.clone(), seat: None }) {
            old.let_go.cancel();
        }
        let (revoked, cut, ended) = (by.revoked.clone(), self.cut.clone(), self.ended.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = let_go.cancelled() => {}
                () = ended.cancelled() => {}
                () = revoked.cancelled() => cut.cancel(),
            }
        });
    }

    /// Has the owner of the key that holds it take a place for it, if that was not done.
    ///
    /// # Errors
    /// What `take` says.
    pub(crate) fn sit<E>(&self, take: impl FnOnce() -> Result<OwnedSemaphorePermit, E>) -> Result<(), E> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hold) = held.as_mut().filter(|hold| hold.seat.is_none()) {
            hold.seat = Some(take()?);
        }
        Ok(())
    }

    /// Nobody's key cuts it any more.
    pub(crate) fn let_go(&self) {
        if let Some(old) = self.held.lock().unwrap_or_else(PoisonError::into_inner).take() {
            old.let_go.cancel();
        }
    }

    /// The stream that this is the cord of.
    pub(crate) fn tie<S>(&self, stream: S) -> Tied<S> {
        Tied {
            stream,
            cut: Box::pin(self.cut.clone().cancelled_owned()),
            is_cut: false,
            _ended: self.ended.clone().drop_guard(),
        }
    }
}

/// A stream that breaks off when its cord is cut.
pub(crate) struct Tied<S> {
    stream: S,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    is_cut: bool,
    _ended: DropGuard,
}

impl<S> Tied<S> {
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        self.is_cut = self.is_cut || self.cut.as_mut().poll(context).is_ready();
        match self.is_cut {
            true => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the key was revoked")),
            false => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tied<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tied<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn holder(name: &str) -> KeyHolder {
        KeyHolder { owner: name.parse().unwrap(), revoked: CancellationToken::new() }
    }

    #[tokio::test]
    async fn a_revoked_key_cuts_the_connection_that_it_holds_and_no_other() {
        let (here, mut there) = tokio::io::duplex(64);
        let cord = Cord::default();
        let mut tied = cord.tie(here);
        let (alice, bob) = (holder("alice"), holder("bob"));
        cord.hold(&alice);
        cord.hold(&bob);
        alice.revoked.cancel();
        there.write_all(b"hello").await.unwrap();
        let mut text = [0; 5];
        tied.read_exact(&mut text).await.unwrap();
        // It waits for more, and is woken.
        let waiting = tokio::spawn(async move {
            let mut more = [0; 1];
            (tied.read_exact(&mut more).await.unwrap_err().kind(), tied)
        });
        bob.revoked.cancel();
        let (kind, mut tied) = waiting.await.unwrap();
        assert_eq!(kind, io::ErrorKind::ConnectionAborted);
        assert_eq!(tied.write_all(b"x").await.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }

    #[tokio::test]
    async fn a_connection_that_is_let_go_outlives_the_key() {
        let (here, mut there) = tokio::io::duplex(64);
        let cord = Cord::default();
        let mut tied = cord.tie(here);
        let alice = holder("alice");
        cord.hold(&alice);
        cord.let_go();
        alice.revoked.cancel();
        tokio::task::yield_now().await;
        tied.write_all(b"x").await.unwrap();
        assert_eq!(there.read_u8().await.unwrap(), b'x');
    }
}
