//! The laws of encoder and decoder, over random messages and random bytes.

use std::collections::BTreeMap;

use bhatti_wire::{
    ATTACH_MAGIC, Decoder, ErrorCode, Exec, ExitStatus, Failure, Frame, MAX_FRAME, MAX_MESSAGE, MAX_PAYLOAD,
    Message, PADDING_LEN, Request, Started, WindowSize, WireError, encode,
};
use proptest::collection::vec;
use proptest::prelude::*;

fn exec(argv: Vec<String>, env: BTreeMap<String, String>) -> Message {
    Message::Open(Box::new(Request::Exec(Exec { argv, env, timeout_ms: Some(7), ..Exec::default() })))
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        vec(any::<u8>(), 0..2000).prop_map(Message::Data),
        vec(any::<u8>(), 0..2000).prop_map(Message::Stdout),
        vec(any::<u8>(), 0..2000).prop_map(Message::Stderr),
        Just(Message::Eof),
        Just(Message::Cancel),
        Just(Message::Detach),
        Just(Message::Detached),
        any::<u32>().prop_map(Message::Credit),
        any::<i32>().prop_map(Message::Signal),
        any::<(u16, u16)>().prop_map(|(rows, cols)| Message::Resize(WindowSize { rows, cols })),
        any::<u32>().prop_map(|pid| Message::Started(Started { pid, session: None })),
        any::<Option<i32>>().prop_map(|code| Message::Exit(ExitStatus {
            code,
            timed_out: true,
            ..ExitStatus::default()
        })),
        any::<String>().prop_map(|message| Message::Failed(Failure { code: ErrorCode::NoSpace, message })),
        (vec(any::<String>(), 0..4), proptest::collection::btree_map(any::<String>(), any::<String>(), 0..4))
            .prop_map(|(argv, env)| exec(argv, env)),
        (MAX_PAYLOAD - 200..3 * MAX_PAYLOAD).prop_map(|len| exec(vec!["x".repeat(len)], BTreeMap::new())),
    ]
}

fn attach() -> Message {
    Message::Attach(Box::new(bhatti_wire::Attach {
        protocol: bhatti_wire::PROTOCOL,
        nonce: bhatti_wire::Hex([1; 16]),
        now_unix_ns: 1,
        entropy: bhatti_wire::Hex([2; 64]),
        identity: None,
        grow_root_to: None,
        volumes: Vec::new(),
        secrets: None,
        net: None,
    }))
}

fn decode_all(decoder: &mut Decoder) -> Vec<Frame> {
    std::iter::from_fn(|| decoder.next().expect("valid frames")).collect()
}

proptest! {
    #[test]
    fn what_was_encoded_is_decoded_however_the_bytes_are_cut(
        frames in vec((any::<u32>(), message()), 1..8),
        cuts in vec(1usize..5000, 1..20),
    ) {
        let mut bytes = Vec::new();
        for (stream, message) in &frames {
            encode(*stream, message, &mut bytes).expect("short enough");
        }
        let (mut decoder, mut decoded, mut rest) = (Decoder::new(), Vec::new(), &bytes[..]);
        for cut in cuts.iter().cycle() {
            let (head, tail) = rest.split_at((*cut).min(rest.len()));
            decoder.push(head);
            decoded.extend(decode_all(&mut decoder));
            rest = tail;
            if rest.is_empty() { break; }
        }
        prop_assert!(decoder.is_idle());
        let expected: Vec<_> =
            frames.into_iter().map(|(stream, message)| Frame { stream, message }).collect();
        prop_assert_eq!(decoded, expected);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic_or_hoard(bytes in vec(any::<u8>(), 0..4000), cut in 1usize..100) {
        let mut decoder = Decoder::new();
        for chunk in bytes.chunks(cut) {
            decoder.push(chunk);
            loop {
                match decoder.next() {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(error) if error.is_fatal() => { decoder.take_rest(); break; }
                    Err(_) => {}
                }
            }
        }
    }

    #[test]
    fn padding_frees_a_decoder_from_a_conversation_that_was_cut_anywhere(
        messages in vec(message(), 1..4),
        kept in 0usize..4 * MAX_FRAME,
    ) {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for message in &messages {
            encode(5, message, &mut bytes).expect("short enough");
            ends.push(bytes.len());
        }
        bytes.truncate(kept);
        let whole = ends.iter().filter(|end| **end <= bytes.len()).count();
        bytes.extend_from_slice(&vec![0; PADDING_LEN]);
        bytes.extend_from_slice(&ATTACH_MAGIC);
        encode(0, &attach(), &mut bytes).expect("short enough");
        let mut decoder = Decoder::new();
        decoder.push(&bytes);
        let mut decoded = 0;
        let rest = loop {
            match decoder.next() {
                Ok(frame) => {
                    prop_assert!(frame.is_some(), "the padding was swallowed");
                    decoded += 1;
                }
                Err(error) if error.is_fatal() => break decoder.take_rest(),
                Err(_) => {}
            }
        };
        prop_assert!(decoded <= whole + 1, "more than the half frame was made up");
        let mut scanner = bhatti_wire::Scanner::for_attach();
        let found = scanner.push(&rest);
        prop_assert!(found.is_some());
        decoder.push(found.unwrap_or_default());
        prop_assert_eq!(decoder.next().expect("a frame"), Some(Frame { stream: 0, message: attach() }));
    }
}

#[test]
fn a_message_that_is_too_long_is_refused_and_leaves_nothing_behind() {
    let mut out = vec![1, 2, 3];
    let message = exec(vec!["x".repeat(MAX_MESSAGE)], BTreeMap::new());
    assert!(matches!(encode(1, &message, &mut out), Err(WireError::TooLong { .. })));
    assert_eq!(out, [1, 2, 3]);
}

#[test]
fn a_message_in_parts_may_not_be_interrupted_nor_grow_without_end() {
    let mut decoder = Decoder::new();
    decoder.push(&[1, 0, 0, 0, 0x90, 1, 0, 0, b'{', 2, 0, 0, 0, 0x12, 0, 0, 0]);
    assert!(matches!(decoder.next(), Err(WireError::Interrupted { stream: 1 })));
    let mut decoder = Decoder::new();
    let mut part = vec![1, 0, 0, 0, 0x90, 0, 0x80, 0];
    part.resize(MAX_FRAME, b' ');
    let refused = (0..MAX_MESSAGE / MAX_PAYLOAD + 1).find_map(|_| {
        decoder.push(&part);
        decoder.next().err()
    });
    assert!(matches!(refused, Some(WireError::TooLong { .. })));
}

#[test]
fn an_unknown_request_is_skipped_and_the_next_frame_is_read() {
    let mut bytes = vec![9, 0, 0, 0, 0x10, 14, 0, 0];
    bytes.extend_from_slice(br#"{"op":"dance"}"#);
    encode(10, &Message::Eof, &mut bytes).expect("encodes");
    let mut decoder = Decoder::new();
    decoder.push(&bytes);
    assert!(matches!(decoder.next(), Err(WireError::Malformed { stream: 9, open: true, .. })));
    assert_eq!(decoder.next().expect("a frame"), Some(Frame { stream: 10, message: Message::Eof }));
}

#[test]
fn a_welcome_of_an_agent_that_knew_fewer_fields_is_understood() {
    let json = format!(
        r#"{{"protocol":1,"agent_version":"0.1.0","boot_nonce":"{}","configured":true}}"#,
        "09".repeat(16)
    );
    let mut bytes = vec![0, 0, 0, 0, 2, u8::try_from(json.len()).expect("short"), 0, 0];
    bytes.extend_from_slice(json.as_bytes());
    let mut decoder = Decoder::new();
    decoder.push(&bytes);
    let Some(Frame { message: Message::Welcome(welcome), .. }) = decoder.next().expect("a frame") else {
        panic!("no welcome")
    };
    assert!(welcome.configured && welcome.sandbox_id.is_none() && welcome.warnings.is_empty());
}

#[test]
fn frames_are_the_bytes_that_the_format_document_draws() {
    let mut bytes = Vec::new();
    encode(0x0102_0304, &Message::Stdout(b"hi".to_vec()), &mut bytes).expect("encodes");
    assert_eq!(bytes, [4, 3, 2, 1, 0x21, 2, 0, 0, b'h', b'i']);
    bytes.clear();
    encode(1, &Message::Resize(WindowSize { rows: 24, cols: 80 }), &mut bytes).expect("encodes");
    assert_eq!(bytes, [1, 0, 0, 0, 0x14, 4, 0, 0, 24, 0, 80, 0]);
    bytes.clear();
    let argv = vec!["true".to_string()];
    encode(1, &Message::Open(Box::new(Request::Exec(Exec { argv, ..Exec::default() }))), &mut bytes)
        .expect("encodes");
    assert_eq!(&bytes[8..], br#"{"op":"exec","argv":["true"]}"#);
    bytes.clear();
    encode(1, &Message::Exit(ExitStatus { code: Some(0), ..ExitStatus::default() }), &mut bytes)
        .expect("encodes");
    assert_eq!(&bytes[8..], br#"{"code":0}"#);
}
