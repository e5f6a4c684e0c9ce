//! Disks as QEMU's block nodes, the same on the command line and over QMP.
//!
//! # Invariants
//! Every node is made by itself and names its parts, nothing is nested. A nested file would be opened again *by its
//! name* when the node above it becomes read-only, which a switch to another top does: by then the name may be that
//! of another file (seen with 7.2 and 10.0: the frozen disk became the new top). A node that names its file keeps the
//! descriptor that it has, whatever the file is called meanwhile.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Error, ErrorKind, Result};
use crate::spec::{DiskFile, DiskFormat, RootDisk};

/// Node name of the root disk's top at launch; also the name of the device.
pub(crate) const ROOT_NODE: &str = "root";
/// Node name of the last file below the top.
const BASE_NODE: &str = "base";
/// How the names of tops that were opened later begin; a number follows.
pub(crate) const TOP_PREFIX: &str = "top";

/// The name of the node that has the bytes of the file behind `node`.
pub(crate) fn file_of(node: &str) -> String {
    format!("{node}-file")
}

/// The root disk's nodes, each after those that it names.
///
/// # Errors
/// `Refused`: a path that is not UTF-8, or a raw file over others, which it could not read through.
pub(crate) fn root_disk(disk: &RootDisk) -> Result<Vec<Value>> {
    let over_none = disk.below.iter().rev().skip(1).chain((!disk.below.is_empty()).then_some(&disk.top));
    if let Some(raw) = over_none.into_iter().find(|file| file.format == DiskFormat::Raw) {
        let text = format!("{} is raw: nothing can lie below it", raw.path.display());
        return Err(Error::new(ErrorKind::Refused, "writing QEMU's command line", text));
    }
    let mut nodes = Vec::new();
    let mut backing: Option<String> = None;
    for (index, file) in disk.below.iter().enumerate().rev() {
        let name = if index + 1 == disk.below.len() { BASE_NODE.to_owned() } else { format!("layer{index}") };
        nodes.extend(frozen(&name, file, backing.as_deref())?);
        backing = Some(name);
    }
    nodes.extend(writable(ROOT_NODE, &disk.top, backing.as_deref())?);
    Ok(nodes)
}

/// A file that is only read, and its format.
pub(crate) fn frozen(name: &str, file: &DiskFile, backing: Option<&str>) -> Result<[Value; 2]> {
    let bytes = json!({
        "driver": "file", "node-name": file_of(name), "filename": text(&file.path)?, "read-only": true,
    });
    let mut node =
        json!({"driver": driver(file.format), "node-name": name, "read-only": true, "file": file_of(name)});
    if file.format == DiskFormat::Qcow2 {
        node["backing"] = json!(backing);
    }
    Ok([bytes, node])
}

/// A file that is written to, and its format; what the guest discards or writes as zeroes becomes holes.
pub(crate) fn writable(name: &str, file: &DiskFile, backing: Option<&str>) -> Result<[Value; 2]> {
    let bytes = json!({
        "driver": "file", "node-name": file_of(name), "filename": text(&file.path)?, "discard": "unmap",
    });
    Ok([bytes, over(name, file.format, backing)])
}

/// The format over the bytes of [`writable`], with all its options.
pub(crate) fn over(name: &str, format: DiskFormat, backing: Option<&str>) -> Value {
    let mut node = json!({
        "driver": driver(format),
        "node-name": name,
        "discard": "unmap",
        "detect-zeroes": "unmap",
        "file": file_of(name),
    });
    if format == DiskFormat::Qcow2 {
        // Null where there is none: the file's own header is never followed.
        node["backing"] = json!(backing);
    }
    node
}

const fn driver(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    }
}

/// A path as QEMU's JSON can carry it.
///
/// # Errors
/// `Refused`: it is not UTF-8.
pub(crate) fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        let shown = String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned();
        Error::new(ErrorKind::Refused, "naming a file to QEMU", format!("{shown:?} is not UTF-8"))
    })
}
