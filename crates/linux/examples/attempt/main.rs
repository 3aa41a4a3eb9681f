//! Makes attempts that a VM must refuse, and says what came of each. The project's abuse tests run it inside VMs and,
//! as the control that shows the attempt could succeed, outside of them.
//!
//! ```text
//! attempt [--private] NAME [ARGUMENT]... [then NAME [ARGUMENT]...]...
//! ```
//! One line per attempt on stdout: `ok`, what was found, or the name of the errno. `--private` first enters a user
//! (unless root), mount and UTS namespace of its own, so that a control harms nothing: the host sees no mount of it.
//! Attempts that would harm the machine if they were let through carry arguments that can't succeed: what tells the
//! kernel that listened (EINVAL, EFAULT) from the one that refused (EPERM, ENOSYS) is the errno.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program whose output is its answer")]

mod budgets;
mod errno;
mod files;
mod kernel;
mod mounts;
mod namespaces;
mod network;
mod processes;
mod sockets;
mod syscall;

use std::process::ExitCode;

use rustix::io::Errno;

/// What an attempt that was let through found or made.
type Outcome = Result<String, Errno>;

fn main() -> ExitCode {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "--private") {
        words.remove(0);
        if let Err(errno) = namespaces::enter_private() {
            eprintln!("attempt: private namespaces: {}", errno::name(errno));
            return ExitCode::FAILURE;
        }
    }
    if words.is_empty() {
        println!("usage: attempt [--private] NAME [ARGUMENT]... [then NAME [ARGUMENT]...]...");
        return ExitCode::SUCCESS;
    }
    for attempt in words.split(|word| word == "then") {
        let words: Vec<&str> = attempt.iter().map(String::as_str).collect();
        match make(&words) {
            Some(Ok(found)) => println!("{found}"),
            Some(Err(errno)) => println!("{}", errno::name(errno)),
            None => {
                eprintln!("attempt: no such attempt: {}", words.join(" "));
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

fn make(words: &[&str]) -> Option<Outcome> {
    mounts::attempt(words)
        .or_else(|| namespaces::attempt(words))
        .or_else(|| kernel::attempt(words))
        .or_else(|| processes::attempt(words))
        .or_else(|| files::attempt(words))
        .or_else(|| sockets::attempt(words))
        .or_else(|| network::attempt(words))
        .or_else(|| budgets::attempt(words))
}

fn done<T>(result: Result<T, Errno>) -> Outcome {
    result.map(|_| "ok".to_owned())
}

/// Failures of the standard library, whose errors carry the errno.
fn io<T>(result: std::io::Result<T>) -> Result<T, Errno> {
    result.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
