//! The process between a VMM and passt: reads frames from one, judges them, hands them to the other.
//!
//! Both speak frames with their length before them (four bytes, big-endian) over a stream. One thread for each
//! direction, and one that follows the host's addresses as they come and go.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, ToSocketAddrs as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use sys::netlink::Netlink;
use types::{Egress, Rate};

use crate::error::{Error, Result};
use crate::filter::{Verdict, learn, outbound};
use crate::pacer::Pacer;
use crate::reach::Reach;

/// The longest frame that either end makes: the largest IP packet and its Ethernet header, with room.
const MOST: usize = 70_000;
/// How much is read at once, and room for that beside a frame that is not whole yet.
const BUFFER: usize = 256 * 1024;

/// What both directions look at.
struct Shared {
    reach: RwLock<Reach>,
    host: RwLock<HashSet<IpAddr>>,
    /// Answers of this process and what comes from passt must not fall into each other.
    to_guest: Mutex<UnixStream>,
}

impl Shared {
    fn to_guest(&self) -> MutexGuard<'_, UnixStream> {
        self.to_guest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Relays between the VMM at standard input and passt at standard output until one of them is gone, letting `rate` pass
/// in each direction. What comes faster waits at its sender, whom TCP tells.
///
/// # Errors
/// The two are no sockets, or the host's addresses cannot be read: without knowing them nothing is let through.
pub fn relay(egress: Egress, rate: Rate) -> Result<()> {
    let io = |op| move |source| Error::Io { op, source };
    // Nothing that this process could be made to execute has more rights than it has.
    rustix::thread::set_no_new_privs(true)
        .map_err(|error| Error::Io { op: "giving up rights", source: error.into() })?;
    let vmm = stream(io::stdin().as_fd()).map_err(io("the VMM's end"))?;
    let passt = stream(io::stdout().as_fd()).map_err(io("passt's end"))?;
    // Listening begins before the first look, so that no change falls between the two.
    let mut news = Netlink::listening_for_addresses().map_err(io("following the host's addresses"))?;
    let host = host_addresses().map_err(io("reading the host's addresses"))?;
    let named = Reach::new(egress);
    let (names, has_names) = (named.names(), named.has_names());
    let shared = Arc::new(Shared {
        reach: RwLock::new(named),
        host: RwLock::new(host),
        to_guest: Mutex::new(vmm.try_clone().map_err(io("the VMM's end"))?),
    });
    let follower = Arc::clone(&shared);
    std::thread::spawn(move || {
        loop {
            let seen = news.wait_for_news().and_then(|()| host_addresses());
            // Who does not know the host's addresses any more must not let anything through.
            let Ok(addresses) = seen else { std::process::exit(1) };
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
    let inward = Arc::clone(&shared);
    let from_passt = passt.try_clone().map_err(io("passt's end"))?;
    std::thread::spawn(move || {
        let _gone = to_guest(from_passt, &inward, has_names, Pacer::new(rate));
        std::process::exit(0);
    });
    let _gone = from_guest(vmm, passt, &shared, Pacer::new(rate));
    Ok(())
}

fn stream(fd: BorrowedFd<'_>) -> io::Result<UnixStream> {
    let stream = UnixStream::from(fd.try_clone_to_owned()?);
    // That it is one.
    stream.peer_addr()?;
    Ok(stream)
}

fn host_addresses() -> io::Result<HashSet<IpAddr>> {
    Ok(Netlink::open()?.addresses()?.into_iter().map(|at| at.address).collect())
}

fn from_guest(vmm: UnixStream, mut passt: UnixStream, shared: &Shared, mut pacer: Pacer) -> io::Result<()> {
    let mut frames = Frames::new(vmm, pacer.at_once(BUFFER));
    let (mut passed, mut answers) = (Vec::new(), Vec::new());
    loop {
        frames.fill()?;
        let mut packets = 0;
        {
            let reach = shared.reach.read().unwrap_or_else(PoisonError::into_inner);
            let host = shared.host.read().unwrap_or_else(PoisonError::into_inner);
            while let Some(frame) = frames.next()? {
                packets += 1;
                match outbound(frame, &reach, &host) {
                    Verdict::Pass => put(&mut passed, frame),
                    Verdict::Drop => {}
                    Verdict::Answer(answer) => put(&mut answers, &answer),
                }
            }
        }
        pacer.wait(passed.len(), packets);
        passt.write_all(&passed)?;
        passed.clear();
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
    fn a_length_that_no_frame_has_ends_the_stream() {
        let mut frames = Frames::new(&[0xff; 8][..], BUFFER);
        frames.fill().unwrap();
        assert!(frames.next().is_err());
    }
}
