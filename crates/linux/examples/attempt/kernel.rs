//! Calls that reach the machine or wide parts of its kernel. Their arguments do no harm wherever they are listened to.

use crate::syscall::{call, in_child, pointer};
use crate::{Outcome, done};

/// No valid address, descriptor, flag or command.
const BAD: u64 = u64::MAX;
const AT_FDCWD: u64 = libc::AT_FDCWD as u64;
const UFFD_USER_MODE_ONLY: u64 = 1;
const KEY_SPEC_PROCESS_KEYRING: u64 = -2i64 as u64;
/// Q_SYNC of all file systems, shifted as QCMD does.
const QUOTA_SYNC: u64 = 0x80_0001 << 8;
const SYSLOG_SIZE_BUFFER: u64 = 10;

pub(crate) fn attempt(words: &[&str]) -> Option<Outcome> {
    let outcome = match *words {
        ["abi", "32-bit"] => foreign_abi(abi::getpid_by_interrupt),
        ["abi", "x32"] => foreign_abi(abi::getpid_of_x32),
        [name] => done(simple(name)?),
        _ => return None,
    };
    Some(outcome)
}

fn simple(name: &str) -> Option<Result<i64, rustix::io::Errno>> {
    let nowhere = c"/nonexistent/attempt".to_bytes_with_nul();
    let result = match name {
        "bpf" => call(libc::SYS_bpf, &[0x7fff_ffff, 0, 0]),
        "perf_event_open" => call(libc::SYS_perf_event_open, &[8, 0, BAD, BAD, 0]),
        "userfaultfd" => call(libc::SYS_userfaultfd, &[UFFD_USER_MODE_ONLY]),
        "io_uring_setup" => {
            let parameters = [0u8; 120];
            call(libc::SYS_io_uring_setup, &[1, pointer(&parameters)])
        }
        "keyctl" => call(libc::SYS_keyctl, &[0, KEY_SPEC_PROCESS_KEYRING, 1]),
        "add_key" => {
            let (kind, name) =
                (pointer(c"user".to_bytes_with_nul()), pointer(c"attempt".to_bytes_with_nul()));
            call(libc::SYS_add_key, &[kind, name, name, 7, KEY_SPEC_PROCESS_KEYRING])
        }
        "request_key" => {
            let (kind, name) =
                (pointer(c"user".to_bytes_with_nul()), pointer(c"attempt".to_bytes_with_nul()));
            call(libc::SYS_request_key, &[kind, name, 0, 0])
        }
        // More segments than there may be.
        "kexec_load" => call(libc::SYS_kexec_load, &[0, 0xffff, 0, 0]),
        "kexec_file_load" => call(libc::SYS_kexec_file_load, &[BAD, BAD, 0, 0, BAD]),
        "init_module" => call(libc::SYS_init_module, &[BAD, 64, BAD]),
        "finit_module" => call(libc::SYS_finit_module, &[BAD, BAD, 0]),
        "delete_module" => call(libc::SYS_delete_module, &[pointer(c"attempt".to_bytes_with_nul()), 0]),
        // Without the magic numbers.
        "reboot" => call(libc::SYS_reboot, &[0, 0, 0, 0]),
        "swapon" => call(libc::SYS_swapon, &[pointer(nowhere), 0]),
        "swapoff" => call(libc::SYS_swapoff, &[pointer(nowhere)]),
        "acct" => call(libc::SYS_acct, &[pointer(nowhere)]),
        "quotactl" => call(libc::SYS_quotactl, &[QUOTA_SYNC, 0, 0, 0]),
        "name_to_handle_at" => name_to_handle(),
        "open_by_handle_at" => open_by_handle(),
        "syslog" => call(libc::SYS_syslog, &[SYSLOG_SIZE_BUFFER, 0, 0]),
        "sethostname" => call(libc::SYS_sethostname, &[pointer(c"attempt".to_bytes_with_nul()), 7]),
        "clock_adjtime" => {
            let nothing_changed = [0u64; 32];
            call(libc::SYS_clock_adjtime, &[0, pointer(&nothing_changed)])
        }
        "settimeofday" => call(libc::SYS_settimeofday, &[BAD, 0]),
        "fanotify_init" => call(libc::SYS_fanotify_init, &[0x200, 0]),
        "move_pages" => call(libc::SYS_move_pages, &[0, 0, 0, 0, 0, 0]),
        "memfd_secret" => call(libc::SYS_memfd_secret, &[0]),
        "openat2" => {
            let how = [0u64; 3];
            call(libc::SYS_openat2, &[AT_FDCWD, pointer(c"/".to_bytes_with_nul()), pointer(&how), 24])
        }
        "vhangup" => in_own_session(|| call(libc::SYS_vhangup, &[])),
        "tiocsti" => call(libc::SYS_ioctl, &[0, libc::TIOCSTI, pointer(c"x".to_bytes_with_nul())]),
        "tiocsti-upper-bits" => {
            let request = libc::TIOCSTI | 1 << 32;
            call(libc::SYS_ioctl, &[0, request, pointer(c"x".to_bytes_with_nul())])
        }
        "tioclinux" => call(libc::SYS_ioctl, &[0, 0x541c, pointer(c"\x03".to_bytes_with_nul())]),
        "tiocsetd" => {
            let gsm: u32 = 21;
            call(libc::SYS_ioctl, &[0, libc::TIOCSETD, pointer(&gsm)])
        }
        "personality-mmap-zero" => call(libc::SYS_personality, &[0x010_0000]),
        "personality-read-implies-exec" => call(libc::SYS_personality, &[0x040_0000]),
        "ioperm" => x86::ioperm(),
        _ => return None,
    };
    Some(result)
}

/// struct file_handle with room for the largest handle.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    handle: [u8; 128],
}

fn name_to_handle() -> Result<i64, rustix::io::Errno> {
    let mut handle = Handle { bytes: 128, kind: 0, handle: [0; 128] };
    let mut mount: i32 = 0;
    let handle = std::ptr::from_mut(&mut handle).addr() as u64;
    let mount = std::ptr::from_mut(&mut mount).addr() as u64;
    call(libc::SYS_name_to_handle_at, &[AT_FDCWD, pointer(c"/".to_bytes_with_nul()), handle, mount, 0])
}

/// The second inode of most file systems is their root, the first step of the escape called shocker.
fn open_by_handle() -> Result<i64, rustix::io::Errno> {
    let mut handle = Handle { bytes: 8, kind: 1, handle: [0; 128] };
    handle.handle[0] = 2;
    let directory = crate::io(std::fs::File::open("/"))?;
    let descriptor = std::os::fd::AsRawFd::as_raw_fd(&directory) as u64;
    call(libc::SYS_open_by_handle_at, &[descriptor, pointer(&handle), libc::O_RDONLY as u64])
}

/// A hang-up without a terminal concerns nobody.
fn in_own_session(act: impl FnOnce() -> Result<i64, rustix::io::Errno>) -> Result<i64, rustix::io::Errno> {
    let status = in_child(|| {
        let entered = call(libc::SYS_setsid, &[]);
        match entered.and_then(|_| act()) {
            Ok(_) => 0,
            Err(errno) => errno.raw_os_error(),
        }
    })?;
    match status.exit_status() {
        Some(0) => Ok(0),
        Some(code) => Err(rustix::io::Errno::from_raw_os_error(code)),
        None => Err(rustix::io::Errno::CHILD),
    }
}

/// A call through another door of the kernel, where the same numbers mean other calls.
fn foreign_abi(attempt: fn() -> i64) -> Outcome {
    let status = in_child(|| if attempt() > 0 { 0 } else { 1 })?;
    Ok(match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => "ok".to_owned(),
        (Some(_), _) => "refused".to_owned(),
        (None, Some(signal)) if signal == libc::SIGSYS => "killed by SIGSYS".to_owned(),
        (None, signal) => format!("killed by {}", signal.unwrap_or(0)),
    })
}

#[cfg(target_arch = "x86_64")]
mod abi {
    /// The 32-bit number of getpid, which to a filter that forgot to look at the ABI is writev.
    pub(super) fn getpid_by_interrupt() -> i64 {
        let result: i64;
        // SAFETY: getpid takes no arguments; the interrupt clobbers what is said and r8 to r11 of old kernels.
        unsafe {
            std::arch::asm!("int 0x80", inlateout("rax") 20i64 => result,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _);
        }
        result
    }

    pub(super) fn getpid_of_x32() -> i64 {
        crate::syscall::call(0x4000_0000 | libc::SYS_getpid, &[]).unwrap_or(-1)
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod abi {
    pub(super) fn getpid_by_interrupt() -> i64 {
        -1
    }

    pub(super) fn getpid_of_x32() -> i64 {
        -1
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    pub(super) fn ioperm() -> Result<i64, rustix::io::Errno> {
        super::call(libc::SYS_ioperm, &[0x80, 1, 0])
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod x86 {
    pub(super) fn ioperm() -> Result<i64, rustix::io::Errno> {
        Err(rustix::io::Errno::NOSYS)
    }
}
