use super::*;
use proptest::prelude::*;
use wire::{Exec, FileKind, FileList, FileRead, FileWrite, ReadSummary, StatRequest};

fn stat() -> FileStat {
    FileStat {
        name: "f".to_owned(),
        kind: FileKind::File,
        size_bytes: 1,
        mode: 0o644,
        uid: 0,
        gid: 0,
        modified_unix_ms: 0,
        target: None,
    }
}

fn started() -> Message {
    Message::Started(Started { pid: 7, session: None })
}

fn reply(reply: Reply) -> Message {
    Message::Reply(Box::new(reply))
}

fn requests() -> Vec<Request> {
    vec![
        Request::Exec(Exec::default()),
        Request::Exec(Exec { detach: true, ..Exec::default() }),
        Request::FileRead(FileRead::default()),
        Request::FileList(FileList::default()),
        Request::FileWrite(FileWrite::default()),
        Request::FileStat(StatRequest::default()),
        Request::Sessions,
        Request::Info,
        Request::Sync,
    ]
}

/// Everything the agent can say, by a short name.
fn sayings() -> Vec<(&'static str, Message)> {
    vec![
        ("started", started()),
        ("meta", Message::Meta(Box::new(stat()))),
        ("out", Message::Stdout(vec![1])),
        ("err", Message::Stderr(vec![1])),
        ("exit", Message::Exit(ExitStatus { code: Some(0), ..ExitStatus::default() })),
        ("failed", Message::Failed(Failure { code: wire::ErrorCode::Io, message: String::new() })),
        ("done", reply(Reply::Done)),
        ("sessions", reply(Reply::Sessions(Vec::new()))),
        ("stat", reply(Reply::Stat(stat()))),
        ("read", reply(Reply::Read(ReadSummary::default()))),
        ("listed", reply(Reply::Listed(0))),
        ("info", reply(Reply::Info(wire::Info::default()))),
    ]
}

fn allowed(stream: impl Fn() -> Stream) -> String {
    let fine = |message: &Message| stream().receive(message.clone()).is_ok();
    sayings().iter().filter(|(_, message)| fine(message)).map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
}

#[test]
fn each_request_has_its_own_order_of_answers() {
    let first: Vec<String> = requests().iter().map(|request| allowed(|| Stream::new(request))).collect();
    assert_eq!(
        first,
        [
            "started failed",
            "started failed",
            "meta failed",
            "out failed listed",
            "failed",
            "failed stat",
            "failed sessions",
            "failed info",
            "failed done",
        ]
    );
    let opened: Vec<String> = requests()
        .iter()
        .map(|request| {
            allowed(|| {
                let mut stream = Stream::new(request);
                let _ = stream.receive(started());
                let _ = stream.receive(Message::Meta(Box::new(stat())));
                stream.eof();
                stream
            })
        })
        .collect();
    assert_eq!(
        opened,
        [
            "out err exit failed",
            "failed done",
            "out failed read",
            "out failed listed",
            "failed stat",
            "failed stat",
            "failed sessions",
            "failed info",
            "failed done",
        ]
    );
}

#[test]
fn what_only_the_host_says_is_refused_from_the_guest() {
    for message in [Message::Eof, Message::Cancel, Message::Detach, Message::Detached, Message::Data(vec![1])]
    {
        assert!(Stream::new(&Request::Exec(Exec::default())).receive(message).is_err());
    }
}

#[test]
fn after_the_end_nothing_counts() {
    let mut stream = Stream::new(&Request::Sync);
    stream.receive(reply(Reply::Done)).unwrap();
    stream.receive(Message::Stdout(vec![0; 1 << 20])).unwrap();
    assert!(matches!(stream.take(), Some((Told::Reply(Reply::Done), None))));
    assert!(stream.take().is_none());
    assert_eq!(stream.sendable(), None);
}

#[test]
fn credit_never_exceeds_the_window() {
    let mut stream = Stream::new(&Request::Exec(Exec::default()));
    assert!(stream.receive(Message::Credit(1)).is_err());
    stream.sent(10);
    stream.receive(Message::Credit(10)).unwrap();
    assert!(stream.receive(Message::Credit(u32::MAX)).is_err());
}

#[test]
fn long_texts_are_refused_or_cut() {
    let long = "x".repeat(MAX_TEXT + 1);
    let mut stream = Stream::new(&Request::Exec(Exec::default()));
    assert!(stream.receive(Message::Started(Started { pid: 1, session: Some(long.clone()) })).is_err());
    let mut stream = Stream::new(&Request::FileRead(FileRead::default()));
    assert!(stream.receive(Message::Meta(Box::new(FileStat { name: long.clone(), ..stat() }))).is_err());
    let mut stream = Stream::new(&Request::Sync);
    let message = format!("\x1b[2J{long}");
    stream.receive(Message::Failed(Failure { code: wire::ErrorCode::Io, message })).unwrap();
    let Some((Told::Failed(failure), _)) = stream.take() else { panic!("no failure") };
    assert!(failure.message.starts_with("\u{fffd}[2Jx") && failure.message.chars().count() == 1024);
}

proptest! {
    #[test]
    fn what_waits_is_bounded_and_nothing_is_lost(
        steps in proptest::collection::vec((any::<bool>(), 0usize..40_000, 0u8..4), 1..200)
    ) {
        let mut stream = Stream::new(&Request::Exec(Exec::default()));
        stream.receive(started()).unwrap();
        stream.take().unwrap();
        // What a fair agent may still send: it stops there. (pipe: sent, taken)
        let (mut credit, mut sent, mut taken) = (WINDOW, [0usize; 2], [0usize; 2]);
        for (err, len, takes) in steps {
            let cost = u32::try_from(len).unwrap();
            let message = if err { Message::Stderr(vec![0; len]) } else { Message::Stdout(vec![0; len]) };
            if cost <= credit {
                stream.receive(message).unwrap();
                credit -= cost;
                sent[usize::from(err)] += len;
            } else {
                // One byte past the credit is a breach; ask a copy of the state that is thrown away.
                prop_assert!(cost > stream.receivable);
            }
            let waiting: usize = stream.runs.iter().map(|(_, run)| run.len()).sum();
            prop_assert!(waiting <= usize::try_from(WINDOW).unwrap());
            prop_assert!(stream.runs.len() <= MAX_RUNS);
            for _ in 0..takes.saturating_sub(1) {
                let Some((told, grant)) = stream.take() else { break };
                match told {
                    Told::Stdout(data) => taken[0] += data.len(),
                    Told::Stderr(data) => taken[1] += data.len(),
                    other => panic!("{other:?}"),
                }
                credit += grant.unwrap_or(0);
            }
        }
        while let Some((told, grant)) = stream.take() {
            match told {
                Told::Stdout(data) => taken[0] += data.len(),
                Told::Stderr(data) => taken[1] += data.len(),
                other => panic!("{other:?}"),
            }
            credit += grant.unwrap_or(0);
        }
        prop_assert_eq!(sent, taken);
        // All but the last quarter comes back, so an agent can always go on.
        prop_assert!(credit > WINDOW - CREDIT_STEP);
    }
}
