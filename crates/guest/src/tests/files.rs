use bytes::Bytes;
use wire::{
    ErrorCode, Failure, FileKind, FileList, FileRead, FileStat, FileWrite, Message, ReadSummary, Reply,
};
use wire::{StatRequest, WINDOW};

use super::peer::*;
use crate::{ErrorKind, MAX_LISTING};

fn stat(name: &str) -> FileStat {
    FileStat {
        name: name.to_owned(),
        kind: FileKind::File,
        size_bytes: 5,
        mode: 0o644,
        uid: 1000,
        gid: 1000,
        modified_unix_ms: 1,
        target: None,
    }
}

fn failed(code: ErrorCode) -> Message {
    Message::Failed(Failure { code, message: "/x: no".to_owned() })
}

fn reply(reply: Reply) -> Message {
    Message::Reply(Box::new(reply))
}

#[tokio::test]
async fn a_file_is_read_with_its_attributes_first() {
    let (guest, mut peer) = pair(64 * 1024).await;
    let script = async {
        let id = peer.hear_open().await;
        peer.say(id, Message::Meta(Box::new(stat("f")))).await;
        peer.say(id, Message::Stdout(b"hello".to_vec())).await;
        peer.say(id, reply(Reply::Read(ReadSummary { sent_bytes: 5, truncated: true }))).await;
    };
    let (reader, ()) = tokio::join!(guest.file_read(FileRead::default()), script);
    let mut reader = reader.unwrap();
    assert_eq!(reader.stat().name, "f");
    assert_eq!(reader.next().await.unwrap().as_deref(), Some(&b"hello"[..]));
    assert!(reader.summary().is_none());
    assert!(reader.next().await.unwrap().is_none());
    assert!(reader.next().await.unwrap().is_none());
    assert!(reader.summary().is_some_and(|summary| summary.truncated));
}

#[tokio::test]
async fn a_read_that_lost_bytes_is_no_whole_file() {
    let (guest, mut peer) = pair(64 * 1024).await;
    let script = async {
        let id = peer.hear_open().await;
        peer.say(id, Message::Meta(Box::new(stat("f")))).await;
        peer.say(id, reply(Reply::Read(ReadSummary { sent_bytes: 5, truncated: false }))).await;
    };
    let (reader, ()) = tokio::join!(guest.file_read(FileRead::default()), script);
    let mut reader = reader.unwrap();
    assert_eq!(reader.next().await.unwrap_err().kind(), ErrorKind::Protocol);
    assert_eq!(reader.next().await.unwrap_err().kind(), ErrorKind::Ended, "asking on does not hang");
}

#[tokio::test]
async fn refusals_carry_the_agents_code_and_words() {
    let (guest, mut peer) = pair(64 * 1024).await;
    let script = async {
        for _ in 0..2 {
            let id = peer.hear_open().await;
            peer.say(id, failed(ErrorCode::IsDirectory)).await;
        }
    };
    let both =
        async { (guest.file_read(FileRead::default()).await, guest.file_stat(StatRequest::default()).await) };
    let ((read, looked), ()) = tokio::join!(both, script);
    for error in [read.unwrap_err(), looked.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Refused { code: ErrorCode::IsDirectory });
        assert_eq!(error.said(), Some("/x: no"));
    }
}

#[tokio::test]
async fn a_file_is_written_up_to_its_eof() {
    let (guest, mut peer) = pair(1 << 20).await;
    let mut writer = guest.file_write(FileWrite::default()).await.unwrap();
    let script = async {
        let id = peer.hear_open().await;
        assert_eq!(peer.hear_message().await, Message::Data(b"hello".to_vec()));
        assert_eq!(peer.hear_message().await, Message::Eof);
        peer.say(id, reply(Reply::Stat(stat("f")))).await;
    };
    let write = async {
        writer.send(Bytes::from_static(b"hello")).await.unwrap();
        writer.finish().await
    };
    assert_eq!(tokio::join!(write, script).0.unwrap(), stat("f"));
    assert!(peer.hears_nothing().await);
}

#[tokio::test]
async fn a_writer_that_is_dropped_cancels_and_never_says_eof() {
    let (guest, mut peer) = pair(64 * 1024).await;
    let mut writer = guest.file_write(FileWrite::default()).await.unwrap();
    writer.send(Bytes::from_static(b"half")).await.unwrap();
    drop(writer);
    peer.hear_open().await;
    assert_eq!(peer.hear_message().await, Message::Data(b"half".to_vec()));
    assert_eq!(peer.hear_message().await, Message::Cancel);
    assert!(peer.hears_nothing().await);
}

#[tokio::test]
async fn a_full_disk_is_told_while_the_data_still_flows() {
    let (guest, mut peer) = pair(1 << 20).await;
    let mut writer = guest.file_write(FileWrite::default()).await.unwrap();
    let script = async {
        let id = peer.hear_open().await;
        peer.hear_message().await;
        peer.say(id, failed(ErrorCode::NoSpace)).await;
    };
    let chunk = Bytes::from(vec![0; WINDOW as usize * 2]);
    let (sent, ()) = tokio::join!(writer.send(chunk.clone()), script);
    assert_eq!(sent.unwrap_err().kind(), ErrorKind::Refused { code: ErrorCode::NoSpace });
    assert!(writer.send(chunk).await.is_err() && writer.finish().await.is_err(), "asking on does not hang");
}

#[tokio::test]
async fn a_success_before_the_data_ended_is_a_lie() {
    let (guest, mut peer) = pair(64 * 1024).await;
    let writer = guest.file_write(FileWrite::default()).await.unwrap();
    let id = peer.hear_open().await;
    peer.say(id, reply(Reply::Stat(stat("f")))).await;
    assert_eq!(guest.closed().await.kind(), ErrorKind::Protocol);
    assert_eq!(writer.finish().await.unwrap_err().kind(), ErrorKind::Protocol);
}

#[tokio::test]
async fn directories_are_listed_line_by_line() {
    let (guest, mut peer) = pair(64 * 1024).await;
    let lines = [stat("a"), stat("b\n")].map(|stat| serde_json::to_string(&stat).unwrap() + "\n").concat();
    for (count, good) in [(2, true), (3, false)] {
        let script = async {
            let id = peer.hear_open().await;
            let (head, tail) = lines.as_bytes().split_at(30);
            peer.say(id, Message::Stdout(head.to_vec())).await;
            peer.say(id, Message::Stdout(tail.to_vec())).await;
            peer.say(id, reply(Reply::Listed(count))).await;
        };
        let (listed, ()) = tokio::join!(guest.file_list(FileList::default()), script);
        match listed {
            Ok(files) => assert!(good && files == [stat("a"), stat("b\n")]),
            Err(error) => assert!(!good && error.kind() == ErrorKind::Protocol),
        }
    }
}

#[tokio::test]
async fn an_endless_listing_is_given_up() {
    let (guest, mut peer) = pair(64 * 1024).await;
    let script = async {
        let id = peer.hear_open().await;
        let mut credit = WINDOW as usize;
        let mut sent = 0;
        while sent <= MAX_LISTING + 512 * 1024 {
            while credit < 32 * 1024 {
                match peer.hear_message().await {
                    Message::Credit(bytes) => credit += bytes as usize,
                    Message::Cancel => return true,
                    other => panic!("{other:?}"),
                }
            }
            peer.say(id, Message::Stdout(vec![b'\n'; 32 * 1024])).await;
            credit -= 32 * 1024;
            sent += 32 * 1024;
        }
        false
    };
    let (listed, cancelled) = tokio::join!(guest.file_list(FileList::default()), script);
    assert_eq!(listed.unwrap_err().kind(), ErrorKind::TooLarge);
    assert!(cancelled);
}

#[tokio::test]
async fn short_questions_have_short_answers() {
    let (guest, mut peer) = pair(64 * 1024).await;
    let script = async {
        for answer in
            [Reply::Sessions(Vec::new()), Reply::Info(wire::Info::default()), Reply::Done, Reply::Done]
        {
            let id = peer.hear_open().await;
            peer.say(id, reply(answer)).await;
        }
    };
    let asked = async {
        assert!(guest.sessions().await.unwrap().is_empty());
        assert_eq!(guest.info().await.unwrap(), wire::Info::default());
        guest.sync().await.unwrap();
        guest.poweroff().await.unwrap();
    };
    tokio::join!(asked, script);
}
