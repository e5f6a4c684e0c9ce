//! QMP as bytes: commands written, the VMM's lines read. No I/O here.
//!
//! A message is one JSON object a line (QEMU's `docs/interop/qmp-spec`): a greeting, replies that carry the id of their
//! command, and events at any time.

use serde_json::{Map, Value, json};

/// A line longer than this is not from QEMU: its longest, a console of 16 KiB with every byte escaped, is 100 KiB.
const MAX_LINE: usize = 1 << 20;

/// One message of the VMM.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Message {
    /// The first line: capabilities must be negotiated.
    Greeting,
    /// The answer to the command with this id.
    Reply { id: u64, result: Result<Value, Refusal> },
    /// Something happened.
    Event { name: String, data: Map<String, Value> },
    /// An error without an id: the VMM could not read a command.
    Complaint(Refusal),
}

/// The VMM's "no".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) class: String,
    pub(crate) desc: String,
}

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Junk {
    #[error("a line is longer than 1 MiB")]
    TooLong,
    #[error("a line is not JSON")]
    NotJson,
    #[error("a line is JSON and no QMP message")]
    NotQmp,
}

/// One command as a line.
pub(crate) fn encode(id: u64, name: &str, arguments: Value) -> Vec<u8> {
    let mut command = json!({"execute": name, "id": id});
    if !arguments.is_null() {
        command["arguments"] = arguments;
    }
    let mut line = command.to_string().into_bytes();
    line.push(b'\n');
    line
}

/// Puts messages together from whatever pieces the socket gives.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    buffer: Vec<u8>,
    searched: usize,
}

impl Decoder {
    /// Takes more bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next message, if one is complete. After an error the stream cannot be trusted any more.
    pub(crate) fn next(&mut self) -> Result<Option<Message>, Junk> {
        loop {
            let Some(end) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') else {
                self.searched = self.buffer.len();
                return if self.searched > MAX_LINE { Err(Junk::TooLong) } else { Ok(None) };
            };
            let line: Vec<u8> = self.buffer.drain(..=self.searched + end).collect();
            self.searched = 0;
            let line = line.trim_ascii();
            if !line.is_empty() {
                let value = serde_json::from_slice(line).map_err(|_| Junk::NotJson)?;
                return message(value).map(Some).ok_or(Junk::NotQmp);
            }
        }
    }
}

fn message(value: Value) -> Option<Message> {
    let Value::Object(mut object) = value else { return None };
    if object.contains_key("QMP") {
        return Some(Message::Greeting);
    }
    if let Some(Value::String(name)) = object.get_mut("event").map(Value::take) {
        let data = match object.remove("data") {
            Some(Value::Object(data)) => data,
            _ => Map::new(),
        };
        return Some(Message::Event { name, data });
    }
    let id = object.get("id").and_then(Value::as_u64);
    let result = if let Some(error) = object.remove("error") {
        let part = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        Err(Refusal { class: part("class"), desc: part("desc") })
    } else {
        Ok(object.remove("return")?)
    };
    match (id, result) {
        (Some(id), result) => Some(Message::Reply { id, result }),
        (None, Err(refusal)) => Some(Message::Complaint(refusal)),
        (None, Ok(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(bytes: &[u8], piece: usize) -> Result<Vec<Message>, Junk> {
        let mut decoder = Decoder::default();
        let mut messages = Vec::new();
        for part in bytes.chunks(piece.max(1)) {
            decoder.push(part);
            while let Some(message) = decoder.next()? {
                messages.push(message);
            }
        }
        Ok(messages)
    }

    const TALK: &[u8] = b"{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n\
        {\"return\": {}, \"id\": 1}\r\n\
        {\"timestamp\": {\"seconds\": 1}, \"event\": \"STOP\"}\r\n\
        {\"id\": 2, \"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\r\n\
        {\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\r\n\
        {\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-shutdown\"}}\r\n";

    #[test]
    fn a_conversation_is_read_whatever_pieces_it_comes_in() {
        let whole = all(TALK, TALK.len()).unwrap();
        assert_eq!(whole.len(), 6);
        assert_eq!(whole[0], Message::Greeting);
        assert_eq!(whole[1], Message::Reply { id: 1, result: Ok(json!({})) });
        assert!(matches!(&whole[3], Message::Reply { id: 2, result: Err(no) } if no.desc == "no"));
        assert!(matches!(&whole[4], Message::Complaint(_)));
        assert!(
            matches!(&whole[5], Message::Event { name, data } if name == "SHUTDOWN" && data["guest"] == true)
        );
        for piece in 1..40 {
            assert_eq!(all(TALK, piece).unwrap(), whole);
        }
    }

    #[test]
    fn what_is_not_qmp_is_named() {
        assert_eq!(all(b"hello\n", 9), Err(Junk::NotJson));
        assert_eq!(all(b"[]\n", 9), Err(Junk::NotQmp));
        assert_eq!(all(b"{\"return\": 1}\n", 99), Err(Junk::NotQmp));
        assert_eq!(all(&vec![b'x'; MAX_LINE + 2], 4096), Err(Junk::TooLong));
        assert_eq!(all("[".repeat(100_000).as_bytes(), 4096), Ok(vec![]));
        assert_eq!(all((("[".repeat(100_000)) + "\n").as_bytes(), 4096), Err(Junk::NotJson));
    }

    #[test]
    fn a_command_is_one_line() {
        let line = encode(7, "human", json!({"text": "a\nb"}));
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(encode(1, "stop", Value::Null), b"{\"execute\":\"stop\",\"id\":1}\n");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes: Vec<u8>, piece in 1usize..64) {
            let _ = all(&bytes, piece);
        }

        #[test]
        fn no_damage_to_a_conversation_makes_it_panic(at in 0..TALK.len(), byte: u8, piece in 1usize..64) {
            let mut talk = TALK.to_vec();
            talk[at] = byte;
            let _ = all(&talk, piece);
        }

        #[test]
        fn the_pieces_do_not_matter(bytes in "[\\[\\]{}\":,a-c0-9\\n ]{0,200}", piece in 1usize..32) {
            prop_assert_eq!(all(bytes.as_bytes(), piece).ok(), all(bytes.as_bytes(), 4096).ok());
        }
    }
}
