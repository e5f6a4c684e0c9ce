//! The two tasks of a channel, and the one lock that they share with the verbs.
//!
//! # Backpressure
//! What is to be written waits in `out`, already encoded, so that everything that waits goes out in one write. Data
//! waits for room below [`DATA_ROOM`], requests below [`OPEN_ROOM`], so a flood of data never delays a request by
//! more than that. The small frames (credit, cancel, signals) never wait; should they alone fill [`OUT_LIMIT`], the
//! guest has long stopped reading, and is cut off.

mod handle;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use wire::{Decoder, Frame, Message, Request};

use crate::error::{Error, ErrorKind, Result, Source};
use crate::stream::Stream;

pub(crate) use handle::{Handle, Input};

/// Data may be queued while less than this waits to be written.
const DATA_ROOM: usize = 128 * 1024;

/// Requests may be queued while less than this waits to be written.
const OPEN_ROOM: usize = 1024 * 1024;

/// More than this never waits to be written.
const OUT_LIMIT: usize = 4 * 1024 * 1024;

/// Read at once.
const READ_SIZE: usize = 64 * 1024;

#[derive(Debug)]
struct State {
    next_id: u32,
    /// Streams that somebody holds. An id below `next_id` that is not here belongs to one that is over.
    streams: HashMap<u32, Stream>,
    out: Vec<u8>,
    /// While the channel is quiet: what waits to be queued behind that.
    held: Option<Vec<u8>>,
    /// A `Detach` is in `out` or written; nothing may follow it.
    detaching: bool,
    detached: bool,
    closed: Option<(ErrorKind, Source)>,
    tasks: u8,
}

/// What the tasks and the handles share.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    /// There is something to write, or the channel closed.
    work: Notify,
    /// There is room in `out` again, or the channel closed.
    room: Notify,
    /// The channel closed, or a task ended.
    over: Notify,
}

/// Closes the channel when its last handle goes.
#[derive(Debug)]
pub(crate) struct Core(Arc<Shared>);

impl Drop for Core {
    fn drop(&mut self) {
        self.0.close(ErrorKind::Closed, "nobody uses it any more");
    }
}

impl Core {
    /// Starts the tasks over a stream on which the agent has been greeted.
    pub(crate) fn start<R, W>(reader: R, writer: W, decoder: Decoder) -> Arc<Self>
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                next_id: 1,
                streams: HashMap::new(),
                out: Vec::new(),
                held: None,
                detaching: false,
                detached: false,
                closed: None,
                tasks: 2,
            }),
            work: Notify::new(),
            room: Notify::new(),
            over: Notify::new(),
        });
        tokio::spawn(run_reader(Arc::clone(&shared), reader, decoder));
        tokio::spawn(run_writer(Arc::clone(&shared), writer));
        Arc::new(Self(shared))
    }

    /// Opens a stream: waits for room, never for the agent.
    pub(crate) async fn open(self: &Arc<Self>, op: &'static str, request: Request) -> Result<Handle> {
        let stream = Stream::new(&request);
        let wake = Arc::clone(&stream.wake);
        let shared = &self.0;
        let mut offer = Some((stream, Message::Open(Box::new(request))));
        let opened = shared.until(&shared.room, |state| {
            if let Some(refused) = state.refuses(op) {
                return Some(Err(refused));
            }
            if state.waiting() >= OPEN_ROOM {
                return None;
            }
            offer.take().map(|(stream, open)| state.open(op, stream, &open))
        });
        let id = opened.await?;
        shared.work.notify_one();
        Ok(Handle { core: Arc::clone(self), id, wake, op })
    }

    /// Has the agent take in everything that was said, and holds back what is said next until the guard is dropped.
    pub(crate) async fn hush(self: &Arc<Self>, op: &'static str) -> Result<Hush> {
        let request = Request::Sessions;
        let stream = Stream::new(&request);
        let wake = Arc::clone(&stream.wake);
        let shared = &self.0;
        let mut offer = Some((stream, Message::Open(Box::new(request))));
        let opened = shared.until(&shared.room, |state| {
            if let Some(refused) = state.refuses(op) {
                return Some(Err(refused));
            }
            // One at a time: the answer to a second question would be held back with the question.
            if state.held.is_some() || state.out.len() >= OPEN_ROOM {
                return None;
            }
            let opened = offer.take().map(|(stream, open)| state.open(op, stream, &open));
            if let Some(Ok(_)) = opened {
                state.held = Some(Vec::new());
            }
            opened
        });
        let id = opened.await?;
        let hush = Hush(Arc::clone(self));
        shared.work.notify_one();
        let mut handle = Handle { core: Arc::clone(self), id, wake, op };
        // Whatever the answer is, it shows that everything before the question was taken.
        handle.next().await?;
        Ok(hush)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.lock().closed.is_some()
    }

    /// Resolves with the reason once the channel is closed and its byte stream dropped.
    pub(crate) async fn closed(&self, op: &'static str) -> Error {
        let over = |state: &mut State| if state.tasks == 0 { state.broken(op) } else { None };
        self.0.until(&self.0.over, over).await
    }

    /// Ends the session in an orderly way, then closes the channel.
    pub(crate) async fn detach(&self, deadline: tokio::time::Instant) -> Result<()> {
        const OP: &str = "detach the guest";
        // Also when the caller gives up: half a detach must not look like a channel that works.
        let guard = CloseOnDrop(&self.0);
        {
            let mut state = self.0.lock();
            if let Some(error) = state.broken(OP) {
                return if state.detached { Ok(()) } else { Err(error) };
            }
            if !state.detaching {
                state.speak();
                state.push(0, &Message::Detach).map_err(|e| Error::because(ErrorKind::TooLarge, OP, e))?;
                state.detaching = true;
            }
        }
        self.0.work.notify_one();
        match tokio::time::timeout_at(deadline, self.closed(OP)).await {
            Ok(error) => {
                if self.0.lock().detached {
                    Ok(())
                } else {
                    Err(error)
                }
            }
            Err(_) => {
                drop(guard);
                self.closed(OP).await;
                Err(Error::new(ErrorKind::Timeout, OP))
            }
        }
    }
}

/// A channel on which the host says nothing. Dropped, what was held back is said.
#[derive(Debug)]
pub(crate) struct Hush(Arc<Core>);

impl Drop for Hush {
    fn drop(&mut self) {
        let shared = &self.0.0;
        shared.lock().speak();
        shared.work.notify_one();
        shared.room.notify_waiters();
    }
}

struct CloseOnDrop<'a>(&'a Shared);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close(ErrorKind::Closed, "a detach was given up");
    }
}

impl State {
    fn broken(&self, op: &'static str) -> Option<Error> {
        self.closed.as_ref().map(|(kind, source)| Error::caused(*kind, op, Arc::clone(source)))
    }

    /// Why nothing new can be begun.
    fn refuses(&self, op: &'static str) -> Option<Error> {
        let detaching = || Error::because(ErrorKind::Closed, op, "the guest is being detached");
        self.broken(op).or_else(|| self.detaching.then(detaching))
    }

    /// Bytes that were said and not written yet.
    fn waiting(&self) -> usize {
        self.out.len() + self.held.as_ref().map_or(0, Vec::len)
    }

    fn push(&mut self, stream: u32, message: &Message) -> std::result::Result<(), wire::WireError> {
        if self.detaching || self.closed.is_some() {
            return Ok(());
        }
        wire::encode(stream, message, self.held.as_mut().unwrap_or(&mut self.out))
    }

    /// No longer holds anything back.
    fn speak(&mut self) {
        if let Some(mut held) = self.held.take() {
            self.out.append(&mut held);
        }
    }

    fn open(&mut self, op: &'static str, stream: Stream, open: &Message) -> Result<u32> {
        let id = self.next_id;
        // 2^32 streams in one session: refuse rather than use an id twice. The next attach begins anew.
        let next =
            id.checked_add(1).ok_or_else(|| Error::because(ErrorKind::Closed, op, "no stream ids left"))?;
        self.push(id, open).map_err(|e| Error::because(ErrorKind::TooLarge, op, e))?;
        self.next_id = next;
        self.streams.insert(id, stream);
        Ok(id)
    }

    /// Takes in one frame; the text is what was wrong with it.
    fn receive(&mut self, frame: Frame) -> std::result::Result<(), &'static str> {
        match frame {
            Frame { stream: 0, message: Message::Detached } if self.detaching => {
                self.detached = true;
                Ok(())
            }
            Frame { stream: 0, .. } => Err("a message about the session that was not asked for"),
            Frame { stream, message } => match self.streams.get_mut(&stream) {
                Some(open) => {
                    open.receive(message)?;
                    open.wake.notify_waiters();
                    Ok(())
                }
                // Its holder is gone; what was under way then may still arrive.
                None if stream < self.next_id => Ok(()),
                None => Err("a message on a stream that was never opened"),
            },
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code under the lock leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `ready` has a value; it is asked again after each `notify`. Nothing is lost when dropped.
    async fn until<T>(&self, notify: &Notify, mut ready: impl FnMut(&mut State) -> Option<T>) -> T {
        // An answer that is always there must not keep a runtime's thread from its other tasks.
        tokio::task::coop::consume_budget().await;
        loop {
            if let Some(value) = ready(&mut self.lock()) {
                return value;
            }
            let mut notified = std::pin::pin!(notify.notified());
            // Registered before the second look, so that no wake-up falls between look and wait.
            notified.as_mut().enable();
            if let Some(value) = ready(&mut self.lock()) {
                return value;
            }
            notified.await;
        }
    }

    /// Closes the channel for `why`, unless it is closed already, and wakes everybody.
    fn close(&self, kind: ErrorKind, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) {
        let mut state = self.lock();
        if state.closed.is_none() {
            state.closed = Some((kind, Arc::from(why.into())));
            (state.out, state.held) = (Vec::new(), None);
        }
        for stream in state.streams.values() {
            stream.wake.notify_waiters();
        }
        drop(state);
        self.work.notify_one();
        self.room.notify_waiters();
        self.over.notify_waiters();
    }

    /// Queues a small frame that never waits; `false` is to be given to [`Shared::check`] outside the lock.
    fn push_small(&self, state: &mut State, stream: u32, message: &Message) -> bool {
        // Encoding fails only for long JSON, and these frames have none.
        let _ = state.push(stream, message);
        self.work.notify_one();
        state.waiting() <= OUT_LIMIT
    }

    fn check(&self, fits: bool) {
        if !fits {
            self.close(ErrorKind::Protocol, "the guest has stopped reading");
        }
    }

    fn task_over(&self) {
        self.lock().tasks -= 1;
        self.over.notify_waiters();
    }
}

async fn run_reader<R: AsyncRead + Unpin>(shared: Arc<Shared>, mut reader: R, mut decoder: Decoder) {
    let mut buffer = vec![0; READ_SIZE];
    loop {
        // Bound first: the lock must be free again when the channel is closed.
        let received = receive_all(&mut shared.lock(), &mut decoder);
        match received {
            Ok(false) => {}
            Ok(true) => break shared.close(ErrorKind::Closed, "the guest was detached"),
            Err(breach) => break shared.close(ErrorKind::Protocol, breach),
        }
        let read = tokio::select! {
            biased;
            () = shared.until(&shared.over, |state| state.closed.as_ref().map(drop)) => break,
            read = reader.read(&mut buffer) => read,
        };
        match read {
            Ok(0) => break shared.close(ErrorKind::Closed, "the other end closed it"),
            Ok(len) => decoder.push(&buffer[..len]),
            Err(error) => break shared.close(ErrorKind::Closed, error),
        }
    }
    // First the stream, then the news: who waits for the end may connect again at once.
    drop(reader);
    shared.task_over();
}

/// Takes in all whole frames; whether the session is over.
fn receive_all(
    state: &mut State,
    decoder: &mut Decoder,
) -> std::result::Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    while let Some(frame) = decoder.next()? {
        state.receive(frame)?;
        if state.detached {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn run_writer<W: AsyncWrite + Unpin>(shared: Arc<Shared>, mut writer: W) {
    let mut batch = Vec::new();
    loop {
        batch.clear();
        let work = |state: &mut State| {
            if state.closed.is_some() {
                return Some(false);
            }
            (!state.out.is_empty()).then(|| {
                std::mem::swap(&mut state.out, &mut batch);
                true
            })
        };
        if !shared.until(&shared.work, work).await {
            break;
        }
        shared.room.notify_waiters();
        let written = tokio::select! {
            biased;
            () = shared.until(&shared.over, |state| state.closed.as_ref().map(drop)) => break,
            written = async { writer.write_all(&batch).await?; writer.flush().await } => written,
        };
        if let Err(error) = written {
            break shared.close(ErrorKind::Closed, error);
        }
        // A burst is over; its memory need not stay.
        if batch.capacity() > DATA_ROOM * 2 {
            batch = Vec::new();
        }
    }
    drop(writer);
    shared.task_over();
}
