//! Which addresses a sandbox reaches: what its rules allow, less what no rule can.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use types::Egress;

/// Metadata services of clouds at addresses that look like any other: Alibaba's, Azure's, and Amazon's for IPv6.
const METADATA_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// So many addresses of allowed names are remembered at most; then it begins anew.
const MOST_LEARNED: usize = 4096;

/// What one sandbox may reach.
#[derive(Debug)]
pub(crate) struct Reach {
    egress: Egress,
    /// Addresses that allowed names resolved to.
    learned: HashSet<IpAddr>,
}

impl Reach {
    pub(crate) fn new(egress: Egress) -> Self {
        Self { egress, learned: HashSet::new() }
    }

    /// Whether it may send to that address; `host` has the addresses of the host itself.
    pub(crate) fn allows(&self, to: IpAddr, host: &HashSet<IpAddr>) -> bool {
        if never(to) || host.contains(&to) {
            return false;
        }
        if let IpAddr::V6(v6) = to
            && let Some(v4) = translated(v6)
        {
            return self.allows(v4.into(), host);
        }
        (self.egress.public && is_public(to))
            || self.egress.nets.iter().any(|net| net.contains(to))
            || self.learned.contains(&to)
    }

    /// Whether anything is asked of the DNS.
    pub(crate) fn asks(&self) -> bool {
        !self.egress.is_none()
    }

    /// Whether a name may be asked for. Who may reach addresses may ask for any name; who may reach names alone, for
    /// those only, so that no question carries anything out.
    pub(crate) fn may_ask_for(&self, name: &str) -> bool {
        self.egress.public || !self.egress.nets.is_empty() || self.is_named(name)
    }

    /// Whether what that name resolves to is to be remembered.
    pub(crate) fn is_named(&self, name: &str) -> bool {
        self.egress.hosts.iter().any(|rule| rule.matches(name))
    }

    /// Whether any name is to be remembered.
    pub(crate) fn has_names(&self) -> bool {
        !self.egress.hosts.is_empty()
    }

    /// The names that are known from the start.
    pub(crate) fn names(&self) -> Vec<String> {
        self.egress.hosts.iter().filter_map(|rule| rule.exact().map(str::to_owned)).collect()
    }

    pub(crate) fn learn(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        for address in addresses {
            if self.learned.len() >= MOST_LEARNED {
                self.learned.clear();
            }
            self.learned.insert(address);
        }
    }
}

/// The IPv4 address that a translator of the host's network would make of it (RFC 6052).
fn translated(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, high, low] = address.segments();
    ([a, b, c, d, e, f] == [0x64, 0xff9b, 0, 0, 0, 0])
        .then(|| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
}

/// What is out of reach whatever the rules say.
fn never(to: IpAddr) -> bool {
    match to {
        IpAddr::V4(to) => {
            to.octets()[0] == 0
                || to.is_loopback()
                || to.is_link_local()
                || to.is_multicast()
                || to.is_broadcast()
                || METADATA_V4.contains(&to)
        }
        IpAddr::V6(to) => {
            let [first, second, ..] = to.segments();
            // ::/16 has loopback, the unspecified one, and IPv4 in two disguises; then 6to4 and Teredo.
            first == 0
                || first == 0x2002
                || (first == 0x2001 && second == 0)
                || to.is_unicast_link_local()
                || to.is_multicast()
                || to == METADATA_V6
        }
    }
}

/// Whether it is an address of the internet. Those kept for documentation count as such: nobody's network has them.
fn is_public(to: IpAddr) -> bool {
    match to {
        IpAddr::V4(to) => {
            let [a, b, c, _] = to.octets();
            let shared = a == 100 && (64..128).contains(&b);
            let benchmarks = a == 198 && (b == 18 || b == 19);
            let protocols = [a, b, c] == [192, 0, 0];
            !(to.is_private() || shared || benchmarks || protocols || a >= 240)
        }
        IpAddr::V6(to) => to.segments()[0] & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(words: &[&str], to: &str) -> bool {
        let host = HashSet::from(["203.0.113.7".parse().unwrap(), "2001:db8::7".parse().unwrap()]);
        Reach::new(Egress::from_words(words).unwrap()).allows(to.parse().unwrap(), &host)
    }

    #[test]
    fn public_is_the_internet_and_nothing_nearer() {
        for to in ["1.1.1.1", "203.0.113.8", "2001:db8::8", "2606:4700::1", "64:ff9b::101:101"] {
            assert!(allows(&["public"], to), "{to}");
        }
        for to in [
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "198.18.0.1",
            "198.19.3.4",
            "240.0.0.1",
            "192.0.0.8",
            "fd00::1",
            "fec0::1",
            "64:ff9b::a00:1",
        ] {
            assert!(!allows(&["public"], to), "{to}");
            assert!(allows(&["0.0.0.0/0", "::/0"], to), "{to}: a prefix is meant as it is written");
        }
    }

    #[test]
    fn no_rule_leads_to_the_host_or_to_those_who_know_its_secrets() {
        for to in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "169.254.1.1",
            "224.0.0.1",
            "255.255.255.255",
            "100.100.100.200",
            "168.63.129.16",
            "203.0.113.7",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:1.1.1.1",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
            "2001:db8::7",
            "2002:7f00:1::",
            "2001:0:1::",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b::cb00:7107",
        ] {
            assert!(!allows(&["public", "0.0.0.0/0", "::/0"], to), "{to}");
        }
    }

    #[test]
    fn what_is_not_named_is_out_of_reach() {
        assert!(!allows(&["none"], "1.1.1.1"));
        assert!(allows(&["10.1.0.0/16"], "10.1.2.3"));
        assert!(!allows(&["10.1.0.0/16"], "10.2.2.3") && !allows(&["10.1.0.0/16"], "1.1.1.1"));
        let mut reach = Reach::new(Egress::from_words(&["pypi.org"]).unwrap());
        let (address, none) = ("1.1.1.1".parse().unwrap(), HashSet::new());
        assert!(!reach.allows(address, &none));
        assert!(reach.may_ask_for("pypi.org") && !reach.may_ask_for("secret.example.com"));
        reach.learn([address, "127.0.0.1".parse().unwrap()]);
        assert!(reach.allows(address, &none));
        assert!(!reach.allows("127.0.0.1".parse().unwrap(), &none), "a name cannot make the host reachable");
        reach.learn((0..5000u32).map(|number| IpAddr::from(Ipv4Addr::from_bits(0x0101_0000 + number))));
        assert!(reach.learned.len() <= MOST_LEARNED);
    }
}
