//! A session's scrollback: the last bytes of an endless output, addressed by their place in all of it.

use std::collections::VecDeque;

/// How much a session remembers.
pub const CAPACITY: usize = 64 * 1024;

/// The last [`CAPACITY`] bytes. Positions count from the session's first byte and never go back.
#[derive(Debug, Default)]
pub struct Ring {
    bytes: VecDeque<u8>,
    /// The position of the first byte that is still there.
    start: u64,
}

impl Ring {
    /// Appends, forgetting the oldest bytes where they do not fit.
    pub fn push(&mut self, bytes: &[u8]) {
        let dropped_new = bytes.len().saturating_sub(CAPACITY);
        let kept = &bytes[dropped_new..];
        let dropped_old = (self.bytes.len() + kept.len()).saturating_sub(CAPACITY);
        self.bytes.drain(..dropped_old);
        self.bytes.extend(kept);
        self.start += u64::try_from(dropped_old + dropped_new).unwrap_or(u64::MAX);
    }

    /// The oldest position there is.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The position after the newest byte.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(u64::try_from(self.bytes.len()).unwrap_or(u64::MAX))
    }

    /// Bytes from `position` on (or from the oldest, if it is gone), at most `limit`, in up to two pieces, and the
    /// position after them.
    pub fn read(&self, position: u64, limit: usize) -> (&[u8], &[u8], u64) {
        let position = position.clamp(self.start, self.end());
        let skip = usize::try_from(position - self.start).unwrap_or(usize::MAX).min(self.bytes.len());
        let take = limit.min(self.bytes.len() - skip);
        let (front, back) = self.bytes.as_slices();
        let cut = |slice: &'_ [u8], from: usize, to: usize| from.min(slice.len())..to.min(slice.len());
        let head = &front[cut(front, skip, skip + take)];
        let back_from = skip.saturating_sub(front.len());
        let tail = &back[cut(back, back_from, (skip + take).saturating_sub(front.len()))];
        (head, tail, position + u64::try_from(head.len() + tail.len()).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_reader_sees_every_byte_that_is_still_there_in_order(
            pushes in proptest::collection::vec((any::<u8>(), 0usize..40_000), 1..12),
            from in 0u64..200_000,
            limit in 1usize..70_000,
        ) {
            let (mut ring, mut all) = (Ring::default(), Vec::new());
            for (byte, len) in pushes {
                let chunk: Vec<u8> = (0..len).map(|at| byte.wrapping_add(u8::try_from(at % 251).expect("small"))).collect();
                ring.push(&chunk);
                all.extend_from_slice(&chunk);
            }
            prop_assert_eq!(ring.end(), u64::try_from(all.len()).expect("small"));
            prop_assert_eq!(usize::try_from(ring.end() - ring.start()).expect("small"), all.len().min(CAPACITY));
            let (head, tail, next) = ring.read(from, limit);
            let begin = usize::try_from(from.clamp(ring.start(), ring.end())).expect("small");
            let end = (begin + limit).min(all.len());
            prop_assert_eq!([head, tail].concat(), &all[begin..end]);
            prop_assert_eq!(next, u64::try_from(end).expect("small"));
        }
    }
}
