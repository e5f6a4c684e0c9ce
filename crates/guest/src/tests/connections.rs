use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wire::{ErrorCode, Failure, Message, Reply, Started};

use super::peer::*;
use crate::{Connection, ErrorKind, Guest};

async fn connected(guest: &Guest, peer: &mut Peer) -> (Connection, u32) {
    let (connection, id) = tokio::join!(guest.connect(80), async {
        let id = peer.hear_open().await;
        peer.say(id, Message::Started(Started { pid: 0, session: None })).await;
        id
    });
    (connection.unwrap(), id)
}

#[tokio::test]
async fn either_direction_of_a_connection_ends_by_itself() {
    let (guest, mut peer) = pair(64 * 1024).await;
    let (connection, id) = connected(&guest, &mut peer).await;
    let (mut near, far) = tokio::io::duplex(1024);
    let carried = tokio::spawn(connection.carry(far));
    near.write_all(b"question").await.unwrap();
    near.shutdown().await.unwrap();
    assert_eq!(peer.hear_message().await, Message::Data(b"question".to_vec()));
    assert_eq!(peer.hear_message().await, Message::Eof);
    peer.say(id, Message::Stdout(b"answer".to_vec())).await;
    peer.say(id, Message::Eof).await;
    peer.say(id, Message::Reply(Box::new(Reply::Done))).await;
    let mut answer = String::new();
    near.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "answer");
    carried.await.unwrap().unwrap();
    assert!(peer.hears_nothing().await, "no cancel after the end");
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_told_by_its_code() {
    let (guest, mut peer) = pair(1024).await;
    let (refused, ()) = tokio::join!(guest.connect(81), async {
        let id = peer.hear_open().await;
        let failure = Failure { code: ErrorCode::NotListening, message: "port 81: nobody".to_owned() };
        peer.say(id, Message::Failed(failure)).await;
    });
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Refused { code: ErrorCode::NotListening });
}

#[tokio::test]
async fn a_connection_that_is_dropped_is_cut_off_in_the_guest() {
    let (guest, mut peer) = pair(1024).await;
    let (connection, _id) = connected(&guest, &mut peer).await;
    drop(connection);
    assert_eq!(peer.hear_message().await, Message::Cancel);
}

#[tokio::test]
async fn a_client_that_reads_nothing_holds_up_no_other_stream() {
    let (guest, mut peer) = pair(64 * 1024).await;
    let (connection, id) = connected(&guest, &mut peer).await;
    let (_near, far) = tokio::io::duplex(16);
    let carried = tokio::spawn(connection.carry(far));
    peer.say(id, Message::Stdout(vec![7; 32 * 1024])).await;
    let (info, ()) = tokio::join!(guest.info(), async {
        let id = peer.hear_open().await;
        peer.say(id, Message::Reply(Box::new(Reply::Info(wire::Info::default())))).await;
    });
    info.unwrap();
    carried.abort();
}

async fn cut_off(guest: &Guest) {
    let reason = tokio::time::timeout_at(soon(), guest.closed()).await.expect("it is cut off");
    assert_eq!(reason.kind(), ErrorKind::Protocol, "{reason}");
}

#[tokio::test]
async fn data_after_the_end_and_an_end_where_none_belongs_cut_the_guest_off() {
    for bad in [Message::Stdout(vec![1]), Message::Eof] {
        let (guest, mut peer) = pair(64 * 1024).await;
        let (_held, id) = connected(&guest, &mut peer).await;
        peer.say(id, Message::Eof).await;
        peer.say(id, bad).await;
        cut_off(&guest).await;
    }
    let (guest, mut peer) = pair(64 * 1024).await;
    let exec = wire::Exec { argv: vec!["true".to_owned()], ..Default::default() };
    let _held = guest.exec(exec).await.unwrap();
    let id = peer.hear_open().await;
    peer.say(id, Message::Eof).await;
    cut_off(&guest).await;
}
