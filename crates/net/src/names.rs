//! Questions and answers of the DNS (RFC 1035), as far as a rule by name needs them.

use std::net::IpAddr;

const HEADER: usize = 12;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
/// Points to the first name of a message, right after its header.
const THE_QUESTIONS_NAME: [u8; 2] = [0xc0, 12];
/// The response codes of RFC 1035.
const NO_SUCH_NAME: u8 = 3;
const REFUSED: u8 = 5;
/// How long what is told of siblings may be remembered: names move when sandboxes are renamed.
const SECONDS_KNOWN: u32 = 5;
/// More answers than this are not looked at.
const MOST_ANSWERS: u16 = 256;

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// Whether it is an answer.
    pub(crate) is_answer: bool,
    /// The name that is asked for, in lower case and without a dot at its end.
    pub(crate) name: String,
    /// The addresses that are answered.
    pub(crate) addresses: Vec<IpAddr>,
}

/// Reads a message with one question, as all are.
pub(crate) fn read(bytes: &[u8]) -> Option<Message> {
    let header = bytes.first_chunk::<HEADER>()?;
    let pair = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    if pair(4) != 1 {
        return None;
    }
    let (name, at) = question(bytes)?;
    let is_answer = header[2] & 0x80 != 0;
    let addresses = if is_answer { answers(bytes, at, pair(6).min(MOST_ANSWERS)) } else { Vec::new() };
    Some(Message { is_answer, name, addresses })
}

/// The question's name, and where what follows it begins.
fn question(bytes: &[u8]) -> Option<(String, usize)> {
    let (mut at, mut name) = (HEADER, String::new());
    loop {
        let len = usize::from(*bytes.get(at)?);
        at += 1;
        if len == 0 {
            break;
        }
        // A question comes first, so there is nothing that it could point to.
        if len > 63 || name.len() + len > 255 {
            return None;
        }
        let label = bytes.get(at..at + len)?;
        // A dot within a label would read as two.
        if label.iter().any(|byte| !byte.is_ascii_graphic() || *byte == b'.') {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
        at += len;
    }
    bytes.get(at..at + 4)?;
    Some((name, at + 4))
}

fn answers(bytes: &[u8], mut at: usize, count: u16) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for _ in 0..count {
        let Some((address, next)) = answer(bytes, at) else { break };
        found.extend(address);
        at = next;
    }
    found
}

fn answer(bytes: &[u8], at: usize) -> Option<(Option<IpAddr>, usize)> {
    let at = after_name(bytes, at)?;
    let fixed = bytes.get(at..)?.first_chunk::<10>()?;
    let len = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
    let data = bytes.get(at + 10..at + 10 + len)?;
    let address = match (u16::from_be_bytes([fixed[0], fixed[1]]), len) {
        (TYPE_A, 4) => data.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        (TYPE_AAAA, 16) => data.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
        _ => None,
    };
    Some((address, at + 10 + len))
}

/// Where what follows a name begins; where the name points to does not matter.
fn after_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let len = *bytes.get(at)?;
        match len {
            0 => return Some(at + 1),
            1..=63 => at += 1 + usize::from(len),
            192.. => return Some(at + 2),
            _ => return None,
        }
    }
}

/// The answer that a question is refused.
pub(crate) fn refused(question: &[u8]) -> Option<Vec<u8>> {
    reply(question, REFUSED)
}

/// The answer that there is no such name.
pub(crate) fn unknown(question: &[u8]) -> Option<Vec<u8>> {
    reply(question, NO_SUCH_NAME)
}

/// The answer that the name has these addresses: those of the kind that was asked for, which may be none.
pub(crate) fn told(question: &[u8], addresses: &[IpAddr]) -> Option<Vec<u8>> {
    let mut answer = reply(question, 0)?;
    let asked @ [kind @ .., _, _] = *answer.last_chunk::<4>()?;
    for address in addresses {
        let (its, octets) = match address {
            IpAddr::V4(v4) => (TYPE_A, v4.octets().to_vec()),
            IpAddr::V6(v6) => (TYPE_AAAA, v6.octets().to_vec()),
        };
        if kind != its.to_be_bytes() {
            continue;
        }
        answer[7] += 1;
        answer.extend(THE_QUESTIONS_NAME);
        // Kind and class as they were asked for.
        answer.extend(asked);
        answer.extend(SECONDS_KNOWN.to_be_bytes());
        answer.extend(u16::try_from(octets.len()).ok()?.to_be_bytes());
        answer.extend(octets);
    }
    Some(answer)
}

/// A question's answer without records.
fn reply(question: &[u8], code: u8) -> Option<Vec<u8>> {
    let (_, end) = self::question(question)?;
    let mut answer = question.get(..end)?.to_vec();
    // An answer, recursion as it was desired.
    answer[2] = 0x80 | (answer[2] & 0x01);
    answer[3] = 0x80 | code;
    answer[6..12].fill(0);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const QUESTION: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x04PyPI\x03org\0\0\x01\0\x01";

    fn with_answers() -> Vec<u8> {
        let mut answer = QUESTION.to_vec();
        answer[2] = 0x81;
        answer[7] = 3;
        // An alias, then an address of each family.
        answer.extend(b"\xc0\x0c\0\x05\0\x01\0\0\0\x3c\0\x04\x01a\xc0\x11");
        answer.extend(b"\x01a\xc0\x11\0\x01\0\x01\0\0\0\x3c\0\x04\x01\x02\x03\x04");
        answer.extend(b"\xc0\x0c\0\x1c\0\x01\0\0\0\x3c\0\x10\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x07");
        answer
    }

    #[test]
    fn a_question_has_a_name_and_an_answer_has_addresses() {
        let asked = read(QUESTION).unwrap();
        assert_eq!((asked.is_answer, asked.name.as_str()), (false, "pypi.org"));
        let told = read(&with_answers()).unwrap();
        assert_eq!((told.is_answer, told.name.as_str()), (true, "pypi.org"));
        let addresses: Vec<String> = told.addresses.iter().map(IpAddr::to_string).collect();
        assert_eq!(addresses, ["1.2.3.4", "2001:db8::7"]);
        let mut dotted = QUESTION.to_vec();
        dotted[14] = b'.';
        assert_eq!(read(&dotted), None);
    }

    #[test]
    fn a_refusal_repeats_the_question() {
        let refusal = refused(QUESTION).unwrap();
        assert_eq!(refusal[..4], [0x12, 0x34, 0x81, 0x85]);
        assert_eq!(refusal[4..], QUESTION[4..]);
        assert!(read(&refusal).unwrap().is_answer);
        assert_eq!(refused(&QUESTION[..20]), None);
    }

    #[test]
    fn a_name_is_told_with_the_addresses_of_the_kind_that_was_asked_for() {
        let addresses: [IpAddr; 2] = ["198.19.1.2".parse().unwrap(), "fd62:6874::1".parse().unwrap()];
        assert_eq!(read(&told(QUESTION, &addresses).unwrap()).unwrap().addresses, addresses[..1]);
        let mut other = QUESTION.to_vec();
        let kind = other.len() - 3;
        other[kind] = 28;
        assert_eq!(read(&told(&other, &addresses).unwrap()).unwrap().addresses, addresses[1..]);
        other[kind] = 15;
        assert_eq!(read(&told(&other, &addresses).unwrap()).unwrap().addresses, [] as [IpAddr; 0]);
        assert_eq!(unknown(QUESTION).unwrap()[3], 0x83);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = (read(&bytes), refused(&bytes), told(&bytes, &[IpAddr::from([1; 4])]));
        }

        #[test]
        fn a_cut_or_flipped_answer_is_read_without_a_panic(at in any::<prop::sample::Index>(), with: u8, cut: bool) {
            let mut bytes = with_answers();
            let at = at.index(bytes.len());
            bytes[at] = with;
            if cut {
                bytes.truncate(at);
            }
            let _ = (read(&bytes), refused(&bytes));
        }
    }
}
