//! A layer of somebody's image, unpacked as root: whatever it holds, what lies beside the tree is as it was.
#![no_main]

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::Builder::new().prefix("layer-").tempdir_in("/dev/shm").expect("a directory");
    fs::write(dir.path().join("outside"), "untouched").expect("a file");
    image::fuzzing::lay(bytes, dir.path());
    let outside = dir.path().join("outside");
    let meta = fs::symlink_metadata(&outside).expect("it is there");
    assert!(meta.is_file() && meta.nlink() == 1 && meta.mode() & 0o7777 == 0o644 && meta.uid() == 0);
    assert_eq!(fs::read_to_string(&outside).expect("its content"), "untouched");
    assert_eq!(fs::read_dir(dir.path()).expect("the directory").count(), 2);
});
