//! What fuzz targets need and nobody else; not in any other build.

use std::path::Path;

use types::Bytes;

use crate::layer::{Share, Unpacked, apply};
use crate::tree::Tree;
use crate::{Build, Cancel, Compression, Limits, Progress};

/// Lays a layer twice over a tree in `dir/tree`, within small limits.
pub fn lay(bytes: &[u8], dir: &Path) {
    let path = dir.join("tree");
    std::fs::create_dir(&path).expect("a directory");
    let cancel = Cancel::new();
    let progress = |_: Progress| {};
    let build = Build { work_dir: dir, progress: &progress, cancel: &cancel };
    let mut tree = Tree::new(&path).expect("a tree");
    let (mut done, limits) = (Unpacked::default(), Limits { bytes: Bytes(1 << 20), names: 256 });
    for _ in 0..2 {
        let share = Share { what: "fuzz", total: 0 };
        if apply(&build, &mut tree, bytes, Compression::None, &limits, &mut done, share).is_err() {
            return;
        }
    }
    let _finished = tree.finish();
}
