//! An internet for one test, in network namespaces: a host for the daemon, and the world that it leads to.
//!
//! ```text
//!  host    203.0.113.2, 2001:db8:1::2, loopback; a service on all of them (port 8099); /etc/resolv.conf is the world's
//!  world   203.0.113.1, 2001:db8:1::1: the host's gateway and resolver
//!          198.51.100.10, 2001:db8:2::10: `web.example`, and 198.51.100.11: `other.example`
//!          192.168.77.1, fd77::1: `lan.example`, a second host of the LAN
//!          169.254.169.254, fd00:ec2::254: metadata services
//!          each with a service on port 80, and one on 22
//! ```

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

/// What services say before they are asked anything.
const GREETING: &[u8] = b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nworld\n";
/// How long what belongs to a VMM may outlive it.
const GRACE: Duration = Duration::from_secs(10);

/// The two namespaces, each kept by a process that does nothing else.
#[derive(Debug)]
pub struct Lab {
    host: Child,
    world: Child,
    /// Who serves files in the world.
    servers: Vec<Child>,
    program: PathBuf,
    _dir: TempDir,
}

fn run(program: &str, args: &str) {
    let status = Command::new(program).args(args.split_whitespace()).status().expect(program);
    assert!(status.success(), "{program} {args} ended with {status}");
}

/// What a child says first.
fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    let stdout = child.stdout.take().expect("its standard output");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("a line");
    line
}

/// A process in namespaces of its own, in which `resolv` is `/etc/resolv.conf`; it has said that it is ready.
fn namespace(resolv: &Path) -> Child {
    let script =
        "mount --bind \"$0\" /etc/resolv.conf && ip link set lo up && echo ready && exec sleep infinity";
    let mut child = Command::new("unshare")
        .args(["--net", "--mount", "sh", "-c", script])
        .arg(resolv)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare runs");
    let line = first_line(&mut child);
    assert_eq!(line.trim(), "ready", "a namespace could not be made; it needs root");
    child
}

/// Runs `make` in a namespace and hands what it made to a thread of its own.
fn serve_in<T: Send + 'static>(
    namespace: &Child,
    make: impl FnOnce() -> T + Send + 'static,
    serve: impl FnOnce(T) + Send + 'static,
) {
    let file = std::fs::File::open(format!("/proc/{}/ns/net", namespace.id())).expect("a namespace");
    let (tell, made) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("moves");
        let listener = make();
        tell.send(()).expect("somebody waits");
        serve(listener);
    });
    made.recv().expect("it serves");
}

/// Greets whoever connects, on every address of the namespace.
fn greet_in(namespace: &Child, port: u16) {
    let make = move || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("listens");
    serve_in(namespace, make, |listener| {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            // Who went away again did not want to be greeted.
            let _written = stream.write_all(GREETING);
        }
    });
}

/// Gives 4 MiB to whoever connects, or takes as much and says so, on every IPv4 address of the namespace.
fn move_in(namespace: &Child, port: u16, gives: bool) {
    let make = move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("listens");
    serve_in(namespace, make, move |listener| {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            // Who went away again has had enough.
            let _moved = if gives {
                std::io::copy(&mut std::io::repeat(7).take(4 << 20), &mut stream)
            } else {
                let taken = std::io::copy(&mut (&stream).take(4 << 20), &mut std::io::sink());
                taken.and_then(|bytes| stream.write_all(b"taken\n").map(|()| bytes))
            };
        }
    });
}

fn resolve_in(namespace: &Child) {
    let make = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)).expect("listens");
    serve_in(namespace, make, |socket| {
        let mut buffer = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            if let Some(answer) = answer(&buffer[..len]) {
                let _sent = socket.send_to(&answer, from);
            }
        }
    });
}

/// An answer of the DNS (RFC 1035) to a question that is all of a message, but for what may follow it.
fn answer(question: &[u8]) -> Option<Vec<u8>> {
    let (mut at, mut name) = (12, String::new());
    loop {
        let len = usize::from(*question.get(at)?);
        at += 1;
        if len == 0 {
            break;
        }
        name.push_str(&String::from_utf8_lossy(question.get(at..at + len)?));
        name.push('.');
        at += len;
    }
    let kind = question.get(at + 1)?;
    let addresses: &[&str] = match name.as_str() {
        "web.example." => &["198.51.100.10", "2001:db8:2::10"],
        "other.example." => &["198.51.100.11"],
        "lan.example." => &["192.168.77.1"],
        _ => &[],
    };
    let mut out = question.get(..at + 4)?.to_vec();
    out[2..4].copy_from_slice(&[0x81, if addresses.is_empty() { 0x83 } else { 0x80 }]);
    out[6..12].fill(0);
    for address in addresses {
        let (number, octets) = match address.parse().expect("an address") {
            IpAddr::V4(v4) => (1, v4.octets().to_vec()),
            IpAddr::V6(v6) => (28, v6.octets().to_vec()),
        };
        if number == *kind {
            out[7] += 1;
            out.extend([
                0xc0,
                12,
                0,
                number,
                0,
                1,
                0,
                0,
                0,
                60,
                0,
                u8::try_from(octets.len()).expect("short"),
            ]);
            out.extend(octets);
        }
    }
    Some(out)
}

impl Lab {
    /// Makes both namespaces. `program` is bhatti's. Needs root.
    #[must_use]
    pub fn new(program: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("bhatti-lab-").tempdir().expect("a directory");
        let resolv = dir.path().join("resolv.conf");
        std::fs::write(&resolv, "nameserver 203.0.113.1\n").expect("writes");
        let (host, world) = (namespace(&resolv), namespace(&resolv));
        let (h, w) = (host.id(), world.id());
        run("ip", &format!("link add out netns {h} type veth peer name in netns {w}"));
        let at =
            |namespace: u32, args: &str| run("nsenter", &format!("--target {namespace} --net ip {args}"));
        at(h, "link set out up");
        at(w, "link set in up");
        at(h, "address add 203.0.113.2/24 dev out");
        at(h, "address add 2001:db8:1::2/64 dev out nodad");
        for address in [
            "203.0.113.1/24",
            "198.51.100.10/32",
            "198.51.100.11/32",
            "192.168.77.1/24",
            "169.254.169.254/32",
        ] {
            at(w, &format!("address add {address} dev in"));
        }
        for address in ["2001:db8:1::1/64", "2001:db8:2::10/128", "fd77::1/64", "fd00:ec2::254/128"] {
            at(w, &format!("address add {address} dev in nodad"));
        }
        at(h, "route add default via 203.0.113.1");
        at(h, "-6 route add default via 2001:db8:1::1");
        greet_in(&world, 80);
        greet_in(&world, 22);
        greet_in(&host, 8099);
        move_in(&world, 81, true);
        move_in(&world, 82, false);
        resolve_in(&world);
        let wrapper = dir.path().join("bhatti");
        let script = format!("#!/bin/sh\nexec nsenter --target {h} --net --mount -- '{program}' \"$@\"\n");
        std::fs::write(&wrapper, script).expect("writes");
        std::fs::set_permissions(&wrapper, PermissionsExt::from_mode(0o755)).expect("executable");
        Self { host, world, servers: Vec::new(), program: wrapper, _dir: dir }
    }

    /// A program that runs bhatti on the lab's host.
    #[must_use]
    pub fn program(&self) -> &str {
        self.program.to_str().expect("UTF-8")
    }

    /// Serves the files in `dir` by HTTP, on `port` of every IPv4 address of the world.
    pub fn serve_files(&mut self, port: u16, dir: &Path) {
        let mut server = Command::new("nsenter")
            .args([
                "--target",
                &self.world.id().to_string(),
                "--net",
                "--",
                "python3",
                "-u",
                "-m",
                "http.server",
            ])
            .args([&port.to_string(), "--directory"])
            .arg(dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3 runs");
        let line = first_line(&mut server);
        self.servers.push(server);
        assert!(line.starts_with("Serving"), "{line}");
    }

    /// Runs `ip` on the lab's host.
    pub fn ip(&self, args: &str) {
        run("nsenter", &format!("--target {} --net ip {args}", self.host.id()));
    }

    /// The processes between VMMs and the world that run on the lab's host.
    #[must_use]
    pub fn line_pids(&self) -> Vec<i32> {
        let here = std::fs::read_link(format!("/proc/{}/ns/net", self.host.id())).expect("a namespace");
        let mut pids = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // A process may end while it is looked at.
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
            let is_one = words.first().is_some_and(|word| word.ends_with(b"passt"))
                || words.get(1).is_some_and(|word| *word == b"net-relay");
            if is_one && std::fs::read_link(entry.path().join("ns/net")).is_ok_and(|net| net == here) {
                pids.push(pid);
            }
        }
        pids
    }

    /// Waits until these processes are gone, which they must be soon.
    pub fn wait_until_gone(&self, pids: &[i32]) {
        let grace = Timespec::try_from(GRACE).expect("a time");
        for pid in pids {
            let Some(Ok(handle)) = Pid::from_raw(*pid).map(|pid| pidfd_open(pid, PidfdFlags::empty())) else {
                continue;
            };
            let gone = poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&grace)).expect("a poll");
            assert_eq!(gone, 1, "process {pid} of a line is still there");
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for child in self.servers.iter_mut().chain([&mut self.host, &mut self.world]) {
            let _killed = child.kill();
            let _reaped = child.wait();
        }
    }
}
