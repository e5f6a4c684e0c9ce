//! The process between a VMM and passt: reads frames from one, judges them, hands them to the other.
//!
//! Both speak frames with their length before them (four bytes, big-endian) over a stream. passt is started with the
//! first packet that is for it: most sandboxes run for a while before they say anything to the world, and some never do.
//! One thread for each direction, and one that follows the host's addresses as they come and go; in mode `bridge` one for
//! what comes from siblings and one for what waits for them.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, ToSocketAddrs as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustix::process::DumpableBehavior;
use sys::host_socket::ProcFdPath;
use sys::netlink::Netlink;
use types::{Egress, Rate};

use crate::address::Address;
use crate::error::{Error, Result};
use crate::filter::{Verdict, learn, outbound};
use crate::pacer::Pacer;
use crate::reach::Reach;
use crate::switch::Switch;
use crate::user::start_passt;

/// The longest frame that either end makes: the largest IP packet and its Ethernet header, with room.
const MOST: usize = 70_000;
/// How much is read at once, and room for that beside a frame that is not whole yet.
const BUFFER: usize = 256 * 1024;

/// What a relay is told: for whom, how fast, among whom, where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orders {
    /// What may pass in each direction.
    pub rate: Rate,
    /// Its sandbox's own address.
    pub own: Address,
    /// Whether its guest was told a way by IPv6.
    pub v6: bool,
    /// Whether siblings are to be reached: they are found in the working directory.
    pub among: bool,
    /// What may be reached in the world.
    pub egress: Egress,
}

impl Orders {
    /// As arguments of a command.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let among = if self.among { AMONG } else { ALONE };
        let families = if self.v6 { BOTH } else { V4 };
        let first = [self.rate.to_string(), self.own.to_string(), families.to_owned(), among.to_owned()];
        first.into_iter().chain(self.egress.words()).collect()
    }

    /// From the arguments of a command.
    ///
    /// # Errors
    /// What is wrong with them, for people.
    pub fn from_words(words: &[String]) -> std::result::Result<Self, String> {
        let [rate, own, families, among, rules @ ..] = words else {
            return Err("a rate, an address, families, the company and rules are needed".to_owned());
        };
        let either = |word: &String, yes: &str, no: &str| match word.as_str() {
            word if word == yes => Ok(true),
            word if word == no => Ok(false),
            other => Err(format!("{other}: {yes} or {no}")),
        };
        Ok(Self {
            rate: rate.parse().map_err(|error: types::InvalidSpec| error.to_string())?,
            own: own.parse()?,
            v6: either(families, BOTH, V4)?,
            among: either(among, AMONG, ALONE)?,
            egress: Egress::from_words(rules).map_err(|error| error.to_string())?,
        })
    }
}

/// The families of addresses that a guest was told.
const BOTH: &str = "v6";
const V4: &str = "v4";
/// The company of a sandbox.
const AMONG: &str = "among";
const ALONE: &str = "alone";
/// After how long a passt that ended is started again at the earliest: a host may be without any network for a while.
const AGAIN: Duration = Duration::from_secs(2);

/// What both directions look at.
struct Shared {
    switch: Option<Switch>,
    reach: RwLock<Reach>,
    host: RwLock<HashSet<IpAddr>>,
    /// Answers of this process and what comes from passt must not fall into each other.
    to_guest: Mutex<UnixStream>,
    /// passt, when it is there; and those before it that are not buried yet.
    passt: Mutex<Vec<Child>>,
}

impl Shared {
    fn to_guest(&self) -> MutexGuard<'_, UnixStream> {
        self.to_guest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn passt(&self) -> MutexGuard<'_, Vec<Child>> {
        self.passt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends one passt, and waits for it: not every host has somebody who buries what others leave.
    fn bury(&self, pid: u32) {
        let passt = {
            let mut all = self.passt();
            all.iter().position(|passt| passt.id() == pid).map(|at| all.swap_remove(at))
        };
        passt.into_iter().for_each(end);
    }

    /// Ends every passt. Held until this process ends, so that none is started any more.
    fn bury_all(&self) -> MutexGuard<'_, Vec<Child>> {
        let mut all = self.passt();
        all.drain(..).for_each(end);
        all
    }

    fn exit(&self, status: i32) -> ! {
        let _none = self.bury_all();
        std::process::exit(status)
    }
}

fn end(mut passt: Child) {
    // That it is gone already is as good.
    let _ended = passt.kill().and_then(|()| passt.wait());
}

/// The way to passt.
struct World<'a> {
    passt: &'a Path,
    own: Address,
    v6: bool,
    line: Option<UnixStream>,
    /// When it was started last.
    tried: Option<Instant>,
}

impl World<'_> {
    /// Hands frames to passt, which is started if it is not there; `listen` then hears what comes from it. What it does
    /// not take is lost, as on any network.
    fn send(&mut self, frames: &[u8], shared: &Shared, listen: &impl Fn(UnixStream, u32)) {
        // One that has ended is found out by telling it something.
        for _ in 0..2 {
            if self.line.is_none() {
                self.line = self.start(shared, listen).unwrap_or_else(|error| {
                    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
                    let _log_full = writeln!(io::stderr(), "{error}{}", cause.unwrap_or_default());
                    None
                });
            }
            match self.line.as_mut().map(|line| line.write_all(frames)) {
                Some(Err(_ended)) => self.line = None,
                Some(Ok(())) | None => return,
            }
        }
    }

    /// Starts it, unless that was tried just now.
    fn start(&mut self, shared: &Shared, listen: &impl Fn(UnixStream, u32)) -> Result<Option<UnixStream>> {
        if self.tried.is_some_and(|tried| tried.elapsed() < AGAIN) {
            return Ok(None);
        }
        self.tried = Some(Instant::now());
        let io = |source| Error::Io { op: "making a line to passt", source };
        let (ours, passts) = UnixStream::pair().map_err(io)?;
        let hears = ours.try_clone().map_err(io)?;
        let mut all = shared.passt();
        let passt = start_passt(self.passt, passts, &self.own, self.v6)?;
        let pid = passt.id();
        all.push(passt);
        drop(all);
        listen(hears, pid);
        Ok(Some(ours))
    }
}

/// Relays between the VMM at standard input and `passt`, a program that is started when it is needed and again when it
/// has ended, until the VMM is gone, letting the rate pass in each direction. What comes faster waits at its sender, whom
/// TCP tells.
///
/// # Errors
/// Standard input is no socket, the host's addresses cannot be read (without knowing them nothing is let through), or the
/// working directory is none where siblings are.
pub fn relay(passt: &Path, orders: Orders) -> Result<()> {
    let io = |op| move |source| Error::Io { op, source };
    let Orders { rate, own, v6, among, egress } = orders;
    // Nothing that this process could be made to execute has more rights than it has, and no other of its user, which
    // are the relays of other owners, looks into it.
    rustix::thread::set_no_new_privs(true)
        .and_then(|()| rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable))
        .map_err(|error| Error::Io { op: "giving up rights", source: error.into() })?;
    let vmm = vmm().map_err(io("the VMM's end"))?;
    // Listening begins before the first look, so that no change falls between the two.
    let mut news = Netlink::listening_for_addresses().map_err(io("following the host's addresses"))?;
    let host = host_addresses().map_err(io("reading the host's addresses"))?;
    let named = Reach::new(egress);
    let (names, has_names) = (named.names(), named.has_names());
    let switch = if among { Some(Switch::open(place()?, own)?) } else { None };
    let shared = Arc::new(Shared {
        switch,
        reach: RwLock::new(named),
        host: RwLock::new(host),
        to_guest: Mutex::new(vmm.try_clone().map_err(io("the VMM's end"))?),
        passt: Mutex::default(),
    });
    let follower = Arc::clone(&shared);
    std::thread::spawn(move || {
        loop {
            let seen = news.wait_for_news().and_then(|()| host_addresses());
            // Who does not know the host's addresses any more must not let anything through.
            let Ok(addresses) = seen else { follower.exit(1) };
            *follower.host.write().unwrap_or_else(PoisonError::into_inner) = addresses;
        }
    });
    if !names.is_empty() {
        // A guest that slept may still know the addresses of names that it asked for before.
        let learner = Arc::clone(&shared);
        std::thread::spawn(move || {
            for name in names {
                let found = (name.as_str(), 0).to_socket_addrs();
                let found = found.into_iter().flatten().map(|address| address.ip());
                learner.reach.write().unwrap_or_else(PoisonError::into_inner).learn(found);
            }
        });
    }
    if shared.switch.is_some() {
        let (siblings, courier) = (Arc::clone(&shared), Arc::clone(&shared));
        std::thread::spawn(move || {
            let _gone = from_siblings(&siblings, Pacer::new(rate));
            siblings.exit(0);
        });
        std::thread::spawn(move || courier.switch.as_ref().map(Switch::deliver));
    }
    let listen = |line: UnixStream, passt: u32| {
        let inward = Arc::clone(&shared);
        std::thread::spawn(move || {
            // It has ended, or the VMM has: then this process does.
            let _gone = to_guest(line, &inward, has_names, Pacer::new(rate));
            inward.bury(passt);
        });
    };
    let world = World { passt, own, v6, line: None, tried: None };
    let _gone = from_guest(vmm, world, listen, &shared, Pacer::new(rate));
    drop(shared.bury_all());
    Ok(())
}

/// The directory that this process was started in, which is held from now on but not stood in.
fn place() -> Result<ProcFdPath> {
    let io = |source| Error::Io { op: "looking for siblings", source };
    let place = ProcFdPath::open(Path::new(".")).map_err(io)?;
    rustix::process::chdir("/").map_err(|error| io(error.into()))?;
    Ok(place)
}

fn vmm() -> io::Result<UnixStream> {
    let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // That it is one.
    stream.peer_addr()?;
    Ok(stream)
}

fn host_addresses() -> io::Result<HashSet<IpAddr>> {
    Ok(Netlink::open()?.addresses()?.into_iter().map(|at| at.address).collect())
}

fn from_guest(
    vmm: UnixStream,
    mut world: World<'_>,
    listen: impl Fn(UnixStream, u32),
    shared: &Shared,
    mut pacer: Pacer,
) -> io::Result<()> {
    let mut frames = Frames::new(vmm, pacer.at_once(BUFFER));
    let (mut passed, mut answers) = (Vec::new(), Vec::new());
    loop {
        frames.fill()?;
        let (mut packets, mut to_siblings) = (0, 0);
        {
            let reach = shared.reach.read().unwrap_or_else(PoisonError::into_inner);
            let host = shared.host.read().unwrap_or_else(PoisonError::into_inner);
            while let Some(frame) = frames.next()? {
                packets += 1;
                match outbound(frame, &reach, &host, shared.switch.as_ref()) {
                    Verdict::Pass => put(&mut passed, frame),
                    Verdict::ToSibling(address, packet) => {
                        if let Some(switch) = &shared.switch {
                            switch.send(address, packet);
                            to_siblings += packet.len();
                        }
                    }
                    Verdict::Drop => {}
                    Verdict::Answer(answer) => put(&mut answers, &answer),
                }
            }
        }
        pacer.wait(passed.len() + to_siblings, packets);
        if !passed.is_empty() {
            world.send(&passed, shared, &listen);
            passed.clear();
        }
        if !answers.is_empty() {
            shared.to_guest().write_all(&answers)?;
            answers.clear();
        }
    }
}

fn to_guest(passt: UnixStream, shared: &Shared, learns: bool, mut pacer: Pacer) -> io::Result<()> {
    let mut frames = Frames::new(passt, pacer.at_once(BUFFER));
    let mut passed = Vec::new();
    loop {
        frames.fill()?;
        let mut packets = 0;
        while let Some(frame) = frames.next()? {
            packets += 1;
            if learns {
                learn(frame, &mut shared.reach.write().unwrap_or_else(PoisonError::into_inner));
            }
            put(&mut passed, frame);
        }
        pacer.wait(passed.len(), packets);
        shared.to_guest().write_all(&passed)?;
        passed.clear();
    }
}

fn from_siblings(shared: &Shared, mut pacer: Pacer) -> io::Result<()> {
    let Some(switch) = &shared.switch else { return Ok(()) };
    let (mut frame, mut passed) = (Vec::new(), Vec::new());
    loop {
        switch.receive(&mut frame)?;
        put(&mut passed, &frame);
        pacer.wait(passed.len(), 1);
        shared.to_guest().write_all(&passed)?;
        passed.clear();
    }
}

/// A frame with its length before it.
fn put(out: &mut Vec<u8>, frame: &[u8]) {
    let len = u32::try_from(frame.len()).unwrap_or(0);
    out.extend(len.to_be_bytes());
    out.extend(frame);
}

/// Frames out of a stream.
struct Frames<R> {
    stream: R,
    buffer: Vec<u8>,
    /// What is read and not yet taken.
    begin: usize,
    end: usize,
    /// How much is read at once.
    most: usize,
}

impl<R: Read> Frames<R> {
    fn new(stream: R, most: usize) -> Self {
        Self { stream, buffer: vec![0; BUFFER], begin: 0, end: 0, most }
    }

    /// Waits for more; an error when there is none any more.
    fn fill(&mut self) -> io::Result<()> {
        self.buffer.copy_within(self.begin..self.end, 0);
        (self.begin, self.end) = (0, self.end - self.begin);
        let until = self.buffer.len().min(self.end + self.most);
        match self.stream.read(&mut self.buffer[self.end..until]) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => {
                self.end += len;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The next whole frame, if there is one.
    fn next(&mut self) -> io::Result<Option<&[u8]>> {
        let ready = &self.buffer[self.begin..self.end];
        let Some((len, rest)) = ready.split_first_chunk::<4>() else { return Ok(None) };
        let len = usize::try_from(u32::from_be_bytes(*len)).unwrap_or(usize::MAX);
        if len > MOST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if rest.len() < len {
            return Ok(None);
        }
        let at = self.begin + 4;
        self.begin = at + len;
        Ok(Some(&self.buffer[at..at + len]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in pieces of that many.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let len = self.0.len().min(self.1).min(into.len());
            let (piece, rest) = self.0.split_at(len);
            into[..len].copy_from_slice(piece);
            self.0 = rest;
            Ok(len)
        }
    }

    #[test]
    fn frames_come_out_whole_however_they_went_in() {
        let wanted: Vec<Vec<u8>> = vec![vec![1; 60], vec![], vec![2; 65_550], vec![3; 14]];
        let mut bytes = Vec::new();
        wanted.iter().for_each(|frame| put(&mut bytes, frame));
        for piece in [1, 3, 1000, usize::MAX] {
            let mut frames = Frames::new(Pieces(&bytes, piece), BUFFER);
            let mut got = Vec::new();
            while frames.fill().is_ok() {
                while let Some(frame) = frames.next().unwrap() {
                    got.push(frame.to_vec());
                }
            }
            assert_eq!(got, wanted, "in pieces of {piece}");
        }
    }

    #[test]
    fn orders_are_read_as_they_were_written() {
        let own = Address::of(&[7; 32]);
        for (rate, words) in [("1M:20000", &["public"][..]), ("unlimited", &["pypi.org", "10.0.0.0/8"])] {
            for (v6, among) in [(true, false), (false, true)] {
                let egress = Egress::from_words(words).unwrap();
                let orders = Orders { rate: rate.parse().unwrap(), own, v6, among, egress };
                assert_eq!(Orders::from_words(&orders.words()), Ok(orders));
            }
        }
        let own = own.to_string();
        for bad in [
            &["1M", &own][..],
            &["1M", "x", "v6", "alone", "public"],
            &["1M", &own, "v5", "alone", "public"],
            &["1M", &own, "v6", "x", "public"],
            &["fast", &own, "v6", "alone", "public"],
            &["1M", &own, "v4", "alone", "1.1.1.1/40"],
        ] {
            let words: Vec<String> = bad.iter().map(|word| (*word).to_owned()).collect();
            assert!(Orders::from_words(&words).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_length_that_no_frame_has_ends_the_stream() {
        let mut frames = Frames::new(&[0xff; 8][..], BUFFER);
        frames.fill().unwrap();
        assert!(frames.next().is_err());
    }
}
