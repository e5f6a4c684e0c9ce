//! What listens for TCP connections in this guest, from `/proc/net/tcp` and `tcp6`.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use wire::{Listener, MAX_LISTENERS};

/// The state of a listening socket: `TCP_LISTEN` in the kernel's `net/tcp_states.h`.
const LISTEN: &str = "0A";

/// All of them, by port.
pub fn list() -> Vec<Listener> {
    let mut found: Vec<(Listener, u64)> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .flat_map(|table| parse(&fs::read_to_string(table).unwrap_or_default()))
        .collect();
    found.sort_by_key(|(listener, _)| (listener.port, listener.address));
    found.truncate(MAX_LISTENERS);
    let owners = owners(Path::new("/proc"), found.iter().map(|(_, inode)| *inode).collect());
    found
        .into_iter()
        .map(|(mut listener, inode)| {
            if let Some((pid, process)) = owners.get(&inode) {
                (listener.pid, listener.process) = (Some(*pid), Some(process.clone()));
            }
            listener
        })
        .collect()
}

/// The listening sockets of one table, with their inodes.
fn parse(table: &str) -> Vec<(Listener, u64)> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (address, port) = words.get(1)?.split_once(':')?;
        if *words.get(3)? != LISTEN {
            return None;
        }
        let port = u16::from_str_radix(port, 16).ok()?;
        let listener = Listener { port, address: parse_address(address)?, pid: None, process: None };
        Some((listener, words.get(9)?.parse().ok()?))
    };
    table.lines().skip(1).filter_map(line).collect()
}

/// An address as the kernel prints it: each 32 bits of network order as a number of this machine.
fn parse_address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(hex.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    match hex.len() {
        8 => Some(IpAddr::V4(Ipv4Addr::from(word(0)?))),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let bytes: Vec<u8> = words.concat();
            let bytes: [u8; 16] = bytes.try_into().ok()?;
            Some(IpAddr::V6(Ipv6Addr::from(bytes)))
        }
        _ => None,
    }
}

/// Which process has each of these sockets open: the one with the lowest number.
fn owners(proc: &Path, inodes: Vec<u64>) -> HashMap<u64, (u32, String)> {
    let mut owners: HashMap<u64, (u32, String)> = HashMap::new();
    let mut pids: Vec<u32> = fs::read_dir(proc)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    for pid in pids {
        if owners.len() == inodes.len() {
            break;
        }
        let process = proc.join(pid.to_string());
        for descriptor in fs::read_dir(process.join("fd")).into_iter().flatten().filter_map(Result::ok) {
            let Some(inode) = fs::read_link(descriptor.path()).ok().as_deref().and_then(socket_inode) else {
                continue;
            };
            if inodes.contains(&inode) {
                owners.entry(inode).or_insert_with(|| {
                    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
                    (pid, name.trim_end().to_string())
                });
            }
        }
    }
    owners
}

fn socket_inode(link: &Path) -> Option<u64> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn only_listening_sockets_are_read_from_the_tables() {
        let v4 = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                  \x20  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4242 1 0 100 0 0 10 0\n\
                  \x20  1: 0100007F:1F90 0100007F:C001 01 00000000:00000000 00:00000000 00000000  1000        0 4243 1 0 100 0 0 10 0\n\
                  \x20  2: nonsense\n";
        let found = parse(v4);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].0.port, found[0].1), (8080, 4242));
        assert_eq!(found[0].0.address, IpAddr::from([127, 0, 0, 1]));
        assert_eq!(parse_address("00000000000000000000000001000000"), Some(IpAddr::V6(Ipv6Addr::LOCALHOST)));
        assert_eq!(parse_address("0100"), None);
    }

    #[test]
    fn a_socket_of_this_process_is_found_with_its_owner() {
        let socket = TcpListener::bind("127.0.0.1:0").expect("bound");
        let port = socket.local_addr().expect("an address").port();
        let found = list().into_iter().find(|listener| listener.port == port).expect("it listens");
        assert_eq!(found.pid, Some(std::process::id()));
        assert!(found.process.is_some_and(|name| !name.is_empty()));
    }
}
