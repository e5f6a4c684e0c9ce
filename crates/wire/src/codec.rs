//! Frames to bytes, and bytes to frames.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::message::{Frame, Message, WindowSize};
use crate::{HEADER_LEN, MAX_MESSAGE, MAX_PAYLOAD};

/// Frame kinds, as on the wire. 0 is none of them, so a zero header is invalid.
mod kind {
    pub const ATTACH: u8 = 0x01;
    pub const WELCOME: u8 = 0x02;
    pub const ATTACH_FAILED: u8 = 0x03;
    pub const DETACH: u8 = 0x04;
    pub const DETACHED: u8 = 0x05;
    pub const OPEN: u8 = 0x10;
    pub const DATA: u8 = 0x11;
    pub const EOF: u8 = 0x12;
    pub const CREDIT: u8 = 0x13;
    pub const RESIZE: u8 = 0x14;
    pub const SIGNAL: u8 = 0x15;
    pub const CANCEL: u8 = 0x16;
    pub const STARTED: u8 = 0x20;
    pub const STDOUT: u8 = 0x21;
    pub const STDERR: u8 = 0x22;
    pub const META: u8 = 0x23;
    pub const REPLY: u8 = 0x24;
    pub const EXIT: u8 = 0x25;
    pub const FAILED: u8 = 0x26;

    /// Set in the kind of a JSON frame whose message goes on in the next frame.
    pub const CONTINUED: u8 = 0x80;

    /// Whether frames of this kind carry JSON, `None` if there is no such kind.
    pub fn is_json(kind: u8) -> Option<bool> {
        match kind {
            ATTACH | WELCOME | ATTACH_FAILED | OPEN | STARTED | META | REPLY | EXIT | FAILED => Some(true),
            DETACH | DETACHED | DATA | EOF | CREDIT | RESIZE | SIGNAL | CANCEL | STDOUT | STDERR => {
                Some(false)
            }
            _ => None,
        }
    }
}

/// Bytes that are no frame, or a message that is none.
#[derive(Debug, Error)]
pub enum WireError {
    /// No such frame kind (also: the zero header of padding, and half frames of an earlier session).
    #[error("frame of unknown kind {kind:#04x} on stream {stream}")]
    UnknownKind {
        /// The stream of the bad header.
        stream: u32,
        /// The kind of the bad header.
        kind: u8,
    },
    /// A frame longer than any may be.
    #[error("frame of {len} bytes on stream {stream}, more than {MAX_PAYLOAD}")]
    Oversized {
        /// The stream of the bad header.
        stream: u32,
        /// The length in the bad header.
        len: usize,
    },
    /// A message longer than any may be: [`MAX_MESSAGE`].
    #[error("message of {len} bytes on stream {stream}, more than {MAX_MESSAGE}")]
    TooLong {
        /// The stream of the message.
        stream: u32,
        /// Its length so far.
        len: usize,
    },
    /// A message in parts was interrupted by another frame.
    #[error("a message on stream {stream} was not continued")]
    Interrupted {
        /// The stream of the message.
        stream: u32,
    },
    /// A frame whose payload does not say what its kind promises. The stream of frames goes on after it.
    #[error("payload of a frame of kind {kind:#04x} on stream {stream} makes no sense")]
    Malformed {
        /// The stream of the frame.
        stream: u32,
        /// Whether it was an `Open`, which deserves an answer.
        open: bool,
        /// Its kind.
        kind: u8,
        /// What the JSON parser says, if it was JSON.
        source: Option<serde_json::Error>,
    },
}

impl WireError {
    /// Whether the place of the next frame is lost, so that only a new session helps.
    pub fn is_fatal(&self) -> bool {
        !matches!(self, WireError::Malformed { .. })
    }
}

/// Appends a message to `out`: data in as many frames as it takes, JSON in parts if it is long.
///
/// The only error is [`WireError::TooLong`], and `out` is then unchanged.
pub fn encode(stream: u32, message: &Message, out: &mut Vec<u8>) -> Result<(), WireError> {
    match message {
        Message::Attach(body) => put_json(stream, kind::ATTACH, body, out),
        Message::Welcome(body) => put_json(stream, kind::WELCOME, body, out),
        Message::AttachFailed(body) => put_json(stream, kind::ATTACH_FAILED, body, out),
        Message::Detach => put(stream, kind::DETACH, &[], out),
        Message::Detached => put(stream, kind::DETACHED, &[], out),
        Message::Open(body) => put_json(stream, kind::OPEN, body, out),
        Message::Data(bytes) => put_data(stream, kind::DATA, bytes, out),
        Message::Eof => put(stream, kind::EOF, &[], out),
        Message::Credit(bytes) => put(stream, kind::CREDIT, &bytes.to_le_bytes(), out),
        Message::Resize(size) => {
            let [r0, r1] = size.rows.to_le_bytes();
            let [c0, c1] = size.cols.to_le_bytes();
            put(stream, kind::RESIZE, &[r0, r1, c0, c1], out)
        }
        Message::Signal(number) => put(stream, kind::SIGNAL, &number.to_le_bytes(), out),
        Message::Cancel => put(stream, kind::CANCEL, &[], out),
        Message::Started(body) => put_json(stream, kind::STARTED, body, out),
        Message::Stdout(bytes) => put_data(stream, kind::STDOUT, bytes, out),
        Message::Stderr(bytes) => put_data(stream, kind::STDERR, bytes, out),
        Message::Meta(body) => put_json(stream, kind::META, body, out),
        Message::Reply(body) => put_json(stream, kind::REPLY, body, out),
        Message::Exit(body) => put_json(stream, kind::EXIT, body, out),
        Message::Failed(body) => put_json(stream, kind::FAILED, body, out),
    }
}

fn header(stream: u32, kind: u8, len: usize) -> [u8; HEADER_LEN] {
    let len = u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    let id = stream.to_le_bytes();
    [id[0], id[1], id[2], id[3], kind, len[0], len[1], len[2]]
}

fn put(stream: u32, kind: u8, payload: &[u8], out: &mut Vec<u8>) -> Result<(), WireError> {
    out.extend_from_slice(&header(stream, kind, payload.len()));
    out.extend_from_slice(payload);
    Ok(())
}

fn put_data(stream: u32, kind: u8, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), WireError> {
    if bytes.is_empty() {
        return put(stream, kind, bytes, out);
    }
    bytes.chunks(MAX_PAYLOAD).try_for_each(|chunk| put(stream, kind, chunk, out))
}

fn put_json(stream: u32, kind: u8, body: &impl Serialize, out: &mut Vec<u8>) -> Result<(), WireError> {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_LEN]);
    let body_start = out.len();
    if let Err(source) = serde_json::to_writer(&mut *out, body) {
        out.truncate(start);
        return Err(WireError::Malformed { stream, open: kind == kind::OPEN, kind, source: Some(source) });
    }
    let len = out.len() - body_start;
    if len <= MAX_PAYLOAD {
        out[start..body_start].copy_from_slice(&header(stream, kind, len));
        return Ok(());
    }
    let body = out.split_off(body_start);
    out.truncate(start);
    if len > MAX_MESSAGE {
        return Err(WireError::TooLong { stream, len });
    }
    let mut parts = body.chunks(MAX_PAYLOAD).peekable();
    while let Some(part) = parts.next() {
        let more = if parts.peek().is_some() { kind::CONTINUED } else { 0 };
        put(stream, kind | more, part, out)?;
    }
    Ok(())
}

/// A data frame that is filled in place, so that what is read from a pipe is not copied once more.
#[derive(Debug)]
#[must_use]
pub struct DataFrame {
    stream: u32,
    kind: u8,
    start: usize,
}

impl DataFrame {
    /// Begins a `Stdout` frame at the end of `out`; append at most [`MAX_PAYLOAD`] bytes, then call
    /// [`DataFrame::finish`].
    pub fn stdout(stream: u32, out: &mut Vec<u8>) -> DataFrame {
        DataFrame::begin(stream, kind::STDOUT, out)
    }

    /// As [`DataFrame::stdout`], for `Stderr`.
    pub fn stderr(stream: u32, out: &mut Vec<u8>) -> DataFrame {
        DataFrame::begin(stream, kind::STDERR, out)
    }

    fn begin(stream: u32, kind: u8, out: &mut Vec<u8>) -> DataFrame {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER_LEN]);
        DataFrame { stream, kind, start }
    }

    /// Writes the header for what was appended, or takes the frame back if that was nothing; tells the length.
    pub fn finish(self, out: &mut Vec<u8>) -> usize {
        let body = self.start + HEADER_LEN;
        let len = out.len() - body;
        debug_assert!(len <= MAX_PAYLOAD);
        if len == 0 {
            out.truncate(self.start);
        } else {
            out[self.start..body].copy_from_slice(&header(self.stream, self.kind, len));
        }
        len
    }
}

/// Turns bytes, cut anywhere, into frames. Never panics, whatever the bytes.
///
/// # Invariants
/// It keeps at most one frame and one unfinished message besides what was pushed and not yet asked for.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Where in `buffer` the next frame begins.
    at: usize,
    partial: Option<Partial>,
}

#[derive(Debug)]
struct Partial {
    stream: u32,
    kind: u8,
    body: Vec<u8>,
}

impl Decoder {
    /// A decoder that expects the beginning of a frame.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Takes bytes in.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.at == self.buffer.len() {
            self.buffer.clear();
            self.at = 0;
        } else if self.at > MAX_PAYLOAD {
            self.buffer.drain(..self.at);
            self.at = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame, `None` if it is not complete yet.
    ///
    /// After an error with [`WireError::is_fatal`] only [`Decoder::take_rest`] makes sense: asking again gives the
    /// same error. Any other error has skipped the frame at fault.
    #[expect(clippy::should_implement_trait, reason = "not an iterator: more bytes may follow a None")]
    pub fn next(&mut self) -> Result<Option<Frame>, WireError> {
        loop {
            let Some(([b0, b1, b2, b3, raw_kind, l0, l1, l2], rest)) =
                self.buffer[self.at..].split_first_chunk()
            else {
                return Ok(None);
            };
            let stream = u32::from_le_bytes([*b0, *b1, *b2, *b3]);
            let len = usize::from(*l0) | usize::from(*l1) << 8 | usize::from(*l2) << 16;
            let kind = raw_kind & !kind::CONTINUED;
            let continued = raw_kind & kind::CONTINUED != 0;
            let json = match kind::is_json(kind) {
                Some(json) if json || !continued => json,
                _ => return Err(WireError::UnknownKind { stream, kind: *raw_kind }),
            };
            if len > MAX_PAYLOAD {
                return Err(WireError::Oversized { stream, len });
            }
            let earlier = match &self.partial {
                Some(partial) if (partial.stream, partial.kind) != (stream, kind) => {
                    return Err(WireError::Interrupted { stream: partial.stream });
                }
                Some(partial) => partial.body.len(),
                None => 0,
            };
            if earlier + len > MAX_MESSAGE {
                return Err(WireError::TooLong { stream, len: earlier + len });
            }
            let Some(payload) = rest.get(..len) else { return Ok(None) };
            self.at += HEADER_LEN + len;
            if !continued && self.partial.is_none() {
                let message = if json { parse_json(kind, payload) } else { parse_raw(kind, payload) };
                return frame(stream, kind, message).map(Some);
            }
            let partial = self.partial.get_or_insert_with(|| Partial { stream, kind, body: Vec::new() });
            partial.body.extend_from_slice(payload);
            if !continued {
                let whole = self.partial.take().map(|partial| partial.body).unwrap_or_default();
                return frame(stream, kind, parse_json(kind, &whole)).map(Some);
            }
        }
    }

    /// The bytes from the frame that could not be decoded on; the decoder is as new afterwards.
    pub fn take_rest(&mut self) -> Vec<u8> {
        let Decoder { mut buffer, at, .. } = std::mem::take(self);
        buffer.drain(..at);
        buffer
    }

    /// Whether everything pushed so far was whole frames.
    pub fn is_idle(&self) -> bool {
        self.at == self.buffer.len() && self.partial.is_none()
    }
}

fn frame(
    stream: u32,
    kind: u8,
    message: Result<Message, Option<serde_json::Error>>,
) -> Result<Frame, WireError> {
    match message {
        Ok(message) => Ok(Frame { stream, message }),
        Err(source) => Err(WireError::Malformed { stream, open: kind == kind::OPEN, kind, source }),
    }
}

fn parse_raw(kind: u8, payload: &[u8]) -> Result<Message, Option<serde_json::Error>> {
    Ok(match kind {
        kind::DATA => Message::Data(payload.to_vec()),
        kind::STDOUT => Message::Stdout(payload.to_vec()),
        kind::STDERR => Message::Stderr(payload.to_vec()),
        kind::CREDIT => Message::Credit(u32::from_le_bytes(payload.try_into().map_err(|_| None)?)),
        kind::SIGNAL => Message::Signal(i32::from_le_bytes(payload.try_into().map_err(|_| None)?)),
        kind::RESIZE => {
            let [r0, r1, c0, c1] = payload.try_into().map_err(|_| None)?;
            Message::Resize(WindowSize {
                rows: u16::from_le_bytes([r0, r1]),
                cols: u16::from_le_bytes([c0, c1]),
            })
        }
        _ if !payload.is_empty() => return Err(None),
        kind::DETACH => Message::Detach,
        kind::DETACHED => Message::Detached,
        kind::EOF => Message::Eof,
        kind::CANCEL => Message::Cancel,
        _ => return Err(None),
    })
}

fn parse_json(kind: u8, payload: &[u8]) -> Result<Message, Option<serde_json::Error>> {
    fn of<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Option<serde_json::Error>> {
        serde_json::from_slice(payload).map_err(Some)
    }
    Ok(match kind {
        kind::ATTACH => Message::Attach(of(payload)?),
        kind::WELCOME => Message::Welcome(of(payload)?),
        kind::ATTACH_FAILED => Message::AttachFailed(of(payload)?),
        kind::OPEN => Message::Open(of(payload)?),
        kind::STARTED => Message::Started(of(payload)?),
        kind::META => Message::Meta(of(payload)?),
        kind::REPLY => Message::Reply(of(payload)?),
        kind::EXIT => Message::Exit(of(payload)?),
        kind::FAILED => Message::Failed(of(payload)?),
        _ => return Err(None),
    })
}
