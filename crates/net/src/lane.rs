//! Mode `bridge`, on the daemon's side: a directory for each owner, through which the relays of their sandboxes find
//! each other. What goes through it is in [`crate::switch`].
//!
//! ```text
//!  <owner>/            the working directory of the owner's relays, who reach nothing else of it by any path
//!    lines/<IPv4>      a socket that takes packets for the sandbox of that address; its relay's, while there is one
//!    names/<name>      a link whose text is the sandbox's addresses, IPv4 and IPv6
//!    names/<IPv4>      a link whose text is the name: that there is such a sandbox
//!    wake              the daemon's socket: relays write there whom a packet was for
//! ```
//!
//! # Invariants
//! - Of an owner's sandboxes each has an IPv4 address of its own.
//! - Nothing here is worth keeping: [`Lanes::seat`] makes it anew from what the daemon knows, [`Lanes::tidy`] removes
//!   the rest.

use std::collections::{HashMap, HashSet};
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sys::host_socket::ProcFdPath;
use tokio::net::UnixDatagram;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use types::{Owner, SandboxId, SandboxName};

use crate::address::Address;
use crate::error::{Error, Result};
use crate::user::{NOBODY, host_has_v6};

pub(crate) const LINES: &str = "lines";
pub(crate) const NAMES: &str = "names";
pub(crate) const WAKE: &str = "wake";

/// The lanes of all owners.
#[derive(Debug)]
pub struct Lanes {
    dir: PathBuf,
    as_root: bool,
    asked: mpsc::Sender<SandboxId>,
    /// Held over a few changes of small directories, never over an await.
    lanes: Mutex<HashMap<Owner, Lane>>,
}

#[derive(Debug)]
struct Lane {
    seats: Arc<Mutex<Seats>>,
    /// The task that reads `wake`, while somebody was seated.
    listens: Option<AbortHandle>,
}

type Seats = HashMap<Ipv4Addr, Seat>;

#[derive(Debug, PartialEq, Eq)]
struct Seat {
    id: SandboxId,
    /// As it is published, once it is.
    name: Option<SandboxName>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fails(op: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { op, source }
}

impl Lanes {
    /// The lanes below `dir`, which is made when it is not there. Whom packets wait for is told to `asked`.
    ///
    /// # Errors
    /// `Io`.
    pub fn open(dir: PathBuf, asked: mpsc::Sender<SandboxId>) -> Result<Self> {
        // Nobody else on the host gets in; relays are put into their owner's.
        make_dir(&dir, 0o700).map_err(fails("making the directory of the lanes"))?;
        let as_root = rustix::process::geteuid().is_root();
        Ok(Self { dir, as_root, asked, lanes: Mutex::default() })
    }

    /// Keeps an address for a sandbox; whether nobody else of the owner's had it.
    pub fn claim(&self, owner: &Owner, id: &SandboxId, address: &Address) -> bool {
        let mut lanes = lock(&self.lanes);
        let lane = lanes.entry(owner.clone()).or_insert_with(Lane::new);
        let mut seats = lock(&lane.seats);
        seats.entry(address.v4).or_insert_with(|| Seat { id: id.clone(), name: None }).id == *id
    }

    /// Publishes a sandbox, or that it is called otherwise now. Returns its owner's directory.
    ///
    /// # Errors
    /// `Taken` when another has its address, `Io`.
    pub fn seat(
        &self,
        owner: &Owner,
        id: &SandboxId,
        name: &SandboxName,
        address: &Address,
    ) -> Result<ProcFdPath> {
        let io = fails("publishing a name among siblings");
        let mut lanes = lock(&self.lanes);
        let lane = lanes.entry(owner.clone()).or_insert_with(Lane::new);
        let dir = self.dir.join(owner.as_str());
        if lane.listens.is_none() {
            let wake = self.prepare(&dir).map_err(fails("making an owner's lane"))?;
            lane.listens = Some(listen(wake, Arc::clone(&lane.seats), self.asked.clone()));
        }
        let mut seats = lock(&lane.seats);
        let seat = seats.entry(address.v4).or_insert_with(|| Seat { id: id.clone(), name: None });
        if seat.id != *id {
            let other = seat.name.as_ref().map_or(seat.id.as_str(), |name| name.as_str());
            return Err(Error::Taken { address: address.v4, by: other.to_owned() });
        }
        if seat.name.as_ref() != Some(name) {
            let names = dir.join(NAMES);
            if let Some(old) = seat.name.take() {
                remove(&names.join(old.as_str())).map_err(&io)?;
            }
            publish(&names.join(address.v4.to_string()), name.as_str()).map_err(&io)?;
            // Where the host has no IPv6, guests have none.
            let v6 = if host_has_v6() { format!(" {}", address.v6) } else { String::new() };
            let addresses = format!("{}{v6}", address.v4);
            publish(&names.join(name.as_str()), &addresses).map_err(&io)?;
            seat.name = Some(name.clone());
        }
        ProcFdPath::open(&dir).map_err(io)
    }

    /// Takes a sandbox that is no more from among its siblings.
    ///
    /// # Errors
    /// `Io`: something of it stays until the daemon starts again.
    pub fn leave(&self, owner: &Owner, id: &SandboxId, address: &Address) -> Result<()> {
        let io = fails("taking a name from among siblings");
        let mut lanes = lock(&self.lanes);
        let Some(lane) = lanes.get(owner) else { return Ok(()) };
        let dir = self.dir.join(owner.as_str());
        let mut seats = lock(&lane.seats);
        if seats.get(&address.v4).is_none_or(|seat| seat.id != *id) {
            return Ok(());
        }
        let gone = seats.remove(&address.v4).and_then(|seat| seat.name);
        let is_empty = seats.is_empty();
        drop(seats);
        if let Some(name) = gone {
            let number = address.v4.to_string();
            for path in [
                dir.join(NAMES).join(name.as_str()),
                dir.join(NAMES).join(&number),
                dir.join(LINES).join(&number),
            ] {
                remove(&path).map_err(&io)?;
            }
        }
        if is_empty {
            lanes.remove(owner);
            remove_all(&dir).map_err(&io)?;
        }
        Ok(())
    }

    /// Removes what is of nobody who was seated since the start.
    ///
    /// # Errors
    /// `Io`.
    pub fn tidy(&self) -> Result<()> {
        let io = fails("tidying the lanes");
        let lanes = lock(&self.lanes);
        for owner in entries(&self.dir).map_err(&io)? {
            let dir = self.dir.join(&owner);
            let lane = lanes.iter().find(|(known, _)| known.as_str() == owner).map(|(_, lane)| lane);
            let Some(lane) = lane else {
                remove_all(&dir).map_err(&io)?;
                continue;
            };
            let seats = lock(&lane.seats);
            let names: HashSet<&str> =
                seats.values().filter_map(|seat| seat.name.as_ref()).map(SandboxName::as_str).collect();
            let is_known = |entry: &str| {
                names.contains(entry) || entry.parse().is_ok_and(|address| seats.contains_key(&address))
            };
            for part in [NAMES, LINES] {
                for entry in entries(&dir.join(part)).map_err(&io)? {
                    if !is_known(&entry) {
                        remove(&dir.join(part).join(entry)).map_err(&io)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// An owner's directory with all that is in it but names and lines; the socket that their relays ask on.
    fn prepare(&self, dir: &Path) -> io::Result<UnixDatagram> {
        make_dir(dir, 0o711)?;
        make_dir(&dir.join(NAMES), 0o755)?;
        let lines = dir.join(LINES);
        make_dir(&lines, 0o700)?;
        if self.as_root {
            chown(&lines, Some(NOBODY), Some(NOBODY))?;
        }
        remove(&dir.join(WAKE))?;
        let at = ProcFdPath::open(dir)?;
        let wake = UnixDatagram::bind(at.path_of(WAKE))?;
        fs::set_permissions(at.path_of(WAKE), Permissions::from_mode(0o666))?;
        Ok(wake)
    }
}

impl Lane {
    fn new() -> Self {
        Self { seats: Arc::default(), listens: None }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(listens) = &self.listens {
            listens.abort();
        }
    }
}

/// Tells `asked` whom the owner's relays ask for.
fn listen(wake: UnixDatagram, seats: Arc<Mutex<Seats>>, asked: mpsc::Sender<SandboxId>) -> AbortHandle {
    let task = tokio::spawn(async move {
        let mut buffer = [0; 64];
        while let Ok(len) = wake.recv(&mut buffer).await {
            let address = std::str::from_utf8(&buffer[..len]).ok().and_then(|text| text.parse().ok());
            let id =
                address.and_then(|address: Ipv4Addr| lock(&seats).get(&address).map(|seat| seat.id.clone()));
            // Who is not heard now asks again.
            let _full = id.map(|id| asked.try_send(id));
        }
    });
    task.abort_handle()
}

fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    // Whatever the umask took away.
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// A link of that text in place of whatever was there; who reads meanwhile finds one of both.
fn publish(path: &Path, text: &str) -> io::Result<()> {
    // When a daemon starts, nearly all are there.
    if fs::read_link(path).is_ok_and(|now| now.as_os_str() == text) {
        return Ok(());
    }
    // No name of a sandbox begins with a dot.
    let new = path.with_file_name(".new");
    remove(&new)?;
    symlink(text, &new)?;
    fs::rename(&new, path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn remove_all(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn entries(dir: &Path) -> io::Result<Vec<String>> {
    let read = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    read.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned())).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn of(byte: u8) -> (SandboxId, Address) {
        (format!("{byte:02x}").repeat(8).parse().unwrap(), Address::of(&[byte; 32]))
    }

    fn name(text: &str) -> SandboxName {
        text.parse().unwrap()
    }

    /// What is published of an owner's sandboxes.
    fn published(dir: &Path, owner: &Owner) -> Vec<String> {
        let mut names = entries(&dir.join(owner.as_str()).join(NAMES)).unwrap();
        names.sort();
        names
    }

    #[tokio::test]
    async fn an_address_is_one_siblings_alone_and_its_name_goes_where_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (tell, _asked) = mpsc::channel(4);
        let lanes = Lanes::open(dir.path().to_owned(), tell).unwrap();
        let (admin, eve) = (Owner::admin(), "eve".parse().unwrap());
        let ((a, here), (b, _)) = (of(1), of(2));
        assert!(lanes.claim(&admin, &a, &here) && lanes.claim(&admin, &a, &here));
        assert!(!lanes.claim(&admin, &b, &here), "a sibling has it");
        assert!(lanes.claim(&eve, &b, &here), "strangers do not meet");
        lanes.seat(&admin, &a, &name("web"), &here).unwrap();
        let error = lanes.seat(&admin, &b, &name("other"), &here).unwrap_err();
        assert!(error.to_string().contains("web"), "{error}");
        assert_eq!(published(dir.path(), &admin), [here.v4.to_string().as_str(), "web"]);
        lanes.seat(&admin, &a, &name("api"), &here).unwrap();
        assert_eq!(published(dir.path(), &admin), [here.v4.to_string().as_str(), "api"]);
        // One that is not the seat's takes nothing away.
        lanes.leave(&admin, &b, &here).unwrap();
        assert_eq!(published(dir.path(), &admin).len(), 2);
        lanes.leave(&admin, &a, &here).unwrap();
        lanes.leave(&eve, &b, &here).unwrap();
        assert_eq!(entries(dir.path()).unwrap(), [""; 0], "nothing of nobody stays");
        assert!(lanes.claim(&admin, &b, &here), "it is free again");
    }

    #[tokio::test]
    async fn what_was_left_of_others_goes_and_the_lines_of_those_who_run_stay() {
        let dir = tempfile::tempdir().unwrap();
        let admin = Owner::admin();
        let ((a, here), (b, there)) = (of(1), of(2));
        let open = || Lanes::open(dir.path().to_owned(), mpsc::channel(4).0).unwrap();
        let before = open();
        for (id, address, called) in [(&a, &here, "a"), (&b, &there, "b")] {
            before.seat(&admin, id, &name(called), address).unwrap();
            fs::write(dir.path().join("admin").join(LINES).join(address.v4.to_string()), "").unwrap();
        }
        before.seat(&"gone".parse().unwrap(), &a, &name("a"), &here).unwrap();
        drop(before);
        let lanes = open();
        lanes.seat(&admin, &a, &name("a"), &here).unwrap();
        lanes.tidy().unwrap();
        assert_eq!(published(dir.path(), &admin), [here.v4.to_string().as_str(), "a"]);
        assert_eq!(entries(&dir.path().join("admin").join(LINES)).unwrap(), [here.v4.to_string()]);
        assert_eq!(entries(dir.path()).unwrap(), ["admin"]);
    }

    #[tokio::test]
    async fn who_is_asked_for_by_address_is_told_by_id() {
        let dir = tempfile::tempdir().unwrap();
        let (tell, mut asked) = mpsc::channel(4);
        let lanes = Lanes::open(dir.path().to_owned(), tell).unwrap();
        let (admin, (a, here)) = (Owner::admin(), of(1));
        let place = lanes.seat(&admin, &a, &name("a"), &here).unwrap();
        let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
        for text in ["nonsense", "198.19.9.9", &"x".repeat(300), &here.v4.to_string()] {
            socket.send_to(text.as_bytes(), place.path_of(WAKE)).unwrap();
        }
        assert_eq!(asked.recv().await, Some(a));
    }
}
