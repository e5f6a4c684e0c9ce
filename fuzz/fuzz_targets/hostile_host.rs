//! What may come in on the agent's port: found among stale bytes, cut into frames, and each frame the same when it is
//! written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::{Decoder, Scanner};

fuzz_target!(|bytes: &[u8]| {
    let Some((piece, bytes)) = bytes.split_first() else { return };
    let piece = usize::from(*piece).max(1);
    let (mut scanner, mut decoder) = (Scanner::for_attach(), None::<Decoder>);
    for part in bytes.chunks(piece) {
        match &mut decoder {
            Some(decoder) => decoder.push(part),
            None => {
                let Some(rest) = scanner.push(part) else { continue };
                decoder.get_or_insert_with(Decoder::new).push(rest);
            }
        }
        while let Some(reading) = &mut decoder {
            match reading.next() {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    let mut again = Vec::new();
                    wire::encode(frame.stream, &frame.message, &mut again).expect("what was read can be written");
                    let mut same = Decoder::new();
                    same.push(&again);
                    let read = same.next().expect("what was written can be read");
                    assert_eq!(format!("{read:?}"), format!("{:?}", Some(frame)));
                }
                Err(error) if error.is_fatal() => {
                    let rest = reading.take_rest();
                    (scanner, decoder) = (Scanner::for_attach(), None);
                    if let Some(rest) = scanner.push(&rest) {
                        decoder.get_or_insert_with(Decoder::new).push(rest);
                    }
                }
                Err(_) => {}
            }
        }
    }
});
