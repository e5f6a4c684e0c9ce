//! `setup --storage btrfs-loop` on the filesystem under test: root only, for it mounts.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, Permissions};
use std::hash::{DefaultHasher, Hasher as _};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");
const MIB: usize = 1 << 20;

/// A directory of the test's own on the filesystem under test, in which `data` is the data directory.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// `None` where the command has nothing to do: without root, and on a filesystem that shares and compresses.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("only root may mount: not tested");
            return None;
        }
        let root = std::env::var_os("BHATTI_TEST_ROOT").map_or_else(std::env::temp_dir, PathBuf::from);
        let dir = tempfile::Builder::new().prefix("loop-").tempdir_in(root.canonicalize().unwrap()).unwrap();
        let place = Self { dir };
        let planned = place.setup(&["--dry-run"]);
        assert!(planned.status.success(), "{planned:?}");
        let planned = String::from_utf8(planned.stdout).unwrap();
        if planned.contains("already") {
            assert!(planned.contains("shares and compresses already; nothing to gain"), "{planned}");
            assert!(!place.path("data").exists() && !place.path("data.btrfs").exists());
            return None;
        }
        assert!(planned.starts_with("would make "), "{planned}");
        assert!(!place.path("data").exists(), "a dry run changes nothing");
        Some(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn data(&self) -> PathBuf {
        self.path("data")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(BHATTI);
        for name in ["BHATTI_URL", "BHATTI_TOKEN", "BHATTI_LOG", "NOTIFY_SOCKET"] {
            command.env_remove(name);
        }
        command.args(words).env("BHATTI_DATA_DIR", self.data());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn setup_command(&self, more: &[&str]) -> Command {
        let mut command = self.command(&["setup", "--storage", "btrfs-loop", "--only-storage"]);
        command.args(more);
        command
    }

    fn setup(&self, more: &[&str]) -> Output {
        self.setup_command(more).output().unwrap()
    }

    /// Runs it; it must succeed. Gives what it printed.
    fn ok(&self, more: &[&str]) -> String {
        let output = self.setup(more);
        assert!(output.status.success(), "{more:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What is mounted at the data directory, lowest first.
    fn mounts(&self) -> Vec<String> {
        let info = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let data = self.data().display().to_string();
        info.lines().filter(|line| line.split(' ').nth(4) == Some(&data)).map(str::to_owned).collect()
    }

    /// Names beside the data directory.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// It is in a btrfs in a file, once, with nothing left of the move.
    fn assert_mounted(&self) {
        let mounts = self.mounts();
        assert_eq!(mounts.len(), 1, "{mounts:?}");
        for part in ["noatime", "- btrfs /dev/loop", "compress=zstd:1"] {
            assert!(mounts[0].contains(part), "{mounts:?}");
        }
        let names = self.names();
        assert!(
            names.iter().all(|name| ["data", "data.btrfs", "data.btrfs.mount"].contains(&name.as_str())),
            "{names:?}"
        );
        assert_eq!(self.loops().len(), 1, "{:?}", self.loops());
    }

    /// It is in a plain directory, with nothing left of anything.
    fn assert_plain(&self) {
        assert_eq!(self.mounts(), [""; 0]);
        assert_eq!(self.names(), ["data"]);
        assert_eq!(self.loops(), [""; 0]);
        assert!(!self.data().join("NOT-MOUNTED.txt").exists());
    }

    /// Loop devices with files of this place.
    fn loops(&self) -> Vec<String> {
        loops_of(self.dir.path())
    }

    /// Files and directories as a store makes them.
    fn fill(&self) {
        let data = self.data();
        for dir in ["images/objects", "sandboxes/a1", "templates/t", "volumes", "kernel"] {
            fs::create_dir_all(data.join(dir)).unwrap();
        }
        let object = data.join("images/objects/0123.ext4");
        let file = File::create(&object).unwrap();
        file.set_len(128 << 20).unwrap();
        for (at, seed) in [(0u64, 1u64), (30 << 20, 2), (100 << 20, 3)] {
            file.write_all_at(&noise(seed, 8 * MIB), at).unwrap();
        }
        file.write_all_at(b"the end", (128 << 20) - 7).unwrap();
        file.set_permissions(Permissions::from_mode(0o444)).unwrap();
        fs::hard_link(&object, data.join("images/rootfs-minimal-amd64.ext4")).unwrap();
        fs::write(data.join("sandboxes/a1/mem.snap"), noise(4, 3 * MIB + 5)).unwrap();
        fs::write(data.join("sandboxes/a1/manifest.json"), "{}").unwrap();
        fs::write(data.join("templates/t/ram.base"), vec![7; 20 * MIB]).unwrap();
        fs::write(data.join("admin.key"), "bht_secret").unwrap();
        fs::set_permissions(data.join("admin.key"), Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::chown(data.join("admin.key"), Some(1234), Some(5678)).unwrap();
        std::os::unix::fs::symlink("admin.key", data.join("link to the key")).unwrap();
        drop(UnixListener::bind(data.join("bhatti.sock")).unwrap());
        fs::set_permissions(&data, Permissions::from_mode(0o700)).unwrap();
    }

    fn seen(&self) -> BTreeMap<PathBuf, String> {
        let mut seen = BTreeMap::new();
        let mut first = HashMap::new();
        look(&self.data(), &self.data(), &mut seen, &mut first);
        seen
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What a failed test leaves: mounts first, then the temporary directory removes itself.
        let info = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut mounts: Vec<_> = info
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|at| Path::new(at).starts_with(self.dir.path()))
            .collect();
        mounts.reverse();
        for at in mounts {
            let _gone = Command::new("umount").args(["-l", at]).status();
        }
    }
}

fn loops_of(dir: &Path) -> Vec<String> {
    let devices = fs::read_dir("/sys/block").unwrap().flatten();
    let files = devices.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
    files.filter(|file| Path::new(file).starts_with(dir)).collect()
}

/// Every name with what matters of it. Locks are not of the data, nor is what a trial of the filesystem leaves when it
/// is killed: the next daemon removes that.
fn look(root: &Path, dir: &Path, seen: &mut BTreeMap<PathBuf, String>, first: &mut HashMap<u64, PathBuf>) {
    let meta = fs::metadata(dir).unwrap();
    let below = dir.strip_prefix(root).unwrap().to_owned();
    seen.insert(below, format!("dir {:o} {}:{}", meta.mode(), meta.uid(), meta.gid()));
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    // Of several names of a file the first one stands for it, in an order that is no filesystem's.
    paths.sort();
    for path in paths {
        let meta = fs::symlink_metadata(&path).unwrap();
        let below = path.strip_prefix(root).unwrap().to_owned();
        if meta.is_dir() {
            look(root, &path, seen, first);
            continue;
        }
        let name = path.file_name().unwrap().to_string_lossy();
        let passing = name.ends_with(".lock") || name.starts_with(".new-probe-");
        if meta.file_type().is_socket() || passing {
            continue;
        }
        let mut text = format!("{:o} {}:{} {}", meta.mode(), meta.uid(), meta.gid(), meta.len());
        if meta.is_symlink() {
            text.push_str(&format!(" to {}", fs::read_link(&path).unwrap().display()));
        } else {
            let known = first.entry(meta.ino()).or_insert_with(|| below.clone());
            // 32 KiB for whatever a filesystem keeps of its own.
            let holes = meta.len() > meta.blocks() * 512 + (32 << 10);
            let hash = hash_of(&path);
            text.push_str(&format!(" {} file {} holes {holes} {hash:x}", meta.nlink(), known.display()));
            text.push_str(&format!(" {:?}", meta.modified().unwrap()));
        }
        seen.insert(below, text);
    }
}

fn hash_of(path: &Path) -> u64 {
    let mut file = File::open(path).unwrap();
    let mut hasher = DefaultHasher::new();
    let mut buffer = vec![0; MIB];
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return hasher.finish(),
            read => hasher.write(&buffer[..read]),
        }
    }
}

/// Bytes that no compression makes smaller.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The one line of a refusal.
fn refusal(output: &Output, status: i32, parts: &[&str]) {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let line = text.lines().last().unwrap_or_default();
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert!(line.starts_with("error: "), "{text}");
    for part in parts {
        assert!(line.contains(part), "no {part:?} in {line:?}");
    }
}

#[test]
fn an_empty_directory_gets_a_btrfs_and_loses_it_again() {
    let Some(place) = Place::new() else { return };
    let said = place.ok(&["--size", "1G"]);
    assert!(said.contains("/data is in a btrfs in ") && said.contains("data.btrfs, 1.0 GiB"), "{said}");
    place.assert_mounted();
    assert_eq!(fs::metadata(place.data()).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(fs::metadata(place.path("data.btrfs")).unwrap().len(), 1 << 30);
    assert!(fs::metadata(place.path("data.btrfs")).unwrap().blocks() * 512 < 64 << 20, "it is sparse");
    let text = vec![b'a'; 64 * MIB];
    fs::write(place.data().join("text"), &text).unwrap();
    File::open(place.data()).unwrap().sync_all().unwrap();
    rustix::fs::syncfs(File::open(place.data()).unwrap()).unwrap();
    assert!(fs::metadata(place.path("data.btrfs")).unwrap().blocks() * 512 < 64 << 20, "it compresses");

    let again = place.ok(&["--size", "1G"]);
    assert!(again.starts_with("storage: already "), "{again}");
    place.assert_mounted();
    // A file alone makes no data directory; it is moved back all the same.
    let said = place.ok(&["--undo"]);
    assert!(said.contains("/data is a plain directory"), "{said}");
    place.assert_plain();
    assert_eq!(fs::read(place.data().join("text")).unwrap(), text);
    let again = place.ok(&["--undo"]);
    assert!(again.starts_with("storage: already "), "{again}");
    place.assert_plain();
}

#[test]
fn data_moves_in_and_back_out_byte_for_byte() {
    let Some(place) = Place::new() else { return };
    place.fill();
    let before = place.seen();
    assert!(before[Path::new("images/rootfs-minimal-amd64.ext4")].contains("100444 0:0"));
    place.ok(&["--size", "1GiB"]);
    place.assert_mounted();
    assert_eq!(place.seen(), before);
    assert!(!place.data().join("bhatti.sock").exists());
    fs::write(place.data().join("written later"), noise(9, MIB)).unwrap();
    place.ok(&["--undo"]);
    place.assert_plain();
    let mut after = place.seen();
    assert!(after.remove(Path::new("written later")).is_some());
    assert_eq!(after, before);
    // And once more, with other words for it.
    let said = place.ok(&["--size", "1024M", "--json"]);
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["storage"]["kind"], "btrfs-loop");
    assert_eq!(said["storage"]["backing_bytes"], 1u64 << 30);
    place.assert_mounted();
    place.ok(&["--undo"]);
}

#[test]
fn what_is_mounted_grows_and_does_not_shrink() {
    let Some(place) = Place::new() else { return };
    place.ok(&["--size", "1G"]);
    place.ok(&["--size", "2G"]);
    place.assert_mounted();
    let space = rustix::fs::statvfs(place.data()).unwrap();
    assert_eq!(space.f_blocks * space.f_frsize, 2 << 30);
    refusal(&place.setup(&["--size", "1G"]), 1, &["is 2.0 GiB, and is not made smaller"]);
    // A full one is grown, and left, as any other.
    let full = |name: &str| {
        let mut file = File::create(place.data().join(name)).unwrap();
        let written =
            (0..).find_map(|seed| std::io::Write::write_all(&mut file, &noise(seed, 16 * MIB)).err());
        assert_eq!(written.unwrap().kind(), std::io::ErrorKind::StorageFull);
    };
    full("noise");
    place.ok(&["--size", "2100M"]);
    full("more noise");
    let held = fs::metadata(place.data().join("noise")).unwrap().len();
    place.ok(&["--undo"]);
    place.assert_plain();
    assert_eq!(fs::metadata(place.data().join("noise")).unwrap().len(), held);
}

#[test]
fn sizes_that_make_no_sense_are_refused() {
    let Some(place) = Place::new() else { return };
    for size in ["0", "0G", "-5G", "20", "much", "1.5G"] {
        refusal(&place.setup(&["--size", size]), 2, &["--size", "such as 20G"]);
    }
    refusal(&place.setup(&["--size", "200M"]), 1, &["too little", "at least 1.0 GiB"]);
    refusal(&place.setup(&["--size", "9000T"]), 1, &["more than the whole filesystem under it has"]);
    refusal(&place.setup(&["--size", "2G", "--undo"]), 2, &["cannot be used with"]);
    for flag in ["--undo", "--dry-run", "--only-storage"] {
        refusal(&place.command(&["setup", flag]).output().unwrap(), 2, &[flag, "`--storage btrfs-loop`"]);
    }
    assert_eq!(place.names(), [""; 0]);
}

#[test]
fn a_directory_that_is_in_use_is_left_alone() {
    let Some(place) = Place::new() else { return };
    let start = || {
        let mut daemon = place.command(&["serve", "--listen", "none"]).stderr(Stdio::null()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        assert!(ready.contains("ready"), "{ready}");
        daemon
    };
    let end = |mut daemon: Child| {
        kill_process(Pid::from_child(&daemon), Signal::TERM).unwrap();
        assert!(daemon.wait().unwrap().success());
    };
    let daemon = start();
    let pid = format!("bhatti (pid {})", daemon.id());
    let in_use = ["/data: is in use by ", &pid, "end the daemon"];
    refusal(&place.setup(&[]), 1, &in_use);
    end(daemon);
    place.assert_plain();
    // A machine's lock counts where its files cannot be seen, as in another mount namespace.
    let sandbox = place.data().join("sandboxes/abc");
    fs::create_dir(&sandbox).unwrap();
    let lock = File::open(&sandbox).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    refusal(&place.setup(&[]), 1, &["/data: is in use by "]);
    drop(lock);
    let mut shell = Command::new("sleep").arg("600").current_dir(place.data()).spawn().unwrap();
    refusal(&place.setup(&[]), 1, &[&format!("sleep (pid {})", shell.id())]);
    shell.kill().unwrap();
    shell.wait().unwrap();
    place.assert_plain();

    place.ok(&["--size", "1G"]);
    let daemon = start();
    let pid = format!("bhatti (pid {})", daemon.id());
    let again = place.ok(&[]);
    assert!(again.starts_with("storage: already "), "a daemon may serve it: {again}");
    refusal(&place.setup(&["--undo"]), 1, &["/data: is in use by ", &pid]);
    place.assert_mounted();
    end(daemon);
    place.ok(&["--undo"]);
    place.assert_plain();
}

#[test]
fn what_is_no_data_directory_stays_where_it_is() {
    let Some(place) = Place::new() else { return };
    fs::create_dir(place.data()).unwrap();
    fs::write(place.data().join("thesis.pdf"), "years").unwrap();
    refusal(&place.setup(&[]), 1, &["is no data directory", "thesis.pdf", "--data-dir"]);
    assert_eq!(place.names(), ["data"]);
    fs::remove_file(place.data().join("thesis.pdf")).unwrap();

    let mounted = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(place.data()).status().unwrap();
    assert!(mounted.success());
    refusal(&place.setup(&[]), 1, &["is a mount point itself (tmpfs on none)", "--data-dir"]);
    assert!(Command::new("umount").arg(place.data()).status().unwrap().success());

    place.fill();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "none"]).arg(place.data().join("volumes")).status();
    assert!(mounted.unwrap().success());
    refusal(&place.setup(&[]), 1, &["another filesystem is mounted in it, on ", "data/volumes"]);
    assert!(Command::new("umount").arg(place.data().join("volumes")).status().unwrap().success());
    place.assert_plain();
}

/// Runs `script` by a shell with mounts of its own, in which `$BHATTI` and `$BHATTI_DATA_DIR` are set.
fn elsewhere(place: &Place, script: &str) -> Output {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", script]);
    command.env("BHATTI", BHATTI).env("BHATTI_DATA_DIR", place.data()).env("DIR", place.dir.path());
    command.stdin(Stdio::null()).output().unwrap()
}

#[test]
fn a_host_that_lacks_something_is_told_what() {
    let Some(place) = Place::new() else { return };
    let setup = "$BHATTI setup --storage btrfs-loop --only-storage";
    let missing = "for dir in /usr/local/sbin /usr/sbin /sbin /usr/bin /bin; do
        if [ -e $dir/mkfs.btrfs ]; then mount --bind /dev/null $dir/mkfs.btrfs; fi; done";
    let output = elsewhere(&place, &format!("{missing}; {setup}"));
    refusal(&output, 1, &["mkfs.btrfs is not installed", "apt-get install btrfs-progs"]);

    let hidden = "touch $DIR/file; mount --bind $DIR/file /dev/loop-control";
    let output = elsewhere(&place, &format!("{hidden}; {setup}"));
    refusal(&output, 1, &["no loop devices (/dev/loop-control)"]);
    fs::remove_file(place.path("file")).unwrap();

    let hidden = "echo 'nodev proc' > $DIR/file; mount --bind $DIR/file /proc/filesystems
        mount --bind /dev/null $(command -v modprobe || echo /dev/zero)";
    let output = elsewhere(&place, &format!("{hidden}; {setup}"));
    refusal(&output, 1, &["this kernel has no btrfs"]);
    fs::remove_file(place.path("file")).unwrap();

    let output =
        elsewhere(&place, &format!("exec setpriv --bounding-set -sys_admin --inh-caps -sys_admin {setup}"));
    refusal(&output, 1, &["may not mount", "container"]);

    // The program itself may lie where only root looks.
    let open = "mount -t tmpfs none /mnt && cp $BHATTI /mnt/bhatti && chmod 755 /mnt /mnt/bhatti";
    let output = elsewhere(
        &place,
        &format!(
            "{open}; exec setpriv --reuid 65534 --regid 65534 --clear-groups /mnt/bhatti setup --storage btrfs-loop"
        ),
    );
    refusal(&output, 1, &["needs root", "sudo"]);
    assert_eq!(place.names(), [""; 0]);
}

#[test]
fn data_that_has_no_room_outside_stays_inside() {
    let Some(place) = Place::new() else { return };
    // A small host: what compresses well inside does not fit outside.
    let host = place.path("host");
    let file = place.path("host.img");
    File::create(&file).unwrap().set_len(2 << 30).unwrap();
    fs::create_dir(&host).unwrap();
    let run = |program: &str, args: &[&str]| {
        assert!(
            Command::new(program).args(args).stdout(Stdio::null()).status().unwrap().success(),
            "{program} {args:?}"
        );
    };
    run("mkfs.ext4", &["-q", "-F", "-m", "0", file.to_str().unwrap()]);
    run("mount", &["-o", "loop", file.to_str().unwrap(), host.to_str().unwrap()]);
    let data = host.join("data");
    let setup = |more: &[&str]| place.setup_command(more).env("BHATTI_DATA_DIR", &data).output().unwrap();
    refusal(
        &setup(&["--size", "3G"]),
        1,
        &["3.0 GiB is more than the whole filesystem under it has (1.9 GiB)"],
    );
    assert!(setup(&["--size", "1G"]).status.success());
    fs::create_dir_all(data.join("images")).unwrap();
    fs::create_dir_all(data.join("sandboxes")).unwrap();
    let mut text = File::create(data.join("text")).unwrap();
    let piece = vec![b'a'; 16 * MIB];
    for _ in 0..160 {
        std::io::Write::write_all(&mut text, &piece).unwrap();
    }
    text.sync_all().unwrap();
    drop(text);
    let refused = setup(&["--undo"]);
    refusal(&refused, 1, &["a plain copy of the data takes up to 2.6 GiB", "are free on the filesystem of"]);
    assert_eq!(fs::metadata(data.join("text")).unwrap().len(), (160 * 16) << 20);
    fs::remove_file(data.join("text")).unwrap();
    let undone = setup(&["--undo"]);
    assert!(undone.status.success(), "{undone:?}");
    // Too much to be there twice.
    let mut noisy = File::create(data.join("noise")).unwrap();
    for seed in 0..70 {
        std::io::Write::write_all(&mut noisy, &noise(seed, 16 * MIB)).unwrap();
    }
    drop(noisy);
    refusal(&setup(&["--size", "1900M"]), 1, &["a second copy of the data takes up to 1.2 GiB", "are free"]);
    assert_eq!(fs::metadata(data.join("noise")).unwrap().len(), (70 * 16) << 20);
    run("umount", &[host.to_str().unwrap()]);
    assert_eq!(place.loops(), [""; 0]);
}

#[test]
fn while_it_is_not_mounted_nothing_new_is_begun_in_its_place() {
    let Some(place) = Place::new() else { return };
    place.fill();
    let before = place.seen();
    place.ok(&["--size", "1G"]);
    // As after a boot without a mount unit.
    assert!(Command::new("umount").arg(place.data()).status().unwrap().success());
    let not_mounted =
        ["its filesystem, a btrfs in a file beside it, is not mounted", "setup --storage btrfs-loop"];
    for words in [&["serve", "--listen", "none"][..], &["setup"], &["setup", "--storage", "here"]] {
        refusal(&place.command(words).output().unwrap(), 1, &not_mounted);
    }
    assert_eq!(fs::read_dir(place.data()).unwrap().count(), 1);
    let note = fs::read_to_string(place.data().join("NOT-MOUNTED.txt")).unwrap();
    let by_hand = note.lines().find_map(|line| line.strip_prefix("By hand:")).unwrap().trim().to_owned();
    assert!(Command::new("sh").args(["-c", &by_hand]).status().unwrap().success(), "{by_hand}");
    assert_eq!(place.seen(), before);
    place.assert_mounted();
    assert!(Command::new("umount").arg(place.data()).status().unwrap().success());
    place.ok(&[]);
    place.assert_mounted();
    assert!(Command::new("umount").arg(place.data()).status().unwrap().success());
    // Without a mount it is taken back as well.
    place.ok(&["--undo"]);
    place.assert_plain();
    assert_eq!(place.seen(), before);
}

/// Kills `setup` when it has begun its step number `at`; tells whether it came so far.
fn kill_at(place: &Place, more: &[&str], at: usize, after: Duration) -> bool {
    let mut child = place.setup_command(more).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let began = lines.by_ref().filter(|line| line.as_ref().unwrap().ends_with(" ...")).nth(at);
    let came = began.is_some();
    if came {
        std::thread::sleep(after);
        child.kill().unwrap();
    }
    child.wait().unwrap();
    // A mount that it had begun ends by itself; the next run would wait for that, as this does.
    let beside = File::open(place.dir.path()).unwrap();
    rustix::fs::flock(&beside, rustix::fs::FlockOperation::LockExclusive).unwrap();
    came
}

#[test]
fn whatever_is_killed_can_be_run_again_and_loses_nothing() {
    let Some(place) = Place::new() else { return };
    place.fill();
    let before = place.seen();
    let moves = [&["--size", "1G"][..], &["--undo"]];
    let done = |round: usize| {
        if round == 0 {
            place.assert_mounted()
        } else {
            place.assert_plain()
        }
        assert_eq!(place.seen(), before);
    };
    for (round, more) in moves.into_iter().enumerate() {
        let mut kills = 0;
        for at in 0.. {
            // At once, and into the step: a copy takes some hundred milliseconds.
            let mut came = false;
            for after in [0, 20, 150].map(Duration::from_millis) {
                came |= kill_at(&place, more, at, after);
                assert!(place.mounts().len() <= 1, "{:?}", place.mounts());
                // Either on to what was wished for, or back to what was.
                let (other, wanted) = (moves[1 - round], round);
                if after.is_zero() {
                    place.ok(more);
                    done(wanted);
                }
                place.ok(other);
                done(1 - wanted);
            }
            if !came {
                break;
            }
            kills += 1;
        }
        assert!(kills >= 6, "only {kills} steps were seen");
        place.ok(more);
        done(round);
    }
}

#[test]
fn ctrl_c_in_the_middle_of_a_copy_leaves_all_as_it_was() {
    let Some(place) = Place::new() else { return };
    place.fill();
    let before = place.seen();
    let mut child = place.setup_command(&["--size", "1G"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line == "data into the btrfs ..."));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let last = lines.last().unwrap_or_default();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{last}");
    assert!(last.starts_with("error: ") && last.contains("cancelled"), "{last}");
    place.assert_plain();
    assert_eq!(place.seen(), before);
}

#[test]
fn where_systemd_runs_a_unit_mounts_it_at_boot() {
    let Some(place) = Place::new() else { return };
    // A systemd of paper: its directories, and a program that notes what it is told.
    let script = "
        mount -t tmpfs none /run; mkdir -p /run/systemd/system
        mount -t tmpfs none /mnt; mkdir -p /etc/systemd/system /mnt/bin
        mount -t tmpfs none /etc/systemd/system
        cat > /mnt/bin/systemctl <<'SYSTEMCTL'
#!/bin/sh
echo \"$@\" >> $DIR/told
units=/etc/systemd/system
case $1 in
enable) mkdir -p $units/local-fs.target.wants; ln -s \"../$2\" \"$units/local-fs.target.wants/$2\" ;;
disable) rm -f \"$units/local-fs.target.wants/$2\" ;;
esac
SYSTEMCTL
        chmod 755 /mnt/bin/systemctl; export PATH=/mnt/bin:$PATH
        setup() { $BHATTI setup --storage btrfs-loop --only-storage \"$@\" 2>> $DIR/said; }
        setup --size 1G
        cp /etc/systemd/system/*.mount $DIR/; ls $DIR > $DIR/names
        setup > $DIR/again
        rm /etc/systemd/system/local-fs.target.wants/*; setup
        setup --undo; ls -A /etc/systemd/system > $DIR/left";
    let output = elsewhere(&place, script);
    let said = fs::read_to_string(place.path("said")).unwrap_or_default();
    assert!(output.status.success(), "{output:?}\n{said}");
    let read = |name: &str| fs::read_to_string(place.path(name)).unwrap();
    assert!(!read("names").contains("data.btrfs.mount"), "systemd has the unit: {}", read("names"));
    let again = read("again");
    assert!(again.starts_with("storage: already ") && !again.contains("fstab"), "{again}");
    let name = read("names").lines().find(|name| name.ends_with(".mount")).unwrap().to_owned();
    let unit = read(&name);
    let data = place.data().display().to_string();
    for line in [format!("Where={data}"), format!("What={data}.btrfs"), "WantedBy=local-fs.target".to_owned()]
    {
        assert!(unit.lines().any(|found| found == line), "no {line} in {unit}");
    }
    let told: Vec<_> = read("told").lines().map(str::to_owned).collect();
    let enable = format!("enable {name}");
    let disable = format!("disable {name}");
    let reload = "daemon-reload".to_owned();
    assert_eq!(told, [&reload, &enable, &reload, &enable, &disable, &reload].map(Clone::clone));
    assert_eq!(read("left").trim(), "local-fs.target.wants");
}
