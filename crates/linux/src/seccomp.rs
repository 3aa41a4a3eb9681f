//! Seccomp programs: the filter of system calls that every guest process carries from its first instruction on.
//!
//! The program is made at build time from `resources/seccomp/guest.policy`, the one place where a call is allowed or
//! refused; here it is only kept and installed. `init` installs it in the child between fork and exec, as the last
//! step before exec: what the child itself has still to do (mounts, namespaces) must come before. It can't be taken
//! off again, is inherited by everything the process starts, and later filters can only refuse more.

use libc::{sock_filter, sock_fprog};
use rustix::io::Errno;

include!(concat!(env!("OUT_DIR"), "/guest_seccomp.rs"));

/// The program of `guest.policy` for this architecture.
#[must_use]
pub fn guest_program() -> &'static [sock_filter] {
    &GUEST
}

/// Sets no_new_privs and puts the calling thread under `program`, now and for good.
///
/// No allocation, no lock, two system calls: it may run in the forked child of a program with threads. A process with
/// several threads filters only the one that calls.
///
/// # Errors
///
/// `EINVAL` for a program that the kernel's verifier doesn't take (empty, over 4096 instructions, a jump out of it) or
/// a kernel without seccomp filters (`ENOSYS` before 3.17), `EPERM` where an outer seccomp filter forbids more
/// filters, `ENOMEM`. no_new_privs may be set then all the same.
pub fn install(program: &[sock_filter]) -> Result<(), Errno> {
    // Without it the kernel takes filters from CAP_SYS_ADMIN only, and a setuid program could be confused by errors
    // that it never meets otherwise.
    rustix::thread::set_no_new_privs(true)?;

    let program = sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::INVAL)?,
        // The kernel only reads; C has no const here.
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: seccomp(SECCOMP_SET_MODE_FILTER, 0, p) reads a sock_fprog at p and p.len instructions at p.filter, and
    // keeps neither. Both are borrowed for longer than the call, and len is the length of that slice. What memory the
    // program refers to later is the kernel's own copy; refusing calls from then on breaks no invariant of Rust code.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0_u64, &raw const program) };
    if result == 0 {
        return Ok(());
    }
    // SAFETY: __errno_location has no conditions; it returns the address of the calling thread's errno.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: The pointer is aligned, valid as long as this thread lives, and no other thread writes there.
    let errno = unsafe { *errno };
    Err(Errno::from_raw_os_error(errno))
}
