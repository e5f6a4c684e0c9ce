//! The network card: set to what the host says, with the kernel's own protocol and no other program.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use rustix::io::Errno;
use sys::netlink::{LinkAddress, Netlink};
use wire::Net;

use crate::identity::{Warnings, write_if_changed};

/// The kernel's name for the first card; nothing in a guest renames it before the agent has seen it.
const LINK: &str = "eth0";
const RESOLV_CONF: &str = "etc/resolv.conf";

/// Sets the card, and where names are asked for in the file system at `root`. `before`: what it was set to last.
pub fn assume(root: &Path, before: Option<&Net>, told: &Net, warnings: &mut Warnings) {
    if let Err(error) = set_link(before, told) {
        warnings.push(format!("network: {error}"));
    }
    if let Err(error) = set_resolver(root, &told.dns) {
        warnings.push(format!("network: {RESOLV_CONF}: {error}"));
    }
}

/// Has no network: what a source's card was set to is not its copy's.
pub fn forget(warnings: &mut Warnings) {
    let forgotten = Netlink::open().and_then(|mut netlink| {
        let link = match netlink.link_named(LINK) {
            Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => return Ok(()),
            link => link?,
        };
        clear(&mut netlink, link, &[])?;
        netlink.set_link(link, false, None, None)
    });
    if let Err(error) = forgotten {
        warnings.push(format!("network: {error}"));
    }
}

fn set_link(before: Option<&Net>, told: &Net) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let link = netlink.link_named(LINK)?;
    if before.is_none() {
        // No address of its own making: one made from the hardware address would stay when that changes. Not there in
        // a kernel without IPv6.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{LINK}/addr_gen_mode"), "1");
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{LINK}/accept_ra"), "0");
    }
    // A template's card, in which nobody was: it has no address, and its gateways are everybody's.
    let newborn = before.filter(|before| before.addresses.is_empty());
    let led = newborn.is_some_and(|newborn| newborn.gateways == told.gateways);
    let wanted: Vec<LinkAddress> = told.addresses.iter().map(|address| alone(link, *address)).collect();
    match newborn {
        None => clear(&mut netlink, link, &wanted)?,
        // With the link go its ways.
        Some(_) if !led => netlink.set_link(link, false, None, None)?,
        Some(_) => {}
    }
    netlink.set_link(link, true, Some(told.mac.0), Some(told.mtu))?;
    for address in wanted {
        netlink.add_address(address)?;
    }
    for gateway in told.gateways.iter().filter(|_| !led) {
        netlink.add_neighbour_route(link, *gateway)?;
        netlink.add_default_route(link, *gateway)?;
    }
    Ok(())
}

/// An address without neighbours.
fn alone(link: u32, address: IpAddr) -> LinkAddress {
    LinkAddress { link, address, prefix: if address.is_ipv4() { 32 } else { 128 } }
}

/// Takes from the card what it has and is not to have.
fn clear(netlink: &mut Netlink, link: u32, wanted: &[LinkAddress]) -> io::Result<()> {
    for old in netlink.addresses()? {
        if old.link == link && !wanted.contains(&old) {
            netlink.remove_address(old)?;
        }
    }
    Ok(())
}

fn set_resolver(root: &Path, dns: &[IpAddr]) -> io::Result<()> {
    let path = root.join(RESOLV_CONF);
    // Where an image has a link, it is to a file of a program that does not run here.
    if fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink()) {
        fs::remove_file(&path)?;
    }
    let lines: String = dns.iter().map(|server| format!("nameserver {server}\n")).collect();
    write_if_changed(&path, &lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resolver_is_written_in_place_of_a_link_that_leads_nowhere() {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir(root.path().join("etc")).expect("a directory");
        let path = root.path().join(RESOLV_CONF);
        std::os::unix::fs::symlink("/run/systemd/resolve/stub-resolv.conf", &path).expect("a link");
        let dns = ["198.18.0.1".parse().expect("an address")];
        for _ in 0..2 {
            set_resolver(root.path(), &dns).expect("writes");
            assert_eq!(fs::read_to_string(&path).expect("reads"), "nameserver 198.18.0.1\n");
        }
        assert!(fs::symlink_metadata(&path).expect("is there").is_file());
    }
}
