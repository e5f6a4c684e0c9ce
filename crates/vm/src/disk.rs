//! The root disk of a running machine: another top put over it, what lies between folded into it, made larger.
//!
//! ```text
//!  open_top ─► NextTop ── switch_top ─►  next top ─► old top (frozen) ─► layers ─► base
//!                 └── close_top          fold_top:  top ────────────────────────► base
//! ```
//! These verbs take turns. A fold is work for idle hours: it gives way to every other one, and to a pause.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Mutex, OwnedMutexGuard, oneshot, watch};
use types::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::machine::{Inner, Machine};
use crate::nodes::{self, ROOT_NODE, TOP_PREFIX, file_of};
use crate::qmp::{Command, Job};
use crate::room::Whose;
use crate::spec::{DiskFile, DiskFormat};

/// The job that folds; there is one at a time.
pub(crate) const FOLD_JOB: &str = "fold";
const FOLDING: &str = "folding the disk's layers";
/// How long a job may take to let go of the disk once it was told to.
const CANCEL_LIMIT: Duration = Duration::from_secs(60);

/// A file that the VMM has opened and that the machine can switch to. Dropping it leaves the file open in the VMM
/// until [`Machine::open_top`] is asked for another one.
#[derive(Debug)]
#[must_use = "the VMM has the file open: switch to it, or close it"]
pub struct NextTop {
    node: String,
}

/// How a fold ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a fold that gave way has left the layers in use"]
pub enum Folded {
    /// Nothing lies between the top and the last file any more; the VMM has closed what did.
    Whole,
    /// Another verb wanted the disk. What was copied stays copied, and nothing else has changed.
    GaveWay,
}

/// Whose turn it is to change the root disk.
#[derive(Debug)]
pub(crate) struct Turns {
    // Held for as long as one verb takes, a fold's end included.
    turn: Arc<Mutex<()>>,
    // How many wait that a fold must give way to.
    waiting: watch::Sender<usize>,
    /// The number of the last top that was opened.
    last_top: AtomicU64,
}

impl Default for Turns {
    fn default() -> Self {
        Self { turn: Arc::default(), waiting: watch::Sender::new(0), last_top: AtomicU64::new(0) }
    }
}

/// One who waits; counted as long as it lives.
struct Waiter<'a>(&'a watch::Sender<usize>);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}

impl Turns {
    /// Waits for the turn; a fold gives way.
    pub(crate) async fn take(&self) -> OwnedMutexGuard<()> {
        self.waiting.send_modify(|waiting| *waiting += 1);
        let _waiter = Waiter(&self.waiting);
        Arc::clone(&self.turn).lock_owned().await
    }
}

impl Machine {
    /// Opens `file` in the VMM's directory, an empty qcow2 file of the root disk's size, as the next top. Nothing is
    /// written to it before the switch, and the file below it will be today's top, whatever its header says. One
    /// that was opened before and not switched to is closed.
    ///
    /// # Errors
    /// `Refused`: the VMM cannot open it, or it is not of the root disk's size. The machine is as it was.
    pub async fn open_top(&self, file: &str) -> Result<NextTop> {
        const OP: &str = "opening the disk's next top";
        let inner = &self.inner;
        let _turn = inner.disk.take().await;
        let chain = inner.chain(OP).await?;
        let open = inner.named_nodes(OP).await?;
        let mut last = inner.disk.last_top.load(Ordering::Relaxed);
        for (name, _) in &open {
            let Some(number) = name.strip_prefix(TOP_PREFIX).and_then(|it| it.parse::<u64>().ok()) else {
                continue;
            };
            last = last.max(number);
            if !chain.contains(name) {
                inner.close_nodes(OP, &[name.as_str()]).await?;
            }
        }
        let (_told, _lent) = inner.lend(OP, Path::new(file), Whose::Its)?;
        let number = last + 1;
        inner.disk.last_top.store(number, Ordering::Relaxed);
        let node = format!("{TOP_PREFIX}{number}");
        let added: Vec<_> = nodes::writable(&node, &DiskFile::qcow2(file), None)?
            .into_iter()
            .map(|node| Command::with("blockdev-add", node))
            .collect();
        let opened = async {
            inner.call_all(OP, added).await?;
            let sizes = inner.named_nodes(OP).await?;
            let size_of =
                |wanted: &str| sizes.iter().find(|(name, _)| name == wanted).map(|(_, node)| size(node));
            match (size_of(&node), chain.first().and_then(|top| size_of(top))) {
                (Some(next), Some(now)) if next == now => Ok(()),
                (next, now) => {
                    let say =
                        |size: Option<u64>| size.map_or("unknown".to_owned(), |size| format!("{size} bytes"));
                    let text = format!("{file} is {} and the disk {}", say(next), say(now));
                    Err(Error::new(ErrorKind::Refused, OP, text))
                }
            }
        };
        match opened.await {
            Ok(()) => Ok(NextTop { node }),
            Err(error) => {
                // Whichever of its two nodes there is.
                let _ = inner.close_nodes(OP, &[&node]).await;
                Err(error)
            }
        }
    }

    /// Switches to `top`: from here on all writes of the guest go to it, and what was the top is flushed and only
    /// read. The machine may be paused or running. A disk must not have been resized since `top` was opened.
    ///
    /// The names of the files may change at any time before or after: the VMM keeps what it has open.
    ///
    /// # Errors
    /// The VMM refused or is gone. After a refusal the disk is as it was, and `top` is closed.
    pub async fn switch_top(&self, top: NextTop) -> Result<()> {
        const OP: &str = "switching the disk to its next top";
        let inner = &self.inner;
        let _turn = inner.disk.take().await;
        let now = inner.top(OP).await?;
        let arguments = json!({"node": now, "overlay": top.node});
        let switched = inner.call(OP, Command::with("blockdev-snapshot", arguments)).await;
        if switched.as_ref().is_err_and(|error| error.kind() == ErrorKind::Refused) {
            let _ = inner.close_nodes(OP, &[&top.node]).await;
        }
        switched.map(drop)
    }

    /// Closes a top that was not switched to.
    ///
    /// # Errors
    /// The VMM refused or is gone.
    pub async fn close_top(&self, top: NextTop) -> Result<()> {
        let _turn = self.inner.disk.take().await;
        self.inner.close_nodes("closing a top", &[&top.node]).await
    }

    /// Copies what lies between the top and the disk's last file into the top, while the guest runs; the VMM closes
    /// the files between, which nobody needs then to run this machine: the top is synced, and its header names the
    /// last file. Waits for the end; when this future is dropped the copying ends soon after, and the
    /// other verbs here wait for that.
    ///
    /// # Errors
    /// The VMM could not read or write (no space), or is gone. The disk works as before.
    pub async fn fold_top(&self) -> Result<Folded> {
        // A task of its own: it gives way also while the caller looks elsewhere.
        let (wanted, unwanted) = oneshot::channel();
        let folded = tokio::spawn(fold(Arc::clone(&self.inner), unwanted)).await;
        drop(wanted);
        folded.unwrap_or_else(|ended| Err(Error::new(ErrorKind::Closed, FOLDING, ended.to_string())))
    }

    /// The file that takes the guest's writes, by the name it had when the VMM opened it.
    ///
    /// # Errors
    /// The VMM is gone.
    pub async fn top_file(&self) -> Result<String> {
        const OP: &str = "asking for the disk's top";
        let inner = &self.inner;
        let _turn = inner.disk.take().await;
        // The format's own name for itself tells of all the nodes below it once they are not what its header says.
        let bytes = file_of(&inner.top(OP).await?);
        let nodes = inner.named_nodes(OP).await?;
        let node = nodes.iter().find(|(name, _)| *name == bytes).map(|(_, node)| node);
        let file = node.and_then(|node| node["file"].as_str()).map(str::to_owned);
        file.ok_or_else(|| Error::new(ErrorKind::Protocol, OP, "the disk's top has no file"))
    }

    /// Makes the root disk larger, for the guest too.
    ///
    /// # Errors
    /// The VMM refused or is gone.
    pub async fn resize_root(&self, size: Bytes) -> Result<()> {
        const OP: &str = "resizing the root disk";
        let inner = &self.inner;
        let _turn = inner.disk.take().await;
        let arguments = json!({"node-name": inner.top(OP).await?, "size": size.0});
        inner.call(OP, Command::with("block_resize", arguments)).await.map(drop)
    }
}

/// Folds until it is done, the sender of `unwanted` is gone, or another verb waits; has ended when it returns.
async fn fold(inner: Arc<Inner>, mut unwanted: oneshot::Receiver<Infallible>) -> Result<Folded> {
    const OP: &str = FOLDING;
    let _turn = tokio::select! {
        turn = Arc::clone(&inner.disk.turn).lock_owned() => turn,
        _ = &mut unwanted => return Ok(Folded::GaveWay),
    };
    let mut waiting = inner.disk.waiting.subscribe();
    let chain = inner.chain(OP).await?;
    let ([top, between @ .., base], 3..) = (chain.as_slice(), chain.len()) else {
        return Ok(Folded::Whole);
    };
    let mut arguments = json!({
        "job-id": FOLD_JOB, "device": top, "base-node": base, "on-error": "report", "auto-dismiss": true,
    });
    if let Some(above) = between.last()
        && let Some(header) = inner.header_for(OP, above, base).await?
    {
        arguments["backing-file"] = json!(header);
    }
    let mut facts = inner.qmp.facts();
    // The job's first event comes before this answer, so what is known of it afterwards is about this job.
    inner.call(OP, Command::with("block-stream", arguments)).await?;
    let stop = tokio::select! {
        _ = facts.wait_for(|facts| facts.closed || facts.fold.gone) => false,
        _ = waiting.wait_for(|waiting| *waiting > 0) => true,
        _ = unwanted => true,
    };
    if stop {
        inner.cancel_fold().await?;
    }
    let Job { error, cancelled, gone } = facts.borrow().fold.clone();
    match (gone, error) {
        (false, _) => Err(inner.told(Error::new(ErrorKind::Closed, OP, ""))),
        (true, Some(said)) => Err(Error::new(ErrorKind::Refused, OP, said)),
        (true, None) if cancelled => Ok(Folded::GaveWay),
        (true, None) => {
            inner.sync_top(OP, top, base).await?;
            let between: Vec<&str> = between.iter().map(String::as_str).collect();
            inner.close_nodes(OP, &between).await?;
            Ok(Folded::Whole)
        }
    }
}

impl Inner {
    /// The node that takes the guest's writes.
    async fn top(&self, op: &'static str) -> Result<String> {
        let arguments = json!({"path": format!("/machine/peripheral/{ROOT_NODE}"), "property": "drive"});
        let answer = self.call(op, Command::with("qom-get", arguments)).await?;
        let top = answer.as_str().filter(|top| !top.is_empty());
        top.map(str::to_owned).ok_or_else(|| Error::new(ErrorKind::Protocol, op, "the device has no drive"))
    }

    /// The nodes of the root disk, from the top down.
    async fn chain(&self, op: &'static str) -> Result<Vec<String>> {
        // The only question that QEMU answers with the names of nodes below (qapi/block-core.json, BlockStats).
        let mut answer = self.call(op, Command::plain("query-blockstats")).await?;
        let device = format!("/machine/peripheral/{ROOT_NODE}/virtio-backend");
        let disks = answer.as_array_mut().map(std::mem::take).unwrap_or_default();
        let mut at = disks.into_iter().find(|disk| disk["qdev"] == device.as_str());
        let mut chain = Vec::new();
        while let Some(mut node) = at {
            let name = node["node-name"].as_str().filter(|name| !name.is_empty());
            let name = name.ok_or_else(|| Error::new(ErrorKind::Protocol, op, "a node without a name"))?;
            chain.push(name.to_owned());
            at = node.get_mut("backing").map(Value::take);
        }
        if chain.is_empty() {
            return Err(Error::new(ErrorKind::Refused, op, "the machine has no root disk"));
        }
        Ok(chain)
    }

    /// All nodes by name, each as BlockDeviceInfo of qapi/block-core.json.
    pub(crate) async fn named_nodes(&self, op: &'static str) -> Result<Vec<(String, Value)>> {
        // Not flat would be each node with all below it: quadratic.
        let answer = self.call(op, Command::with("query-named-block-nodes", json!({"flat": true}))).await?;
        let Value::Array(nodes) = answer else {
            return Err(Error::new(ErrorKind::Protocol, op, "no list of nodes"));
        };
        let named = |node: Value| node["node-name"].as_str().map(str::to_owned).map(|name| (name, node));
        Ok(nodes.into_iter().filter_map(named).collect())
    }

    /// What a top over `base` must say in its header. QEMU would take the name that it opened `base` by, which is
    /// right for what was below at launch. What was a top since has another name now, and the header of the one
    /// directly `above`, made when it was switched to, knows it.
    async fn header_for(&self, op: &'static str, above: &str, base: &str) -> Result<Option<String>> {
        if base != ROOT_NODE && !base.starts_with(TOP_PREFIX) {
            return Ok(None);
        }
        let nodes = self.named_nodes(op).await?;
        let above = nodes.iter().find(|(name, _)| name == above).map(|(_, node)| node);
        Ok(above.and_then(|node| node["image"]["backing-filename"].as_str()).map(str::to_owned))
    }

    /// Has the VMM write all that it keeps of the top, and sync it. With QEMU 7.2 a job's end does neither, and syncing
    /// the file from outside would miss what only the VMM's memory has. To be reopened as it is flushes a node (qapi's
    /// `blockdev-reopen`), and tells when that fails.
    async fn sync_top(&self, op: &'static str, top: &str, below: &str) -> Result<()> {
        let options = nodes::over(top, DiskFormat::Qcow2, Some(below));
        self.call(op, Command::with("blockdev-reopen", json!({"options": [options]}))).await.map(drop)
    }

    /// Closes nodes that nothing uses, each before those below it.
    pub(crate) async fn close_nodes(&self, op: &'static str, names: &[&str]) -> Result<()> {
        let delete = |name: String| Command::with("blockdev-del", json!({"node-name": name}));
        let commands =
            names.iter().flat_map(|name| [delete((*name).to_owned()), delete(file_of(name))]).collect();
        self.call_all(op, commands).await.map(drop)
    }

    /// Ends the fold, if one is under way, and waits until the disk is free of it.
    pub(crate) async fn cancel_fold(&self) -> Result<()> {
        const OP: &str = "ending a fold";
        let mut facts = self.qmp.facts();
        let cancelled = self.call(OP, Command::with("job-cancel", json!({"id": FOLD_JOB}))).await;
        // Refused: it has ended, or is just about to.
        match cancelled {
            Err(error) if error.kind() != ErrorKind::Refused => return Err(error),
            _ => {}
        }
        let jobs = self.call(OP, Command::plain("query-jobs")).await?;
        if !has_fold(&jobs) {
            return Ok(());
        }
        let gone = facts.wait_for(|facts| facts.closed || facts.fold.gone);
        match tokio::time::timeout(CANCEL_LIMIT, gone).await {
            Ok(Ok(facts)) if facts.fold.gone => Ok(()),
            Ok(_) => Err(self.told(Error::new(ErrorKind::Closed, OP, ""))),
            Err(_elapsed) => {
                let text = format!("it did not end within {} s", CANCEL_LIMIT.as_secs());
                Err(Error::new(ErrorKind::Timeout, OP, text))
            }
        }
    }
}

/// Whether an answer to `query-jobs` has a fold in it.
pub(crate) fn has_fold(jobs: &Value) -> bool {
    jobs.as_array().is_some_and(|jobs| jobs.iter().any(|job| job["id"] == FOLD_JOB))
}

fn size(node: &Value) -> u64 {
    node["image"]["virtual-size"].as_u64().unwrap_or_default()
}
