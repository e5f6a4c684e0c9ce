//! A filesystem of a few GiB for one test, which may fill it: an ext4 in a file on the filesystem under test. Not a btrfs:
//! one without a free block ends any process that writes to a file it has mapped, and the index's database does.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// A mounted filesystem; dropped, it is gone.
#[derive(Debug)]
pub(crate) struct SmallFs {
    mount: PathBuf,
    // Last: the file goes after what is mounted from it.
    _dir: TempDir,
}

/// Runs a program, which must succeed.
pub(crate) fn run(program: &str, args: &[&Path]) {
    let status = Command::new(program).args(args).stdout(Stdio::null()).status().expect(program);
    assert!(status.success(), "{program} {args:?} ended with {status}");
}

impl SmallFs {
    /// A filesystem with `mib` MiB, in a file below `root`.
    pub(crate) fn on(root: &Path, mib: u64) -> Self {
        let dir = tempfile::Builder::new().prefix("bhatti-small-").tempdir_in(root).expect("a directory");
        let (file, mount) = (dir.path().join("file"), dir.path().join("fs"));
        File::create(&file).and_then(|file| file.set_len(mib << 20)).expect("a sparse file");
        fs::create_dir(&mount).expect("a directory to mount on");
        run("mkfs.ext4", &[Path::new("-q"), Path::new("-F"), &file]);
        run("mount", &[Path::new("-o"), Path::new("loop,noatime"), &file, &mount]);
        Self { mount, _dir: dir }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.mount
    }
}

impl Drop for SmallFs {
    fn drop(&mut self) {
        // A process that was just killed may hold a file for another moment: the mount is out of the way at once, and
        // the kernel frees it with the last file.
        let unmounted = Command::new("umount").arg("-l").arg(&self.mount).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.mount.display());
        }
    }
}

/// Copies the prepared data directory, links as links and holes as holes.
pub(crate) fn copy_prepared(from: &Path, to: &Path) {
    let parts = ["kernel", "images", "templates", "bhatti.db"].map(|part| from.join(part));
    let mut args: Vec<&Path> = vec![Path::new("-a"), Path::new("--sparse=always")];
    args.extend(parts.iter().map(PathBuf::as_path));
    args.push(to);
    run("cp", &args);
}

/// Fills the filesystem of `file` but for `leave` bytes, durably; removing the file gives the room back.
pub(crate) fn fill(file: &Path, leave: u64) {
    use std::io::Write as _;
    let mut ballast = File::create(file).expect("a file");
    let parent = file.parent().expect("a directory");
    // Root may use what is kept back for it, too.
    let free = || {
        let space = Command::new("stat").args(["-f", "-c", "%f %S"]).arg(parent).output().expect("stat");
        let text = String::from_utf8_lossy(&space.stdout).into_owned();
        let mut numbers = text.split_whitespace().map(|number| number.parse::<u64>().expect("a number"));
        numbers.next().expect("blocks") * numbers.next().expect("their size")
    };
    // What cannot be compressed, and different at each place.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut piece = vec![0u8; 1 << 20];
    loop {
        let room = free().saturating_sub(leave);
        let want = usize::try_from(room).map_or(piece.len(), |room| room.min(piece.len()));
        if want < 4096 {
            break;
        }
        for word in piece[..want].chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
        }
        if ballast.write_all(&piece[..want]).and_then(|()| ballast.sync_data()).is_err() {
            break;
        }
    }
}
