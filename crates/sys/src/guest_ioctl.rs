//! The ioctls of a guest's first process: randomness, its disks, its loopback device.

use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{IntegerSetter, NoArg, Opcode, Setter, ioctl, opcode};

/// `include/uapi/linux/random.h`: `_IOW('R', 0x03, int [2])`.
const RNDADDENTROPY: Opcode = opcode::write::<[i32; 2]>(b'R', 0x03);
/// `include/uapi/linux/random.h`: `_IO('R', 0x07)`.
const RNDRESEEDCRNG: Opcode = opcode::none(b'R', 0x07);
/// `include/uapi/linux/fs.h`: `_IO(0x12, 97)`.
const BLKFLSBUF: Opcode = opcode::none(0x12, 97);
/// `fs/ext4/ext4.h` (since 6.9 `include/uapi/linux/ext4.h`): `_IOW('f', 16, __u64)`.
const EXT4_IOC_RESIZE_FS: Opcode = opcode::write::<u64>(b'f', 16);
/// `include/uapi/linux/sockios.h`.
const SIOCSIFFLAGS: Opcode = 0x8914;
/// `include/uapi/linux/if.h`.
const IFF_UP: i16 = 1;

const _: () = assert!(RNDADDENTROPY == 0x4008_5203);
const _: () = assert!(RNDRESEEDCRNG == 0x5207);
const _: () = assert!(BLKFLSBUF == 0x1261);
const _: () = assert!(EXT4_IOC_RESIZE_FS == 0x4008_6610);

/// `struct rand_pool_info` with its variable part made fixed.
#[repr(C)]
struct RandPoolInfo {
    entropy_count: i32,
    buf_size: i32,
    buf: [u8; 64],
}

const _: () = assert!(size_of::<RandPoolInfo>() == 72);

/// Mixes 64 random bytes into the kernel's pool, credits them in full, and makes the generator use them at once, so
/// that nothing read from it afterwards can equal what a sibling clone reads.
pub fn add_entropy(random: impl AsFd, bytes: [u8; 64]) -> io::Result<()> {
    let info = RandPoolInfo { entropy_count: 64 * 8, buf_size: 64, buf: bytes };
    // SAFETY: RNDADDENTROPY reads a rand_pool_info and buf_size bytes after its two ints; the struct is laid out so
    // (asserted above), lives through the call, and the kernel writes nothing back.
    unsafe { ioctl(random.as_fd(), Setter::<RNDADDENTROPY, RandPoolInfo>::new(info)) }?;
    // SAFETY: RNDRESEEDCRNG takes no argument.
    unsafe { ioctl(random.as_fd(), NoArg::<RNDRESEEDCRNG>::new()) }?;
    Ok(())
}

/// Forgets what the kernel has cached of a block device, so that the next read sees the disk behind it.
pub fn flush_block_buffers(device: impl AsFd) -> io::Result<()> {
    // SAFETY: BLKFLSBUF takes no argument.
    unsafe { ioctl(device, NoArg::<BLKFLSBUF>::new()) }?;
    Ok(())
}

/// Grows the mounted ext4 file system, of which `directory` is one, to so many of its blocks.
pub fn resize_ext4(directory: impl AsFd, blocks: u64) -> io::Result<()> {
    // SAFETY: EXT4_IOC_RESIZE_FS reads one u64, which lives through the call; other file systems refuse the number.
    unsafe { ioctl(directory, Setter::<EXT4_IOC_RESIZE_FS, u64>::new(blocks)) }?;
    Ok(())
}

/// `struct ifreq` with the flags member of its union.
#[repr(C)]
struct InterfaceFlags {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceFlags>() == 40);

/// Brings the loopback device up, without which nothing in the guest can talk to 127.0.0.1.
pub fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    let mut request = InterfaceFlags { name: [0; 16], flags: IFF_UP, rest: [0; 22] };
    request.name[..2].copy_from_slice(b"lo");
    // SAFETY: SIOCSIFFLAGS reads an ifreq (40 bytes on 64-bit, asserted above), which lives through the call.
    unsafe { ioctl(&socket, Setter::<SIOCSIFFLAGS, InterfaceFlags>::new(request)) }?;
    Ok(())
}

/// `include/uapi/asm-generic/ioctls.h`.
const TIOCSCTTY: Opcode = 0x540E;

/// Makes a terminal the controlling one of the calling session.
pub(crate) fn set_controlling_terminal(terminal: impl AsFd) -> rustix::io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer by value; 0 does not steal the terminal from another session.
    unsafe { ioctl(terminal, IntegerSetter::<TIOCSCTTY>::new_usize(0)) }
}
