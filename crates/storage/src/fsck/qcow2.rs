//! What can be told of a qcow2 file without the program that writes it (docs/interop/qcow2.rst of QEMU).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The longest header with which anything is done here.
const HEADER: usize = 104;
/// Tables of first level that this program's disks can have: 512 KiB would do for 4 TiB.
const LARGEST_TABLE: u64 = 32 << 20;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const READS_AS_ZEROS: u64 = 1;
/// Bits of the incompatible features.
const CORRUPT: u64 = 1 << 1;
const EXTENDED_L2: u64 = 1 << 4;

/// A header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Qcow2 {
    /// Size of the disk.
    pub(crate) size: u64,
    /// The file below, as the header says it.
    pub(crate) backing: Option<String>,
    cluster: u64,
    first_level: (u64, u64),
    refcounts: (u64, u64),
    incompatible: u64,
}

impl Qcow2 {
    /// Reads a header; what is wrong with it otherwise.
    pub(crate) fn read(file: &File) -> io::Result<Result<Self, &'static str>> {
        let len = file.metadata()?.len();
        let mut bytes = [0; HEADER];
        let there = usize::try_from(len).map_or(HEADER, |len| len.min(HEADER));
        file.read_exact_at(&mut bytes[..there], 0)?;
        let header = Fields(&bytes);
        if there < 72 || header.u32(0) != 0x5146_49fb {
            return Ok(Err("it is no qcow2 file"));
        }
        let (version, cluster_bits) = (header.u32(4), header.u32(20));
        if !(2..=3).contains(&version) || !(9..=21).contains(&cluster_bits) {
            return Ok(Err("its header is damaged"));
        }
        let cluster = 1u64 << cluster_bits;
        let (name_at, name_len) = (header.u64(8), u64::from(header.u32(16)));
        let backing = match name_at {
            0 => None,
            at if name_len > 1023 || at.saturating_add(name_len) > cluster.min(len) => {
                return Ok(Err("its header is damaged"));
            }
            at => {
                let mut name = vec![0; usize::try_from(name_len).unwrap_or_default()];
                file.read_exact_at(&mut name, at)?;
                Some(String::from_utf8_lossy(&name).into_owned())
            }
        };
        Ok(Ok(Self {
            size: header.u64(24),
            backing,
            cluster,
            first_level: (header.u64(40), u64::from(header.u32(36)).saturating_mul(8)),
            refcounts: (header.u64(48), u64::from(header.u32(56)).saturating_mul(cluster)),
            incompatible: if version == 3 { header.u64(72) } else { 0 },
        }))
    }

    /// What is wrong with the tables and where they point to. Only of a file that nobody writes is it certain.
    pub(crate) fn damage(&self, file: &File) -> io::Result<Option<&'static str>> {
        const SHORT: &str = "it is cut short: blocks of it lie behind its end";
        const TABLES: &str = "its tables are damaged";
        let len = file.metadata()?.len();
        if self.incompatible & CORRUPT != 0 {
            return Ok(Some("its writer has marked it as damaged"));
        }
        for (at, bytes) in [self.first_level, self.refcounts] {
            if bytes > LARGEST_TABLE || !at.is_multiple_of(self.cluster) {
                return Ok(Some(TABLES));
            }
            if at.saturating_add(bytes) > len.next_multiple_of(self.cluster) {
                return Ok(Some(SHORT));
            }
        }
        let words = if self.incompatible & EXTENDED_L2 == 0 { 1 } else { 2 };
        let covered = self.cluster / (8 * words) * self.cluster;
        if self.first_level.1 / 8 < self.size.div_ceil(covered) {
            return Ok(Some(TABLES));
        }
        for table in table(file, self.first_level.0, self.first_level.1, len)? {
            let at = table & OFFSET;
            if at == 0 {
                continue;
            }
            if !at.is_multiple_of(self.cluster) {
                return Ok(Some(TABLES));
            }
            if at >= len {
                return Ok(Some(SHORT));
            }
            let entries = self::table(file, at, self.cluster, len)?;
            for entry in entries.chunks_exact(usize::try_from(words).unwrap_or(1)).map(|entry| entry[0]) {
                let block = entry & OFFSET;
                if entry & COMPRESSED != 0 || entry & READS_AS_ZEROS != 0 || block == 0 {
                    continue;
                }
                if !block.is_multiple_of(self.cluster) {
                    return Ok(Some(TABLES));
                }
                if block >= len {
                    return Ok(Some(SHORT));
                }
            }
        }
        Ok(None)
    }

    /// BLAKE3 of all that says where which block is: the first cluster with the header and the name of what lies below,
    /// both levels of tables, and the counts of references. What is wrong with the file otherwise.
    pub(crate) fn tables_blake3(&self, file: &File) -> io::Result<Result<blake3::Hash, &'static str>> {
        if let Some(what) = self.damage(file)? {
            return Ok(Err(what));
        }
        let len = file.metadata()?.len();
        let mut hasher = blake3::Hasher::new();
        let mut add = |at: u64, bytes: u64| -> io::Result<Vec<u64>> {
            let words = table(file, at, bytes, len)?;
            for word in &words {
                hasher.update(&word.to_be_bytes());
            }
            Ok(words)
        };
        add(0, self.cluster)?;
        let tables = add(self.first_level.0, self.first_level.1)?;
        let counts = add(self.refcounts.0, self.refcounts.1)?;
        for at in tables.iter().chain(&counts).map(|entry| entry & OFFSET).filter(|at| *at > 0) {
            add(at, self.cluster)?;
        }
        Ok(Ok(hasher.finalize()))
    }

    /// Whether it has a block of its own.
    pub(crate) fn is_empty(&self, file: &File) -> io::Result<bool> {
        let len = file.metadata()?.len();
        let bytes = self.first_level.1.min(LARGEST_TABLE);
        Ok(table(file, self.first_level.0, bytes, len)?.iter().all(|entry| entry & OFFSET == 0))
    }
}

/// The numbers of a table; behind the file's end they are zeros.
fn table(file: &File, at: u64, bytes: u64, len: u64) -> io::Result<Vec<u64>> {
    let mut raw = vec![0; usize::try_from(bytes).unwrap_or_default()];
    let there = usize::try_from(len.saturating_sub(at)).map_or(raw.len(), |there| there.min(raw.len()));
    file.read_exact_at(&mut raw[..there], at)?;
    Ok(raw.chunks_exact(8).map(|number| Fields(number).u64(0)).collect())
}

/// Big-endian numbers.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&self, at: usize) -> u32 {
        self.0[at..at + 4].iter().fold(0, |number, &byte| number << 8 | u32::from(byte))
    }

    fn u64(&self, at: usize) -> u64 {
        self.0[at..at + 8].iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;

    const CLUSTER: usize = 1 << 16;

    /// A disk of 64 MiB with one block of data, and its path.
    fn disk() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.qcow2");
        let mut bytes = vec![0u8; 6 * CLUSTER];
        let mut put = |at: usize, number: &[u8]| bytes[at..at + number.len()].copy_from_slice(number);
        put(0, b"QFI\xfb");
        put(4, &3u32.to_be_bytes());
        put(8, &112u64.to_be_bytes());
        put(16, &10u32.to_be_bytes());
        put(20, &16u32.to_be_bytes());
        put(24, &(64u64 << 20).to_be_bytes());
        put(36, &1u32.to_be_bytes());
        put(40, &(3 * CLUSTER as u64).to_be_bytes());
        put(48, &(CLUSTER as u64).to_be_bytes());
        put(56, &1u32.to_be_bytes());
        put(100, &104u32.to_be_bytes());
        put(112, b"../../base");
        put(CLUSTER, &(2 * CLUSTER as u64).to_be_bytes());
        (0..6).for_each(|block| put(2 * CLUSTER + 2 * block, &1u16.to_be_bytes()));
        put(3 * CLUSTER, &((4 * CLUSTER as u64) | (1 << 63)).to_be_bytes());
        put(4 * CLUSTER, &((5 * CLUSTER as u64) | (1 << 63)).to_be_bytes());
        put(4 * CLUSTER + 8, &1u64.to_be_bytes());
        fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    fn look(path: &std::path::Path) -> Result<Option<&'static str>, &'static str> {
        let file = File::open(path).unwrap();
        Qcow2::read(&file).unwrap().map(|header| header.damage(&file).unwrap())
    }

    #[test]
    fn a_header_tells_size_and_what_lies_below() {
        let (_dir, path) = disk();
        let file = File::open(&path).unwrap();
        let header = Qcow2::read(&file).unwrap().unwrap();
        assert_eq!((header.size, header.backing.as_deref()), (64 << 20, Some("../../base")));
        assert_eq!(header.damage(&file).unwrap(), None);
        assert!(!header.is_empty(&file).unwrap());
    }

    #[test]
    fn any_bit_of_header_and_tables_is_in_their_checksum() {
        use std::os::unix::fs::FileExt as _;
        let (_dir, path) = disk();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let sum = || match Qcow2::read(&file).unwrap() {
            Ok(header) => header.tables_blake3(&file).unwrap().ok(),
            Err(_) => None,
        };
        let whole = sum().unwrap();
        // The first level has one entry.
        let tables = [(1, 24), (2, 24), (3, 8), (4, 24)];
        let entries =
            tables.iter().flat_map(|&(table, len)| (0..len).map(move |at| table * CLUSTER as u64 + at));
        let offsets = (0..200).chain(entries);
        for at in offsets {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            for bit in [0, 7] {
                file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
                assert_ne!(sum(), Some(whole), "bit {bit} of byte {at}");
            }
            file.write_all_at(&byte, at).unwrap();
        }
        assert_eq!(sum(), Some(whole));
        file.write_all_at(&[1], 5 * CLUSTER as u64).unwrap();
        assert_eq!(sum(), Some(whole), "blocks are the guest's");
    }

    #[test]
    fn a_file_cut_anywhere_is_damaged_unless_only_its_last_block_got_shorter() {
        let (_dir, path) = disk();
        for blocks in 0..6u64 {
            File::options().write(true).open(&path).unwrap().set_len(blocks * CLUSTER as u64).unwrap();
            assert!(!matches!(look(&path), Ok(None)), "{blocks}");
            let (_other, whole) = disk();
            fs::copy(whole, &path).unwrap();
        }
        File::options().write(true).open(&path).unwrap().set_len(5 * CLUSTER as u64 + 512).unwrap();
        assert_eq!(look(&path), Ok(None), "blocks at the end need not be full");
    }

    proptest! {
        #[test]
        fn any_header_is_judged_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), magic: bool) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("disk");
            let mut bytes = bytes;
            if magic && bytes.len() >= 24 {
                bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
                bytes[20..24].copy_from_slice(&[0, 0, 0, 16]);
            }
            fs::write(&path, bytes).unwrap();
            let _ = look(&path);
        }
    }
}
