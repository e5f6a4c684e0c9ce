use wire::{Attach, Exec, ExitStatus, FileStat, Message, Reply, Started, WINDOW};

use super::peer::*;
use crate::{ErrorKind, ExecEvent};

fn exec() -> Exec {
    Exec { argv: vec!["true".to_owned()], stdin: true, ..Exec::default() }
}

fn started() -> Message {
    Message::Started(Started { pid: 7, session: None })
}

/// The channel must be cut off for these bytes, and the command under way end with it.
async fn cut_off(name: &str, bytes: &[u8]) {
    let (guest, mut peer) = pair(64 * 1024).await;
    let mut stream = guest.exec(exec()).await.unwrap();
    assert_eq!(peer.hear_open().await, 1);
    peer.say(1, started()).await;
    assert!(matches!(stream.next().await, Some(ExecEvent::Started(_))));
    peer.say_raw(bytes).await;
    let reason = tokio::time::timeout_at(soon(), guest.closed()).await.expect(name);
    assert_eq!(reason.kind(), ErrorKind::Protocol, "{name}: {reason}");
    while let Some(event) = stream.next().await {
        match event {
            ExecEvent::Stdout(data) | ExecEvent::Stderr(data) => assert!(data.len() <= WINDOW as usize),
            ExecEvent::Failed(error) => assert_eq!(error.kind(), ErrorKind::Protocol, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    assert!(peer.hear().await.is_none(), "{name}: the stream is closed");
}

#[tokio::test]
async fn a_guest_that_breaks_the_protocol_is_cut_off() {
    let frames = |frames: &[(u32, Message)]| {
        let mut bytes = Vec::new();
        for (stream, message) in frames {
            wire::encode(*stream, message, &mut bytes).unwrap();
        }
        bytes
    };
    let exit = || Message::Exit(ExitStatus::default());
    let past = vec![Message::Stdout(vec![0; WINDOW as usize]), Message::Stdout(vec![0])];
    let past: Vec<(u32, Message)> = past.into_iter().map(|message| (1, message)).collect();
    let attach = Attach {
        protocol: 1,
        nonce: wire::Hex([0; 16]),
        now_unix_ns: 0,
        entropy: wire::Hex([0; 64]),
        identity: None,
        grow_root_to: None,
        volumes: Vec::new(),
        secrets: None,
        net: None,
    };
    cut_off("zero bytes", &[0; 64]).await;
    cut_off("noise", &[0xa7; 4096]).await;
    cut_off("oversized frame", &[1, 0, 0, 0, 0x21, 0xff, 0xff, 0xff]).await;
    cut_off("json that is none", &[1, 0, 0, 0, 0x25, 1, 0, 0, b'{']).await;
    cut_off("a stream that was never opened", &frames(&[(2, exit())])).await;
    cut_off("the last id of all", &frames(&[(u32::MAX, exit())])).await;
    cut_off("data past its credit", &frames(&past)).await;
    cut_off("credit for nothing", &frames(&[(1, Message::Credit(1))])).await;
    cut_off("started twice", &frames(&[(1, started())])).await;
    cut_off("another verb's reply", &frames(&[(1, Message::Reply(Box::new(Reply::Done)))])).await;
    cut_off("a welcome", &frames(&[(0, Message::Welcome(Box::new(welcome())))])).await;
    cut_off("a detached unasked", &frames(&[(0, Message::Detached)])).await;
    cut_off("a detached on a stream", &frames(&[(1, Message::Detached)])).await;
    cut_off("the host's own words", &frames(&[(0, Message::Attach(Box::new(attach)))])).await;
    cut_off("an exit on stream 0", &frames(&[(0, exit())])).await;
    let long = "n".repeat(100_000);
    let meta = serde_json::from_value::<FileStat>(serde_json::json!({
        "name": long, "kind": "file", "size_bytes": 1, "mode": 1, "uid": 0, "gid": 0, "modified_unix_ms": 0
    }));
    cut_off("a long name", &frames(&[(1, Message::Meta(Box::new(meta.unwrap())))])).await;
}

#[tokio::test]
async fn a_guest_that_never_reads_is_cut_off_before_it_costs_memory() {
    let (guest, peer) = pair(4096).await;
    let stream = guest.exec(exec()).await.unwrap();
    // Twelve bytes each: far more than may ever wait.
    let mut refused = None;
    for _ in 0..2_000_000 {
        if let Err(error) = stream.signal(1) {
            refused = Some(error.kind());
            break;
        }
    }
    assert_eq!(refused, Some(ErrorKind::Protocol));
    assert_eq!(guest.closed().await.kind(), ErrorKind::Protocol);
    drop(peer);
}

#[tokio::test]
async fn requests_wait_while_the_guest_does_not_read() {
    let (guest, mut peer) = pair(4096).await;
    let big = Exec { argv: vec!["x".repeat(500_000)], ..Exec::default() };
    let mut waiting = tokio::spawn({
        let guest = guest.clone();
        async move {
            let mut streams = Vec::new();
            for _ in 0..20 {
                streams.push(guest.exec(big.clone()).await.unwrap());
            }
            streams
        }
    });
    let pause = std::time::Duration::from_millis(50);
    assert!(tokio::time::timeout(pause, &mut waiting).await.is_err(), "10 MB do not fit what may wait");
    for id in 1..=20 {
        assert_eq!(peer.hear_open().await, id);
    }
    assert_eq!(waiting.await.unwrap().len(), 20);
}

#[tokio::test]
async fn one_byte_frames_cost_no_more_than_their_bytes() {
    let (guest, mut peer) = pair(1 << 20).await;
    let mut stream = guest.exec(exec()).await.unwrap();
    let id = peer.hear_open().await;
    let mut bytes = Vec::new();
    wire::encode(id, &started(), &mut bytes).unwrap();
    for at in 0..10_000_u32 {
        let byte = vec![u8::try_from(at % 251).unwrap()];
        let message = if at % 2 == 0 { Message::Stdout(byte) } else { Message::Stderr(byte) };
        wire::encode(id, &message, &mut bytes).unwrap();
    }
    wire::encode(id, &Message::Exit(ExitStatus::default()), &mut bytes).unwrap();
    peer.say_raw(&bytes).await;
    let (mut out, mut err, mut events) = (Vec::new(), Vec::new(), 0);
    while let Some(event) = stream.next().await {
        match event {
            ExecEvent::Stdout(data) => out.extend_from_slice(&data),
            ExecEvent::Stderr(data) => err.extend_from_slice(&data),
            _ => {}
        }
        events += 1;
    }
    assert!(events < 200, "{events} events: frames were merged");
    let expected =
        |rest: u32| (0..10_000).filter(move |at| at % 2 == rest).map(|at| u8::try_from(at % 251).unwrap());
    assert!(out.into_iter().eq(expected(0)) && err.into_iter().eq(expected(1)));
}
