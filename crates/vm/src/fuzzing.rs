//! What fuzz targets need and nobody else; not in any other build.

use crate::codec::Decoder;

/// Reads a conversation that comes in pieces of that size; tells the messages, and why it ended if it was cut off.
pub fn read_qmp(bytes: &[u8], piece: usize) -> Vec<String> {
    let (mut decoder, mut said) = (Decoder::default(), Vec::new());
    for part in bytes.chunks(piece) {
        decoder.push(part);
        loop {
            match decoder.next() {
                Ok(Some(message)) => said.push(format!("{message:?}")),
                Ok(None) => break,
                Err(junk) => {
                    said.push(junk.to_string());
                    return said;
                }
            }
        }
    }
    said
}
