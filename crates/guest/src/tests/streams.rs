use bytes::Bytes;
use wire::{Exec, ExitStatus, Frame, Message, Session, Started, Tty, WINDOW, WindowSize};

use super::peer::*;
use crate::{Error, ErrorKind, ExecEvent, ExecStream, Guest};

const WINDOW_LEN: usize = WINDOW as usize;

fn exec() -> Exec {
    Exec { argv: vec!["true".to_owned()], ..Exec::default() }
}

fn started() -> Message {
    Message::Started(Started { pid: 7, session: None })
}

fn exit(code: i32) -> Message {
    Message::Exit(ExitStatus { code: Some(code), ..ExitStatus::default() })
}

/// Opens a command and has the agent start it.
async fn running(guest: &Guest, peer: &mut Peer, exec: Exec) -> (ExecStream, u32) {
    let mut stream = guest.exec(exec).await.unwrap();
    let id = peer.hear_open().await;
    peer.say(id, started()).await;
    assert!(matches!(stream.next().await, Some(ExecEvent::Started(_))));
    (stream, id)
}

async fn failure(stream: &mut ExecStream) -> Error {
    match stream.next().await {
        Some(ExecEvent::Failed(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_small_command_is_one_frame_out_and_its_events_back() {
    let (guest, mut peer) = pair(64 * 1024).await;
    let mut stream = guest.exec(exec()).await.unwrap();
    assert!(stream.stdin().is_none());
    let id = peer.hear_open().await;
    let mut answer = Vec::new();
    for message in [started(), Message::Stdout(b"hi".to_vec()), Message::Stderr(b"ho".to_vec()), exit(3)] {
        wire::encode(id, &message, &mut answer).unwrap();
    }
    peer.say_raw(&answer).await;
    assert!(matches!(stream.next().await, Some(ExecEvent::Started(started)) if started.pid == 7));
    assert!(matches!(stream.next().await, Some(ExecEvent::Stdout(data)) if data == "hi"));
    assert!(matches!(stream.next().await, Some(ExecEvent::Stderr(data)) if data == "ho"));
    assert!(matches!(stream.next().await, Some(ExecEvent::Exit(status)) if status.code == Some(3)));
    assert!(stream.next().await.is_none());
    drop(stream);
    assert!(peer.hears_nothing().await, "neither credit nor cancel");
}

#[tokio::test]
async fn requests_that_wait_together_are_written_together() {
    let (guest, mut peer) = pair(1 << 20).await;
    // One thread: all are queued before the writer runs.
    let mut streams = Vec::new();
    for _ in 0..100 {
        streams.push(guest.exec(exec()).await.unwrap());
    }
    let mut buffer = vec![0; 1 << 20];
    let len = tokio::io::AsyncReadExt::read(&mut peer.io, &mut buffer).await.unwrap();
    let mut decoder = wire::Decoder::new();
    decoder.push(&buffer[..len]);
    for id in 1..=100 {
        assert_eq!(decoder.next().unwrap().map(|frame| frame.stream), Some(id));
    }
}

#[tokio::test]
async fn a_consumer_that_stands_still_delays_nobody_else() {
    let (guest, mut peer) = pair(64 * 1024).await;
    let (mut still, still_id) = running(&guest, &mut peer, exec()).await;
    let (mut quick, quick_id) = running(&guest, &mut peer, exec()).await;
    peer.say(still_id, Message::Stdout(vec![1; WINDOW_LEN])).await;
    for _ in 0..20 {
        peer.say(quick_id, Message::Stdout(vec![2; 64 * 1024])).await;
        let mut left = 64 * 1024;
        while left > 0 {
            let Some(ExecEvent::Stdout(data)) = quick.next().await else { panic!("no data") };
            left -= data.len();
        }
    }
    peer.say(quick_id, exit(0)).await;
    assert!(matches!(quick.next().await, Some(ExecEvent::Exit(_))));
    let mut granted = 0;
    while let Ok(Some(frame)) = tokio::time::timeout(std::time::Duration::from_millis(50), peer.hear()).await
    {
        assert_eq!(frame.stream, quick_id, "nothing was taken from the other");
        let Message::Credit(bytes) = frame.message else { panic!("{frame:?}") };
        granted += bytes;
    }
    assert!(granted >= 19 * 64 * 1024, "{granted}");
    assert!(matches!(still.next().await, Some(ExecEvent::Stdout(data)) if data.len() == WINDOW_LEN));
    assert_eq!(peer.hear().await, Some(Frame { stream: still_id, message: Message::Credit(WINDOW) }));
}

#[tokio::test]
async fn input_waits_for_credit_stream_by_stream() {
    let (guest, mut peer) = pair(1 << 20).await;
    let with_stdin = Exec { stdin: true, ..exec() };
    let (first, first_id) = running(&guest, &mut peer, with_stdin.clone()).await;
    let (second, second_id) = running(&guest, &mut peer, with_stdin).await;
    let sender = first.stdin().unwrap();
    let big = tokio::spawn(async move { sender.send(Bytes::from(vec![1; WINDOW_LEN + 10])).await });
    let mut received = 0;
    while received < WINDOW_LEN {
        let Some(Frame { stream, message: Message::Data(data) }) = peer.hear().await else {
            panic!("no data")
        };
        assert_eq!(stream, first_id);
        received += data.len();
    }
    assert!(peer.hears_nothing().await, "the credit is used up");
    let small = second.stdin().unwrap();
    small.send(Bytes::from_static(b"x")).await.unwrap();
    small.eof().unwrap();
    assert_eq!(peer.hear().await, Some(Frame { stream: second_id, message: Message::Data(b"x".to_vec()) }));
    assert_eq!(peer.hear().await, Some(Frame { stream: second_id, message: Message::Eof }));
    assert_eq!(small.send(Bytes::from_static(b"y")).await.unwrap_err().kind(), ErrorKind::Ended);
    peer.say(first_id, Message::Credit(100)).await;
    assert_eq!(peer.hear().await, Some(Frame { stream: first_id, message: Message::Data(vec![1; 10]) }));
    big.await.unwrap().unwrap();
}

#[tokio::test]
async fn input_that_waits_ends_with_its_command() {
    let (guest, mut peer) = pair(1 << 20).await;
    let (mut stream, id) = running(&guest, &mut peer, Exec { stdin: true, ..exec() }).await;
    let sender = stream.stdin().unwrap();
    let big = tokio::spawn(async move { sender.send(Bytes::from(vec![1; WINDOW_LEN * 2])).await });
    peer.say(id, exit(0)).await;
    assert_eq!(big.await.unwrap().unwrap_err().kind(), ErrorKind::Ended);
    assert!(matches!(stream.next().await, Some(ExecEvent::Exit(_))));
}

#[tokio::test]
async fn a_dropped_command_is_cancelled_and_its_last_words_are_ignored() {
    let (guest, mut peer) = pair(64 * 1024).await;
    let (stream, id) = running(&guest, &mut peer, exec()).await;
    drop(stream);
    assert_eq!(peer.hear().await, Some(Frame { stream: id, message: Message::Cancel }));
    peer.say(id, Message::Stdout(vec![0; WINDOW_LEN])).await;
    peer.say(id, exit(0)).await;
    let (_next, next_id) = running(&guest, &mut peer, exec()).await;
    assert!(next_id > id, "the channel goes on, and no id is used twice");
}

#[tokio::test]
async fn terminals_are_resized_and_processes_signalled() {
    let (guest, mut peer) = pair(64 * 1024).await;
    let tty = Tty { rows: 24, cols: 80, term: "xterm".to_owned() };
    let request =
        Session { id: None, new: false, argv: None, env: Default::default(), cwd: None, user: None, tty };
    let stream = guest.session(request).await.unwrap();
    peer.hear_open().await;
    stream.resize(50, 132).unwrap();
    stream.stdin().unwrap().signal(2).unwrap();
    assert_eq!(peer.hear_message().await, Message::Resize(WindowSize { rows: 50, cols: 132 }));
    assert_eq!(peer.hear_message().await, Message::Signal(2));
}

#[tokio::test]
async fn a_detached_command_is_not_cancelled() {
    let (guest, mut peer) = pair(64 * 1024).await;
    let script = async {
        let id = peer.hear_open().await;
        peer.say(id, Message::Started(Started { pid: 9, session: Some("x1".to_owned()) })).await;
        peer.say(id, Message::Reply(Box::new(wire::Reply::Done))).await;
    };
    let (begun, ()) = tokio::join!(guest.exec_detached(exec()), script);
    assert_eq!(begun.unwrap().session.as_deref(), Some("x1"));
    assert!(peer.hears_nothing().await);
}

#[tokio::test]
async fn everything_ends_when_the_channel_breaks() {
    let (guest, mut peer) = pair(64 * 1024).await;
    let (mut silent, _) = running(&guest, &mut peer, exec()).await;
    let (mut done, done_id) = running(&guest, &mut peer, exec()).await;
    let (input, _) = running(&guest, &mut peer, Exec { stdin: true, ..exec() }).await;
    let sender = input.stdin().unwrap();
    let sending = tokio::spawn(async move { sender.send(Bytes::from(vec![1; WINDOW_LEN * 2])).await });
    let asking = tokio::spawn({
        let guest = guest.clone();
        async move { guest.sync().await }
    });
    peer.say(done_id, exit(5)).await;
    peer.say(done_id + 2, Message::Failed(wire::Failure { code: wire::ErrorCode::Io, message: "x".into() }))
        .await;
    tokio::task::yield_now().await;
    assert!(!guest.is_closed());
    drop(peer);
    assert_eq!(guest.closed().await.kind(), ErrorKind::Closed);
    assert!(guest.is_closed());
    assert_eq!(failure(&mut silent).await.kind(), ErrorKind::Closed);
    assert!(silent.next().await.is_none());
    assert_eq!(sending.await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    assert!(asking.await.unwrap().is_err());
    assert_eq!(guest.exec(exec()).await.unwrap_err().kind(), ErrorKind::Closed);
    assert!(
        matches!(done.next().await, Some(ExecEvent::Exit(s)) if s.code == Some(5)),
        "it had arrived whole"
    );
}

#[tokio::test]
async fn a_detach_ends_the_session_in_order() {
    let (guest, mut peer) = pair(64 * 1024).await;
    let (mut stream, id) = running(&guest, &mut peer, exec()).await;
    let script = async {
        assert_eq!(peer.hear().await, Some(Frame { stream: 0, message: Message::Detach }));
        assert_eq!(guest.exec(exec()).await.unwrap_err().kind(), ErrorKind::Closed);
        peer.say(id, Message::Stdout(b"last".to_vec())).await;
        peer.say(0, Message::Detached).await;
        assert!(peer.hear().await.is_none(), "nothing follows a detach");
    };
    let (detached, ()) = tokio::join!(guest.detach(soon()), script);
    detached.unwrap();
    assert!(matches!(stream.next().await, Some(ExecEvent::Stdout(data)) if data == "last"));
    assert_eq!(failure(&mut stream).await.kind(), ErrorKind::Closed);
    guest.detach(soon()).await.unwrap();
    assert_eq!(guest.closed().await.kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn a_detach_without_answer_is_given_up_and_closes() {
    let (guest, mut peer) = pair(64 * 1024).await;
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_millis(30);
    assert_eq!(guest.detach(deadline).await.unwrap_err().kind(), ErrorKind::Timeout);
    assert_eq!(peer.hear_message().await, Message::Detach);
    assert!(peer.hear().await.is_none());
}

#[tokio::test]
async fn the_last_handle_closes_the_channel() {
    let (guest, mut peer) = pair(64 * 1024).await;
    let other = guest.clone();
    let (stream, _) = running(&guest, &mut peer, exec()).await;
    drop(guest);
    drop(other);
    assert!(peer.hears_nothing().await, "a stream keeps it open");
    drop(stream);
    while let Some(frame) = peer.hear().await {
        assert_eq!(frame.message, Message::Cancel);
    }
}

#[tokio::test]
async fn a_request_that_is_too_long_is_refused_here() {
    let (guest, mut peer) = pair(64 * 1024).await;
    let long = Exec { argv: vec!["x".repeat(wire::MAX_MESSAGE)], ..Exec::default() };
    assert_eq!(guest.exec(long).await.unwrap_err().kind(), ErrorKind::TooLarge);
    let (_stream, id) = running(&guest, &mut peer, exec()).await;
    assert_eq!(id, 1);
}

#[tokio::test]
async fn streams_can_be_driven_from_any_thread() {
    fn sendable<T: Send>(value: T) -> T {
        value
    }
    let (guest, mut peer) = pair(64 * 1024).await;
    let (mut stream, id) = running(&guest, &mut peer, Exec { stdin: true, ..exec() }).await;
    let sender = stream.stdin().unwrap();
    peer.say(id, exit(0)).await;
    assert!(sendable(stream.next()).await.is_some());
    assert!(sendable(sender.send(Bytes::from_static(b"x"))).await.is_err());
    let detached =
        tokio::join!(sendable(guest.detach(soon())), async { peer.say(0, Message::Detached).await }).0;
    detached.unwrap();
    sendable(guest.closed()).await;
}
