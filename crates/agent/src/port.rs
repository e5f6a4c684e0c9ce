//! The virtio-serial port to the host.
//!
//! # Traps
//! - With no host behind it, a read gives 0 at once and epoll says HUP for ever: so the port is watched
//!   edge-triggered, and 0 means "nothing now", not "closed".
//! - A read gives at most one of the driver's 4 KiB buffers, and a write takes at most 32 KiB: both are repeated until
//!   the port says that it would block.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::boot::wait_for;

/// The name the host gives the port.
const NAME: &str = "bhatti.agent";

/// How long a port may take to appear after its driver was loaded.
const APPEARS_WITHIN: Duration = Duration::from_secs(10);

/// Finds and opens the port. It stays open for ever.
pub fn open() -> io::Result<File> {
    let device = wait_for(APPEARS_WITHIN, find).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("no virtio-serial port named {NAME} has appeared"))
    })?;
    let flags = (OFlags::NONBLOCK | OFlags::CLOEXEC).bits().cast_signed();
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(device)
}

fn find() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    ports.filter_map(Result::ok).find_map(|port| {
        let name = fs::read_to_string(port.path().join("name")).ok()?;
        let device = Path::new("/dev").join(port.file_name());
        (name.trim_end() == NAME && device.exists()).then_some(device)
    })
}

/// Reads what is there; `None` when that is nothing now.
pub fn read(port: &File, buffer: &mut [u8]) -> Option<usize> {
    loop {
        match rustix::io::read(port, &mut *buffer) {
            Ok(0) => return None,
            Ok(len) => return Some(len),
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}
