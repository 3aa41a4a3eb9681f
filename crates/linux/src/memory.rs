//! The memory of the calling process.

/// Blocks from this size on are mapped by themselves.
#[cfg(target_env = "gnu")]
const APART_BYTES: libc::c_int = 128 * 1024;

/// Gives what is free back to the kernel: blocks that are not apart stay with the allocator otherwise, whole or in pieces,
/// for as long as anything behind them is in use. Takes milliseconds.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes a number and may be called at any time by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Has the allocator map large blocks by themselves for good: such a block costs what is used of it, and goes back to the
/// kernel when it is freed. By itself glibc stops doing so for blocks of a size that was freed once, up to 32 MiB.
pub fn keep_large_blocks_apart() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers and may be called at any time by any thread; it refuses what it doesn't know.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, APART_BYTES);
    }
}
