//! Addresses on the line of one sandbox.
//!
//! Each sandbox is alone on its line with passt, so an address says nothing to anybody but siblings (mode `bridge`), who
//! have different ones. They are of ranges that are in use on no network (RFC 2544, RFC 4193) and each reaches its
//! gateway alone (`/32`, `/128`), so no network of the host is in the way of a guest or hidden from it.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The gateway, on every line.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The gateway, on every line.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The gateway's hardware address: always the same, so that a guest that slept still knows it.
pub const GATEWAY_MAC: [u8; 6] = [0x02, b'b', b'h', 0, 0, 1];
/// Who answers questions about names: passt hands them to the host's own resolver.
pub const DNS: Ipv4Addr = GATEWAY_V4;

/// What a guest is called on its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// Hardware address of its network card.
    pub mac: [u8; 6],
    /// In 198.19.0.0/16.
    pub v4: Ipv4Addr,
    /// In fd62:6874::/32.
    pub v6: Ipv6Addr,
}

impl Address {
    /// The address that belongs to a sandbox whose id has this hash: the same as long as there is the sandbox.
    #[must_use]
    pub fn of(hash: &[u8; 32]) -> Self {
        let &[a, b, c, d, e, f, g, h, ..] = hash;
        // Neither the first nor the last of the range.
        let low = f.clamp(1, 254);
        let pair = |high, low| u16::from_be_bytes([high, low]);
        Self {
            // Locally administered, not multicast, and never the gateway's.
            mac: [0x06, a, b, c, d, e],
            v4: Ipv4Addr::new(198, 19, e, low),
            v6: Ipv6Addr::new(0xfd62, 0x6874, pair(a, b), pair(c, d), pair(e, f), pair(g, h), 0, 1),
        }
    }

    /// Whether it can be a sandbox's.
    pub(crate) fn is_one(v4: Ipv4Addr) -> bool {
        matches!(v4.octets(), [198, 19, _, 1..=254])
    }

    /// The IPv4 address of the sandbox whose IPv6 address it is.
    pub(crate) fn v4_of(v6: Ipv6Addr) -> Option<Ipv4Addr> {
        let [0xfd62, 0x6874, _, _, both, _, 0, 1] = v6.segments() else { return None };
        let [high, low] = both.to_be_bytes();
        Some(Ipv4Addr::new(198, 19, high, low.clamp(1, 254)))
    }
}

/// As it stands among a relay's arguments: hardware address, IPv4, IPv6.
impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.mac;
        write!(out, "{a:02x}-{b:02x}-{c:02x}-{d:02x}-{e:02x}-{f:02x},{},{}", self.v4, self.v6)
    }
}

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let read = || {
            let mut parts = text.split(',');
            let (mac, v4, v6) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            let octets: Option<Vec<u8>> =
                mac.split('-').map(|octet| u8::from_str_radix(octet, 16).ok()).collect();
            let mac = octets?.try_into().ok()?;
            parts.next().is_none().then_some(Self { mac, v4, v6 })
        };
        read().ok_or("no address of a sandbox")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_of_its_range_and_its_sandboxs_own() {
        for byte in [0, 1, 7, 255] {
            let address = Address::of(&[byte; 32]);
            assert_eq!(address.mac[0] & 3, 2, "locally administered, one receiver");
            assert_ne!(address.mac, GATEWAY_MAC);
            assert_eq!(address.v4.octets()[..2], [198, 19]);
            assert!(!matches!(address.v4.octets()[3], 0 | 255));
            assert_eq!(address.v6.segments()[..2], [0xfd62, 0x6874]);
            assert!(Address::is_one(address.v4));
            assert_eq!(Address::v4_of(address.v6), Some(address.v4));
            assert_eq!(address.to_string().parse(), Ok(address));
        }
        assert_ne!(Address::of(&[1; 32]), Address::of(&[2; 32]));
        for none in ["198.18.0.1", "198.19.7.0", "198.19.7.255", "198.20.1.1"] {
            assert!(!Address::is_one(none.parse().unwrap()), "{none}");
        }
        for none in ["fd62:6874::", "fe80::1", "fd62:6874::2"] {
            assert_eq!(Address::v4_of(none.parse().unwrap()), None, "{none}");
        }
        for none in [
            "",
            "-",
            "06-01-02-03-04-05,198.19.1.1",
            "06-01,198.19.1.1,fd62::1",
            "06-01-02-03-04-05,198.19.1.1,fd62::1,",
        ] {
            assert!(none.parse::<Address>().is_err(), "{none}");
        }
    }
}
