//! The language spoken between the host and the agent in the guest, over one byte stream, without any I/O.
//!
//! `docs/formats/wire.md` draws every frame byte by byte. The parts, in reading order:
//! - [`request`]: what the host asks and how the guest answers (JSON, one type a verb);
//! - [`message`]: the frames, as values;
//! - [`encode`] and [`Decoder`]: values to bytes and back, incrementally;
//! - [`Scanner`]: finding the start of a session among stale bytes.
//!
//! # A session
//! ```text
//! host                                         agent
//!   [PADDING]? ATTACH_MAGIC Attach ─────────►   Seeking: skips all bytes up to the magic
//!              ◄──── WELCOME_MAGIC nonce Welcome   (or AttachFailed, then Seeking again)
//!   Open, Data, Eof, Credit, ...   ─────────►   Framed
//!              ◄──── Started, Stdout, ..., Exit
//!   Detach                         ─────────►
//!              ◄──── Detached                      then Seeking
//! ```
//! [`PADDING_LEN`] zero bytes are sent first when the host does not know what the agent has read of an earlier
//! host's last frame: they fill any half frame up, and the zero header after it is invalid, which makes the agent
//! drop the old session and seek.
//!
//! # Streams and credit
//! The host chooses stream ids, increasing and never 0, and never uses one again in a session. Each side may send at most
//! [`WINDOW`] bytes of `Data`/`Stdout`/`Stderr` on a stream before it gets `Credit` for more; the receiver grants
//! credit for what it has consumed. `Exit`, `Failed` and `Reply` end a stream; what arrives for a stream that has
//! ended is ignored by both sides.

mod codec;
mod hex;
pub mod message;
pub mod request;
mod scan;

pub use codec::{DataFrame, Decoder, WireError, encode};
pub use hex::Hex;
pub use message::{
    Attach, AttachFailed, CommandDefaults, ErrorCode, ExitStatus, Failure, Frame, Identity, InlineConfig,
    Message, Net, Secrets, Started, Welcome, WindowSize,
};
pub use request::{
    Connect, Exec, FileKind, FileList, FileRead, FileStat, FileWrite, Info, LineRange, Listener, ReadSummary,
    Reply, Request, Session, SessionInfo, SessionKind, StatRequest, Tty, VolumeGrowth, VolumeMount,
};
pub use scan::Scanner;

/// The version of everything in this crate. An agent lives on in memory images, so it may be older than the host: a
/// field that is added must have a default, and anything else raises this number.
pub const PROTOCOL: u32 = 1;

/// What begins a session, from the host. Its first byte occurs nowhere else in it.
pub const ATTACH_MAGIC: [u8; 16] = *b"\x89bhatti-attach\r\n";

/// What begins the agent's answer; the host's nonce follows.
pub const WELCOME_MAGIC: [u8; 16] = *b"\x89bhatti-hello!\r\n";

/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 8;

/// The largest payload of one frame.
pub const MAX_PAYLOAD: usize = 32 * 1024;

/// The largest frame.
pub const MAX_FRAME: usize = HEADER_LEN + MAX_PAYLOAD;

/// Zero bytes that are certain to end any half-read frame and to make the next header invalid.
pub const PADDING_LEN: usize = MAX_FRAME + HEADER_LEN;

/// The largest JSON message, which may be spread over several frames.
pub const MAX_MESSAGE: usize = 1024 * 1024;

/// Data bytes that may be under way on one stream in one direction without credit.
pub const WINDOW: u32 = 256 * 1024;

/// How many listeners are told of at most.
pub const MAX_LISTENERS: usize = 1024;

/// How many stale bytes the host skips at most while it looks for [`WELCOME_MAGIC`]. An agent that was stopped in the
/// middle of talking may have that many for an earlier host: 128 buffers of 32 KiB in the port's queue, and behind
/// them what it keeps itself before it stops listening (1 MiB, and the answer that went over it).
pub const MAX_STALE: usize = 8 * 1024 * 1024;

/// A number that is chosen at random to recognise an answer or a run of a guest.
pub type Nonce = Hex<16>;

/// Random bytes for the guest's entropy pool.
pub type Entropy = Hex<64>;
