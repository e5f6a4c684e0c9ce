use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use wire::{Decoder, Exec, ExitStatus, Frame, MAX_STALE, Message, PADDING_LEN, Reply, Started, WINDOW};

use super::peer::*;
use crate::{ErrorKind, ExecEvent, ExecStream, Guest, Quiet};

async fn running(guest: &Guest, peer: &mut Peer) -> (ExecStream, u32) {
    let exec = Exec { argv: vec!["cat".to_owned()], stdin: true, ..Exec::default() };
    let mut stream = guest.exec(exec).await.unwrap();
    let id = peer.hear_open().await;
    peer.say(id, Message::Started(Started { pid: 7, session: None })).await;
    assert!(matches!(stream.next().await, Some(ExecEvent::Started(_))));
    (stream, id)
}

async fn hushed(guest: &Guest, peer: &mut Peer) -> Quiet {
    let answer = async {
        let question = peer.hear_open().await;
        peer.say(question, Message::Reply(Box::new(Reply::Sessions(Vec::new())))).await;
    };
    tokio::join!(guest.quiet(soon()), answer).0.unwrap()
}

#[tokio::test]
async fn a_guest_is_quiet_only_when_all_that_was_said_is_taken_in_as_whole_frames() {
    // So narrow that every frame is cut on its way.
    let (guest, mut peer) = pair(1000).await;
    let (stream, id) = running(&guest, &mut peer).await;
    let sender = stream.stdin().unwrap();
    let sent = tokio::spawn(async move { sender.send(Bytes::from(vec![1; 100_000])).await });
    // Half a frame is under way before anybody asks for quiet.
    let mut taken = vec![0; 500];
    tokio::io::AsyncReadExt::read_exact(&mut peer.io, &mut taken).await.unwrap();
    let (ready, mut is_ready) = tokio::sync::oneshot::channel();
    let ask = tokio::spawn(async move {
        let quiet = guest.quiet(soon()).await.unwrap();
        ready.send(()).unwrap();
        (guest, quiet)
    });
    let mut decoder = Decoder::new();
    let (mut received, mut question) = (0, None);
    while question.is_none() {
        assert!(is_ready.try_recv().is_err(), "not before the answer");
        decoder.push(&taken);
        while let Some(frame) = decoder.next().unwrap() {
            match frame {
                Frame { stream, message: Message::Data(data) } if stream == id => received += data.len(),
                Frame { stream, message: Message::Open(_) } => question = Some(stream),
                other => panic!("{other:?}"),
            }
        }
        if question.is_none() {
            taken.resize(1000, 0);
            let read = tokio::io::AsyncReadExt::read(&mut peer.io, &mut taken).await.unwrap();
            taken.truncate(read);
        }
    }
    assert!(decoder.is_idle(), "the question is the last that was said");
    peer.say(question.unwrap(), Message::Reply(Box::new(Reply::Sessions(Vec::new())))).await;
    let (_guest, quiet) = ask.await.unwrap();
    assert!(peer.hears_nothing().await);
    drop(quiet);
    while received < 100_000 {
        let Message::Data(data) = peer.hear_message().await else { panic!("no data") };
        received += data.len();
    }
    sent.await.unwrap().unwrap();
}

#[tokio::test]
async fn while_a_guest_is_quiet_its_answers_are_heard_and_what_is_said_waits_in_order() {
    let (guest, mut peer) = pair(1 << 20).await;
    let (mut stream, id) = running(&guest, &mut peer).await;
    let quiet = hushed(&guest, &mut peer).await;
    peer.say(id, Message::Stdout(vec![2; 100_000])).await;
    let mut heard = 0;
    while heard < 100_000 {
        let Some(ExecEvent::Stdout(data)) = stream.next().await else { panic!("no data") };
        heard += data.len();
    }
    let sender = stream.stdin().unwrap();
    sender.send(Bytes::from_static(b"typed")).await.unwrap();
    stream.signal(2).unwrap();
    let other = guest.exec(Exec { argv: vec!["true".to_owned()], ..Exec::default() }).await.unwrap();
    assert!(peer.hears_nothing().await);
    drop(quiet);
    assert!(matches!(peer.hear_message().await, Message::Credit(bytes) if bytes >= WINDOW / 4));
    assert_eq!(peer.hear_message().await, Message::Data(b"typed".to_vec()));
    assert_eq!(peer.hear_message().await, Message::Signal(2));
    assert!(peer.hear_open().await > id);
    peer.say(id, Message::Exit(ExitStatus { code: Some(0), ..ExitStatus::default() })).await;
    assert!(matches!(stream.next().await, Some(ExecEvent::Exit(_))));
    drop(other);
}

#[tokio::test]
async fn an_agent_that_does_not_answer_is_not_quiet_and_is_spoken_to_again() {
    let (guest, mut peer) = pair(1 << 20).await;
    let (stream, id) = running(&guest, &mut peer).await;
    let error = guest.quiet(Instant::now() + Duration::from_millis(30)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    let question = peer.hear_open().await;
    assert_eq!(peer.hear().await, Some(Frame { stream: question, message: Message::Cancel }));
    stream.signal(15).unwrap();
    assert_eq!(peer.hear().await, Some(Frame { stream: id, message: Message::Signal(15) }));
    // Its late answer is nobody's any more.
    peer.say(question, Message::Reply(Box::new(Reply::Sessions(Vec::new())))).await;
    assert!(!guest.is_closed());
    drop(hushed(&guest, &mut peer).await);
}

#[tokio::test]
async fn who_also_wants_quiet_waits_for_the_first() {
    let (guest, mut peer) = pair(1 << 20).await;
    let first = hushed(&guest, &mut peer).await;
    let second = tokio::spawn({
        let guest = guest.clone();
        async move { guest.quiet(soon()).await.map(drop) }
    });
    assert!(peer.hears_nothing().await);
    drop(first);
    let question = peer.hear_open().await;
    peer.say(question, Message::Reply(Box::new(Reply::Sessions(Vec::new())))).await;
    second.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_quiet_guest_can_be_detached_and_can_vanish() {
    let (guest, mut peer) = pair(1 << 20).await;
    let quiet = hushed(&guest, &mut peer).await;
    let script = async {
        assert_eq!(peer.hear_message().await, Message::Detach);
        peer.say(0, Message::Detached).await;
    };
    let (detached, ()) = tokio::join!(guest.detach(soon()), script);
    detached.unwrap();
    drop(quiet);

    let (guest, mut peer) = pair(1 << 20).await;
    let quiet = hushed(&guest, &mut peer).await;
    drop(peer);
    assert_eq!(guest.closed().await.kind(), ErrorKind::Closed);
    drop(quiet);
    assert_eq!(guest.quiet(soon()).await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn a_welcome_is_found_behind_all_that_a_guest_can_have_waiting() {
    let (host, guest) = tokio::io::duplex(64 * 1024);
    let mut peer = Peer::new(guest);
    // What a copied agent may still say to the host that its source was talking with, and half a frame at its end.
    let mut stale = Vec::new();
    while stale.len() < MAX_STALE - 64 * 1024 {
        wire::encode(3, &Message::Stdout(vec![0x89; wire::MAX_PAYLOAD]), &mut stale).unwrap();
    }
    stale.truncate(stale.len() - 1000);
    let asked = crate::AttachOptions { pad: true, ..options() };
    let script = async {
        peer.say_raw(&stale).await;
        let attach = peer.hear_attach().await;
        peer.say_welcome(&attach, &Message::Welcome(Box::new(welcome()))).await;
    };
    let (attached, ()) = tokio::join!(Guest::attach(host, asked), script);
    assert_eq!(attached.unwrap().1, welcome());
    assert!(stale.len() > 6 * 1024 * 1024 && PADDING_LEN < 64 * 1024);
}
