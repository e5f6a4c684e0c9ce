//! Finding a known sequence of bytes in a stream whose beginning is stale.

/// Looks for one pattern, byte by byte, across any splitting of the input.
#[derive(Debug)]
pub struct Scanner {
    pattern: Vec<u8>,
    /// For each prefix of the pattern, the length of the longest proper prefix that is also its suffix.
    fallback: Vec<usize>,
    matched: usize,
    skipped: usize,
}

impl Scanner {
    /// A scanner for `pattern`, which must not be empty.
    pub fn new(pattern: &[u8]) -> Scanner {
        let mut fallback = vec![0; pattern.len()];
        let mut length = 0;
        for at in 1..pattern.len() {
            while length > 0 && pattern[at] != pattern[length] {
                length = fallback[length - 1];
            }
            if pattern[at] == pattern[length] {
                length += 1;
            }
            fallback[at] = length;
        }
        Scanner { pattern: pattern.to_vec(), fallback, matched: 0, skipped: 0 }
    }

    /// The scanner by which the agent finds the start of a session.
    pub fn for_attach() -> Scanner {
        Scanner::new(&crate::ATTACH_MAGIC)
    }

    /// The scanner by which the host finds the answer to its own attach, and to no other.
    pub fn for_welcome(nonce: &crate::Nonce) -> Scanner {
        let mut pattern = crate::WELCOME_MAGIC.to_vec();
        pattern.extend_from_slice(&nonce.0);
        Scanner::new(&pattern)
    }

    /// Takes bytes in; once the pattern has been seen, gives the bytes after it and starts over.
    pub fn push<'a>(&mut self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        for (at, byte) in bytes.iter().enumerate() {
            while self.matched > 0 && self.pattern[self.matched] != *byte {
                self.matched = self.fallback[self.matched - 1];
            }
            if self.pattern[self.matched] == *byte {
                self.matched += 1;
            }
            if self.matched == self.pattern.len() {
                (self.matched, self.skipped) = (0, 0);
                return Some(&bytes[at + 1..]);
            }
        }
        self.skipped = self.skipped.saturating_add(bytes.len());
        None
    }

    /// Bytes that were read without finding the pattern (its beginning included).
    pub fn skipped(&self) -> usize {
        self.skipped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_pattern_that_repeats_itself_is_found_after_a_false_start() {
        let mut scanner = Scanner::new(b"aab");
        assert_eq!(scanner.push(b"aa"), None);
        assert_eq!(scanner.push(b"abX"), Some(&b"X"[..]));
    }

    proptest! {
        #[test]
        fn the_first_occurrence_is_found_however_the_stream_is_cut(
            pattern in proptest::collection::vec(0u8..3, 1..6),
            stream in proptest::collection::vec(0u8..3, 0..64),
            cut in 0usize..64,
        ) {
            let expected = stream.windows(pattern.len()).position(|window| window == pattern)
                .map(|at| stream[at + pattern.len()..].to_vec());
            let (head, tail) = stream.split_at(cut.min(stream.len()));
            let mut scanner = Scanner::new(&pattern);
            let found = match scanner.push(head) {
                Some(rest) => Some([rest, tail].concat()),
                None => scanner.push(tail).map(<[u8]>::to_vec),
            };
            prop_assert_eq!(found, expected);
        }
    }
}
