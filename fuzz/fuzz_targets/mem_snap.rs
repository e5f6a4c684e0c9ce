//! A memory image whose checksums are right and nothing else: read whole, as a wake does.
#![no_main]

use std::io::{self, Write as _};

use libfuzzer_sys::fuzz_target;
use storage::PageSink;
use types::RamOffset;

/// Memory that ends where the header said that it ends.
struct Ram(u64);

impl PageSink for Ram {
    fn write(&mut self, at: RamOffset, pages: &[u8]) -> io::Result<()> {
        let end = at.0.checked_add(u64::try_from(pages.len()).expect("a length"));
        assert!(end.is_some_and(|end| end <= self.0), "{} bytes at {at:?} of {}", pages.len(), self.0);
        Ok(())
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    storage::fuzzing::seal_memory(&mut bytes);
    let mut file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a file");
    file.write_all(&bytes).expect("a write");
    // The hole behind the last frame, which no corpus has to hold.
    let memory = bytes.get(16..24).and_then(|number| number.try_into().ok()).map_or(0, u64::from_le_bytes);
    if (u64::try_from(bytes.len()).expect("a length")..=64 << 20).contains(&memory) {
        file.as_file().set_len(memory).expect("a length");
    }
    if let Ok(image) = storage::fuzzing::open_memory(file.path()) {
        let _told = image.load(&mut Ram(image.memory().0));
    }
});
