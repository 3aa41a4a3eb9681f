//! Taking all of something that the kernel counts, and holding it until stdin ends.

use std::io::Read;

use rustix::io::Errno;

use crate::syscall::{call, pointer, text};
use crate::{Outcome, errno, io};

/// More than any budget tested here; a budget that is not there shows as this number.
const MOST: usize = 1_000_000;

pub(crate) fn attempt(words: &[&str]) -> Option<Outcome> {
    let outcome = match *words {
        ["one", what] => take(what).map(|_| "ok".to_owned()),
        ["all", what] => all(what),
        ["fork-bomb"] => fork_bomb(),
        _ => return None,
    };
    Some(outcome)
}

fn take(what: &str) -> Result<i64, Errno> {
    match what {
        "inotify" => call(libc::SYS_inotify_init1, &[0]),
        "terminals" => open("/dev/ptmx"),
        "descriptors" => open("/dev/null"),
        "aio" => {
            let mut context: u64 = 0;
            call(libc::SYS_io_setup, &[4096, std::ptr::from_mut(&mut context).addr() as u64])
        }
        // Each real-time signal that waits counts for its receiver's user; 40 is blocked below.
        "signals" => queue_signal(),
        _ => Err(Errno::INVAL),
    }
}

fn open(path: &str) -> Result<i64, Errno> {
    let path = text(path);
    let flags = (libc::O_RDWR | libc::O_NOCTTY) as u64;
    call(libc::SYS_openat, &[libc::AT_FDCWD as u64, pointer(path.as_bytes_with_nul()), flags, 0])
}

const WAITING_SIGNAL: u64 = 40;

fn queue_signal() -> Result<i64, Errno> {
    let blocked: u64 = 1 << (WAITING_SIGNAL - 1);
    call(libc::SYS_rt_sigprocmask, &[libc::SIG_BLOCK as u64, pointer(&blocked), 0, 8])?;
    // siginfo_t: signal, errno, code SI_QUEUE.
    let mut info = [0i32; 32];
    info[0] = WAITING_SIGNAL as i32;
    info[2] = -1;
    let own = u64::from(std::process::id());
    call(libc::SYS_rt_sigqueueinfo, &[own, WAITING_SIGNAL, pointer(&info)])
}

/// Says how many there were, then what the next one was refused with, and keeps them.
fn all(what: &str) -> Outcome {
    let mut count = 0;
    let refused = loop {
        match take(what) {
            Ok(_) if count == MOST => break "no end".to_owned(),
            Ok(_) => count += 1,
            Err(errno) => break errno::name(errno),
        }
    };
    println!("{count} {refused}");
    let mut rest = Vec::new();
    io(std::io::stdin().read_to_end(&mut rest))?;
    Ok("released".to_owned())
}

/// Children that do nothing until they are all killed. Says how many there were and what stopped it.
fn fork_bomb() -> Outcome {
    let mut children = Vec::new();
    let refused = loop {
        if children.len() == MOST {
            break "no end".to_owned();
        }
        match call(libc::SYS_clone, &[libc::SIGCHLD as u64, 0, 0, 0, 0]) {
            Ok(0) => loop {
                let _ = call(libc::SYS_ppoll, &[0, 0, 0, 0]);
            },
            Ok(pid) => children.push(pid),
            Err(errno) => break errno::name(errno),
        }
    };
    for pid in &children {
        call(libc::SYS_kill, &[*pid as u64, libc::SIGKILL as u64])?;
    }
    for pid in &children {
        crate::syscall::reap(i32::try_from(*pid).unwrap_or(0))?;
    }
    Ok(format!("{} {refused}", children.len()))
}
