use tokio::io::AsyncReadExt;
use wire::{
    AttachFailed, ErrorCode, Identity, MAX_STALE, Message, PADDING_LEN, PROTOCOL, WELCOME_MAGIC, Welcome,
};

use super::peer::*;
use crate::{AttachOptions, ErrorKind, Guest};

/// What `attach` says when the agent answers the greeting with `answer`.
async fn answered(answer: Message) -> crate::Result<(Guest, Welcome)> {
    let (host, guest) = tokio::io::duplex(64 * 1024);
    let mut peer = Peer::new(guest);
    let script = async {
        let attach = peer.hear_attach().await;
        peer.say_welcome(&attach, &answer).await;
    };
    tokio::join!(Guest::attach(host, options()), script).0
}

#[tokio::test]
async fn a_welcome_is_found_among_stale_bytes() {
    let (host, guest) = tokio::io::duplex(4096);
    let mut peer = Peer::new(guest);
    let identity = Identity {
        sandbox_id: "0123456789abcdef".to_owned(),
        hostname: "web".to_owned(),
        machine_id: "0".repeat(32),
        read_config: true,
        first_boot: true,
        config: None,
    };
    let asked = AttachOptions {
        pad: true,
        identity: Some(identity.clone()),
        grow_root_to: Some(1 << 30),
        volumes: Vec::new(),
        ..options()
    };
    let script = async {
        // More than fits the pipe, before the host was read: an old welcome and half a frame among it.
        let mut stale = vec![0x5a; 100_000];
        stale.extend_from_slice(&WELCOME_MAGIC);
        stale.extend_from_slice(&[1; 16]);
        stale.extend_from_slice(&WELCOME_MAGIC[..9]);
        peer.say_raw(&stale).await;
        let attach = peer.hear_attach().await;
        peer.say_welcome(&attach, &Message::Welcome(Box::new(welcome()))).await;
        attach
    };
    let (attached, attach) = tokio::join!(Guest::attach(host, asked), script);
    assert_eq!(attached.unwrap().1, welcome());
    assert_eq!(attach.identity, Some(identity));
    assert!(attach.grow_root_to == Some(1 << 30) && attach.protocol == PROTOCOL);
    assert!(attach.now_unix_ns > 1_700_000_000_000_000_000);
    assert!(attach.entropy.0.iter().any(|byte| *byte != attach.entropy.0[0]), "entropy is random");
}

#[tokio::test]
async fn padding_comes_first_when_asked_for() {
    let (host, mut guest) = tokio::io::duplex(PADDING_LEN * 2);
    let asked = AttachOptions { pad: true, deadline: tokio::time::Instant::now(), ..options() };
    assert_eq!(Guest::attach(host, asked).await.unwrap_err().kind(), ErrorKind::Timeout);
    let mut sent = Vec::new();
    guest.read_to_end(&mut sent).await.unwrap();
    assert!(sent[..PADDING_LEN].iter().all(|byte| *byte == 0));
    assert_eq!(sent[PADDING_LEN..][..16], wire::ATTACH_MAGIC);
}

#[tokio::test]
async fn an_agent_that_never_answers_is_given_up_at_the_deadline() {
    let (host, guest) = tokio::io::duplex(64 * 1024);
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_millis(30);
    let error = Guest::attach(host, AttachOptions { deadline, ..options() }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    let mut peer = Peer::new(guest);
    peer.hear_attach().await;
    assert!(peer.hear().await.is_none(), "the stream is closed");
}

#[tokio::test]
async fn endless_noise_is_a_broken_protocol() {
    let (host, guest) = tokio::io::duplex(64 * 1024);
    let mut peer = Peer::new(guest);
    let noise = vec![0x89; MAX_STALE + 64 * 1024];
    let (attached, ()) = tokio::join!(Guest::attach(host, options()), peer.say_raw(&noise));
    assert_eq!(attached.unwrap_err().kind(), ErrorKind::Protocol);
}

#[tokio::test]
async fn a_stream_that_ends_is_closed() {
    let (host, guest) = tokio::io::duplex(64 * 1024);
    drop(guest);
    assert_eq!(Guest::attach(host, options()).await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn a_refusal_is_told_in_the_agents_words_without_control_characters() {
    let message = "no config\n\x1b[31m drive".to_owned();
    let error = answered(Message::AttachFailed(AttachFailed { message })).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused { code: ErrorCode::Io });
    assert_eq!(error.to_string(), "attach to the guest: no config\u{fffd}\u{fffd}[31m drive");
}

#[tokio::test]
async fn an_agent_of_another_version_is_refused_with_the_way_out() {
    let answer = Welcome { protocol: PROTOCOL + 1, ..welcome() };
    let error = answered(Message::Welcome(Box::new(answer))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Version);
    assert!(error.to_string().contains("--discard-memory"), "{error}");
}

#[tokio::test]
async fn any_other_answer_is_a_broken_protocol() {
    let error = answered(Message::Detached).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol);
}

#[tokio::test]
async fn warnings_are_bounded_and_harmless() {
    let warnings = vec!["\x1b]0;x\x07".repeat(1000); 40];
    let answer = Welcome { warnings, agent_version: "\r1".to_owned(), ..welcome() };
    let (_guest, told) = answered(Message::Welcome(Box::new(answer))).await.unwrap();
    assert_eq!(told.warnings.len(), 32);
    assert!(told.warnings.iter().all(|text| text.chars().count() <= 1024 && !text.contains('\x1b')));
    assert_eq!(told.agent_version, "\u{fffd}1");
}
