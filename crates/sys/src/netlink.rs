//! Links, addresses and routes by the kernel's own protocol, rtnetlink(7); no unsafe code, but used on both sides.
//!
//! Messages are laid out as in `linux/netlink.h`, `linux/rtnetlink.h`, `linux/if_link.h` and `linux/if_addr.h`, in the
//! host's byte order.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_SETLINK: u16 = 19;
const RTM_NEWROUTE: u16 = 24;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const CREATE_OR_REPLACE: u16 = 0x400 | 0x100;

const IFLA_ADDRESS: u16 = 1;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

/// `IFF_UP`.
const UP: u32 = 1;
/// `IFF_NOARP`: no ARP, and neither solicitations of neighbours nor their groups in IPv6.
const BETWEEN_TWO: u32 = 0x80;
/// `IFA_F_NODAD`: usable at once, without asking the link whether somebody else has it.
const NO_DAD: u32 = 0x02;
/// `RT_TABLE_MAIN`, `RTPROT_STATIC`, `RTN_UNICAST`; `RT_SCOPE_UNIVERSE` and `RT_SCOPE_LINK`.
const MAIN_TABLE: u8 = 254;
const STATIC: u8 = 4;
const UNICAST: u8 = 1;
const EVERYWHERE: u8 = 0;
const ON_LINK: u8 = 253;
/// `RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR`.
const ADDRESS_NEWS: u32 = 0x10 | 0x100;

const HEADER: usize = 16;

/// An address that a link has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkAddress {
    /// The link's number.
    pub link: u32,
    /// The address.
    pub address: IpAddr,
    /// Leading bits that its neighbours share.
    pub prefix: u8,
}

/// A conversation with the kernel about links.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Begins one, in the network namespace of this thread.
    ///
    /// # Errors
    /// What the system says.
    pub fn open() -> io::Result<Self> {
        Self::with_groups(0)
    }

    /// One that hears when addresses come and go: [`Netlink::wait_for_news`].
    ///
    /// # Errors
    /// What the system says.
    pub fn listening_for_addresses() -> io::Result<Self> {
        Self::with_groups(ADDRESS_NEWS)
    }

    fn with_groups(groups: u32) -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE is 0.
            None,
        )?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; 64 * 1024] })
    }

    /// The number of the link of that name.
    ///
    /// # Errors
    /// `ENODEV` where there is none.
    pub fn link_named(&self, name: &str) -> io::Result<u32> {
        Ok(rustix::net::netdevice::name_to_index(&self.socket, name)?)
    }

    /// Waits until addresses came or went.
    ///
    /// # Errors
    /// What the system says. News that there was no room for (`ENOBUFS`) are news.
    pub fn wait_for_news(&mut self) -> io::Result<()> {
        match rustix::net::recv(&self.socket, &mut self.buffer[..], RecvFlags::empty()) {
            Ok(_) | Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Switches a link on or off, and before that gives it a hardware address and a largest packet. One that is on is
    /// between two: nobody asks there who has which address, and none of its own is announced.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_link(
        &mut self,
        link: u32,
        up: bool,
        hardware: Option<[u8; 6]>,
        mtu: Option<u32>,
    ) -> io::Result<()> {
        let mut message = Message::new(RTM_SETLINK, REQUEST | ACK);
        message.bytes(&[0; 4]).u32(link).u32(if up { UP | BETWEEN_TWO } else { 0 });
        message.u32(if up { UP | BETWEEN_TWO } else { UP });
        if let Some(hardware) = hardware {
            message.attribute(IFLA_ADDRESS, &hardware);
        }
        if let Some(mtu) = mtu {
            message.attribute(IFLA_MTU, &mtu.to_ne_bytes());
        }
        self.ask(message)
    }

    /// Every address of every link.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn addresses(&mut self) -> io::Result<Vec<LinkAddress>> {
        let mut message = Message::new(RTM_GETADDR, REQUEST | DUMP);
        message.bytes(&[0; 8]);
        let sequence = self.send(message)?;
        let mut found = Vec::new();
        loop {
            let (len, _) = rustix::net::recv(&self.socket, &mut self.buffer[..], RecvFlags::empty())?;
            for (kind, number, body) in Messages(&self.buffer[..len]) {
                if number != sequence {
                    continue;
                }
                match kind {
                    NLMSG_DONE => return Ok(found),
                    NLMSG_ERROR => answer(body)?,
                    RTM_NEWADDR => found.extend(link_address(body)),
                    _ => {}
                }
            }
        }
    }

    /// Gives a link an address, usable at once.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_address(&mut self, at: LinkAddress) -> io::Result<()> {
        let mut message = Message::new(RTM_NEWADDR, REQUEST | ACK | CREATE_OR_REPLACE);
        message.address(at).attribute(IFA_FLAGS, &NO_DAD.to_ne_bytes());
        self.ask(message)
    }

    /// Takes an address from a link.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn remove_address(&mut self, at: LinkAddress) -> io::Result<()> {
        let mut message = Message::new(RTM_DELADDR, REQUEST | ACK);
        message.address(at);
        self.ask(message)
    }

    /// Has a link lead to one address.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_neighbour_route(&mut self, link: u32, to: IpAddr) -> io::Result<()> {
        let bytes = octets(to);
        let bits = if to.is_ipv4() { 32 } else { 128 };
        let mut message = Message::new(RTM_NEWROUTE, REQUEST | ACK | CREATE_OR_REPLACE);
        message.bytes(&[family(to), bits, 0, 0, MAIN_TABLE, STATIC, ON_LINK, UNICAST]).u32(0);
        message.attribute(RTA_DST, &bytes).attribute(RTA_OIF, &link.to_ne_bytes());
        self.ask(message)
    }

    /// Has everything of that family go by a gateway on a link.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_default_route(&mut self, link: u32, gateway: IpAddr) -> io::Result<()> {
        let mut message = Message::new(RTM_NEWROUTE, REQUEST | ACK | CREATE_OR_REPLACE);
        message.bytes(&[family(gateway), 0, 0, 0, MAIN_TABLE, STATIC, EVERYWHERE, UNICAST]).u32(0);
        message.attribute(RTA_GATEWAY, &octets(gateway)).attribute(RTA_OIF, &link.to_ne_bytes());
        self.ask(message)
    }

    fn send(&mut self, message: Message) -> io::Result<u32> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = message.finish(self.sequence)?;
        rustix::net::send(&self.socket, &bytes, SendFlags::empty())?;
        Ok(self.sequence)
    }

    /// Sends a request and waits for the kernel's verdict.
    fn ask(&mut self, message: Message) -> io::Result<()> {
        let sequence = self.send(message)?;
        loop {
            let (len, _) = rustix::net::recv(&self.socket, &mut self.buffer[..], RecvFlags::empty())?;
            for (kind, number, body) in Messages(&self.buffer[..len]) {
                if kind == NLMSG_ERROR && number == sequence {
                    return answer(body);
                }
            }
        }
    }
}

/// `AF_INET` or `AF_INET6`.
const fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 2 } else { 10 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// `nlmsgerr`: a negated error number, 0 for none.
fn answer(body: &[u8]) -> io::Result<()> {
    let number = body.first_chunk::<4>().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    if number == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(number.wrapping_neg())) }
}

/// `ifaddrmsg` and its attributes.
fn link_address(body: &[u8]) -> Option<LinkAddress> {
    let &[_family, prefix, _flags, _scope, a, b, c, d] = body.first_chunk::<8>()?;
    let link = u32::from_ne_bytes([a, b, c, d]);
    let (mut local, mut address) = (None, None);
    for (kind, value) in Attributes(&body[8..]) {
        let value = match value.len() {
            4 => value.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes)),
            16 => value.first_chunk::<16>().map(|bytes| IpAddr::from(*bytes)),
            _ => None,
        };
        match kind {
            IFA_LOCAL => local = value,
            IFA_ADDRESS => address = value,
            _ => {}
        }
    }
    // On a link between two, the address is the other end's and the local one its own.
    Some(LinkAddress { link, address: local.or(address)?, prefix })
}

struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Self(bytes)
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u32(&mut self, number: u32) -> &mut Self {
        self.bytes(&number.to_ne_bytes())
    }

    fn address(&mut self, at: LinkAddress) -> &mut Self {
        let bytes = octets(at.address);
        self.bytes(&[family(at.address), at.prefix, 0, 0]).u32(at.link);
        self.attribute(IFA_LOCAL, &bytes).attribute(IFA_ADDRESS, &bytes)
    }

    /// `rtattr`: length and kind, then the value, padded to four bytes.
    fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes(&len.to_ne_bytes()).bytes(&kind.to_ne_bytes()).bytes(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self, sequence: u32) -> io::Result<Vec<u8>> {
        let len = u32::try_from(self.0.len()).map_err(io::Error::other)?;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        Ok(self.0)
    }
}

/// `nlmsghdr` after `nlmsghdr`: kind, sequence number, body.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (u16, u32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let &[a, b, c, d, kind0, kind1, _, _, s0, s1, s2, s3, ..] = self.0.first_chunk::<HEADER>()?;
        let len = usize::try_from(u32::from_ne_bytes([a, b, c, d])).ok()?;
        let body = self.0.get(HEADER..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([kind0, kind1]), u32::from_ne_bytes([s0, s1, s2, s3]), body))
    }
}

/// `rtattr` after `rtattr`.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let &[a, b, kind0, kind1] = self.0.first_chunk::<4>()?;
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([kind0, kind1]), value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_of_the_loopback_and_refuses_a_link_that_is_not_there() {
        let mut netlink = Netlink::open().unwrap();
        let found = netlink.addresses().unwrap();
        let loopback: IpAddr = "127.0.0.1".parse().unwrap();
        assert!(found.iter().any(|at| at.address == loopback && at.prefix == 8), "{found:?}");
        let nowhere = LinkAddress { link: u32::MAX >> 1, address: loopback, prefix: 32 };
        assert!(netlink.add_address(nowhere).is_err());
        // The conversation goes on after a refusal.
        assert_eq!(netlink.addresses().unwrap(), found);
    }

    #[test]
    fn bytes_that_are_no_messages_end_the_look_at_them() {
        for bytes in [&[][..], &[1; 15], &[0; 64], &[255; 64]] {
            assert!(Messages(bytes).count() <= bytes.len());
            assert!(Attributes(bytes).take(99).count() < 99);
        }
    }
}
