use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use proptest::prelude::*;
use types::{PAGE_SIZE, RamRun};

use super::*;
use crate::{ErrorKind, Result};

/// Memory as a map from page number to content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Pages {
    count: u64,
    private: BTreeMap<u64, Vec<u8>>,
}

impl PageSource for Pages {
    fn len(&self) -> Bytes {
        Bytes(self.count * PAGE_SIZE)
    }

    fn private_runs(&self) -> io::Result<Vec<RamRun>> {
        let page = |&number: &u64| RamRun { start: RamOffset(number * PAGE_SIZE), len: Bytes(PAGE_SIZE) };
        Ok(self.private.keys().map(page).collect())
    }

    fn read(&self, at: RamOffset, buf: &mut [u8]) -> io::Result<()> {
        for (index, page) in buf.chunks_mut(4096).enumerate() {
            page.copy_from_slice(&self.private[&(at.0 / PAGE_SIZE + index as u64)]);
        }
        Ok(())
    }
}

impl PageSink for Pages {
    fn write(&mut self, at: RamOffset, data: &[u8]) -> io::Result<()> {
        for (index, page) in data.chunks(4096).enumerate() {
            self.private.insert(at.0 / PAGE_SIZE + index as u64, page.to_vec());
        }
        Ok(())
    }
}

fn page(kind: u8, seed: u64) -> Vec<u8> {
    match kind % 3 {
        0 => vec![0; 4096],
        1 => (seed + 1).to_le_bytes().repeat(512),
        _ => {
            let mut random = vec![0; 4096];
            blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut random);
            random
        }
    }
}

fn header() -> MemoryHeader {
    MemoryHeader { generation: 7, base: ContentId::from_hash(&[0xb5; 32]) }
}

fn store(dir: &Path, pages: &Pages) -> StagedMemory {
    write(Staged::create(dir.join("mem.snap.new"), 0o600).unwrap(), pages, header(), 1).unwrap()
}

fn load(path: &Path, count: u64) -> Result<Pages> {
    let image = MemoryImage::open(path, Some(("sandbox a".to_owned(), "`the way out`".to_owned())))?;
    let mut pages = Pages { count, ..Pages::default() };
    image.load(&mut pages)?;
    Ok(pages)
}

fn sample() -> Pages {
    let mut private = BTreeMap::new();
    for (number, kind) in [(0, 1), (1, 0), (2, 2), (10, 0), (11, 1), (40, 2), (63, 1)] {
        private.insert(number, page(kind, number));
    }
    Pages { count: 64, private }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_was_written_is_what_is_loaded(
        kinds in proptest::collection::btree_map(0u64..1500, 0u8..6, 0..900),
    ) {
        let private = kinds.iter().map(|(&number, &kind)| (number, page(kind, number))).collect();
        let pages = Pages { count: 1500, private };
        let dir = tempfile::tempdir().unwrap();
        let staged = store(dir.path(), &pages);
        let zeros = kinds.values().filter(|&kind| kind % 3 == 0).count() as u64;
        prop_assert_eq!(staged.stats().zero, Bytes(zeros * PAGE_SIZE));
        prop_assert!(fs::metadata(staged.staged.path()).unwrap().len() >= pages.len().0);
        prop_assert_eq!(load(staged.staged.path(), 1500).unwrap(), pages);
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..4096),
        dressed in any::<bool>(),
    ) {
        if dressed && bytes.len() >= 16 {
            bytes[..8].copy_from_slice(&format::MAGIC);
            bytes[8..16].copy_from_slice(&[1, 0, 0, 0, 0, 0x10, 0, 0]);
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mem.snap");
        fs::write(&path, &bytes).unwrap();
        prop_assert!(matches!(load(&path, 1).unwrap_err().kind(), ErrorKind::Corrupt | ErrorKind::TooNew));
    }

    #[test]
    fn a_flipped_bit_is_refused_or_changes_nothing(at in 0.0..1.0f64, bit in 0u32..8, anywhere in any::<bool>()) {
        let pages = sample();
        let dir = tempfile::tempdir().unwrap();
        let staged = store(dir.path(), &pages);
        let path = staged.staged.path();
        // Most of the file is the hole behind the content: half of the flips go before it.
        let range = if anywhere { fs::metadata(path).unwrap().len() } else { staged.content.0 };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let at = (range as f64 * at) as u64;
        let file = File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
        match load(path, 64) {
            Ok(loaded) => prop_assert_eq!(loaded, pages),
            Err(error) => prop_assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::TooNew)),
        }
    }

    #[test]
    fn a_cut_file_is_refused(at in 0u64..262_144) {
        let dir = tempfile::tempdir().unwrap();
        let staged = store(dir.path(), &sample());
        staged.staged.file().set_len(at).unwrap();
        prop_assert_eq!(load(staged.staged.path(), 64).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}

#[test]
fn nothing_private_is_an_image_too() {
    let dir = tempfile::tempdir().unwrap();
    let pages = Pages { count: 4, ..Pages::default() };
    let staged = store(dir.path(), &pages);
    assert_eq!(load(staged.staged.path(), 4).unwrap(), pages);
}

#[test]
fn memory_full_of_what_cannot_be_compressed_makes_the_file_longer_than_the_memory() {
    let dir = tempfile::tempdir().unwrap();
    let private = (0..600).map(|number| (number, page(2, number))).collect();
    let pages = Pages { count: 600, private };
    let staged = store(dir.path(), &pages);
    assert!(fs::metadata(staged.staged.path()).unwrap().len() > pages.len().0);
    assert_eq!(load(staged.staged.path(), 600).unwrap(), pages);
}

#[test]
fn a_damaged_image_says_which_file_of_which_sandbox_and_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let staged = store(dir.path(), &sample());
    let path = staged.staged.path();
    staged.staged.file().write_all_at(&[0xff; 4], staged.content.0 - 4).unwrap();
    let text = load(path, 64).unwrap_err().to_string();
    assert!(
        text.contains("mem.snap.new") && text.contains("sandbox a") && text.contains("`the way out`"),
        "{text}"
    );
}

#[test]
fn a_newer_version_is_refused_by_name_before_anything_else_is_judged() {
    let dir = tempfile::tempdir().unwrap();
    let staged = store(dir.path(), &sample());
    staged.staged.file().write_all_at(&9u32.to_le_bytes(), 8).unwrap();
    let error = load(staged.staged.path(), 64).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooNew);
    assert!(error.to_string().contains("version 9"), "{error}");
}

#[test]
fn a_source_that_fails_or_contradicts_itself_fails_the_write_and_leaves_nothing() {
    struct Bad(Vec<RamRun>);
    impl PageSource for Bad {
        fn len(&self) -> Bytes {
            Bytes(64 << 20)
        }
        fn private_runs(&self) -> io::Result<Vec<RamRun>> {
            Ok(self.0.clone())
        }
        fn read(&self, at: RamOffset, _: &mut [u8]) -> io::Result<()> {
            if at.0 > 5 << 20 { Err(io::Error::other("the machine is gone")) } else { Ok(()) }
        }
    }
    let run = |start: u64, len: u64| RamRun { start: RamOffset(start), len: Bytes(len) };
    for (runs, kind) in [
        (vec![run(0, 32 << 20)], ErrorKind::Io),
        (vec![run(1, 4096)], ErrorKind::Invalid),
        (vec![run(0, 65 << 20)], ErrorKind::Invalid),
        (vec![run(8192, 4096), run(0, 4096)], ErrorKind::Invalid),
        (vec![run(0, 8192), run(4096, 4096)], ErrorKind::Invalid),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let staged = Staged::create(dir.path().join("mem.snap.new"), 0o600).unwrap();
        assert_eq!(write(staged, &Bad(runs), header(), 1).unwrap_err().kind(), kind);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

/// Release by release, the files that were once written are read. `BHATTI_WRITE_GOLDEN=1` writes a missing one.
#[test]
fn images_of_every_version_are_still_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mem-snap-1.bin");
    if std::env::var_os("BHATTI_WRITE_GOLDEN").is_some() && !path.exists() {
        let staged = store(path.parent().unwrap(), &sample());
        fs::copy(staged.staged.path(), &path).unwrap();
    }
    assert_eq!(load(&path, 64).unwrap(), sample());
    let image = MemoryImage::open(&path, None).unwrap();
    assert_eq!((image.generation(), image.base()), (7, header().base));
    assert_eq!(
        image.header_blake3().as_str(),
        "87b235ebc40c300b67b40ffcf9251f730a27dc3c0c860146663ede3834c3f5e1"
    );
}

#[test]
fn a_ram_base_holds_pages_at_their_offsets_and_its_id_does_not_depend_on_how_they_were_found() {
    let dir = tempfile::tempdir().unwrap();
    let base = |name: &str, pages: &Pages| {
        let path = dir.path().join(name);
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        (write_ram_base(&file, &path, pages).unwrap(), fs::read(&path).unwrap())
    };
    let (report, content) = base("a", &sample());
    assert_eq!(content.len() as u64, sample().len().0);
    for (number, page) in sample().private {
        assert_eq!(content[usize::try_from(number).unwrap() * 4096..][..4096], page);
    }
    assert_eq!(report.private, Bytes(5 * PAGE_SIZE));
    let mut without_zeros = sample();
    without_zeros.private.retain(|_, page| page.iter().any(|&byte| byte != 0));
    assert_eq!(base("b", &without_zeros).0, report);
    let mut other = sample();
    other.private.insert(20, page(1, 1));
    assert_ne!(base("c", &other).0.id, report.id);
}
