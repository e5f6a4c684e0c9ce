//! The only room with unsafe code: system calls and ioctls that no crate offers in a safe form.

#![allow(unsafe_code)]

pub mod guest_ioctl;
pub mod guest_process;
pub mod host_btrfs;
pub mod host_buffer;
pub mod host_confine;
pub mod host_fiemap;
pub mod host_heap;
pub mod host_image_lock;
mod host_landlock;
pub mod host_mounts;
pub mod host_open_files;
pub mod host_pagemap;
pub mod host_process;
mod host_seccomp;
pub mod host_socket;
pub mod host_tsc;
pub mod host_vmread;
pub mod netlink;
