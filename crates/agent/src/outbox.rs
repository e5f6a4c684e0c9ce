//! Frames on their way to the host, in order.

use std::os::fd::AsFd;

use rustix::io::Errno;
use wire::{DataFrame, Failure, Message, WireError, encode};

/// Above this no more output is read from processes: what they write then waits in their pipes.
const HIGH_WATER: usize = 256 * 1024;

/// Above this nothing is read from the host either, whose requests make answers.
const FLOOD: usize = 4 * HIGH_WATER;

/// The least capacity worth giving back.
const SHRINK_ABOVE: usize = 64 * 1024;

/// The queue; a frame that was begun is always sent whole, unless a new session makes it stale.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outbox {
    /// Queues a message.
    pub fn push(&mut self, stream: u32, message: &Message) {
        if let Err(error) = encode(stream, message, &mut self.bytes) {
            let code = wire::ErrorCode::Io;
            let failed = Message::Failed(Failure { code, message: error.to_string() });
            let fits: Result<(), WireError> = encode(stream, &failed, &mut self.bytes);
            debug_assert!(fits.is_ok(), "a failure is short");
        }
    }

    /// Queues what a process or file gave; at most one frame's worth.
    pub fn push_output(&mut self, stream: u32, is_stderr: bool, pieces: [&[u8]; 2]) {
        let begin = if is_stderr { DataFrame::stderr } else { DataFrame::stdout };
        let frame = begin(stream, &mut self.bytes);
        pieces.iter().for_each(|piece| self.bytes.extend_from_slice(piece));
        frame.finish(&mut self.bytes);
    }

    /// Queues bytes that are no frame: the beginning of an answer to an attach.
    pub fn push_raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Forgets everything: the host it was meant for is gone.
    pub fn clear(&mut self) {
        *self = Outbox::default();
    }

    fn waiting(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Whether all was sent.
    pub fn is_empty(&self) -> bool {
        self.waiting() == 0
    }

    /// Whether output should wait.
    pub fn is_full(&self) -> bool {
        self.waiting() >= HIGH_WATER
    }

    /// Whether requests should wait.
    pub fn is_flooded(&self) -> bool {
        self.waiting() >= FLOOD
    }

    /// Writes as much as the port takes now. A port without a host takes nothing; that is no error, and neither is
    /// any other refusal: the host that comes next attaches anew.
    pub fn flush(&mut self, port: impl AsFd) {
        while self.sent < self.bytes.len() {
            match rustix::io::write(&port, &self.bytes[self.sent..]) {
                Ok(0) => return,
                Ok(len) => self.sent += len,
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
        self.sent = 0;
        self.bytes.clear();
        if self.bytes.capacity() > SHRINK_ABOVE {
            self.bytes = Vec::new();
        }
    }
}
