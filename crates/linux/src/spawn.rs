//! A program in a new process, with everything taken away that a guest must not have.
//!
//! ```text
//! caller ── fork ──► child: session, stdio, limits, ids, capabilities, seccomp, cwd, exec
//!    │                 └─ the first call that fails is written to the report pipe
//!    └ keeps the report pipe: 8 bytes mean a failure, an end without bytes means exec has succeeded
//! ```
//! The caller may have threads, so the child makes system calls alone between fork and exec: no allocation, no lock,
//! nothing that could be held by a thread which the child does not have. All it needs is prepared before the fork.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Resource, Rlimit};
use rustix::thread::CapabilitySet;

use crate::clone::last_errno;
use crate::label::Label;
use crate::{credentials, seccomp};

/// A program ready to start.
#[derive(Debug)]
pub struct Program<'a> {
    /// Paths to try in this order; the first that exec takes wins.
    pub candidates: &'a [CString],
    pub argv: &'a [CString],
    pub env: &'a [CString],
    pub cwd: &'a CStr,
    pub stdio: [BorrowedFd<'a>; 3],
    /// `stdio[0]` is a terminal and becomes the controlling one.
    pub terminal: bool,
    pub identity: Identity,
    pub open_files: u64,
    /// Put on the program, and so on everything it will ever start.
    pub label: Option<Label>,
}

/// Who the program runs as. The caller has cut its own bounding set to `capabilities` before: forty calls that every
/// child would repeat.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups can be dropped; not so where the user namespace denies setgroups, and then there are none
    /// that mean anything inside.
    pub drop_groups: bool,
    pub capabilities: CapabilitySet,
}

/// What the child was at when a call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    Setup = 1,
    Cwd = 2,
    Exec = 3,
}

/// A forked child that is on its way to exec.
#[derive(Debug)]
pub struct Child {
    pub pid: i32,
    /// Read with [`read_report`].
    pub report: OwnedFd,
}

/// What the report pipe says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// Nothing yet.
    Pending,
    /// The program runs.
    Executed,
    Failed(Step, Errno),
}

/// The arrays that execve takes, made before the fork.
struct ExecArrays {
    /// Two spare slots in front, for the shell that runs a script without an interpreter line.
    argv: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
}

/// Forks a child that becomes the program in its own session and process group.
pub fn spawn(program: &Program<'_>) -> Result<Child, Errno> {
    let (report, report_end) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let mut arrays = ExecArrays::new(program);
    match fork()? {
        0 => {
            let (step, errno) = become_program(program, &mut arrays, report_end.as_raw_fd());
            report_failure(report_end.as_raw_fd(), step, errno)
        }
        pid => Ok(Child { pid, report }),
    }
}

/// Reads the report without waiting.
pub fn read_report(report: BorrowedFd<'_>) -> Report {
    let mut bytes = [0; REPORT_BYTES];
    loop {
        return match rustix::io::read(report, &mut bytes) {
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => Report::Pending,
            // A child that died before exec, killed from inside, says nothing; its exit status will.
            Ok(0) | Err(_) => Report::Executed,
            Ok(_) => parse_report(bytes),
        };
    }
}

const REPORT_BYTES: usize = 8;

fn parse_report(bytes: [u8; REPORT_BYTES]) -> Report {
    let [step, _, _, _, code @ ..] = bytes;
    let step = match step {
        1 => Step::Setup,
        2 => Step::Cwd,
        _ => Step::Exec,
    };
    Report::Failed(step, Errno::from_raw_os_error(i32::from_ne_bytes(code)))
}

fn report_failure(report: RawFd, step: Step, errno: Errno) -> ! {
    let mut bytes = [0; REPORT_BYTES];
    bytes[0] = step as u8;
    bytes[4..].copy_from_slice(&errno.raw_os_error().to_ne_bytes());
    // SAFETY: write reads the 8 bytes of a live local array.
    unsafe { libc::write(report, bytes.as_ptr().cast(), bytes.len()) };
    // SAFETY: _exit takes an integer and does not return; nothing that belongs to the parent runs.
    unsafe { libc::_exit(127) }
}

/// The plain fork: a raw clone, because libc's would run handlers and take locks.
fn fork() -> Result<i32, Errno> {
    // SAFETY: with SIGCHLD as the only flag and no stack, clone is fork: the child runs on a copy of this stack. All
    // callers in this module let the child do nothing but async-signal-safe system calls until exec or _exit.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD as libc::c_ulong, 0, 0, 0, 0) };
    if pid < 0 { Err(last_errno()) } else { Ok(pid as i32) }
}

impl ExecArrays {
    fn new(program: &Program<'_>) -> Self {
        let mut argv = vec![std::ptr::null(); SPARE];
        argv.extend(program.argv.iter().map(|argument| argument.as_ptr()));
        argv.push(std::ptr::null());
        let mut env: Vec<_> = program.env.iter().map(|entry| entry.as_ptr()).collect();
        env.push(std::ptr::null());
        Self { argv, env }
    }
}

const SPARE: usize = 2;

/// Everything between fork and exec, in the order the kernel asks for. Returns only on failure.
fn become_program(program: &Program<'_>, arrays: &mut ExecArrays, report: RawFd) -> (Step, Errno) {
    let setup = new_session(program)
        .and_then(|()| place_stdio(&program.stdio, report))
        .and_then(|()| reset_signals())
        .and_then(|()| set_limits(program.open_files))
        .and_then(|()| program.label.map_or(Ok(()), Label::put_on))
        .and_then(|()| drop_privileges(program.identity));
    if let Err(errno) = setup {
        return (Step::Setup, errno);
    }
    // With the guest's own rights: a directory it may not enter is not a place to start in.
    if let Err(errno) = rustix::process::chdir(program.cwd) {
        return (Step::Cwd, errno);
    }
    if let Err(errno) = seccomp::install(seccomp::guest_program()) {
        return (Step::Setup, errno);
    }
    (Step::Exec, exec(program, arrays))
}

fn new_session(program: &Program<'_>) -> Result<(), Errno> {
    rustix::process::setsid()?;
    if program.terminal {
        rustix::process::ioctl_tiocsctty(program.stdio[0])?;
    }
    Ok(())
}

/// Puts the three descriptors in place and lets exec close everything else, the report pipe included: its closing is
/// how the parent learns of success.
fn place_stdio(stdio: &[BorrowedFd<'_>; 3], report: RawFd) -> Result<(), Errno> {
    // The sources are PID 1's descriptors, all above 2 (it keeps 0 to 2 open for itself), so that no dup2 overwrites
    // a source that is still needed.
    for (target, source) in stdio.iter().enumerate() {
        // SAFETY: dup2 takes two integers. In this process, which never returns to Rust code that owns descriptors,
        // replacing 0, 1 and 2 breaks no owner's assumption.
        if unsafe { libc::dup2(source.as_raw_fd(), target as RawFd) } < 0 {
            return Err(last_errno());
        }
    }
    debug_assert!(report > 2);
    // SAFETY: close_range takes integers; CLOSE_RANGE_CLOEXEC only marks descriptors.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// PID 1 blocks SIGCHLD, and Rust's start-up code ignores SIGPIPE; a program must inherit neither.
fn reset_signals() -> Result<(), Errno> {
    // SAFETY: SIG_DFL is a valid disposition for SIGPIPE.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let empty = [0_u64; 1];
    // SAFETY: rt_sigprocmask reads 8 bytes, the kernel's sigset size that is passed along, from a live array.
    let result = unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, empty.as_ptr(), 0, size_of_val(&empty))
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

fn set_limits(open_files: u64) -> Result<(), Errno> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none)?;
    let files = Rlimit { current: Some(open_files), maximum: Some(open_files) };
    rustix::process::setrlimit(Resource::Nofile, files)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    Ok(())
}

fn drop_privileges(identity: Identity) -> Result<(), Errno> {
    if identity.drop_groups {
        credentials::drop_groups()?;
    }
    // PID 1 keeps capabilities across ids; the program starts with the ordinary rules.
    rustix::thread::set_capabilities_secure_bits(rustix::thread::CapabilitiesSecureBits::empty())?;
    credentials::set_ids(identity.uid, identity.gid)?;
    credentials::set_capabilities(identity.capabilities)
}

/// Tries every candidate. Like a shell, a file that can't be entered is skipped, one that may not be run is
/// remembered, and one in an unknown format is a script for /bin/sh.
fn exec(program: &Program<'_>, arrays: &mut ExecArrays) -> Errno {
    let mut answer = Errno::NOENT;
    for path in program.candidates {
        let errno = execve(path, &arrays.argv, SPARE, &arrays.env);
        match errno {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => answer = Errno::ACCESS,
            Errno::NOEXEC => {
                arrays.argv[1] = c"/bin/sh".as_ptr();
                arrays.argv[SPARE] = path.as_ptr();
                return execve(c"/bin/sh", &arrays.argv, 1, &arrays.env);
            }
            other => return other,
        }
    }
    answer
}

fn execve(path: &CStr, argv: &[*const libc::c_char], first: usize, env: &[*const libc::c_char]) -> Errno {
    let Some(argv) = argv.get(first..) else { return Errno::INVAL };
    // SAFETY: both arrays end with a null pointer (see `ExecArrays::new`), and the C strings they point to are
    // borrowed by the `Program` that outlives this call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    last_errno()
}
