//! The memory of the calling process.

/// Gives what is free back to the kernel. By itself the allocator keeps it for as long as anything behind it is in use.
/// Takes milliseconds.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes a number and may be called at any time by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
