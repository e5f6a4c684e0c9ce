//! What becomes of a frame: passed on, dropped, or answered here.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};

use crate::names;
use crate::packet::{Ip, Packet, look};
use crate::reach::Reach;
use crate::switch::{Known, Route, Switch};
use crate::{DNS, GATEWAY_V4, GATEWAY_V6};

const DNS_PORT: u16 = 53;

/// What becomes of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict<'a> {
    /// It goes on.
    Pass,
    /// The packet in it goes to the sibling of that address.
    ToSibling(Ipv4Addr, &'a [u8]),
    /// It ends here.
    Drop,
    /// It ends here, and its sender gets this frame.
    Answer(Vec<u8>),
}

/// What becomes of a frame that the guest sends; `siblings` is the way to them, where there is one.
pub(crate) fn outbound<'a>(
    frame: &'a [u8],
    reach: &Reach,
    host: &HashSet<IpAddr>,
    siblings: Option<&Switch>,
) -> Verdict<'a> {
    let ip = match look(frame) {
        Packet::Neighbour => return Verdict::Pass,
        Packet::Other => return Verdict::Drop,
        Packet::Ip(ip) => ip,
    };
    if is_question(&ip) && (reach.asks() || siblings.is_some()) {
        return question(frame, &ip, reach, siblings);
    }
    let passes = match siblings.map_or(Route::Elsewhere, |siblings| siblings.route(ip.from, ip.to)) {
        Route::Sibling(address) => return Verdict::ToSibling(address, ip.whole),
        Route::Nobody => false,
        Route::Elsewhere => reach.allows(ip.to, host),
    };
    if passes {
        return Verdict::Pass;
    }
    ip.refusal(frame, (GATEWAY_V4, GATEWAY_V6)).map_or(Verdict::Drop, Verdict::Answer)
}

/// What becomes of a question for a name: siblings are known here, all others to the host's resolver.
fn question(frame: &[u8], ip: &Ip<'_>, reach: &Reach, siblings: Option<&Switch>) -> Verdict<'static> {
    let Some(udp) = ip.udp else { return Verdict::Drop };
    let Some(asked) = names::read(udp.payload) else { return Verdict::Drop };
    let answer = match siblings.map_or(Known::Not, |siblings| siblings.look_up(&asked.name)) {
        Known::At(addresses) => names::told(udp.payload, &addresses),
        Known::Nobody => names::unknown(udp.payload),
        Known::Not if reach.may_ask_for(&asked.name) => return Verdict::Pass,
        Known::Not => names::refused(udp.payload),
    };
    answer.and_then(|answer| ip.udp_reply(frame, &answer)).map_or(Verdict::Drop, Verdict::Answer)
}

/// Takes note of what a frame for the guest says of names that it may reach.
pub(crate) fn learn(frame: &[u8], reach: &mut Reach) {
    let Packet::Ip(Ip { from, udp: Some(udp), .. }) = look(frame) else { return };
    if from != IpAddr::from(DNS) || udp.from != DNS_PORT {
        return;
    }
    if let Some(told) = names::read(udp.payload)
        && told.is_answer
        && reach.is_named(&told.name)
    {
        reach.learn(told.addresses);
    }
}

fn is_question(ip: &Ip<'_>) -> bool {
    ip.to == IpAddr::from(DNS) && ip.udp.is_some_and(|udp| udp.to == DNS_PORT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::testing::udp;
    use types::Egress;

    const QUESTION: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x04pypi\x03org\0\0\x01\0\x01";

    fn reach(words: &[&str]) -> Reach {
        Reach::new(Egress::from_words(words).unwrap())
    }

    fn verdict(words: &[&str], to: (&str, u16), payload: &[u8]) -> Verdict<'static> {
        let from = if to.0.contains(':') { "fd62::1" } else { "198.19.0.2" };
        outbound(udp((from, 4000), to, payload).leak(), &reach(words), &HashSet::new(), None)
    }

    #[test]
    fn what_may_not_be_reached_is_refused_at_once() {
        assert_eq!(verdict(&["public"], ("1.1.1.1", 443), b""), Verdict::Pass);
        assert_eq!(verdict(&["public"], ("2606:4700::1", 443), b""), Verdict::Pass);
        for to in ["10.0.0.1", "127.0.0.1", "169.254.169.254", "198.18.0.1", "fd00::1", "fe80::1"] {
            assert!(matches!(verdict(&["public"], (to, 80), b""), Verdict::Answer(_)), "{to}");
        }
        assert_eq!(verdict(&["public"], ("224.0.0.251", 5353), b""), Verdict::Drop);
        assert_eq!(verdict(&["public"], ("ff02::16", 1), b""), Verdict::Drop);
        assert!(matches!(verdict(&["none"], ("1.1.1.1", 443), b""), Verdict::Answer(_)));
        assert_eq!(outbound(&[0; 60], &reach(&["public"]), &HashSet::new(), None), Verdict::Drop);
    }

    #[test]
    fn a_senders_address_changes_nothing() {
        for from in ["1.2.3.4", "127.0.0.1", "10.0.0.1"] {
            let frame = udp((from, 1), ("10.0.0.1", 80), b"");
            assert!(matches!(
                outbound(&frame, &reach(&["public"]), &HashSet::new(), None),
                Verdict::Answer(_)
            ));
        }
    }

    #[test]
    fn names_are_asked_for_by_those_who_may_reach_something() {
        for words in [&["public"][..], &["10.0.0.0/8"], &["pypi.org"], &["*.org"]] {
            assert_eq!(verdict(words, ("198.18.0.1", 53), QUESTION), Verdict::Pass, "{words:?}");
        }
        assert!(matches!(verdict(&["none"], ("198.18.0.1", 53), QUESTION), Verdict::Answer(_)));
        let Verdict::Answer(frame) = verdict(&["debian.org"], ("198.18.0.1", 53), QUESTION) else {
            panic!("not refused")
        };
        let Packet::Ip(ip) = look(&frame) else { panic!("{frame:?}") };
        assert!(names::read(ip.udp.unwrap().payload).unwrap().is_answer);
        assert_eq!(verdict(&["public"], ("198.18.0.1", 53), b"no question"), Verdict::Drop);
    }

    #[test]
    fn an_allowed_names_answer_opens_the_way_and_nobody_elses_does() {
        let mut answer = QUESTION.to_vec();
        (answer[2], answer[7]) = (0x81, 1);
        answer.extend(b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x01\x02\x03\x04");
        let to: IpAddr = "1.2.3.4".parse().unwrap();
        let after = |words: &[&str], from: (&str, u16)| {
            let mut reach = reach(words);
            learn(&udp(from, ("198.19.0.2", 4000), &answer), &mut reach);
            reach.allows(to, &HashSet::new())
        };
        assert!(after(&["pypi.org"], ("198.18.0.1", 53)));
        assert!(!after(&["debian.org"], ("198.18.0.1", 53)));
        assert!(!after(&["pypi.org"], ("198.18.0.1", 54)) && !after(&["pypi.org"], ("1.1.1.1", 53)));
    }
}
