//! Packets taken apart as far as it takes to see where they go, and the few that are made here.
//!
//! A frame is Ethernet's: receiver, sender, kind, and then IPv4 (RFC 791), IPv6 (RFC 8200) or ARP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const ETHERNET: usize = 14;
pub(crate) const IPV4: [u8; 2] = [0x08, 0x00];
pub(crate) const IPV6: [u8; 2] = [0x86, 0xdd];
const ARP: [u8; 2] = [0x08, 0x06];

const ICMP: u8 = 1;
const UDP: u8 = 17;
const ICMP6: u8 = 58;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packet<'a> {
    /// A question or answer about hardware addresses on this line: ARP, or its like in IPv6. What a host only announces of
    /// itself is not one: nobody on a line for two waits for that.
    Neighbour,
    /// To or from somewhere.
    Ip(Ip<'a>),
    /// Nothing that has a place here.
    Other,
}

/// What an IP packet says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ip<'a> {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    /// Ports and payload, where it is a whole UDP datagram.
    pub(crate) udp: Option<Udp<'a>>,
    /// The packet, for who carries or answers it.
    pub(crate) whole: &'a [u8],
}

/// A UDP datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Udp<'a> {
    pub(crate) from: u16,
    pub(crate) to: u16,
    pub(crate) payload: &'a [u8],
}

/// What is in a frame.
pub(crate) fn look(frame: &[u8]) -> Packet<'_> {
    let Some((header, body)) = frame.split_first_chunk::<ETHERNET>() else { return Packet::Other };
    match [header[12], header[13]] {
        ARP => arp(body),
        IPV4 => ipv4(body).map_or(Packet::Other, Packet::Ip),
        IPV6 => ipv6(body),
        _ => Packet::Other,
    }
}

/// RFC 826: four bytes each of kinds, lengths and operation before the sender's hardware and IP address and the target's.
fn arp(body: &[u8]) -> Packet<'_> {
    match (body.get(14..18), body.get(24..28)) {
        (Some(sender), Some(target)) if sender != target => Packet::Neighbour,
        _ => Packet::Other,
    }
}

fn ipv4(packet: &[u8]) -> Option<Ip<'_>> {
    let header = packet.first_chunk::<20>()?;
    if header[0] >> 4 != 4 {
        return None;
    }
    let header_len = usize::from(header[0] & 0xf) * 4;
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let body = packet.get(header_len.max(20)..len)?;
    // Neither more fragments to come nor some before it.
    let whole = header[6] & 0x3f == 0 && header[7] == 0;
    let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
    Some(Ip {
        from: address(12).into(),
        to: address(16).into(),
        udp: if whole && header[9] == UDP { udp(body) } else { None },
        whole: packet.get(..len)?,
    })
}

fn udp(bytes: &[u8]) -> Option<Udp<'_>> {
    let &[a, b, c, d, high, low, _, _] = bytes.first_chunk::<8>()?;
    let payload = bytes.get(8..usize::from(u16::from_be_bytes([high, low])))?;
    Some(Udp { from: u16::from_be_bytes([a, b]), to: u16::from_be_bytes([c, d]), payload })
}

fn ipv6(packet: &[u8]) -> Packet<'_> {
    let Some((header, body)) = packet.split_first_chunk::<40>() else { return Packet::Other };
    if header[0] >> 4 != 6 {
        return Packet::Other;
    }
    let address = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&header[at..at + 16]);
        Ipv6Addr::from(octets)
    };
    let (from, to) = (address(8), address(24));
    // Solicitations and advertisements of neighbours (RFC 4861), which never crossed a router. Who solicits without an
    // address asks whether another has the one that it means to take; who advertises to all was not asked.
    if header[6] == ICMP6 && header[7] == 255 {
        match body.first() {
            Some(135) if !from.is_unspecified() => return Packet::Neighbour,
            Some(136) if !to.is_multicast() => return Packet::Neighbour,
            Some(135 | 136) => return Packet::Other,
            _ => {}
        }
    }
    Packet::Ip(Ip { from: from.into(), to: to.into(), udp: None, whole: packet })
}

impl Ip<'_> {
    /// A frame that tells its sender that it was not let through; `frame` is what it came in. None for what goes to
    /// many, and none for what is an error itself.
    pub(crate) fn refusal(&self, frame: &[u8], gateway: (Ipv4Addr, Ipv6Addr)) -> Option<Vec<u8>> {
        if self.to.is_multicast() {
            return None;
        }
        let mut out = answered(frame)?;
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                if to.is_broadcast() || self.whole.get(9) == Some(&ICMP) {
                    return None;
                }
                // Destination unreachable, communication administratively prohibited (RFC 1812), and the packet's header
                // with the first 8 bytes after it.
                let mut icmp = vec![3, 13, 0, 0, 0, 0, 0, 0];
                icmp.extend(self.whole.iter().take(68));
                seal(&mut icmp, 2, 0);
                ipv4_around(&mut out, (gateway.0, from), ICMP, &icmp)?;
            }
            (IpAddr::V6(from), IpAddr::V6(_)) => {
                if from.is_unspecified() || from.is_multicast() || self.whole.get(6) == Some(&ICMP6) {
                    return None;
                }
                let mut icmp = vec![1, 1, 0, 0, 0, 0, 0, 0];
                icmp.extend(self.whole.iter().take(1000));
                let len = u16::try_from(icmp.len()).ok()?;
                let addresses = [gateway.1.octets(), from.octets()].concat();
                seal(&mut icmp, 2, sum(&addresses) + u32::from(len) + u32::from(ICMP6));
                out.extend([0x60, 0, 0, 0]);
                out.extend(len.to_be_bytes());
                out.extend([ICMP6, 64]);
                out.extend(addresses);
                out.extend(icmp);
            }
            _ => return None,
        }
        Some(out)
    }

    /// A frame with a UDP datagram back to the sender of this one, as from whom it was sent to.
    pub(crate) fn udp_reply(&self, frame: &[u8], payload: &[u8]) -> Option<Vec<u8>> {
        let (IpAddr::V4(from), IpAddr::V4(to), Some(asked)) = (self.from, self.to, self.udp) else {
            return None;
        };
        let mut datagram = Vec::with_capacity(payload.len() + 8);
        datagram.extend(asked.to.to_be_bytes());
        datagram.extend(asked.from.to_be_bytes());
        datagram.extend(u16::try_from(payload.len() + 8).ok()?.to_be_bytes());
        // No checksum, as IPv4 allows.
        datagram.extend([0, 0]);
        datagram.extend(payload);
        let mut out = answered(frame)?;
        ipv4_around(&mut out, (to, from), UDP, &datagram)?;
        Some(out)
    }
}

/// Ethernet's header with receiver and sender exchanged; the sender's is the gateway's, whatever was asked.
fn answered(frame: &[u8]) -> Option<Vec<u8>> {
    let header = frame.first_chunk::<ETHERNET>()?;
    let mut out = header[6..12].to_vec();
    out.extend(crate::GATEWAY_MAC);
    out.extend(&header[12..]);
    Some(out)
}

fn ipv4_around(out: &mut Vec<u8>, (from, to): (Ipv4Addr, Ipv4Addr), protocol: u8, body: &[u8]) -> Option<()> {
    let len = u16::try_from(20 + body.len()).ok()?.to_be_bytes();
    let mut header = vec![0x45, 0, len[0], len[1], 0, 0, 0, 0, 64, protocol, 0, 0];
    header.extend(from.octets());
    header.extend(to.octets());
    seal(&mut header, 10, 0);
    out.extend(header);
    out.extend(body);
    Some(())
}

/// The sum of 16-bit words that checksums are made of (RFC 1071).
fn sum(bytes: &[u8]) -> u32 {
    let words =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)));
    words.sum()
}

/// Writes the checksum of `bytes`, and of what `more` sums up, at `at`.
fn seal(bytes: &mut [u8], at: usize, more: u32) {
    let mut total = sum(bytes) + more;
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    let [.., high, low] = (!total).to_be_bytes();
    (bytes[at], bytes[at + 1]) = (high, low);
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A frame with a UDP datagram.
    pub(crate) fn udp(from: (&str, u16), to: (&str, u16), payload: &[u8]) -> Vec<u8> {
        let mut datagram = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
        datagram.extend(u16::try_from(payload.len() + 8).unwrap().to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        let mut frame = vec![2, 2, 2, 2, 2, 2, 6, 6, 6, 6, 6, 6];
        match (from.0.parse().unwrap(), to.0.parse().unwrap()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                frame.extend(IPV4);
                ipv4_around(&mut frame, (from, to), UDP, &datagram).unwrap();
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                frame.extend(IPV6);
                frame.extend([0x60, 0, 0, 0]);
                frame.extend(u16::try_from(datagram.len()).unwrap().to_be_bytes());
                frame.extend([UDP, 64]);
                frame.extend(from.octets());
                frame.extend(to.octets());
                frame.extend(datagram);
            }
            _ => panic!("two families"),
        }
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::testing::udp;
    use super::*;
    use proptest::prelude::*;

    const GATEWAY: (Ipv4Addr, Ipv6Addr) = (crate::GATEWAY_V4, crate::GATEWAY_V6);

    #[test]
    fn a_datagram_is_taken_apart_and_answered() {
        let frame = udp(("198.19.0.2", 4000), ("198.18.0.1", 53), b"question");
        let Packet::Ip(ip) = look(&frame) else { panic!("{frame:?}") };
        assert_eq!(ip.udp, Some(Udp { from: 4000, to: 53, payload: b"question" }));
        let answer = ip.udp_reply(&frame, b"answer").unwrap();
        let Packet::Ip(ip) = look(&answer) else { panic!("{answer:?}") };
        assert_eq!((ip.from.to_string().as_str(), ip.to.to_string().as_str()), ("198.18.0.1", "198.19.0.2"));
        assert_eq!(ip.udp, Some(Udp { from: 53, to: 4000, payload: b"answer" }));
        assert_eq!(answer[..6], [6; 6]);
    }

    #[test]
    fn a_refusal_goes_to_the_sender_with_checksums_that_hold() {
        let frame = udp(("198.19.0.2", 4000), ("10.0.0.1", 80), b"hello");
        let Packet::Ip(ip) = look(&frame) else { panic!("{frame:?}") };
        let refusal = ip.refusal(&frame, GATEWAY).unwrap();
        let (header, icmp) = refusal[ETHERNET..].split_at(20);
        let folded = |sum: u32| (sum & 0xffff) + (sum >> 16);
        assert_eq!(folded(sum(header)), 0xffff);
        assert_eq!(folded(sum(icmp)), 0xffff);
        assert_eq!((icmp[0], icmp[1], &icmp[8..]), (3, 13, &frame[ETHERNET..]));
        let Packet::Ip(back) = look(&refusal) else { panic!("{refusal:?}") };
        assert_eq!(back.to, ip.from);
        assert_eq!(back.refusal(&refusal, GATEWAY), None, "no refusal of a refusal");

        let frame = udp(("fd62::1", 4000), ("fd00::1", 80), b"hello");
        let Packet::Ip(ip) = look(&frame) else { panic!("{frame:?}") };
        let refusal = ip.refusal(&frame, GATEWAY).unwrap();
        let body = &refusal[ETHERNET..];
        let pseudo = sum(&body[8..40]) + sum(&body[4..6]) + u32::from(ICMP6);
        assert_eq!(folded(sum(&body[40..]) + pseudo), 0xffff);
    }

    #[test]
    fn fragments_have_no_ports_and_odd_frames_have_no_place() {
        let mut frame = udp(("198.19.0.2", 4000), ("198.18.0.1", 53), b"question");
        frame[ETHERNET + 6] = 0x20;
        let Packet::Ip(ip) = look(&frame) else { panic!("{frame:?}") };
        assert_eq!(ip.udp, None);
        assert_eq!(look(&[0; 13]), Packet::Other);
        assert_eq!(look(&[0; 60]), Packet::Other);
        // An IPv6 packet in a frame that says IPv4, and the other way round.
        let mut frame = udp(("fd62::1", 1), ("::1", 2), b"");
        frame[12..14].copy_from_slice(&IPV4);
        assert_eq!(look(&frame), Packet::Other);
        let mut frame = udp(("1.1.1.1", 1), ("2.2.2.2", 2), &[0; 64]);
        frame[12..14].copy_from_slice(&IPV6);
        assert_eq!(look(&frame), Packet::Other);
    }

    #[test]
    fn who_only_announces_itself_asks_for_nothing() {
        let arp = |operation: u8, from: u8, to: u8| {
            let mut frame = vec![0xff; 12];
            frame.extend(ARP);
            frame.extend([0, 1, 8, 0, 6, 4, 0, operation, 2, 2, 2, 2, 2, 2, 198, 19, 0, from]);
            frame.extend([0, 0, 0, 0, 0, 0, 198, 19, 0, to]);
            frame
        };
        assert_eq!(look(&arp(1, 2, 1)), Packet::Neighbour);
        assert_eq!(look(&arp(2, 2, 1)), Packet::Neighbour);
        assert_eq!(look(&arp(1, 2, 2)), Packet::Other);
        assert_eq!(look(&arp(2, 2, 2)), Packet::Other);
        assert_eq!(look(&arp(1, 2, 1)[..41]), Packet::Other, "cut short");
        let ndp = |kind: u8, from: &str, to: &str| {
            let mut frame = udp((from, 0), (to, 0), &[0; 16]);
            (frame[ETHERNET + 6], frame[ETHERNET + 7], frame[ETHERNET + 40]) = (ICMP6, 255, kind);
            frame
        };
        assert_eq!(look(&ndp(135, "fd62::1", "ff02::1:ff00:2")), Packet::Neighbour);
        assert_eq!(look(&ndp(136, "fd62::1", "fd62::2")), Packet::Neighbour);
        assert_eq!(look(&ndp(135, "::", "ff02::1:ff00:1")), Packet::Other);
        assert_eq!(look(&ndp(136, "fd62::1", "ff02::1")), Packet::Other);
        // Too far from home for a neighbour.
        let mut far = ndp(135, "fd62::1", "ff02::1:ff00:2");
        far[ETHERNET + 7] = 254;
        assert!(matches!(look(&far), Packet::Ip(_)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_at_and_refused_without_a_panic(
            kind in prop::sample::select(vec![IPV4, IPV6, ARP, [0, 0]]),
            mut frame in proptest::collection::vec(any::<u8>(), 14..200),
        ) {
            frame[12..14].copy_from_slice(&kind);
            if let Packet::Ip(ip) = look(&frame) {
                let _ = ip.refusal(&frame, GATEWAY);
                let _ = ip.udp_reply(&frame, b"x");
            }
        }
    }
}
