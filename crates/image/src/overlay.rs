//! Root disk overlays.

use std::path::Path;

use types::Bytes;

use crate::Result;
use crate::run::Tool;

/// How the file under an overlay is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackingFormat {
    /// The disk's bytes as they are.
    Raw,
    /// Another overlay.
    Qcow2,
}

/// Makes the empty qcow2 overlay `path` of `size` bytes on the file that `base_relative` names as seen from the
/// overlay's directory. The base is not opened, and need not be there yet.
///
/// # Errors
/// [`ErrorKind::Missing`](crate::ErrorKind::Missing) without `qemu-img`, else
/// [`ErrorKind::Tool`](crate::ErrorKind::Tool).
pub fn qemu_img_create_overlay(
    path: &Path,
    base_relative: &Path,
    format: BackingFormat,
    size: Bytes,
) -> Result<()> {
    let format = match format {
        BackingFormat::Raw => "raw",
        BackingFormat::Qcow2 => "qcow2",
    };
    Tool::new("make the disk overlay", "qemu-img", "qemu-utils")
        .args(["create", "-q", "-f", "qcow2", "-F", format, "-u", "-b"])
        .arg(base_relative)
        .arg("--")
        .arg(path)
        .arg(size.0.to_string())
        .run()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_names_its_base_relative_to_itself_and_has_the_asked_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rootfs.qcow2");
        let base = Path::new("../../images/base.ext4");
        qemu_img_create_overlay(&path, base, BackingFormat::Raw, Bytes(3 << 30)).unwrap();
        let info = Tool::new("look", "qemu-img", "qemu-utils")
            .args(["info", "-U", "--output=json"])
            .arg(&path)
            .output()
            .unwrap();
        let info: serde_json::Value = serde_json::from_slice(&info).unwrap();
        assert_eq!(info["backing-filename"], "../../images/base.ext4");
        assert_eq!(info["backing-filename-format"], "raw");
        assert_eq!(info["virtual-size"], 3u64 << 30);
        assert!(std::fs::metadata(&path).unwrap().len() < 1 << 20);
    }
}
