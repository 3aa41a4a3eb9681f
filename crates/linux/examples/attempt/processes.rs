//! Other processes: looking into them, stopping them, changing their limits.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};

use rustix::io::Errno;

use crate::syscall::{call, number, pointer, reap};
use crate::{Outcome, done, io};

pub(crate) fn attempt(words: &[&str]) -> Option<Outcome> {
    let outcome = match *words {
        ["ptrace", "child"] => with_child(|pid| attach(pid).map(drop)),
        ["ptrace", pid] => attach(number(pid)),
        ["process_vm_readv", "child"] => with_child(|pid| read_memory(pid).map(drop)),
        ["process_vm_readv", pid] => read_memory(number(pid)),
        ["pidfd_getfd", "child"] => with_child(|pid| take_descriptor(pid).map(drop)),
        ["pidfd_getfd", pid] => take_descriptor(number(pid)),
        ["kill", pid, signal] => done(call(libc::SYS_kill, &[number(pid), number(signal)])),
        ["tgkill", process, thread, signal] => {
            done(call(libc::SYS_tgkill, &[number(process), number(thread), number(signal)]))
        }
        ["limit-files", "child"] => with_child(|pid| limit_files(pid).map(drop)),
        ["limit-files", pid] => limit_files(number(pid)),
        ["real-time-priority"] => {
            let priority: i32 = 1;
            done(call(libc::SYS_sched_setscheduler, &[0, libc::SCHED_FIFO as u64, pointer(&priority)]))
        }
        ["raise-priority"] => {
            done(call(libc::SYS_setpriority, &[libc::PRIO_PROCESS as u64, 0, -10i64 as u64]))
        }
        ["raise-limit", limit] => raise_limit(number(limit)),
        ["become", uid] => become_user(number(uid)),
        ["run-as", uid, program] => run_as(number(uid), program),
        _ => return None,
    };
    Some(outcome)
}

/// A child to do to what must not be done to others; it ends with its stdin.
fn with_child(act: impl FnOnce(u64) -> Result<(), Errno>) -> Outcome {
    let mut child: Child = io(Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn())?;
    let outcome = act(u64::from(child.id()));
    io(child.kill())?;
    io(child.wait())?;
    done(outcome)
}

fn attach(pid: u64) -> Outcome {
    // Unlike PTRACE_ATTACH this doesn't stop the other.
    done(call(libc::SYS_ptrace, &[u64::from(libc::PTRACE_SEIZE), pid, 0, 0]))
}

/// The address is of no memory: whoever may look gets EFAULT for it, who may not something else.
fn read_memory(pid: u64) -> Outcome {
    let mut place = [0u8; 8];
    let local = [std::ptr::from_mut(&mut place).addr() as u64, 8];
    let remote = [0u64, 8];
    match call(libc::SYS_process_vm_readv, &[pid, pointer(&local), 1, pointer(&remote), 1, 0]) {
        Ok(_) | Err(Errno::FAULT) => Ok("ok".to_owned()),
        Err(errno) => Err(errno),
    }
}

fn take_descriptor(pid: u64) -> Outcome {
    let process = call(libc::SYS_pidfd_open, &[pid, 0])?;
    done(call(libc::SYS_pidfd_getfd, &[process as u64, 0, 0]))
}

fn limit_files(pid: u64) -> Outcome {
    let limit: [u64; 2] = [8, 8];
    done(call(libc::SYS_prlimit64, &[pid, libc::RLIMIT_NOFILE as u64, pointer(&limit), 0]))
}

/// Hard and soft, to all there is.
fn raise_limit(limit: u64) -> Outcome {
    let unlimited = [u64::MAX; 2];
    done(call(libc::SYS_prlimit64, &[0, limit, pointer(&unlimited), 0]))
}

fn become_user(uid: u64) -> Outcome {
    call(libc::SYS_setgroups, &[0, 0])?;
    call(libc::SYS_setresgid, &[uid, uid, uid])?;
    done(call(libc::SYS_setresuid, &[uid, uid, uid]))
}

/// Becomes another user and tells whom the program runs as: its effective user id.
fn run_as(uid: u64, program: &str) -> Outcome {
    let (mut reader, writer) = io(std::io::pipe())?;
    let program = crate::syscall::text(program);
    let arguments = [pointer(program.as_bytes_with_nul()), pointer(c"-u".to_bytes_with_nul()), 0];
    let pid = call(libc::SYS_clone, &[libc::SIGCHLD as u64, 0, 0, 0, 0])?;
    if pid == 0 {
        let _ = call(libc::SYS_dup3, &[writer.as_raw_fd() as u64, 1, 0]);
        let changed = call(libc::SYS_setresgid, &[uid, uid, uid])
            .and_then(|_| call(libc::SYS_setresuid, &[uid, uid, uid]));
        if changed.is_ok() || u64::from(rustix::process::getuid().as_raw()) == uid {
            let _ = call(libc::SYS_execve, &[arguments[0], pointer(&arguments), 0]);
        }
        std::process::exit(1);
    }
    drop(writer);
    let mut answer = String::new();
    io(reader.read_to_string(&mut answer))?;
    let status = reap(i32::try_from(pid).unwrap_or(0))?;
    if status.exit_status() == Some(0) { Ok(answer.trim().to_owned()) } else { Err(Errno::PERM) }
}
