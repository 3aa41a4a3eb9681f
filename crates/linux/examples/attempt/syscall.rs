//! System calls by number, past every wrapper that would check, translate or fall back.

use std::ffi::CString;

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus};

/// Arguments that aren't given are zero.
pub(crate) fn call(number: libc::c_long, arguments: &[u64]) -> Result<i64, Errno> {
    let mut all = [0; 6];
    for (place, argument) in all.iter_mut().zip(arguments) {
        *place = *argument;
    }
    let [a, b, c, d, e, f] = all;
    // SAFETY: no caller passes the address of memory that the call could write beyond, or that ends before the call
    // does: they pass C strings, structures on the stack of the right size, or addresses that can't be valid. None
    // maps, unmaps or protects memory, and clone is only called without a shared address space.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result == -1 { Err(last_error()) } else { Ok(result) }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// As the kernel takes paths and names.
pub(crate) fn text(word: &str) -> CString {
    CString::new(word).unwrap_or_default()
}

pub(crate) fn pointer<T: ?Sized>(value: &T) -> u64 {
    std::ptr::from_ref(value).cast::<u8>().addr() as u64
}

/// Numbers in the forms people write them: 42, 0x2a, 0o52, -1.
pub(crate) fn number(word: &str) -> u64 {
    let (digits, radix) = match word.get(..2) {
        Some("0x") => (&word[2..], 16),
        Some("0o") => (&word[2..], 8),
        _ => (word, 10),
    };
    match digits.parse::<i64>() {
        Ok(negative) if negative < 0 => negative as u64,
        _ => u64::from_str_radix(digits, radix).unwrap_or(u64::MAX),
    }
}

/// Runs `child` in a forked process and tells how that ended: its exit code, or the signal.
pub(crate) fn in_child(child: impl FnOnce() -> i32) -> Result<WaitStatus, Errno> {
    // SAFETY: the process has one thread, so the child may do whatever the parent could.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(last_error()),
        0 => std::process::exit(child()),
        pid => reap(pid),
    }
}

pub(crate) fn reap(pid: i32) -> Result<WaitStatus, Errno> {
    let pid = Pid::from_raw(pid).ok_or(Errno::CHILD)?;
    match rustix::process::waitpid(Some(pid), WaitOptions::empty())? {
        Some((_, status)) => Ok(status),
        None => Err(Errno::CHILD),
    }
}
