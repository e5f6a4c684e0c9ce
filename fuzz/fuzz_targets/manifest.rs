//! Manifests and the other records of the store: as they are, and with an envelope whose checksum is right. What is read
//! is the same when it is written and read again.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use storage::Manifest;

fn read(bytes: &[u8]) {
    let path = Path::new("manifest.json");
    if let Ok(manifest) = Manifest::decode(bytes, path) {
        let again = Manifest::decode(&manifest.encode(), path).expect("what was read can be written");
        assert_eq!(format!("{again:?}"), format!("{manifest:?}"));
    }
}

fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    let Ok(body) = std::str::from_utf8(bytes) else { return };
    let blake3 = blake3::hash(body.trim().as_bytes()).to_hex();
    for version in 1..=storage::fuzzing::MANIFEST_VERSION {
        let whole = format!(
            "{{\"format\":\"bhatti-sandbox\",\"version\":{version},\"blake3\":\"{blake3}\",\"body\":{}}}",
            body.trim()
        );
        read(whole.as_bytes());
    }
});
