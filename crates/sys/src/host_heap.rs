//! How the C library's allocator keeps memory that was freed.

/// Makes the allocator return large buffers to the host as soon as they are freed, and keep few heaps.
///
/// By itself glibc raises, up to 32 MiB, the size from which a buffer is a mapping of its own, each time one is freed, and
/// has up to eight heaps for each processor, none of which shrinks below its highest living byte: a daemon whose threads
/// come and go with large buffers stays as large as it ever was in each of them (mallopt(3)). To be called before there
/// are threads. Does nothing with another C library.
pub fn return_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use nix::libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt};
        const OWN_MAPPING_FROM: i32 = 128 << 10;
        const HEAPS: i32 = 2;
        // SAFETY: mallopt changes settings of the allocator and no memory. It refuses only what is out of range, which
        // these are not; then the allocator stays as it is.
        unsafe {
            mallopt(M_MMAP_THRESHOLD, OWN_MAPPING_FROM);
            mallopt(M_TRIM_THRESHOLD, OWN_MAPPING_FROM);
            mallopt(M_ARENA_MAX, HEAPS);
        }
    }
}
