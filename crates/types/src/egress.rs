//! What a sandbox may reach beyond its host.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::spec::InvalidSpec;

/// As many rules as one sandbox may have.
const MOST_RULES: usize = 64;

/// What a sandbox may reach; an empty one is nothing at all. In JSON and on the command line a list of words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Egress {
    /// Every address that is routed in the internet.
    pub public: bool,
    /// Addresses by prefix, be they public or not.
    pub nets: Vec<Cidr>,
    /// The addresses that these names resolve to.
    pub hosts: Vec<HostRule>,
}

impl Egress {
    /// The word for every address that is routed in the internet.
    pub const PUBLIC: &str = "public";
    /// The word for nothing.
    pub const NONE: &str = "none";

    /// Every address that is routed in the internet.
    #[must_use]
    pub fn public() -> Self {
        Self { public: true, ..Self::default() }
    }

    /// Whether nothing may be reached.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Reads words: `none` alone, or any of `public`, prefixes and names.
    ///
    /// # Errors
    /// The first word that is none of these.
    pub fn from_words<S: AsRef<str>>(words: &[S]) -> Result<Self, InvalidSpec> {
        if words.len() > MOST_RULES {
            return Err(InvalidSpec::new(
                format!("{} egress rules are too many", words.len()),
                format!("use at most {MOST_RULES}, or larger prefixes"),
            ));
        }
        let mut egress = Self::default();
        for word in words.iter().map(AsRef::as_ref) {
            match word {
                Self::NONE if words.len() > 1 => {
                    return Err(InvalidSpec::new(
                        "egress `none` is given together with something that is allowed",
                        "leave one of the two out",
                    ));
                }
                Self::NONE => {}
                Self::PUBLIC => egress.public = true,
                _ if word.contains([':', '/']) || word.parse::<IpAddr>().is_ok() => {
                    egress.nets.push(word.parse()?);
                }
                _ => egress.hosts.push(word.parse()?),
            }
        }
        Ok(egress)
    }

    /// The words that it is read from.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        if self.is_none() {
            return vec![Self::NONE.to_owned()];
        }
        let public = self.public.then(|| Self::PUBLIC.to_owned());
        let nets = self.nets.iter().map(Cidr::to_string);
        let hosts = self.hosts.iter().map(HostRule::to_string);
        public.into_iter().chain(nets).chain(hosts).collect()
    }
}

impl TryFrom<Vec<String>> for Egress {
    type Error = InvalidSpec;
    fn try_from(words: Vec<String>) -> Result<Self, InvalidSpec> {
        Self::from_words(&words)
    }
}

impl From<Egress> for Vec<String> {
    fn from(egress: Egress) -> Self {
        egress.words()
    }
}

/// Addresses that begin alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    base: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// Whether the address is one of them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                base.to_bits() & mask == address.to_bits() & mask
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                base.to_bits() & mask == address.to_bits() & mask
            }
            _ => false,
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        let parse = || {
            let (base, prefix) = match text.split_once('/') {
                Some((base, prefix)) => (base.parse::<IpAddr>().ok()?, Some(prefix.parse::<u8>().ok()?)),
                None => (text.parse::<IpAddr>().ok()?, None),
            };
            let most = if base.is_ipv4() { 32 } else { 128 };
            let prefix = prefix.unwrap_or(most);
            (prefix <= most).then_some(Self { base, prefix })
        };
        parse().ok_or_else(|| {
            let shown: String = text.chars().take(80).collect();
            InvalidSpec::new(
                format!("egress rule {shown:?} is no prefix of addresses"),
                "use e.g. 10.1.0.0/16, 192.0.2.7 or 2001:db8::/32",
            )
        })
    }
}

/// A name in the DNS, or all names below one (`*.example.org`); in lower case, without a dot at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRule {
    name: String,
    below: bool,
}

impl HostRule {
    /// Whether the name (in lower case, without a dot at its end) is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        if !self.below {
            return name == self.name;
        }
        name.strip_suffix(&self.name).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
    }

    /// The name, if it is one and not all below it.
    #[must_use]
    pub fn exact(&self) -> Option<&str> {
        (!self.below).then_some(self.name.as_str())
    }
}

impl fmt::Display for HostRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.below { "*." } else { "" }, self.name)
    }
}

impl FromStr for HostRule {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        let (name, below) = text.strip_prefix("*.").map_or((text, false), |name| (name, true));
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let digits_only = name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        // One label is a word that was mistyped more often than a host.
        if name.len() <= 253 && !digits_only && (below || name.contains('.')) && name.split('.').all(label) {
            return Ok(Self { name, below });
        }
        let shown: String = text.chars().take(80).collect();
        Err(InvalidSpec::new(
            format!("egress rule {shown:?} is not known"),
            "use `public`, `none`, a name such as pypi.org or *.debian.org, or a prefix such as 10.1.0.0/16",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_written_as_they_are_read() {
        for words in [
            vec!["none"],
            vec!["public"],
            vec!["public", "10.0.0.0/8", "fd00::/8"],
            vec!["192.0.2.7/32", "pypi.org", "*.debian.org"],
        ] {
            assert_eq!(Egress::from_words(&words).unwrap().words(), words);
        }
        assert!(Egress::from_words::<&str>(&[]).unwrap().is_none());
        assert_eq!(Egress::from_words(&["PyPI.org."]).unwrap().words(), ["pypi.org"]);
        assert_eq!(Egress::from_words(&["192.0.2.7"]).unwrap().words(), ["192.0.2.7/32"]);
    }

    #[test]
    fn what_is_no_rule_is_refused_with_what_could_be_one() {
        for words in [
            vec!["publik"],
            vec!["none", "public"],
            vec!["10.0.0.0/33"],
            vec!["10.0.0/8"],
            vec!["::/129"],
            vec!["1.2.3"],
            vec!["a..b"],
            vec!["-a.b"],
            vec!["*"],
            vec!["*."],
            vec!["http://a.b"],
            vec![""],
            vec!["1.1.1.1"; 65],
        ] {
            let error = Egress::from_words(&words).unwrap_err();
            assert!(!error.hint.is_empty(), "{words:?}");
        }
        assert!(Egress::try_from(vec!["nonsense".to_owned()]).is_err());
    }

    #[test]
    fn a_prefix_has_the_addresses_that_begin_as_it_does() {
        let has = |net: &str, address: &str| net.parse::<Cidr>().unwrap().contains(address.parse().unwrap());
        assert!(has("10.1.0.0/16", "10.1.255.1") && !has("10.1.0.0/16", "10.2.0.0"));
        assert!(has("10.1.7.9/16", "10.1.0.0"), "bits behind the prefix do not count");
        assert!(has("0.0.0.0/0", "255.1.2.3") && !has("0.0.0.0/0", "::1"));
        assert!(has("192.0.2.7", "192.0.2.7") && !has("192.0.2.7", "192.0.2.6"));
        assert!(has("2001:db8::/33", "2001:db8:7fff::1") && !has("2001:db8::/33", "2001:db8:8000::1"));
        assert!(has("::/0", "fe80::1") && !has("::/0", "1.2.3.4"));
    }

    #[test]
    fn a_name_is_itself_and_a_starred_one_is_all_below_it() {
        let is = |rule: &str, name: &str| rule.parse::<HostRule>().unwrap().matches(name);
        assert!(is("pypi.org", "pypi.org") && !is("pypi.org", "a.pypi.org") && !is("pypi.org", "xpypi.org"));
        assert!(is("*.debian.org", "deb.debian.org") && is("*.debian.org", "a.b.debian.org"));
        assert!(!is("*.debian.org", "debian.org") && !is("*.debian.org", "notdebian.org"));
        assert!(!is("*.debian.org", ".debian.org"));
    }
}
