//! What a VMM may say on its control socket, in pieces of any size: the same messages, however it is cut.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((piece, bytes)) = bytes.split_first() else { return };
    let cut = vm::fuzzing::read_qmp(bytes, usize::from(*piece).max(1));
    assert_eq!(cut, vm::fuzzing::read_qmp(bytes, bytes.len().max(1)));
});
