//! Bytes on their way from the host into a process, a terminal or a file.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

/// Credit is granted in pieces of at least this much, so that a keystroke does not cost a frame back.
const GRANT: u32 = 64 * 1024;

/// What end-of-file is on a terminal.
const END_OF_TRANSMISSION: &[u8] = b"\x04";

/// The writing end and what waits for it.
///
/// # Invariants
/// What waits is bounded by the credit that was granted; bytes count as consumed when they were written, or when
/// nobody can read them any more.
#[derive(Debug)]
pub struct Feed {
    target: Option<OwnedFd>,
    waiting: VecDeque<u8>,
    ends: bool,
    terminal: bool,
    ungranted: u32,
}

/// What the owner of a feed has to do after something changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedState {
    /// Nothing waits.
    Idle,
    /// Call [`Feed::flush`] when the target takes bytes again.
    Blocked,
    /// The target is to be closed: [`Feed::close`].
    Ended,
}

impl Feed {
    /// A feed into `target` (non-blocking), or into nothing.
    pub fn new(target: Option<OwnedFd>, terminal: bool) -> Feed {
        Feed { target, waiting: VecDeque::new(), ends: false, terminal, ungranted: 0 }
    }

    /// The writing end, while it is open.
    pub fn target(&self) -> Option<BorrowedFd<'_>> {
        self.target.as_ref().map(AsFd::as_fd)
    }

    /// Takes bytes in and writes what can be written now.
    pub fn push(&mut self, bytes: &[u8]) -> FeedState {
        if self.ends {
            return self.state();
        }
        if self.target.is_none() {
            self.consumed(bytes.len());
            return FeedState::Idle;
        }
        self.waiting.extend(bytes);
        self.flush()
    }

    /// No more bytes will come.
    pub fn end(&mut self) -> FeedState {
        if !self.ends {
            self.ends = !self.terminal;
            if self.terminal {
                self.waiting.extend(END_OF_TRANSMISSION);
            }
        }
        self.flush()
    }

    /// Whether the end was passed on, so that the reader knows it has everything.
    pub fn has_ended(&self) -> bool {
        self.ends && self.target.is_none()
    }

    /// Writes what can be written now.
    pub fn flush(&mut self) -> FeedState {
        while let (Some(target), false) = (&self.target, self.waiting.is_empty()) {
            let (front, _) = self.waiting.as_slices();
            match rustix::io::write(target, front) {
                Ok(len) => {
                    self.waiting.drain(..len);
                    self.consumed(len);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return FeedState::Blocked,
                // The reader is gone; what it does not want is consumed all the same.
                Err(_) => {
                    self.consumed(self.waiting.len());
                    self.waiting = VecDeque::new();
                    return FeedState::Ended;
                }
            }
        }
        if self.waiting.capacity() > 4096 {
            self.waiting = VecDeque::new();
        }
        self.state()
    }

    fn state(&self) -> FeedState {
        match (self.ends && self.target.is_some(), self.waiting.is_empty()) {
            (_, false) => FeedState::Blocked,
            (true, true) => FeedState::Ended,
            (false, true) => FeedState::Idle,
        }
    }

    /// Closes the writing end.
    pub fn close(&mut self) {
        self.target = None;
    }

    fn consumed(&mut self, len: usize) {
        self.ungranted = self.ungranted.saturating_add(u32::try_from(len).unwrap_or(u32::MAX));
    }

    /// The credit to grant now, if it is worth a frame.
    pub fn grant(&mut self) -> Option<u32> {
        (self.ungranted >= GRANT).then(|| std::mem::take(&mut self.ungranted))
    }
}
