//! Makes system calls in a forked child, with the guest's program on it or without.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use agentos_linux::seccomp::{guest_program, install};
use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};

/// A call as the kernel takes it. Pointers must stay valid in a forked copy of the process.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// For the message of a failed test.
    pub(crate) what: String,
    pub(crate) number: libc::c_long,
    pub(crate) arguments: [u64; 6],
}

/// What a call returned: which number a success gave doesn't matter here.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Success,
    Error(i32),
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success => f.write_str("success"),
            Self::Error(errno) => write!(f, "{}", std::io::Error::from_raw_os_error(*errno)),
        }
    }
}

pub(crate) enum Filter {
    Guest,
    None,
}

/// The calls' outcomes, all made by one child in their order. It has no controlling terminal.
pub(crate) fn outcomes(filter: Filter, calls: &[Call]) -> Vec<Outcome> {
    let mut results = vec![i32::MIN; calls.len()];
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let pid = fork(|| {
        let prepared = match filter {
            Filter::Guest => install(guest_program()),
            // It changes some answers by itself (landlock_restrict_self), which are not the program's.
            Filter::None => rustix::thread::set_no_new_privs(true),
        };
        if prepared.is_err() {
            return 1;
        }
        raw(libc::SYS_setsid, [0; 6]);
        for (call, result) in calls.iter().zip(results.iter_mut()) {
            *result = raw(call.number, call.arguments);
        }
        let bytes = size_of_val(&results[..]) as u64;
        let written =
            raw(libc::SYS_write, [writer.as_raw_fd() as u64, results.as_ptr() as u64, bytes, 0, 0, 0]);
        i32::from(written != 0)
    });
    drop(writer);
    let mut bytes = Vec::new();
    File::from(reader).read_to_end(&mut bytes).unwrap();
    assert_eq!(wait(pid).exit_status(), Some(0), "the child was to install the program and report");
    let errnos = bytes.chunks_exact(4).map(|chunk| i32::from_ne_bytes(chunk.try_into().unwrap()));
    errnos.map(|errno| if errno == 0 { Outcome::Success } else { Outcome::Error(errno) }).collect()
}

/// How a child ends that installs the guest's program and then does `last`.
pub(crate) fn end_of(last: impl FnOnce()) -> WaitStatus {
    wait(fork(|| {
        if install(guest_program()).is_err() {
            return 1;
        }
        last();
        0
    }))
}

/// 0, or the errno. The number of a success is lost on purpose.
pub(crate) fn raw(number: libc::c_long, arguments: [u64; 6]) -> i32 {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: The callers pass numbers the kernel refuses, null, bad pointers, or pointers to C strings and buffers
    // that live in the parent and so in the child's copy. The child is single-threaded, runs nothing but this loop
    // and ends in _exit, so that no state the calls change is seen by Rust code that relies on it.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result >= 0 {
        return 0;
    }
    // SAFETY: __errno_location has no conditions; it returns the address of the calling thread's errno.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: The pointer is aligned, valid as long as this thread lives, and no other thread writes there.
    unsafe { *errno }
}

/// Runs `body` in a child, which ends with its value.
fn fork(body: impl FnOnce() -> i32) -> Pid {
    // SAFETY: The process may have other threads (the test harness), so that the child may only do what is
    // async-signal-safe: the bodies in this module make raw system calls on memory allocated before.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let code = body();
        // SAFETY: Ends the child on the spot; no destructor or atexit handler of the parent's may run here.
        unsafe { libc::_exit(code) }
    }
    Pid::from_raw(pid).expect("fork")
}

fn wait(pid: Pid) -> WaitStatus {
    waitpid(Some(pid), WaitOptions::empty()).unwrap().expect("without NOHANG there is a status").1
}

/// A descriptor of a terminal's slave side, for ioctls.
pub(crate) fn terminal() -> (OwnedFd, OwnedFd) {
    let (mut controller, mut user) = (-1, -1);
    // SAFETY: openpty writes two descriptors; name, termios and size may be null.
    let result = unsafe {
        libc::openpty(
            &raw mut controller,
            &raw mut user,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
    assert_eq!(result, 0, "openpty");
    // SAFETY: openpty has just opened it and nobody else owns it.
    let controller = unsafe { OwnedFd::from_raw_fd(controller) };
    // SAFETY: As above.
    let user = unsafe { OwnedFd::from_raw_fd(user) };
    (controller, user)
}
