//! Random data in guests.

/// Made once; what is more are copies of it, farther apart than any filesystem or compressor looks back.
const ONCE_MIB: u64 = 16;

/// A shell's words that fill a file of a guest with data that nothing makes smaller. An emulated guest makes some 40 MiB
/// of it in a second.
pub(crate) fn fill(file: &str, mib: u64) -> String {
    let first = mib.min(ONCE_MIB);
    let (copies, rest) = ((mib - first) / ONCE_MIB, (mib - first) % ONCE_MIB);
    format!(
        "head -c {first}M /dev/urandom > {file}; \
         for copy in $(seq {copies}); do head -c {ONCE_MIB}M {file} >> {file}; done; head -c {rest}M {file} >> {file}"
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    #[test]
    fn a_file_has_as_much_as_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        for mib in [0, 1, 16, 37] {
            let file = dir.path().join("data");
            let script = super::fill(file.to_str().unwrap(), mib);
            assert!(Command::new("sh").args(["-ec", &script]).status().unwrap().success());
            assert_eq!(std::fs::metadata(&file).unwrap().len(), mib << 20);
        }
    }
}
