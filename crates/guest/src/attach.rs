//! The greeting: from a byte stream full of whatever was left in it to a session.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;
use wire::{
    ATTACH_MAGIC, Attach, Decoder, Entropy, ErrorCode, Failure, Frame, Identity, MAX_STALE, Message, Nonce,
};
use wire::{PADDING_LEN, PROTOCOL, Scanner, VolumeMount, Welcome};

use crate::channel::Core;
use crate::error::{Error, ErrorKind, Result, printable};
use crate::guest::Guest;

const OP: &str = "attach to the guest";

/// More warnings than this are not passed on.
const MAX_WARNINGS: usize = 32;

/// How to begin a session.
#[derive(Debug, Clone)]
pub struct AttachOptions {
    /// Send padding first: the agent may have read half a frame of an earlier host (after adopting a VMM).
    pub pad: bool,
    /// Who the guest is from now on: on first boots, cold boots and clones. `None` is a plain wake.
    pub identity: Option<Identity>,
    /// The size in bytes of the guest's root disk, to which its file system is to grow.
    pub grow_root_to: Option<u64>,
    /// Volumes to be mounted before any command of the sandbox runs.
    pub volumes: Vec<VolumeMount>,
    /// The sandbox's secrets as they are now; `None` leaves those that the guest knows.
    pub secrets: Option<wire::Secrets>,
    /// How it reaches the world; `None` leaves what it was told before, or is nothing for a new identity.
    pub net: Option<wire::Net>,
    /// When to give up.
    pub deadline: Instant,
}

impl AttachOptions {
    /// A session with a guest that stays who it is and is told nothing new.
    #[must_use]
    pub fn plain(deadline: Instant) -> Self {
        Self {
            pad: false,
            identity: None,
            grow_root_to: None,
            volumes: Vec::new(),
            secrets: None,
            net: None,
            deadline,
        }
    }
}

impl Guest {
    /// Greets the agent at the other end of `stream` with the time, fresh entropy and what `options` say, and waits
    /// for its welcome. Text in the welcome is made harmless for terminals.
    ///
    /// # Errors
    /// `Timeout`; `Closed` when the stream ends; `Refused` with the agent's words; `Version`; `Protocol` when the
    /// answer is none, or does not come within [`MAX_STALE`] bytes. The stream is dropped then.
    pub async fn attach<S>(stream: S, options: AttachOptions) -> Result<(Self, Welcome)>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let deadline = options.deadline;
        let greeted = tokio::time::timeout_at(deadline, greet(stream, options)).await;
        greeted.unwrap_or_else(|_| Err(Error::new(ErrorKind::Timeout, OP)))
    }
}

async fn greet<S>(stream: S, options: AttachOptions) -> Result<(Guest, Welcome)>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (mut nonce, mut entropy) = (wire::Hex([0; 16]), wire::Hex([0; 64]));
    for bytes in [&mut nonce.0[..], &mut entropy.0[..]] {
        getrandom::fill(bytes).map_err(|e| Error::because(ErrorKind::Closed, OP, e.to_string()))?;
    }
    let hello = hello(options, nonce, entropy)?;
    let broke = |e: std::io::Error| Error::because(ErrorKind::Closed, OP, e);
    // Both at once: what is stale in the stream may have to be read before there is room to write.
    let say = async {
        writer.write_all(&hello).await.map_err(broke)?;
        writer.flush().await.map_err(broke)
    };
    let ((), (welcome, decoder)) = tokio::try_join!(say, hear(&mut reader, &nonce))?;
    if welcome.protocol != PROTOCOL {
        let why = format!("protocol {} there, {PROTOCOL} here", welcome.protocol);
        return Err(Error::because(ErrorKind::Version, OP, why));
    }
    let guest = Guest::new(Core::start(reader, writer, decoder));
    Ok((guest, tamed(welcome)))
}

fn hello(options: AttachOptions, nonce: Nonce, entropy: Entropy) -> Result<Vec<u8>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let attach = Attach {
        protocol: PROTOCOL,
        nonce,
        now_unix_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        entropy,
        identity: options.identity,
        grow_root_to: options.grow_root_to,
        volumes: options.volumes,
        secrets: options.secrets,
        net: options.net,
    };
    let mut hello = vec![0; if options.pad { PADDING_LEN } else { 0 }];
    hello.extend_from_slice(&ATTACH_MAGIC);
    wire::encode(0, &Message::Attach(Box::new(attach)), &mut hello)
        .map_err(|e| Error::because(ErrorKind::TooLarge, OP, e))?;
    Ok(hello)
}

async fn hear<R: AsyncRead + Unpin>(reader: &mut R, nonce: &Nonce) -> Result<(Welcome, Decoder)> {
    let mut scanner = Scanner::for_welcome(nonce);
    let mut decoder = Decoder::new();
    let mut found = false;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let len = match reader.read(&mut buffer).await {
            Ok(0) => return Err(Error::because(ErrorKind::Closed, OP, "the other end closed it")),
            Ok(len) => len,
            Err(error) => return Err(Error::because(ErrorKind::Closed, OP, error)),
        };
        if found {
            decoder.push(&buffer[..len]);
        } else if let Some(rest) = scanner.push(&buffer[..len]) {
            found = true;
            decoder.push(rest);
        } else if scanner.skipped() > MAX_STALE {
            let why = format!("{MAX_STALE} bytes and no welcome among them");
            return Err(Error::because(ErrorKind::Protocol, OP, why));
        }
        match decoder.next().map_err(|e| Error::because(ErrorKind::Protocol, OP, e))? {
            None => {}
            Some(Frame { stream: 0, message: Message::Welcome(welcome) }) => return Ok((*welcome, decoder)),
            Some(Frame { stream: 0, message: Message::AttachFailed(failed) }) => {
                let failure = Failure { code: ErrorCode::Io, message: failed.message };
                return Err(Error::refused(OP, &failure));
            }
            Some(_) => {
                return Err(Error::because(ErrorKind::Protocol, OP, "the first message is no welcome"));
            }
        }
    }
}

fn tamed(welcome: Welcome) -> Welcome {
    Welcome {
        agent_version: printable(&welcome.agent_version),
        sandbox_id: welcome.sandbox_id.as_deref().map(printable),
        warnings: welcome.warnings.iter().take(MAX_WARNINGS).map(|text| printable(text)).collect(),
        unmounted: welcome.unmounted.iter().take(MAX_WARNINGS).map(|text| printable(text)).collect(),
        ..welcome
    }
}
