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

/// What is wrong with the tables of an overlay that nobody writes. Blocks that are counted and not used are no damage:
/// a VMM that was killed leaves them.
///
/// # Errors
/// [`ErrorKind::Missing`](crate::ErrorKind::Missing) without `qemu-img`; [`ErrorKind::Tool`](crate::ErrorKind::Tool) when
/// it cannot look, as when what lies below is missing.
pub fn qemu_img_check(path: &Path) -> Result<Option<String>> {
    // The statuses of qemu-img(1): 2 for corruptions, 3 for leaked clusters only.
    let (status, _said) = Tool::new("check the disk overlay", "qemu-img", "qemu-utils")
        .args(["check", "-q", "-U", "-f", "qcow2", "--"])
        .arg(path)
        .answer(&[0, 2, 3])?;
    Ok((status == 2).then(|| "`qemu-img check` finds its tables damaged".to_owned()))
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

    #[test]
    fn an_overlay_is_sound_until_its_tables_are_written_over() {
        use std::os::unix::fs::FileExt as _;
        let dir = tempfile::tempdir().unwrap();
        let (base, path) = (dir.path().join("base.ext4"), dir.path().join("rootfs.qcow2"));
        std::fs::File::create(&base).unwrap().set_len(64 << 20).unwrap();
        qemu_img_create_overlay(&path, Path::new("base.ext4"), BackingFormat::Raw, Bytes(64 << 20)).unwrap();
        assert_eq!(qemu_img_check(&path).unwrap(), None);
        let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        // The table of first level, of which bytes 40 to 47 tell the place: a second-level table within the header.
        let mut at = [0; 8];
        file.read_exact_at(&mut at, 40).unwrap();
        file.write_all_at(&((1u64 << 63) | 65536).to_be_bytes(), u64::from_be_bytes(at)).unwrap();
        assert!(qemu_img_check(&path).unwrap().is_some());
        std::fs::remove_file(&base).unwrap();
        assert!(qemu_img_check(&path).is_err());
    }
}
