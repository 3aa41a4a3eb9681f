//! Files, their special kinds and their special bits.

use std::fs;
use std::os::fd::AsRawFd;

use rustix::io::Errno;

use crate::syscall::{call, number, pointer, text};
use crate::{Outcome, done, io};

const AT_FDCWD: u64 = libc::AT_FDCWD as u64;
const WRITE_NEW: u64 = (libc::O_WRONLY | libc::O_CREAT) as u64;

pub(crate) fn attempt(words: &[&str]) -> Option<Outcome> {
    let outcome = match *words {
        // At most so much that a canary fits.
        ["read", path] => read(path),
        ["open-for-writing", path] => done(io(fs::OpenOptions::new().write(true).open(path))),
        ["reopen-for-writing", path] => reopen_for_writing(path),
        ["append", path, what] => append(path, what),
        ["mknod", path, mode, device] => {
            with_path(path, |path| call(libc::SYS_mknodat, &[AT_FDCWD, path, number(mode), number(device)]))
        }
        ["open-mode", path, mode] => {
            with_path(path, |path| call(libc::SYS_openat, &[AT_FDCWD, path, WRITE_NEW, number(mode)]))
        }
        ["tmpfile-mode", directory, mode, name] => tmpfile(directory, number(mode), name),
        ["mkdir-mode", path, mode] => {
            with_path(path, |path| call(libc::SYS_mkdirat, &[AT_FDCWD, path, number(mode)]))
        }
        ["fchmodat", path, mode] => {
            with_path(path, |path| call(libc::SYS_fchmodat, &[AT_FDCWD, path, number(mode)]))
        }
        ["fchmodat2", path, mode] => {
            with_path(path, |path| call(libc::SYS_fchmodat2, &[AT_FDCWD, path, number(mode), 0]))
        }
        ["fchmod", path, mode] => io(fs::File::open(path))
            .and_then(|file| done(call(libc::SYS_fchmod, &[file.as_raw_fd() as u64, number(mode)]))),
        ["openat2-mode", path, mode] => openat2(path, number(mode)),
        ["capability", path] => set_file_capability(path),
        ["set-attribute", path, name, value] => {
            done(rustix::fs::setxattr(path, name, value.as_bytes(), rustix::fs::XattrFlags::empty()))
        }
        ["attribute", path, name] => {
            let mut value = [0; 256];
            rustix::fs::getxattr(path, name, &mut value)
                .map(|length| String::from_utf8_lossy(&value[..length]).into_owned())
        }
        ["hard-link", from, to] => done(io(fs::hard_link(from, to))),
        ["rename", from, to] => done(io(fs::rename(from, to))),
        ["deepen", path, levels] => deepen(path, number(levels)),
        ["lease", path] => io(fs::File::open(path)).and_then(|file| {
            let (descriptor, reading) = (file.as_raw_fd() as u64, libc::F_RDLCK as u64);
            done(call(libc::SYS_fcntl, &[descriptor, libc::F_SETLEASE as u64, reading]))
        }),
        ["swap", one, other] => swap(one, other),
        ["symlink", target, path] => done(io(std::os::unix::fs::symlink(target, path))),
        ["remove", path] => done(io(fs::remove_file(path))),
        _ => return legacy(words),
    };
    Some(outcome)
}

fn read(path: &str) -> Outcome {
    let bytes = io(fs::read(path))?;
    let end = bytes.len().min(256);
    let start = String::from_utf8_lossy(&bytes[..end]).into_owned();
    Ok(if start.is_empty() { "nothing".to_owned() } else { start.replace('\n', " ") })
}

/// Directories in one another, far beyond what a path can name.
fn deepen(path: &str, levels: u64) -> Outcome {
    io(std::env::set_current_dir(path))?;
    for _ in 0..levels {
        io(fs::create_dir("directory"))?;
        io(std::env::set_current_dir("directory"))?;
    }
    Ok("ok".to_owned())
}

/// Exchanges two names as fast as it goes, until it is killed.
fn swap(one: &str, other: &str) -> Outcome {
    loop {
        let flags = rustix::fs::RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(rustix::fs::CWD, one, rustix::fs::CWD, other, flags)?;
    }
}

/// A descriptor that was opened for reading names its file again below /proc.
fn reopen_for_writing(path: &str) -> Outcome {
    let file = io(fs::File::open(path))?;
    let alias = format!("/proc/self/fd/{}", file.as_raw_fd());
    done(io(fs::OpenOptions::new().write(true).open(alias)))
}

fn append(path: &str, what: &str) -> Outcome {
    use std::io::Write;
    let mut file = io(fs::OpenOptions::new().append(true).open(path))?;
    done(io(file.write_all(what.as_bytes())))
}

fn with_path(path: &str, act: impl FnOnce(u64) -> Result<i64, Errno>) -> Outcome {
    let path = text(path);
    done(act(pointer(path.as_bytes_with_nul())))
}

/// A file without a name, which gets one afterwards.
fn tmpfile(directory: &str, mode: u64, name: &str) -> Outcome {
    let (directory, name) = (text(directory), text(name));
    let flags = (libc::O_TMPFILE | libc::O_WRONLY) as u64;
    let file = call(libc::SYS_openat, &[AT_FDCWD, pointer(directory.as_bytes_with_nul()), flags, mode])?;
    let alias = text(&format!("/proc/self/fd/{file}"));
    let (from, to) = (pointer(alias.as_bytes_with_nul()), pointer(name.as_bytes_with_nul()));
    done(call(libc::SYS_linkat, &[AT_FDCWD, from, AT_FDCWD, to, libc::AT_SYMLINK_FOLLOW as u64]))
}

fn openat2(path: &str, mode: u64) -> Outcome {
    let how: [u64; 3] = [WRITE_NEW, mode, 0];
    with_path(path, |path| call(libc::SYS_openat2, &[AT_FDCWD, path, pointer(&how), 24]))
}

/// CAP_SETUID for whoever runs the file, in the form without a namespace's root.
fn set_file_capability(path: &str) -> Outcome {
    // magic_etc with the effective bit, permitted and inheritable of the lower half, of the upper.
    let value: [u32; 5] = [0x0200_0001, 1 << 7, 0, 0, 0];
    let name = pointer(c"security.capability".to_bytes_with_nul());
    with_path(path, |path| call(libc::SYS_setxattr, &[path, name, pointer(&value), 20, 0]))
}

/// The calls that newer architectures were spared.
#[cfg(target_arch = "x86_64")]
fn legacy(words: &[&str]) -> Option<Outcome> {
    let outcome = match *words {
        ["chmod", path, mode] => with_path(path, |path| call(libc::SYS_chmod, &[path, number(mode)])),
        ["creat", path, mode] => with_path(path, |path| call(libc::SYS_creat, &[path, number(mode)])),
        _ => return None,
    };
    Some(outcome)
}

#[cfg(not(target_arch = "x86_64"))]
fn legacy(words: &[&str]) -> Option<Outcome> {
    match *words {
        ["chmod", path, mode] => attempt(&["fchmodat", path, mode]),
        ["creat", path, mode] => attempt(&["open-mode", path, mode]),
        _ => None,
    }
}
