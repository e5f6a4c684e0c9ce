//! Root disk overlays.

use std::path::{Path, PathBuf};

use types::Bytes;

use crate::run::Tool;
use crate::{Build, Result};

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

/// A root disk and what lies under it, each by its path, the top first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootChain {
    /// The files from top to bottom; the last has no other below it.
    pub files: Vec<(PathBuf, BackingFormat)>,
}

impl RootChain {
    /// As qemu-img is told it: by name all the way down, because what the files say of each other is meant from other
    /// directories.
    fn json(&self) -> serde_json::Value {
        let mut below = None;
        for (path, format) in self.files.iter().rev() {
            let file = serde_json::json!({ "driver": "file", "filename": path, "locking": "off" });
            let mut node = match format {
                BackingFormat::Raw => serde_json::json!({ "driver": "raw", "file": file }),
                BackingFormat::Qcow2 => serde_json::json!({ "driver": "qcow2", "file": file }),
            };
            if let Some(below) = below.take() {
                node["backing"] = below;
            }
            below = Some(node);
        }
        below.unwrap_or_default()
    }
}

/// Writes the whole disk as it is seen through `chain` into the file `out`, which exists and is empty. Not synced. Nothing
/// of `chain` may be written meanwhile.
///
/// # Errors
/// [`ErrorKind::Missing`](crate::ErrorKind::Missing) without `qemu-img`; `NoSpace`, `Cancelled`, `Tool`.
pub fn qemu_img_flatten(build: &Build<'_>, chain: &RootChain, size: Bytes, out: &Path) -> Result<()> {
    const OP: &str = "copy the disk";
    build.at("copying the disk", 0, size.0);
    let io = |error| crate::Error::io(OP, out, error);
    let file = std::fs::OpenOptions::new().write(true).open(out).map_err(io)?;
    file.set_len(size.0).map_err(io)?;
    // Zeros are left out: the file is all holes.
    Tool::new(OP, "qemu-img", "qemu-utils")
        .args(["convert", "-n", "--target-is-zero", "-O", "raw", "-m", "4"])
        .arg(format!("json:{}", chain.json()))
        .arg(out)
        .cancel(build.cancel)
        .run()?;
    build.at("copying the disk", size.0, size.0);
    Ok(())
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
