//! Layers that mean well, and a corpus of those that do not. Owners and devices need root.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};

use tar::{Builder, Header};

use super::*;
use crate::{Cancel, ErrorKind, Progress};

/// A layer being written.
struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn header(kind: EntryType, name: &str, size: u64) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        header.set_size(size);
        // Raw, because the crate refuses to write what must be refused here.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        header
    }

    fn add(mut self, header: &Header, content: &[u8]) -> Self {
        self.0.append(header, content).unwrap();
        self
    }

    fn file(self, name: &str, content: &str) -> Self {
        let header = Self::header(EntryType::Regular, name, content.len() as u64);
        self.add(&header, content.as_bytes())
    }

    fn dir(self, name: &str) -> Self {
        let header = Self::header(EntryType::Directory, name, 0);
        self.add(&header, b"")
    }

    fn link(self, kind: EntryType, name: &str, target: &str) -> Self {
        let mut header = Self::header(kind, name, 0);
        header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.add(&header, b"")
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.link(EntryType::Symlink, name, target)
    }

    fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A tree below a directory in which something waits to be overwritten.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("tree")).unwrap();
        fs::write(dir.path().join("outside"), "untouched").unwrap();
        Self { dir }
    }

    fn tree(&self) -> std::path::PathBuf {
        self.dir.path().join("tree")
    }

    fn try_apply(&self, layers: Vec<Layer>, limits: Limits) -> Result<()> {
        let cancel = Cancel::new();
        let progress = |_: Progress| {};
        let build = Build { work_dir: self.dir.path(), progress: &progress, cancel: &cancel };
        let mut tree = Tree::new(&self.tree())?;
        let mut done = Unpacked::default();
        for layer in layers {
            let (bytes, share) = (layer.bytes(), Share { what: "test", total: 0 });
            let digest = apply(&build, &mut tree, &bytes[..], Compression::None, &limits, &mut done, share)?;
            assert_eq!(digest, Sha256Digest::of(&bytes));
        }
        tree.finish().map(drop)
    }

    fn apply(self, layers: Vec<Layer>) -> Self {
        self.try_apply(layers, Limits::default()).unwrap();
        self
    }

    /// Refused, and nothing outside the tree is other than it was.
    fn refuses(layers: Vec<Layer>, why: &str) {
        let place = Self::new();
        let error = place.try_apply(layers, Limits::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Input, "{error}");
        assert!(error.to_string().contains(why), "{error} does not say {why:?}");
        place.outside_is_untouched();
    }

    fn outside_is_untouched(&self) {
        assert_eq!(fs::read_to_string(self.dir.path().join("outside")).unwrap(), "untouched");
        assert_eq!(fs::metadata(self.dir.path().join("outside")).unwrap().nlink(), 1);
        let names: Vec<_> = fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.tree().join(name)).unwrap()
    }

    fn has(&self, name: &str) -> bool {
        self.tree().join(name).symlink_metadata().is_ok()
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn a_name_that_leads_up_is_refused_and_an_absolute_one_is_meant_from_the_root() {
    Place::refuses(vec![Layer::new().file("../outside", "evil")], "'..'");
    Place::refuses(vec![Layer::new().file("a/../../outside", "evil")], "'..'");
    let place = Place::new().apply(vec![Layer::new().file("/etc/x", "inside")]);
    assert_eq!(place.read("etc/x"), "inside");
}

#[test]
fn links_lead_nowhere_but_inside() {
    for target in ["/", "/..", "..", "../..", "../../../../../.."] {
        let place = Place::new()
            .apply(vec![Layer::new().symlink("way", target).dir("tree").file("way/outside", "kept in")]);
        place.outside_is_untouched();
        assert_eq!(place.read("outside"), "kept in", "through {target}");
    }
    Place::refuses(
        vec![Layer::new().symlink("way", "/proc/self/root").file("way/outside", "x")],
        "link to nothing",
    );
}

#[test]
fn a_link_that_is_swapped_for_a_directory_between_layers_does_not_lead_out() {
    let place = Place::new().apply(vec![
        Layer::new().dir("a").file("a/one", "1"),
        Layer::new().symlink("a", "..").file("a/outside", "kept in"),
    ]);
    place.outside_is_untouched();
    assert_eq!(place.read("outside"), "kept in");
}

#[test]
fn a_file_is_never_written_through_a_link_of_its_name() {
    let place = Place::new();
    let outside = place.dir.path().join("outside");
    let target = outside.to_str().unwrap().to_owned();
    assert!(target.len() < 100);
    let place = place.apply(vec![Layer::new().symlink("x", &target), Layer::new().file("x", "a file")]);
    place.outside_is_untouched();
    assert_eq!(place.read("x"), "a file");
}

#[test]
fn a_hard_link_out_is_refused_however_it_is_written() {
    for target in ["../outside", "a/../../outside", "/../outside"] {
        Place::refuses(vec![Layer::new().link(EntryType::Link, "x", target)], "'..'");
    }
    // Absolute is meant from the tree's root, where there is no such file.
    Place::refuses(vec![Layer::new().link(EntryType::Link, "x", "/etc/passwd")], "not there");
    Place::refuses(
        vec![Layer::new().symlink("up", "..").link(EntryType::Link, "x", "up/outside")],
        "not there",
    );
    Place::refuses(vec![Layer::new().dir("d").link(EntryType::Link, "x", "d")], "hard link to a directory");
    Place::refuses(
        vec![Layer::new().dir("d").file("d/f", "1").link(EntryType::Link, "d", "d/f")],
        "not there",
    );
}

#[test]
fn a_replaced_file_does_not_change_its_other_names() {
    let place = Place::new().apply(vec![
        Layer::new().file("a", "old").link(EntryType::Link, "b", "a"),
        Layer::new().file("a", "new").link(EntryType::Link, "c", "b").link(EntryType::Link, "c", "c"),
    ]);
    assert_eq!((place.read("a").as_str(), place.read("b").as_str()), ("new", "old"));
    let inode = |name: &str| fs::metadata(place.tree().join(name)).unwrap().ino();
    assert_eq!(inode("b"), inode("c"), "a hard link across layers");
}

#[test]
fn a_whiteout_hides_lower_layers_and_never_its_own() {
    let lower =
        || Layer::new().dir("d").file("d/old", "1").dir("d/sub").file("d/sub/old", "1").file("gone", "1");
    let place = Place::new().apply(vec![
        lower(),
        Layer::new()
            .file(".wh.gone", "")
            .file("d/.wh.old", "")
            .file("d/.wh.never-there", "")
            .file("no/.wh.x", ""),
    ]);
    assert!(!place.has("gone") && !place.has("d/old") && place.has("d/sub/old") && !place.has("no"));
    // Whatever the order: what the layer itself brings stays.
    for layer in [
        Layer::new().file("d/sub/new", "2").file("d/.wh..wh..opq", ""),
        Layer::new().file("d/.wh..wh..opq", "").file("d/sub/new", "2"),
        Layer::new().file("d/sub/new", "2").file(".wh.d", ""),
    ] {
        let place = Place::new().apply(vec![lower(), layer]);
        assert_eq!(place.read("d/sub/new"), "2");
        assert!(!place.has("d/old") && !place.has("d/sub/old") && place.has("gone"));
    }
}

#[test]
fn a_whiteout_of_no_name_is_refused_and_private_names_of_aufs_mean_nothing() {
    for name in [".wh.", ".wh..", ".wh...", "d/.wh..."] {
        Place::refuses(vec![Layer::new().file(name, "")], "removes no name");
    }
    let place = Place::new()
        .apply(vec![Layer::new().dir(".wh..wh.plnk").file(".wh..wh.plnk/1.2", "x").file("a", "1")]);
    assert!(place.has("a") && !place.has(".wh..wh.plnk"));
}

#[test]
fn names_in_what_is_no_directory_are_refused() {
    Place::refuses(vec![Layer::new().file("a", "1").file("a/b", "2")], "no directory");
    Place::refuses(vec![Layer::new().symlink("a", "nowhere").file("a/b", "2")], "link to nothing");
    Place::refuses(vec![Layer::new().symlink("a", "b").symlink("b", "a").file("a/c", "2")], "circle");
    Place::refuses(
        vec![Layer::new().file("./", "not a directory").link(EntryType::Link, "/", "x")],
        "not there",
    );
}

#[test]
fn a_tree_too_deep_to_be_removed_again_is_refused_even_by_way_of_links() {
    let mut layer = Layer::new();
    // Each link halves what a name needs to say: without a bound every round goes deeper.
    for round in 0..6 {
        let deep: String = "d/".repeat(45);
        layer = layer.dir(&format!("l{round}/{deep}"));
        layer = layer.symlink(&format!("l{}", round + 1), &format!("l{round}/{}", &deep[..deep.len() - 1]));
    }
    Place::refuses(vec![layer], "deeper than 255");
}

#[test]
fn bombs_are_refused_before_they_go_off() {
    let limits = Limits { bytes: Bytes(1000), names: 10 };
    let refused = |layer: Layer| {
        let place = Place::new();
        let error = place.try_apply(vec![layer], limits).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    };
    refused(Layer::new().file("a", &"x".repeat(600)).file("b", &"x".repeat(600)));
    refused((0..20).fold(Layer::new(), |layer, n| layer.file(&format!("f{n}"), "")));
    // A file of 8 EiB that is one hole.
    let mut sparse = Header::new_gnu();
    sparse.set_entry_type(EntryType::GNUSparse);
    sparse.set_path("hole").unwrap();
    sparse.set_mode(0o644);
    sparse.set_uid(0);
    sparse.set_gid(0);
    sparse.set_mtime(0);
    sparse.set_size(0);
    let gnu = sparse.as_gnu_mut().unwrap();
    gnu.sparse[0].set_offset(1 << 62);
    gnu.sparse[0].set_length(0);
    gnu.realsize[0] = 0x80;
    gnu.realsize[4..].copy_from_slice(&(1u64 << 62).to_be_bytes());
    sparse.set_cksum();
    refused(Layer::new().add(&sparse, b""));
}

#[test]
fn a_name_of_gigabytes_is_not_read_into_memory() {
    let size = 5 << 20;
    for kind in [EntryType::XHeader, EntryType::GNULongName, EntryType::GNULongLink] {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_path("x").unwrap();
        header.set_size(size);
        header.set_cksum();
        let layer = Layer::new().add(&header, &vec![b'a'; usize::try_from(size).unwrap()]).file("a", "1");
        Place::refuses(vec![layer], "longer than 2 MiB");
    }
}

#[test]
fn a_bomb_of_zeros_compressed_a_thousandfold_is_counted_unpacked() {
    let place = Place::new();
    let plain = Layer::new().file("zeros", &"\0".repeat(1 << 20)).bytes();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&plain).unwrap();
    let small = gzip.finish().unwrap();
    assert!(small.len() < 8 << 10);
    let (cancel, progress) = (Cancel::new(), |_: Progress| {});
    let build = Build { work_dir: place.dir.path(), progress: &progress, cancel: &cancel };
    let share = || Share { what: "test", total: 0 };
    let run = |limits| {
        let mut tree = Tree::new(&place.tree()).unwrap();
        let mut done = Unpacked::default();
        apply(&build, &mut tree, &small[..], Compression::Gzip, &limits, &mut done, share())
    };
    let error = run(Limits { bytes: Bytes(1 << 19), names: 9 }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert_eq!(run(Limits::default()).unwrap(), Sha256Digest::of(&plain));
    let blocks = fs::metadata(place.tree().join("zeros")).unwrap().blocks();
    assert!(blocks < 16, "zeros are holes, and not {blocks} blocks");
}

#[test]
fn a_layer_cut_anywhere_is_refused() {
    let bytes = Layer::new().file("a", &"x".repeat(3000)).bytes();
    let (cancel, progress) = (Cancel::new(), |_: Progress| {});
    for cut in [100, 512, 600, 2000, 3500] {
        let place = Place::new();
        let build = Build { work_dir: place.dir.path(), progress: &progress, cancel: &cancel };
        let mut tree = Tree::new(&place.tree()).unwrap();
        let mut done = Unpacked::default();
        let share = Share { what: "test", total: 0 };
        let from = &bytes[..cut];
        let error = apply(&build, &mut tree, from, Compression::None, &Limits::default(), &mut done, share)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Input, "cut at {cut}: {error}");
    }
}

#[test]
fn somebody_who_does_not_want_it_any_more_is_heard() {
    let place = Place::new();
    let (cancel, progress) = (Cancel::new(), |_: Progress| {});
    cancel.cancel();
    let build = Build { work_dir: place.dir.path(), progress: &progress, cancel: &cancel };
    let mut tree = Tree::new(&place.tree()).unwrap();
    let share = Share { what: "test", total: 0 };
    let bytes = Layer::new().file("a", "1").bytes();
    let error = apply(
        &build,
        &mut tree,
        &bytes[..],
        Compression::None,
        &Limits::default(),
        &mut Unpacked::default(),
        share,
    );
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn attributes_are_those_of_the_archive() {
    if !is_root() {
        return;
    }
    let mut setuid = Layer::header(EntryType::Regular, "bin/su", 2);
    setuid.set_mode(0o6755);
    setuid.set_uid(7);
    setuid.set_gid(8);
    setuid.set_cksum();
    // A capability set as the kernel keeps it: revision 2, cap_net_raw permitted and effective.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let xattr: &[(&str, &[u8])] = &[
        ("SCHILY.xattr.security.capability", &capability),
        ("SCHILY.xattr.user.x", b"a\0b"),
        ("mtime", b"1234567.5"),
    ];
    let mut node = Layer::header(EntryType::Char, "dev/null", 0);
    node.set_device_major(1).unwrap();
    node.set_device_minor(3).unwrap();
    node.set_cksum();
    let place = Place::new().apply(vec![
        Layer::new()
            .dir("bin")
            .pax(xattr)
            .add(&setuid, b"su")
            .add(&node, b"")
            .add(&Layer::header(EntryType::Fifo, "pipe", 0), b"")
            .symlink("sl", "/absolute/as it is"),
        Layer::new().file("bin/later", "changes the directory's time on the way"),
    ]);
    let meta = |name: &str| fs::symlink_metadata(place.tree().join(name)).unwrap();
    let su = meta("bin/su");
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid()), (0o6755, 7, 8));
    assert_eq!((su.mtime(), su.mtime_nsec()), (1_234_567, 500_000_000));
    let mut value = [0u8; 64];
    let got = |name: &str, value: &mut [u8]| {
        rustix::fs::getxattr(place.tree().join("bin/su"), name, value).unwrap()
    };
    let length = got("security.capability", &mut value);
    assert_eq!(value[..length], capability);
    let length = got("user.x", &mut value);
    assert_eq!(&value[..length], b"a\0b");
    assert!(meta("dev/null").file_type().is_char_device());
    assert_eq!(meta("dev/null").rdev(), rustix::fs::makedev(1, 3));
    assert!(meta("pipe").file_type().is_fifo());
    assert_eq!(fs::read_link(place.tree().join("sl")).unwrap().to_str(), Some("/absolute/as it is"));
    assert_eq!(meta("bin").mtime(), 1_000_000, "a directory's time is its own");
    assert_eq!(meta("dev").mtime(), 0, "of a directory that no layer names nothing is known");
    assert_eq!(meta("dev").permissions().mode() & 0o7777, 0o755);
}

#[test]
fn a_directory_said_again_has_the_new_attributes_only() {
    if !is_root() {
        return;
    }
    let mut again = Layer::header(EntryType::Directory, "d", 0);
    again.set_mode(0o700);
    again.set_uid(5);
    again.set_cksum();
    let place = Place::new().apply(vec![
        Layer::new().pax(&[("SCHILY.xattr.user.old", b"1")]).dir("d").file("d/kept", "1"),
        Layer::new().pax(&[("SCHILY.xattr.user.new", b"2")]).add(&again, b""),
    ]);
    let mut names = [0u8; 256];
    let length = rustix::fs::listxattr(place.tree().join("d"), &mut names[..]).unwrap();
    assert_eq!(&names[..length], b"user.new\0");
    let meta = fs::metadata(place.tree().join("d")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o700, 5));
    assert_eq!(place.read("d/kept"), "1");
}

#[test]
fn times_of_pax_are_read_to_the_nanosecond_and_before_1970() {
    let time = |text: &str| pax_time(text.as_bytes()).map(|time| (time.tv_sec, time.tv_nsec));
    let cases = BTreeMap::from([
        ("12", Some((12, 0))),
        ("12.5", Some((12, 500_000_000))),
        ("-1.25", Some((-2, 750_000_000))),
        ("-3", Some((-3, 0))),
        ("1.1234567899", Some((1, 123_456_789))),
        ("", None),
        ("x", None),
        ("1.x", None),
    ]);
    for (text, expected) in cases {
        assert_eq!(time(text), expected, "{text}");
    }
}
