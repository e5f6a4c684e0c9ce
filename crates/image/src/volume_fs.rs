//! The filesystem of a new volume.

use std::path::Path;

use crate::Result;
use crate::run::Tool;

/// Made once and used by guests of many releases: named one by one, so that no host's mke2fs.conf decides. Without
/// `orphan_file` and `casefold`, which older guests lack; with `resize_inode`, so that it grows while it is mounted.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
                        large_file,huge_file,dir_nlink,extra_isize,metadata_csum";

/// Makes an ext4 on the whole of `path`, one hole of a few MiB or more. Its root directory is the default user's, as
/// commands run as that one. Nothing but what says how the filesystem is laid out is written: the file stays sparse.
/// Not synced.
///
/// # Errors
/// [`ErrorKind::Missing`](crate::ErrorKind::Missing) without `mke2fs`, else [`ErrorKind::Tool`](crate::ErrorKind::Tool).
pub fn make_volume_fs(path: &Path) -> Result<()> {
    Tool::new("make the volume's filesystem", "mke2fs", "e2fsprogs")
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0", "-O", FEATURES])
        .args(["-E", "root_owner=1000:1000,nodiscard,lazy_itable_init=1,lazy_journal_init=1"])
        .arg("--")
        .arg(path)
        .env("MKE2FS_CONFIG", "/dev/null")
        .run()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_new_volume_is_whole_sparse_and_the_default_users_whatever_its_size() {
        let dir = tempfile::tempdir().unwrap();
        for mib in [8, 64, 1024, 20 * 1024] {
            let path = dir.path().join(format!("{mib}"));
            File::create(&path).unwrap().set_len(mib << 20).unwrap();
            make_volume_fs(&path).unwrap();
            Tool::new("check", "e2fsck", "e2fsprogs").args(["-fn"]).arg(&path).run().unwrap();
            let allocated = fs::metadata(&path).unwrap().blocks() * 512;
            assert!(allocated < (2 << 20) + (mib << 10), "{mib} MiB take {allocated} bytes");
            let root =
                Tool::new("look", "debugfs", "e2fsprogs").args(["-R", "stat /"]).arg(&path).output().unwrap();
            let root = String::from_utf8_lossy(&root).into_owned();
            assert!(root.contains("User:  1000   Group:  1000"), "{root}");
        }
    }
}
