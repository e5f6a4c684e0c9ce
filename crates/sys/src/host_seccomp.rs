//! System calls that no VMM makes (seccomp(2)), beside those that QEMU's own filter denies: whatever reaches another
//! process, and surroundings other than its own. A VMM listens on sockets of its own, and is given the others.

use std::io;

use nix::libc::{self, sock_filter, sock_fprog};

/// `AUDIT_ARCH_*` of `linux/audit.h`.
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;
/// Where `struct seccomp_data` (`linux/seccomp.h`) has the call's number, its architecture, and the lower half of each
/// argument on the machines that there are (both little-endian).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const fn argument(n: u32) -> u32 {
    16 + 8 * n
}
/// Numbers from here on are of another set of calls on x86-64 (`__X32_SYSCALL_BIT`).
const OTHER_SET: u32 = 0x4000_0000;

/// Calls that are refused whatever they are given.
const DENIED: [libc::c_long; 36] = [
    libc::SYS_connect,
    libc::SYS_socketpair,
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_semget,
    libc::SYS_msgget,
    libc::SYS_mq_open,
    // What goes through a ring is not seen here.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_mount_setattr,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_open_by_handle_at,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_kexec_load,
    libc::SYS_quotactl,
];
/// `clone(2)`: namespaces.
const NAMESPACES: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;
/// The type in `socket(2)`'s second argument.
const SOCKET_TYPE: u32 = 0xf;

/// A filter, ready to be applied.
#[derive(Debug)]
pub(crate) struct Filter(Vec<sock_filter>);

// Classes and modes of `linux/bpf_common.h`.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_NOT_LESS: u16 = 0x35;
const JUMP_ANY: u16 = 0x45;
const RETURN: u16 = 0x06;

const fn step(code: u16, k: u32, yes: u8, no: u8) -> sock_filter {
    sock_filter { code, jt: yes, jf: no, k }
}

const fn refuse(with: libc::c_int) -> sock_filter {
    step(RETURN, libc::SECCOMP_RET_ERRNO | with.cast_unsigned(), 0, 0)
}

const ALLOW: sock_filter = step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0);

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "numbers of calls are small")]
const fn number(call: libc::c_long) -> u32 {
    call as u32
}

pub(crate) fn filter() -> Filter {
    let mut steps = vec![
        step(LOAD, ARCHITECTURE, 0, 0),
        step(JUMP_EQUAL, ARCH, 1, 0),
        refuse(libc::EPERM),
        step(LOAD, NUMBER, 0, 0),
        step(JUMP_NOT_LESS, OTHER_SET, 0, 1),
        refuse(libc::EPERM),
    ];
    for call in DENIED {
        steps.extend([step(JUMP_EQUAL, number(call), 0, 1), refuse(libc::EPERM)]);
    }
    // Its arguments are out of sight; the C library falls back to the older one.
    steps.extend([step(JUMP_EQUAL, number(libc::SYS_clone3), 0, 1), refuse(libc::ENOSYS)]);
    // Namespaces no, processes and threads yes.
    steps.extend([
        step(JUMP_EQUAL, number(libc::SYS_clone), 0, 4),
        step(LOAD, argument(0), 0, 0),
        step(JUMP_ANY, NAMESPACES.cast_unsigned(), 0, 1),
        refuse(libc::EPERM),
        ALLOW,
    ]);
    // Stream sockets of this host alone, which reach nobody who does not come: others send to any address.
    steps.extend([
        step(JUMP_EQUAL, number(libc::SYS_socket), 0, 7),
        step(LOAD, argument(0), 0, 0),
        step(JUMP_EQUAL, libc::AF_UNIX.cast_unsigned(), 0, 4),
        step(LOAD, argument(1), 0, 0),
        step(AND, SOCKET_TYPE, 0, 0),
        step(JUMP_EQUAL, libc::SOCK_STREAM.cast_unsigned(), 0, 1),
        ALLOW,
        refuse(libc::EACCES),
    ]);
    steps.push(ALLOW);
    Filter(steps)
}

impl Filter {
    /// Holds this thread, and all that it starts, to it. Needs `no_new_privs`; async-signal-safe.
    pub(crate) fn apply(&self) -> io::Result<()> {
        let len = u16::try_from(self.0.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let program = sock_fprog { len, filter: self.0.as_ptr().cast_mut() };
        // SAFETY: the kernel copies `len` steps from where they are, and checks them.
        let done = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0 as libc::c_long,
                &raw const program,
            )
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
