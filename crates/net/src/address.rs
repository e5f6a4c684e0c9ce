//! Addresses on the line of one sandbox.
//!
//! Each sandbox is alone on its line with passt, so an address says nothing to anybody else, and two that are the same
//! would do no harm. They are of ranges that are in use on no network (RFC 2544, RFC 4193) and each reaches its
//! gateway alone (`/32`, `/128`), so no network of the host is in the way of a guest or hidden from it.

use std::net::{Ipv4Addr, Ipv6Addr};

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
        }
        assert_ne!(Address::of(&[1; 32]), Address::of(&[2; 32]));
    }
}
