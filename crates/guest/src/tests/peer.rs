//! An agent that does what a test tells it.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::Instant;
use wire::{Attach, Decoder, Frame, Message, PROTOCOL, Scanner, WELCOME_MAGIC, Welcome};

use crate::{AttachOptions, Guest};

pub(super) struct Peer {
    pub(super) io: DuplexStream,
    decoder: Decoder,
}

pub(super) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

pub(super) fn options() -> AttachOptions {
    AttachOptions::plain(soon())
}

pub(super) fn welcome() -> Welcome {
    Welcome {
        protocol: PROTOCOL,
        agent_version: "0".to_owned(),
        boot_nonce: wire::Hex([9; 16]),
        configured: true,
        sandbox_id: Some("0123456789abcdef".to_owned()),
        warnings: Vec::new(),
        unmounted: Vec::new(),
        secrets: false,
    }
}

/// A greeted guest and its agent, with pipes of `capacity` bytes between them.
pub(super) async fn pair(capacity: usize) -> (Guest, Peer) {
    let (host, guest) = tokio::io::duplex(capacity);
    let mut peer = Peer::new(guest);
    let (attached, ()) = tokio::join!(Guest::attach(host, options()), async {
        let attach = peer.hear_attach().await;
        peer.say_welcome(&attach, &Message::Welcome(Box::new(welcome()))).await;
    });
    (attached.unwrap().0, peer)
}

impl Peer {
    pub(super) fn new(io: DuplexStream) -> Self {
        Self { io, decoder: Decoder::new() }
    }

    async fn read_more(&mut self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 64 * 1024];
        let read = tokio::time::timeout_at(soon(), self.io.read(&mut buffer))
            .await
            .expect("the host says something");
        let len = read.unwrap_or(0);
        buffer.truncate(len);
        (len > 0).then_some(buffer)
    }

    pub(super) async fn hear_attach(&mut self) -> Attach {
        let mut scanner = Scanner::for_attach();
        loop {
            let bytes = self.read_more().await.unwrap();
            if let Some(rest) = scanner.push(&bytes) {
                self.decoder.push(rest);
                break;
            }
        }
        match self.hear().await {
            Some(Frame { stream: 0, message: Message::Attach(attach) }) => *attach,
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn say_welcome(&mut self, attach: &Attach, message: &Message) {
        let mut bytes = WELCOME_MAGIC.to_vec();
        bytes.extend_from_slice(&attach.nonce.0);
        wire::encode(0, message, &mut bytes).unwrap();
        self.say_raw(&bytes).await;
    }

    /// The next frame; `None` when the host has closed the channel.
    pub(super) async fn hear(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next().unwrap() {
                return Some(frame);
            }
            let bytes = self.read_more().await?;
            self.decoder.push(&bytes);
        }
    }

    pub(super) async fn hear_message(&mut self) -> Message {
        self.hear().await.expect("a frame").message
    }

    /// The next frame, which must be an `Open`: its stream.
    pub(super) async fn hear_open(&mut self) -> u32 {
        match self.hear().await {
            Some(Frame { stream, message: Message::Open(_) }) => stream,
            other => panic!("{other:?}"),
        }
    }

    /// Whether the host says nothing for a while.
    pub(super) async fn hears_nothing(&mut self) -> bool {
        let quiet = Duration::from_millis(50);
        let mut buffer = [0; 1024];
        self.decoder.next().unwrap().is_none()
            && tokio::time::timeout(quiet, self.io.read(&mut buffer)).await.is_err()
    }

    pub(super) async fn say(&mut self, stream: u32, message: Message) {
        let mut bytes = Vec::new();
        wire::encode(stream, &message, &mut bytes).unwrap();
        self.say_raw(&bytes).await;
    }

    pub(super) async fn say_raw(&mut self, bytes: &[u8]) {
        // The host may have cut it off already.
        let _ = tokio::time::timeout_at(soon(), self.io.write_all(bytes)).await.expect("the host reads");
    }
}
