//! A conversation with one VMM: commands in, replies matched by id, events kept as facts.
//!
//! One task reads the socket and belongs to the conversation: it ends when the last handle is dropped. Commands that
//! do not wait for one another are sent together, so a start costs one round trip and not four.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::codec::{Decoder, Message, Refusal, encode};
use crate::disk::FOLD_JOB;
use crate::error::{Error, ErrorKind, Result};
use crate::volumes::COPY_PREFIX;

/// How long one command may take; a busy host with a hundred machines starting included.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// What the VMM has told by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The guest stopped for good: the event's reason.
    pub(crate) shutdown: Option<String>,
    /// How often the guest was stopped because there was no room for what it wrote.
    pub(crate) stalls: u64,
    /// How the load of a device state stands: `setup`, `active`, `completed`, `failed`.
    pub(crate) migration: Option<String>,
    /// The last job that folds the root disk's layers.
    pub(crate) fold: Job,
    /// The last job for each copy of a volume, by its name.
    pub(crate) copies: BTreeMap<String, Job>,
    /// How often a device of that name was unplugged.
    pub(crate) unplugged: BTreeMap<String, u64>,
    /// The conversation is over.
    pub(crate) closed: bool,
}

/// How a job stands; all false while it is under way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Job {
    /// It failed: what the VMM said.
    pub(crate) error: Option<String>,
    /// It was told to end before its time.
    pub(crate) cancelled: bool,
    /// It has ended and let go of the disk.
    pub(crate) gone: bool,
}

type Pending = HashMap<u64, oneshot::Sender<std::result::Result<Value, Refusal>>>;

#[derive(Debug)]
struct Shared {
    socket: UnixStream,
    // Held for moments only, never across an await.
    pending: Mutex<Pending>,
    facts: watch::Sender<Facts>,
}

/// One command.
pub(crate) struct Command<'a> {
    pub(crate) name: &'static str,
    pub(crate) arguments: Value,
    /// Goes with the command (`getfd`).
    pub(crate) file: Option<&'a File>,
}

impl Command<'_> {
    pub(crate) const fn plain(name: &'static str) -> Self {
        Self { name, arguments: Value::Null, file: None }
    }

    pub(crate) const fn with(name: &'static str, arguments: Value) -> Self {
        Self { name, arguments, file: None }
    }
}

/// The conversation.
#[derive(Debug)]
pub(crate) struct Qmp {
    shared: Arc<Shared>,
    facts: watch::Receiver<Facts>,
    next_id: std::sync::atomic::AtomicU64,
    // Whole commands, one sender at a time.
    writing: tokio::sync::Mutex<()>,
    reader: JoinHandle<()>,
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Qmp {
    /// Begins a conversation on a fresh connection. Nothing is sent; the first command must be `qmp_capabilities`.
    pub(crate) fn begin(socket: UnixStream) -> Self {
        let (tell, facts) = watch::channel(Facts::default());
        let shared = Arc::new(Shared { socket, pending: Mutex::default(), facts: tell });
        let reader = tokio::spawn(read_all(Arc::clone(&shared)));
        Self { shared, facts, next_id: 1.into(), writing: tokio::sync::Mutex::new(()), reader }
    }

    /// What the VMM has told so far and will tell.
    pub(crate) fn facts(&self) -> watch::Receiver<Facts> {
        self.facts.clone()
    }

    /// Sends one command and waits for its answer.
    pub(crate) async fn call(&self, op: &'static str, command: Command<'_>) -> Result<Value> {
        let mut answers = self.call_all(op, vec![command]).await?;
        answers.pop().ok_or_else(|| Error::new(ErrorKind::Protocol, op, "no answer"))
    }

    /// Sends commands in one go and waits for all answers; the first refusal is the error. The VMM executes them in
    /// order and does not stop at a refused one.
    pub(crate) async fn call_all(&self, op: &'static str, commands: Vec<Command<'_>>) -> Result<Vec<Value>> {
        let exchange = async {
            let mut waiting = Vec::with_capacity(commands.len());
            let mut bytes = Vec::new();
            let mut file = None;
            for command in commands {
                let id = self.next_id.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let (answer, receiver) = oneshot::channel();
                self.pending().insert(id, answer);
                bytes.extend(encode(id, command.name, command.arguments));
                file = file.or(command.file);
                waiting.push((id, command.name, receiver));
            }
            // Asked after the entries are in the table: the reader closes first and empties the table then, so an
            // entry is either answered, dropped by it, or seen here.
            let sent = if self.facts.borrow().closed {
                Err(io::ErrorKind::BrokenPipe.into())
            } else {
                self.send(&bytes, file).await
            };
            if let Err(error) = sent {
                let mut pending = self.pending();
                for (id, ..) in &waiting {
                    pending.remove(id);
                }
                return Err(
                    Error::new(ErrorKind::Closed, op, "the VMM does not listen any more").with_source(error)
                );
            }
            let mut answers = Vec::with_capacity(waiting.len());
            for (_, name, receiver) in waiting {
                match receiver.await {
                    Ok(Ok(value)) => answers.push(value),
                    Ok(Err(refusal)) => {
                        return Err(Error::new(ErrorKind::Refused, op, format!("{name}: {}", refusal.desc)));
                    }
                    Err(_dropped) => {
                        return Err(Error::new(ErrorKind::Closed, op, "the VMM broke off the conversation"));
                    }
                }
            }
            Ok(answers)
        };
        tokio::time::timeout(COMMAND_LIMIT, exchange).await.unwrap_or_else(|_elapsed| {
            let text = format!("the VMM gave no answer within {} s", COMMAND_LIMIT.as_secs());
            Err(Error::new(ErrorKind::Timeout, op, text))
        })
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.shared.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, bytes: &[u8], mut file: Option<&File>) -> io::Result<()> {
        let _whole = self.writing.lock().await;
        let socket = &self.shared.socket;
        let mut rest = bytes;
        while !rest.is_empty() {
            let sent = match file {
                Some(file) => {
                    socket
                        .async_io(Interest::WRITABLE, || sys::host_socket::send_with_file(socket, rest, file))
                        .await?
                }
                None => socket.async_io(Interest::WRITABLE, || socket.try_write(rest)).await?,
            };
            file = None;
            rest = &rest[sent..];
        }
        Ok(())
    }
}

async fn read_all(shared: Arc<Shared>) {
    let mut decoder = Decoder::default();
    let mut buffer = vec![0u8; 16 * 1024];
    'reading: loop {
        if shared.socket.readable().await.is_err() {
            break;
        }
        match shared.socket.try_read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => decoder.push(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_gone) => break,
        }
        loop {
            match decoder.next() {
                Ok(Some(message)) => take(&shared, message),
                Ok(None) => break,
                Err(junk) => {
                    tracing::warn!(%junk, "the VMM sent what is not QMP");
                    break 'reading;
                }
            }
        }
    }
    shared.facts.send_modify(|facts| facts.closed = true);
    shared.pending.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

fn take(shared: &Shared, message: Message) {
    match message {
        Message::Greeting => {}
        Message::Reply { id, result } => {
            let waiting = shared.pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            match waiting {
                // Nobody waits any more when a caller gave up.
                Some(answer) => drop(answer.send(result)),
                None => tracing::debug!(id, "an answer that nobody waits for"),
            }
        }
        Message::Complaint(refusal) => {
            tracing::warn!(
                class = refusal.class,
                desc = refusal.desc,
                "the VMM did not understand a command"
            );
        }
        Message::Event { name, data } => {
            let word = |key: &str| data.get(key).and_then(Value::as_str).map(str::to_owned);
            match name.as_str() {
                "SHUTDOWN" => shared.facts.send_modify(|facts| {
                    facts.shutdown = Some(word("reason").unwrap_or_default());
                }),
                "GUEST_PANICKED" => shared.facts.send_modify(|facts| {
                    facts.shutdown = Some("guest-panic".to_owned());
                }),
                "BLOCK_IO_ERROR" if word("action").as_deref() == Some("stop") => {
                    shared.facts.send_modify(|facts| facts.stalls += 1);
                }
                // qapi/job.json, qapi/block-core.json: block jobs name themselves in two ways.
                "JOB_STATUS_CHANGE" if data.get("id").is_some_and(|id| id == FOLD_JOB) => {
                    match data.get("status").and_then(Value::as_str).unwrap_or_default() {
                        "created" => shared.facts.send_modify(|facts| facts.fold = Job::default()),
                        "null" => shared.facts.send_modify(|facts| facts.fold.gone = true),
                        _ => {}
                    }
                }
                "BLOCK_JOB_COMPLETED" if data.get("device").is_some_and(|id| id == FOLD_JOB) => {
                    shared.facts.send_modify(|facts| facts.fold.error = word("error"));
                }
                "BLOCK_JOB_CANCELLED" if data.get("device").is_some_and(|id| id == FOLD_JOB) => {
                    shared.facts.send_modify(|facts| facts.fold.cancelled = true);
                }
                "JOB_STATUS_CHANGE" | "BLOCK_JOB_COMPLETED" | "BLOCK_JOB_CANCELLED" => {
                    let id = word("id").or_else(|| word("device")).unwrap_or_default();
                    if id.starts_with(COPY_PREFIX) {
                        shared.facts.send_modify(|facts| copy_told(facts, id, &name, &word));
                    }
                }
                "DEVICE_DELETED" => {
                    // Parts of a device that have no name of their own are told of, too.
                    if let Some(device) = word("device") {
                        shared.facts.send_modify(|facts| *facts.unplugged.entry(device).or_default() += 1);
                    }
                }
                "MIGRATION" => shared.facts.send_modify(|facts| facts.migration = word("status")),
                _ => {}
            }
        }
    }
}

/// What an event says of the copy of a volume.
fn copy_told(facts: &mut Facts, id: String, event: &str, word: &dyn Fn(&str) -> Option<String>) {
    let job = facts.copies.entry(id).or_default();
    match (event, word("status").as_deref()) {
        ("BLOCK_JOB_COMPLETED", _) => job.error = word("error"),
        ("BLOCK_JOB_CANCELLED", _) => job.cancelled = true,
        (_, Some("created")) => *job = Job::default(),
        (_, Some("null")) => job.gone = true,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn pair() -> (Qmp, UnixStream) {
        let (here, there) = UnixStream::pair().unwrap();
        (Qmp::begin(here), there)
    }

    #[tokio::test]
    async fn answers_find_their_commands_in_any_order() {
        let (qmp, mut vmm) = pair();
        let answers = async {
            tokio::join!(
                qmp.call_all("asking", vec![Command::plain("a"), Command::plain("b")]),
                qmp.call("asking", Command::plain("c")),
            )
        };
        let talk = async {
            let mut bytes = vec![0; 4096];
            let mut seen = String::new();
            while seen.lines().count() < 3 {
                let count = vmm.read(&mut bytes).await.unwrap();
                seen.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
            }
            let said = b"{\"id\":3,\"return\":\"C\"}\n{\"event\":\"SHUTDOWN\",\"data\":{\"reason\":\"guest-reset\"}}\n\
                {\"id\":99,\"return\":{}}\n{\"id\":2,\"return\":\"B\"}\n{\"id\":1,\"return\":\"A\"}\n";
            vmm.write_all(said).await.unwrap();
        };
        let ((two, one), ()) = tokio::join!(answers, talk);
        assert_eq!(two.unwrap(), [json!("A"), json!("B")]);
        assert_eq!(one.unwrap(), json!("C"));
        assert_eq!(qmp.facts().borrow().shutdown.as_deref(), Some("guest-reset"));
    }

    #[tokio::test]
    async fn a_refusal_keeps_the_vmms_words() {
        let (qmp, mut vmm) = pair();
        vmm.write_all(b"{\"id\":1,\"error\":{\"class\":\"GenericError\",\"desc\":\"not now\"}}\n")
            .await
            .unwrap();
        // The answer is there before the question: sent first, the reader must not have run.
        let error = qmp.call("asking", Command::plain("a")).await.unwrap_err();
        assert_eq!((error.kind(), error.detail()), (ErrorKind::Refused, "a: not now"));
    }

    #[tokio::test]
    async fn a_broken_conversation_fails_all_who_wait_and_all_who_come_later() {
        for junk in [&b""[..], b"junk\n"] {
            let (qmp, mut vmm) = pair();
            let (answer, ()) = tokio::join!(qmp.call("asking", Command::plain("a")), async {
                let mut bytes = [0; 64];
                let _ = vmm.read(&mut bytes).await.unwrap();
                vmm.write_all(junk).await.unwrap();
                if junk.is_empty() {
                    vmm.shutdown().await.unwrap();
                }
            });
            assert_eq!(answer.unwrap_err().kind(), ErrorKind::Closed);
            assert_eq!(qmp.call("asking", Command::plain("b")).await.unwrap_err().kind(), ErrorKind::Closed);
            assert!(qmp.facts().borrow().closed);
        }
    }
}
