//! The initramfs: the agent as `/init` and the few modules a guest needs, the same bytes from the same inputs.
//!
//! # Layout
//! An uncompressed newc archive: the directories that the agent mounts on, `/dev/console`, `/init`, and
//! `/modules/NN-name.ko`, where the order of the names is the order of loading. Uncompressed, because unpacking
//! under software emulation costs more than reading.

use std::io::Write as _;
use std::path::Path;

use types::Bytes;

use crate::modules::{Module, load_order};
use crate::{Error, Result};

const OP: &str = "build the initramfs";

/// Disks, the agent's channel and the network are virtio over PCI; the root filesystem is ext4.
const NEEDED: [&str; 5] = ["virtio_pci", "virtio_blk", "virtio_console", "virtio_net", "ext4"];

/// What went into an initramfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initramfs {
    /// Modules in load order, such as `virtio_ring`; those built into the kernel are not among them.
    pub modules: Vec<String>,
    /// Length of the archive in bytes.
    pub len: Bytes,
}

/// Writes the initramfs for `agent` (a static executable) and the modules of one kernel (the directory
/// `lib/modules/<version>`) to `out`. Not synced.
///
/// # Errors
/// [`ErrorKind::Input`](crate::ErrorKind::Input) when a module is neither built in nor in `modules_dir`, or when
/// `agent` is no static executable; [`ErrorKind::Missing`](crate::ErrorKind::Missing) when the modules are
/// xz-compressed and `xz` is not installed.
pub fn build_initramfs(agent: &[u8], modules_dir: &Path, out: &Path) -> Result<Initramfs> {
    check_static(agent).map_err(|why| Error::input(OP, out, format!("the agent {why}")))?;
    let modules = load_order(OP, modules_dir, &NEEDED)?;
    let archive = archive(agent, &modules).map_err(|error| Error::io(OP, out, error))?;
    let mut file = std::fs::File::create(out).map_err(|error| Error::io(OP, out, error))?;
    file.write_all(&archive).map_err(|error| Error::io(OP, out, error))?;
    let len = Bytes(archive.len() as u64);
    Ok(Initramfs { modules: modules.into_iter().map(|module| module.name).collect(), len })
}

fn archive(agent: &[u8], modules: &[Module]) -> std::io::Result<Vec<u8>> {
    let mut archive = Archive { bytes: Vec::new(), inode: 0 };
    for dir in ["dev", "modules", "newroot", "proc", "sys"] {
        archive.entry(dir, 0o040_755, (0, 0), &[])?;
    }
    // Character device 5:1, so that the agent has a stdout before it has mounted anything.
    archive.entry("dev/console", 0o020_600, (5, 1), &[])?;
    archive.entry("init", 0o100_755, (0, 0), agent)?;
    for (number, module) in modules.iter().enumerate() {
        archive.entry(
            &format!("modules/{number:02}-{}.ko", module.name),
            0o100_644,
            (0, 0),
            &module.content,
        )?;
    }
    cpio::newc::trailer(&mut archive.bytes)?;
    // The kernel takes archives in whole words; whole blocks are what every other tool makes.
    archive.bytes.resize(archive.bytes.len().next_multiple_of(512), 0);
    Ok(archive.bytes)
}

struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        (major, minor): (u32, u32),
        data: &[u8],
    ) -> std::io::Result<()> {
        self.inode += 1;
        let len =
            u32::try_from(data.len()).map_err(|_| std::io::Error::from(std::io::ErrorKind::FileTooLarge))?;
        let mut writer = cpio::newc::Builder::new(name)
            .ino(self.inode)
            .mode(mode)
            .nlink(1)
            .mtime(0)
            .rdev_major(major)
            .rdev_minor(minor)
            .write(&mut self.bytes, len);
        writer.write_all(data)?;
        writer.finish().map(drop)
    }
}

/// A 64-bit ELF without an interpreter: no library is there when it runs. Offsets: elf(5).
fn check_static(agent: &[u8]) -> std::result::Result<(), &'static str> {
    const NOT_ELF: &str = "is no 64-bit ELF executable";
    const PT_INTERP: u32 = 3;
    let u16_at = |at: usize| agent.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    if agent.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Err(NOT_ELF);
    }
    let table = agent
        .get(32..40)
        .and_then(|b| b.try_into().ok())
        .and_then(|b| usize::try_from(u64::from_le_bytes(b)).ok())
        .ok_or(NOT_ELF)?;
    let size = usize::from(u16_at(54).ok_or(NOT_ELF)?);
    let count = usize::from(u16_at(56).ok_or(NOT_ELF)?);
    for entry in 0..count {
        let kind = table
            .checked_add(entry * size)
            .and_then(|at| agent.get(at..at.checked_add(4)?))
            .and_then(|b| b.try_into().ok())
            .ok_or(NOT_ELF)?;
        if u32::from_le_bytes(kind) == PT_INTERP {
            return Err("is linked dynamically; build it with -C target-feature=+crt-static");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use std::path::PathBuf;

    /// The smallest header that passes for a static executable.
    fn agent() -> Vec<u8> {
        let mut elf = vec![0u8; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf
    }

    fn modules(dir: &Path) -> PathBuf {
        let root = dir.join("6.1.0-test");
        std::fs::create_dir_all(root.join("kernel/drivers")).unwrap();
        std::fs::write(
            root.join("modules.builtin"),
            "kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio_pci.ko\n",
        )
        .unwrap();
        for (name, depends) in [
            ("virtio_blk", "virtio"),
            ("virtio_console", "virtio"),
            ("virtio_net", "net-failover,virtio"),
            ("net_failover", ""),
            ("virtio", ""),
        ] {
            let text = format!("\x7fELF\0license=GPL\0depends={depends}\0name={name}\0");
            std::fs::write(root.join(format!("kernel/drivers/{name}.ko")), text).unwrap();
        }
        root
    }

    #[test]
    fn the_same_inputs_give_the_same_bytes_and_modules_come_after_what_they_need() {
        let dir = tempfile::tempdir().unwrap();
        let modules = modules(dir.path());
        let (first, second) = (dir.path().join("1"), dir.path().join("2"));
        let made = build_initramfs(&agent(), &modules, &first).unwrap();
        assert_eq!(made.modules, ["virtio", "virtio_blk", "virtio_console", "net_failover", "virtio_net"]);
        build_initramfs(&agent(), &modules, &second).unwrap();
        let bytes = std::fs::read(first).unwrap();
        assert_eq!(bytes, std::fs::read(second).unwrap());
        assert_eq!(made.len, Bytes(bytes.len() as u64));

        let mut names = Vec::new();
        let mut rest = bytes.as_slice();
        loop {
            let reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            names.push((reader.entry().name().to_owned(), reader.entry().mode()));
            rest = reader.finish().unwrap();
        }
        assert!(names.contains(&("init".to_owned(), 0o100_755)), "{names:?}");
        assert!(names.contains(&("modules/04-virtio_net.ko".to_owned(), 0o100_644)), "{names:?}");
        assert!(names.contains(&("dev/console".to_owned(), 0o020_600)), "{names:?}");
    }

    #[test]
    fn a_missing_module_and_an_agent_that_cannot_run_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let modules = modules(dir.path());
        let out = dir.path().join("out");
        let error = build_initramfs(b"#!/bin/sh\n", &modules, &out).unwrap_err();
        assert!(error.to_string().contains("no 64-bit ELF"), "{error}");
        let dynamic = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let error = build_initramfs(&dynamic, &modules, &out).unwrap_err();
        assert!(error.to_string().contains("dynamically"), "{error}");
        std::fs::remove_file(modules.join("kernel/drivers/net_failover.ko")).unwrap();
        let error = build_initramfs(&agent(), &modules, &out).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Input);
        assert!(error.to_string().contains("net_failover"), "{error}");
    }
}
