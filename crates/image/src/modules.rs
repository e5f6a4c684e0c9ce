//! Which kernel modules a guest needs, in the order in which they can be loaded.
//!
//! A module says what it depends on in its `.modinfo` section (`depends=a,b`), so neither `depmod` nor `modprobe` is
//! needed, and a package that was only unpacked has no `modules.dep` anyway.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::run::Tool;
use crate::{Error, Result};

/// A module, uncompressed.
pub(crate) struct Module {
    /// Its name with underscores.
    pub name: String,
    /// The ELF object.
    pub content: Vec<u8>,
}

/// The modules `needed` and all that they depend on, dependencies first, without those that are built in. The order
/// depends on nothing but the names.
pub(crate) fn load_order(op: &'static str, modules_dir: &Path, needed: &[&str]) -> Result<Vec<Module>> {
    let builtin_list = modules_dir.join("modules.builtin");
    let builtin = fs::read_to_string(&builtin_list).map_err(|error| Error::io(op, &builtin_list, error))?;
    let mut files = BTreeMap::new();
    find(&modules_dir.join("kernel"), &mut files).map_err(|error| Error::io(op, modules_dir, error))?;
    let mut order = Order {
        op,
        modules_dir,
        builtin: builtin.lines().filter_map(|line| module_name(Path::new(line))).collect(),
        files,
        seen: BTreeSet::new(),
        ordered: Vec::new(),
    };
    for name in needed {
        order.add(name)?;
    }
    Ok(order.ordered)
}

struct Order<'a> {
    op: &'static str,
    modules_dir: &'a Path,
    builtin: BTreeSet<String>,
    files: BTreeMap<String, PathBuf>,
    seen: BTreeSet<String>,
    ordered: Vec<Module>,
}

impl Order<'_> {
    fn add(&mut self, name: &str) -> Result<()> {
        // Seen before its dependencies are: a circle, which the kernel would not load, must not hang the build.
        if self.builtin.contains(name) || !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let path = self.files.get(name).cloned().ok_or_else(|| {
            let detail = format!("the kernel module {name} is neither built in nor there");
            Error::input(self.op, self.modules_dir, detail)
        })?;
        let content = uncompressed(self.op, &path)?;
        let depends = depends(&content).ok_or_else(|| {
            Error::input(self.op, &path, "it does not say what it depends on; it is no kernel module")
        })?;
        for dependency in &depends {
            self.add(dependency)?;
        }
        self.ordered.push(Module { name: name.to_owned(), content });
        Ok(())
    }
}

fn find(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            find(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// `kernel/drivers/net/net-failover.ko.xz` is `net_failover`.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let stem = [".ko", ".ko.xz", ".ko.zst"].iter().find_map(|suffix| file.strip_suffix(suffix))?;
    Some(stem.replace('-', "_"))
}

fn uncompressed(op: &'static str, path: &Path) -> Result<Vec<u8>> {
    let io = |error| Error::io(op, path, error);
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("zst") => zstd::decode_all(fs::File::open(path).map_err(io)?).map_err(io),
        Some("xz") => {
            let file = fs::File::open(path).map_err(io)?;
            Tool::new(op, "xz", "xz-utils").arg("-dc").stdin(OwnedFd::from(file)).output()
        }
        _ => fs::read(path).map_err(io),
    }
}

/// The value of `depends=` in `.modinfo`, whose strings end with NUL each. Nothing else in a module begins so.
fn depends(module: &[u8]) -> Option<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let at = module.windows(KEY.len()).position(|window| window == KEY)? + KEY.len();
    let value = module[at..].split(|&byte| byte == 0).next()?;
    let value = std::str::from_utf8(value).ok()?;
    Some(value.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressed_modules_are_read_and_circles_end() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("kernel");
        fs::create_dir(&kernel).unwrap();
        fs::write(dir.path().join("modules.builtin"), "").unwrap();
        let text = |depends: &str| format!("\x7fELF\0depends={depends}\0");
        fs::write(kernel.join("a.ko.zst"), zstd::encode_all(text("b-c").as_bytes(), 1).unwrap()).unwrap();
        fs::write(kernel.join("b-c.ko"), text("a")).unwrap();
        let names: Vec<_> =
            load_order("try", dir.path(), &["a"]).unwrap().into_iter().map(|module| module.name).collect();
        assert_eq!(names, ["b_c", "a"]);
        fs::write(kernel.join("junk.ko"), "junk").unwrap();
        assert!(load_order("try", dir.path(), &["junk"]).is_err());
    }
}
