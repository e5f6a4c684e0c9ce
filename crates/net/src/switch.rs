//! Mode `bridge`, on a relay's side: packets to and from the sandboxes of the same owner.
//!
//! ```text
//!  guest ── VMM ══ relay ──► lines/198.19.4.7 ══ relay ══ VMM ── guest
//! ```
//! What is carried are IP packets, each a datagram. Who sent one is checked where it comes from ([`Switch::route`]) and
//! where it goes ([`Switch::receive`]); that both are of one owner is said by the directory that both stand in.
//!
//! A sandbox that sleeps has no relay: its packets wait here for a moment, and the daemon is told that they do.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::SendFlags;
use sys::host_socket::ProcFdPath;

use crate::GATEWAY_MAC;
use crate::address::Address;
use crate::error::{Error, Result};
use crate::lane::{LINES, NAMES, WAKE};
use crate::packet::{ETHERNET, IPV4, IPV6, Packet, look};

/// The end of a sibling's name in the DNS, beside the name alone.
const DOMAIN: &str = ".bhatti";
/// The longest packet, with room.
const MOST: usize = 70_000;
/// How often one who cannot take packets is tried again.
const AGAIN: Duration = Duration::from_millis(5);
/// How long packets wait for one who sleeps, and for one who has too many already.
const UNTIL_AWAKE: Duration = Duration::from_secs(10);
const UNTIL_ROOM: Duration = Duration::from_millis(250);
/// The daemon is told of the same sandbox no more often.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// Packets that wait for one sandbox at most; what comes then is lost, as on any line.
const MOST_WAITING: usize = 128;

/// Where a packet among siblings goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// Not to a sibling.
    Elsewhere,
    /// To the one of this address.
    Sibling(Ipv4Addr),
    /// To nobody: there is none of that address, or it does not come from whom it names.
    Nobody,
}

/// What a question for a name gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Known {
    /// It is no name of a sibling's.
    Not,
    /// It could only be a sibling's, and there is none.
    Nobody,
    /// These.
    At(Vec<IpAddr>),
}

/// The way to the siblings of one sandbox.
#[derive(Debug)]
pub(crate) struct Switch {
    own: Address,
    /// The owner's directory.
    dir: ProcFdPath,
    socket: UnixDatagram,
    waiting: Mutex<HashMap<Ipv4Addr, Waiting>>,
    somebody_waits: Condvar,
    /// When the daemon was last told of whom.
    told: Mutex<HashMap<Ipv4Addr, Instant>>,
}

#[derive(Debug)]
struct Waiting {
    packets: VecDeque<Vec<u8>>,
    since: Instant,
    /// Whether there is nobody to take them, rather than too many taken.
    asleep: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The IPv4 address of the sibling whose address it is: an IPv6 address has the other one in it.
fn sibling(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(v4) => Address::is_one(v4).then_some(v4),
        IpAddr::V6(v6) => Address::v4_of(v6),
    }
}

impl Switch {
    /// Takes the sandbox's place among those in `dir`.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn open(dir: ProcFdPath, own: Address) -> Result<Self> {
        let io = |source| Error::Io { op: "taking a place among siblings", source };
        let path = dir.path_of(LINES).join(own.v4.to_string());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            // One that is left of a line before this.
            Ok(()) | Err(_) => {}
        }
        let socket = UnixDatagram::bind(path).map_err(io)?;
        Ok(Self {
            own,
            dir,
            socket,
            waiting: Mutex::default(),
            somebody_waits: Condvar::new(),
            told: Mutex::default(),
        })
    }

    /// Where a packet of this sandbox's goes.
    pub(crate) fn route(&self, from: IpAddr, to: IpAddr) -> Route {
        let Some(there) = sibling(to) else { return Route::Elsewhere };
        if from != IpAddr::from(self.own.v4) && from != IpAddr::from(self.own.v6) {
            return Route::Nobody;
        }
        if there == self.own.v4 || fs::symlink_metadata(self.name_at(&there.to_string())).is_err() {
            return Route::Nobody;
        }
        Route::Sibling(there)
    }

    fn name_at(&self, name: &str) -> PathBuf {
        self.dir.path_of(NAMES).join(name)
    }

    /// What a name means among siblings. `name` is in lower case.
    pub(crate) fn look_up(&self, name: &str) -> Known {
        let (label, only_here) = match name.strip_suffix(DOMAIN) {
            Some(label) => (label, true),
            None => (name, false),
        };
        let unknown = if only_here { Known::Nobody } else { Known::Not };
        // Beside names there are addresses, which have dots; and no path may be made of one.
        if label.is_empty() || label.contains(['.', '/']) {
            return unknown;
        }
        let Ok(text) = fs::read_link(self.name_at(label)) else { return unknown };
        let addresses = text.to_string_lossy();
        Known::At(addresses.split(' ').filter_map(|address| address.parse().ok()).collect())
    }

    /// Hands a packet to a sibling, now or when that one is awake.
    pub(crate) fn send(&self, to: Ipv4Addr, packet: &[u8]) {
        let mut waiting = lock(&self.waiting);
        if let Some(others) = waiting.get_mut(&to) {
            if others.packets.len() < MOST_WAITING {
                others.packets.push_back(packet.to_vec());
            }
            return;
        }
        let Err(error) = self.try_send(to, packet) else { return };
        let Some(asleep) = may_wait(&error) else { return };
        let packets = VecDeque::from([packet.to_vec()]);
        waiting.insert(to, Waiting { packets, since: Instant::now(), asleep });
        self.somebody_waits.notify_one();
        drop(waiting);
        if asleep {
            self.tell(to);
        }
    }

    fn try_send(&self, to: Ipv4Addr, packet: &[u8]) -> io::Result<()> {
        let path = self.dir.path_of(LINES).join(to.to_string());
        let address = rustix::net::SocketAddrUnix::new(path)?;
        rustix::net::sendto(&self.socket, packet, SendFlags::DONTWAIT | SendFlags::NOSIGNAL, &address)?;
        Ok(())
    }

    /// Tries, again and again, to be rid of what waits. Does not return.
    pub(crate) fn deliver(&self) {
        loop {
            let mut waiting = lock(&self.waiting);
            while waiting.is_empty() {
                waiting = self.somebody_waits.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            waiting.retain(|to, waits| self.is_left(*to, waits));
            let sleepers: Vec<Ipv4Addr> =
                waiting.iter().filter(|(_, waits)| waits.asleep).map(|(to, _)| *to).collect();
            drop(waiting);
            sleepers.into_iter().for_each(|to| self.tell(to));
            std::thread::sleep(AGAIN);
        }
    }

    /// Delivers what can be; whether something is left that waits on.
    fn is_left(&self, to: Ipv4Addr, waits: &mut Waiting) -> bool {
        while let Some(packet) = waits.packets.front() {
            let sent = self.try_send(to, packet);
            if let Some(asleep) = sent.as_ref().err().and_then(may_wait) {
                waits.asleep = asleep;
                let until = if asleep { UNTIL_AWAKE } else { UNTIL_ROOM };
                return waits.since.elapsed() < until;
            }
            if sent.is_ok() {
                waits.since = Instant::now();
            }
            // What nobody can ever take is lost.
            waits.packets.pop_front();
        }
        false
    }

    /// Tells the daemon that somebody wants that sandbox, unless it was just told. Without a daemon nobody is woken.
    fn tell(&self, of: Ipv4Addr) {
        let mut told = lock(&self.told);
        let now = Instant::now();
        if told.get(&of).is_some_and(|before| now.duration_since(*before) < TELL_EVERY) {
            return;
        }
        told.retain(|_, before| now.duration_since(*before) < TELL_EVERY);
        told.insert(of, now);
        drop(told);
        let Ok(address) = rustix::net::SocketAddrUnix::new(self.dir.path_of(WAKE)) else { return };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let _nobody = rustix::net::sendto(&self.socket, of.to_string().as_bytes(), flags, &address);
    }

    /// Waits for a sibling's packet and makes a frame for this sandbox's guest of it; the daemon is told that it is used.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn receive(&self, frame: &mut Vec<u8>) -> io::Result<()> {
        loop {
            frame.resize(ETHERNET + MOST, 0);
            let len = self.socket.recv(&mut frame[ETHERNET..])?;
            frame.truncate(ETHERNET + len);
            let kind = match frame.get(ETHERNET).map(|first| first >> 4) {
                Some(4) => IPV4,
                Some(6) => IPV6,
                _ => continue,
            };
            frame[..6].copy_from_slice(&self.own.mac);
            frame[6..12].copy_from_slice(&GATEWAY_MAC);
            frame[12..ETHERNET].copy_from_slice(&kind);
            let Packet::Ip(ip) = look(frame) else { continue };
            let is_ours = ip.to == IpAddr::from(self.own.v4) || ip.to == IpAddr::from(self.own.v6);
            if is_ours && sibling(ip.from).is_some_and(|from| from != self.own.v4) {
                self.tell(self.own.v4);
                return Ok(());
            }
        }
    }
}

/// Whether a packet that could not be sent may be tried again, and if so, whether there is nobody who would take it.
fn may_wait(error: &io::Error) -> Option<bool> {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Some(true),
        io::ErrorKind::WouldBlock => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::fs::symlink;
    use std::sync::Arc;

    use super::*;
    use crate::packet::testing::udp;

    fn of(byte: u8) -> Address {
        Address::of(&[byte; 32])
    }

    struct Room(tempfile::TempDir, UnixDatagram);

    /// A directory as the daemon makes it, with these sandboxes in it.
    fn room(names: &[(&str, Address)]) -> Room {
        let dir = tempfile::tempdir().unwrap();
        for part in [LINES, NAMES] {
            fs::create_dir(dir.path().join(part)).unwrap();
        }
        for (name, address) in names {
            let names = dir.path().join(NAMES);
            symlink(format!("{} {}", address.v4, address.v6), names.join(name)).unwrap();
            symlink(name, names.join(address.v4.to_string())).unwrap();
        }
        let wake = UnixDatagram::bind(dir.path().join(WAKE)).unwrap();
        wake.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Room(dir, wake)
    }

    fn there(dir: &tempfile::TempDir, own: Address) -> Switch {
        Switch::open(ProcFdPath::open(dir.path()).unwrap(), own).unwrap()
    }

    fn packet(from: Address, to: Address) -> Vec<u8> {
        udp((&from.v4.to_string(), 1), (&to.v4.to_string(), 2), b"hello")[ETHERNET..].to_vec()
    }

    #[test]
    fn packets_go_to_siblings_alone_and_only_from_whom_they_name() {
        let Room(dir, _wake) = room(&[("a", of(1)), ("b", of(2))]);
        let a = there(&dir, of(1));
        let route = |from: &str, to: IpAddr| a.route(from.parse().unwrap(), to);
        let (own, v6) = (of(1).v4.to_string(), of(1).v6.to_string());
        assert_eq!(route(&own, of(2).v4.into()), Route::Sibling(of(2).v4));
        assert_eq!(route(&v6, of(2).v6.into()), Route::Sibling(of(2).v4));
        assert_eq!(route(&of(2).v4.to_string(), of(2).v4.into()), Route::Nobody);
        assert_eq!(route("203.0.113.2", of(2).v4.into()), Route::Nobody);
        assert_eq!(route(&own, of(3).v4.into()), Route::Nobody);
        assert_eq!(route(&own, of(1).v4.into()), Route::Nobody);
        for to in ["1.1.1.1", "198.18.0.1", "10.0.0.1", "198.19.7.255", "fd00::1", "2001:db8::1"] {
            assert_eq!(route(&own, to.parse().unwrap()), Route::Elsewhere, "{to}");
        }
    }

    #[test]
    fn names_are_known_with_and_without_the_domain_and_are_no_paths() {
        let Room(dir, _wake) = room(&[("a", of(1)), ("b", of(2))]);
        let a = there(&dir, of(1));
        let at = Known::At(vec![of(2).v4.into(), of(2).v6.into()]);
        assert_eq!((a.look_up("b"), a.look_up("b.bhatti")), (at.clone(), at));
        assert_eq!((a.look_up("c"), a.look_up("c.bhatti")), (Known::Not, Known::Nobody));
        for odd in ["", "b.example", "../names/b", "..", ".bhatti", &of(2).v4.to_string()] {
            assert!(!matches!(a.look_up(odd), Known::At(_)), "{odd}");
        }
    }

    #[test]
    fn a_packet_waits_for_a_sleeper_whom_the_daemon_is_told_of_and_comes_once() {
        let Room(dir, wake) = room(&[("a", of(1)), ("b", of(2))]);
        let a = Arc::new(there(&dir, of(1)));
        let courier = Arc::clone(&a);
        std::thread::spawn(move || courier.deliver());
        a.send(of(2).v4, &packet(of(1), of(2)));
        let mut buffer = [0; 64];
        let len = wake.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], of(2).v4.to_string().as_bytes());
        let b = there(&dir, of(2));
        let mut frame = Vec::new();
        b.receive(&mut frame).unwrap();
        assert_eq!((&frame[..6], &frame[6..12]), (&of(2).mac[..], &GATEWAY_MAC[..]));
        assert_eq!(frame[ETHERNET..], packet(of(1), of(2)));
        b.socket.set_nonblocking(true).unwrap();
        assert_eq!(b.receive(&mut frame).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn what_is_not_from_a_sibling_to_this_one_is_not_received() {
        let Room(dir, _wake) = room(&[]);
        let b = there(&dir, of(2));
        b.socket.set_nonblocking(true).unwrap();
        let other = UnixDatagram::unbound().unwrap();
        let stranger = udp(("1.1.1.1", 1), (&of(2).v4.to_string(), 2), b"x")[ETHERNET..].to_vec();
        for bytes in
            [packet(of(1), of(3)), packet(of(2), of(2)), stranger, vec![0x45; 19], vec![0x65], vec![]]
        {
            other.send_to(&bytes, dir.path().join(LINES).join(of(2).v4.to_string())).unwrap();
            assert_eq!(
                b.receive(&mut Vec::new()).unwrap_err().kind(),
                io::ErrorKind::WouldBlock,
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn one_who_takes_nothing_keeps_a_bounded_number_waiting_and_nobody_else() {
        let Room(dir, _wake) = room(&[("a", of(1)), ("b", of(2)), ("c", of(3))]);
        let a = there(&dir, of(1));
        let (_b, c) = (there(&dir, of(2)), there(&dir, of(3)));
        for _ in 0..10_000 {
            a.send(of(2).v4, &packet(of(1), of(2)));
        }
        assert_eq!(lock(&a.waiting).get(&of(2).v4).unwrap().packets.len(), MOST_WAITING);
        a.send(of(3).v4, &packet(of(1), of(3)));
        c.receive(&mut Vec::new()).unwrap();
    }
}
