//! A disk whose power can be cut: the data directory lies on a filesystem in a file, and that file on an xfs that makes
//! copies of a file in one step.
//!
//! # What a cut keeps
//! FICLONE holds writers of the file off while it shares its blocks, so the copy is the file at one instant, without a
//! word to the filesystem inside: nothing is frozen or synced for it. The copy has all that the filesystem inside had
//! sent to its device, and nothing of what it still had in memory only. So the device is one that keeps what it was
//! sent, flushed or not; what was never synced is lost.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::small::run;

/// Size of the disk, and of the xfs with it and one copy; both are sparse.
const DISK_MIB: u64 = 6 << 10;
const AROUND_MIB: u64 = 24 << 10;

/// A filesystem on a disk whose power can be cut; dropped, it is gone.
#[derive(Debug)]
pub(crate) struct CutFs {
    kind: String,
    around: PathBuf,
    mount: PathBuf,
    // Last: the file goes after what is mounted from it.
    _dir: TempDir,
}

fn sparse(path: &Path, mib: u64) {
    File::create(path).and_then(|file| file.set_len(mib << 20)).expect("a sparse file");
}

fn make(kind: &str, file: &Path) {
    let (program, args): (&str, &[&str]) = match kind {
        "btrfs" => ("mkfs.btrfs", &["-q", "-f"]),
        "xfs" => ("mkfs.xfs", &["-q", "-f", "-m", "reflink=1"]),
        _ => ("mkfs.ext4", &["-q", "-F"]),
    };
    let args: Vec<&Path> = args.iter().map(Path::new).chain([file]).collect();
    run(program, &args);
}

fn mount(options: &str, file: &Path, at: &Path) {
    run("mount", &[Path::new("-o"), Path::new(options), file, at]);
}

/// The kind of filesystem a directory is on, when it is one that is made here.
fn kind_of(dir: &Path) -> String {
    let told = Command::new("stat").args(["-f", "-c", "%T"]).arg(dir).output().expect("stat");
    match String::from_utf8_lossy(&told.stdout).trim() {
        kind @ ("btrfs" | "xfs") => kind.to_owned(),
        _ => "ext4".to_owned(),
    }
}

impl CutFs {
    /// In a file below `root`: of the `kind` that is said, else of the one that `root` is on.
    pub(crate) fn below(root: &Path, kind: Option<&str>) -> Self {
        let kind = kind.map_or_else(|| kind_of(root), ToOwned::to_owned);
        let dir = tempfile::Builder::new().prefix("bhatti-cut-").tempdir_in(root).expect("a directory");
        let file = dir.path().join("file");
        let made = Self { kind, around: dir.path().join("around"), mount: dir.path().join("fs"), _dir: dir };
        sparse(&file, AROUND_MIB);
        for at in [&made.around, &made.mount] {
            fs::create_dir(at).expect("a directory to mount on");
        }
        make("xfs", &file);
        mount("loop,noatime", &file, &made.around);
        sparse(&made.disk(), DISK_MIB);
        make(&made.kind, &made.disk());
        made.mount_disk();
        made
    }

    pub(crate) fn path(&self) -> &Path {
        &self.mount
    }

    pub(crate) fn kind(&self) -> &str {
        &self.kind
    }

    fn disk(&self) -> PathBuf {
        self.around.join("disk")
    }

    fn copy(&self) -> PathBuf {
        self.around.join("copy")
    }

    fn mount_disk(&self) {
        let options = if self.kind == "btrfs" { "loop,noatime,compress=zstd:1" } else { "loop,noatime" };
        mount(options, &self.disk(), &self.mount);
    }

    /// Keeps the disk as it is at this instant, while it is written.
    pub(crate) fn keep(&self) {
        let disk = File::open(self.disk()).expect("the disk");
        let copy = File::create(self.copy()).expect("a file for the copy");
        rustix::fs::ioctl_ficlone(&copy, &disk).expect("a copy in one step");
    }

    /// The processes that have a file or their working directory on it: all made by the host that lies there.
    fn users(&self) -> Vec<i32> {
        let mut users = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // A process may end while it is looked at.
            let open = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
            let mut links = open.map(|open| open.path()).chain([entry.path().join("cwd")]);
            if links.any(|link| fs::read_link(link).is_ok_and(|target| target.starts_with(&self.mount))) {
                users.push(pid);
            }
        }
        users
    }

    /// Ends whoever uses the filesystem, also who was only being started, and goes on with the disk as it was kept.
    pub(crate) fn go_back(&self) {
        loop {
            let users = self.users();
            if users.is_empty() {
                break;
            }
            users.into_iter().for_each(crate::daemon::kill);
        }
        run("umount", &[&self.mount]);
        if self.kind == "btrfs" {
            // The kernel remembers the newer disk of the same identity and would refuse the older one.
            run("btrfs", &["device", "scan", "--forget"].map(Path::new));
        }
        fs::rename(self.copy(), self.disk()).expect("the copy in place of the disk");
        self.mount_disk();
    }
}

impl Drop for CutFs {
    fn drop(&mut self) {
        for at in [&self.mount, &self.around] {
            // As in `SmallFs`: out of the way at once, and freed with the last file.
            let unmounted = Command::new("umount").arg("-l").arg(at).stderr(Stdio::null()).status();
            if !unmounted.is_ok_and(|status| status.success()) {
                eprintln!("{} stays mounted", at.display());
            }
        }
    }
}
