//! Mounts and the root directory: a VM's walls.

use std::fs;

use rustix::io::Errno;

use crate::syscall::{call, number, pointer, text};
use crate::{Outcome, done, io};

const AT_FDCWD: u64 = libc::AT_FDCWD as u64;
const OPEN_TREE_CLONE: u64 = 1;
const AT_RECURSIVE: u64 = 0x8000;
/// Of mount_setattr.
const MOUNT_ATTR_RDONLY: u64 = 1;

pub(crate) fn attempt(words: &[&str]) -> Option<Outcome> {
    let outcome = match *words {
        ["mount", kind, target] => mount("none", target, kind, 0),
        ["bind", source, target] => mount(source, target, "", libc::MS_BIND),
        ["remount-writable", target] => mount("", target, "", libc::MS_REMOUNT | libc::MS_BIND),
        ["make-shared", target] => mount("", target, "", libc::MS_SHARED | libc::MS_REC),
        ["umount", target] => done(call(
            libc::SYS_umount2,
            &[pointer(text(target).as_bytes_with_nul()), libc::MNT_DETACH as u64],
        )),
        ["fsopen", kind] => done(call(libc::SYS_fsopen, &[pointer(text(kind).as_bytes_with_nul()), 0])),
        ["fspick", target] => {
            done(call(libc::SYS_fspick, &[AT_FDCWD, pointer(text(target).as_bytes_with_nul()), 0]))
        }
        ["open_tree", target] => {
            let target = text(target);
            done(call(libc::SYS_open_tree, &[AT_FDCWD, pointer(target.as_bytes_with_nul()), OPEN_TREE_CLONE]))
        }
        ["move_mount", from, to] => {
            let (from, to) = (text(from), text(to));
            let (from, to) = (pointer(from.as_bytes_with_nul()), pointer(to.as_bytes_with_nul()));
            done(call(libc::SYS_move_mount, &[AT_FDCWD, from, AT_FDCWD, to, 0]))
        }
        ["mount_setattr-writable", target] => set_attributes(target),
        ["chroot", target] => done(call(libc::SYS_chroot, &[pointer(text(target).as_bytes_with_nul())])),
        ["chroot-twice", below, canary] => chroot_twice(below, canary),
        ["pivot_root", target] => {
            let target = text(target);
            let path = pointer(target.as_bytes_with_nul());
            done(call(libc::SYS_pivot_root, &[path, path]))
        }
        ["swapon", target] => done(call(libc::SYS_swapon, &[pointer(text(target).as_bytes_with_nul()), 0])),
        ["descriptors"] => descriptors(),
        ["fchdir", descriptor, canary] => {
            call(libc::SYS_fchdir, &[number(descriptor)]).and_then(|_| io(fs::read_to_string(canary)))
        }
        _ => return None,
    };
    Some(outcome)
}

fn mount(source: &str, target: &str, kind: &str, flags: u64) -> Outcome {
    let (source, target, kind) = (text(source), text(target), text(kind));
    let source = pointer(source.as_bytes_with_nul());
    let target = pointer(target.as_bytes_with_nul());
    done(call(libc::SYS_mount, &[source, target, pointer(kind.as_bytes_with_nul()), flags, 0]))
}

fn set_attributes(target: &str) -> Outcome {
    let target = text(target);
    // attr_set, attr_clr, propagation, userns_fd.
    let attributes: [u64; 4] = [0, MOUNT_ATTR_RDONLY, 0, 0];
    let path = pointer(target.as_bytes_with_nul());
    let size = size_of_val(&attributes) as u64;
    done(call(libc::SYS_mount_setattr, &[AT_FDCWD, path, AT_RECURSIVE, pointer(&attributes), size]))
}

/// The classic: a second root below the first leaves the working directory outside of it, and `..` leads up from there.
fn chroot_twice(below: &str, canary: &str) -> Outcome {
    call(libc::SYS_chroot, &[pointer(text(below).as_bytes_with_nul())])?;
    for _ in 0..64 {
        io(std::env::set_current_dir(".."))?;
    }
    call(libc::SYS_chroot, &[pointer(c".".to_bytes_with_nul())])?;
    io(std::env::set_current_dir("/"))?;
    io(fs::read_to_string(canary))
}

/// What was inherited besides stdin, stdout and stderr.
fn descriptors() -> Outcome {
    let mut found = Vec::new();
    for entry in io(fs::read_dir("/proc/self/fd"))? {
        let name = io(entry)?.file_name().to_string_lossy().into_owned();
        let target = fs::read_link(format!("/proc/self/fd/{name}")).unwrap_or_default();
        // The descriptor that lists them is one of them.
        if number(&name) > 2 && !target.to_string_lossy().ends_with("/fd") {
            found.push(format!("{name}={}", target.display()));
        }
    }
    if found.is_empty() { Err(Errno::BADF) } else { Ok(found.join(" ")) }
}
