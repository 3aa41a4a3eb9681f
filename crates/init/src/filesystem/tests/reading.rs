//! readFile, stat, exists and what paths may be.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use agentos_guest_protocol::filesystem::{FileCall, FileRequest, FileResponse, MAX_INLINE_CONTENT_BYTES};
use rustix::io::Errno;

use super::support::{Vm, bytes, errno, make_fifo};

#[test]
fn a_small_file_comes_in_the_answer() {
    let vm = Vm::new();
    for len in [0, 1, 4096, MAX_INLINE_CONTENT_BYTES] {
        let content: Vec<u8> = (0..len).map(|index| (index % 251) as u8).collect();
        vm.put("/a", &content);
        let outcome = vm.call(FileRequest::Read { path: bytes("/a") }).unwrap();
        assert!(matches!(outcome.response, FileResponse::Content(found) if *found == content), "{len} bytes");
        assert!(outcome.descriptor.is_none());
    }
}

#[test]
fn a_large_file_comes_as_its_descriptor() {
    let vm = Vm::new();
    let content = vec![7; MAX_INLINE_CONTENT_BYTES + 1];
    vm.put("/a", &content);
    let outcome = vm.call(FileRequest::Read { path: bytes("/a") }).unwrap();
    assert_eq!(outcome.response, FileResponse::Stream { size_bytes: content.len() as u64 });
    let file = std::fs::File::from(outcome.descriptor.unwrap());
    assert_eq!(file.metadata().unwrap().ino(), vm.outside("/a").metadata().unwrap().ino());
    assert_eq!(super::support::read_to_end(file.into()), content);
}

#[test]
fn a_file_without_a_size_is_read_to_its_end() {
    let vm = Vm::of_machine();
    let found = vm.read("/proc/version").unwrap();
    assert_eq!(found, std::fs::read("/proc/version").unwrap());
}

#[test]
fn a_long_file_without_a_size_is_streamed() {
    let vm = Vm::of_machine();
    // More than the limit on every machine: one line per symbol.
    let expected = std::fs::read("/proc/kallsyms").unwrap();
    if expected.len() <= MAX_INLINE_CONTENT_BYTES {
        super::support::skip("a_long_file_without_a_size_is_streamed", "/proc/kallsyms is short or masked");
        return;
    }
    let outcome = vm.call(FileRequest::Read { path: bytes("/proc/kallsyms") }).unwrap();
    assert!(matches!(outcome.response, FileResponse::Stream { .. }));
    assert_eq!(super::support::read_to_end(outcome.descriptor.unwrap()).len(), expected.len());
}

#[test]
fn a_reader_that_leaves_ends_the_stream() {
    let vm = Vm::of_machine();
    // As often as there are streams at once, and once more.
    for _ in 0..200 {
        let outcome = loop {
            match vm.call(FileRequest::Read { path: bytes("/proc/kallsyms") }) {
                // The thread of a former stream has yet to notice.
                Err(failure) if failure.errno == Errno::AGAIN.raw_os_error() => std::thread::yield_now(),
                answer => break answer.unwrap(),
            }
        };
        drop(outcome);
    }
}

#[test]
fn the_own_entries_in_proc_stay_closed() {
    let vm = Vm::of_machine();
    for secret in ["mem", "environ", "maps", "auxv", "smaps"] {
        assert_eq!(errno(vm.read(format!("/proc/self/{secret}"))), Errno::ACCESS, "{secret}");
        assert_eq!(errno(vm.read(format!("/proc/thread-self/{secret}"))), Errno::ACCESS, "{secret}");
        let by_number = format!("/proc/{}/{secret}", std::process::id());
        assert_eq!(errno(vm.read(&by_number)), Errno::ACCESS, "{by_number}");
    }
    // A thread that is no process has an entry of its own.
    let thread = rustix::thread::gettid().as_raw_nonzero();
    assert_eq!(errno(vm.read(format!("/proc/{thread}/environ"))), Errno::ACCESS);
    assert_eq!(errno(vm.write("/proc/self/mem", "x")), Errno::ACCESS);
    assert_eq!(errno(vm.write("/proc/self/comm", "x")), Errno::ACCESS);
    assert_eq!(errno(vm.read("/proc/self/root/etc/passwd")), Errno::LOOP);
    assert_eq!(errno(vm.read("/proc/self/exe")), Errno::LOOP);
    assert!(!vm.read("/proc/mounts").unwrap().is_empty());
}

#[test]
fn a_link_to_the_own_memory_is_no_way_in() {
    let dir = tempfile::tempdir().unwrap();
    let vm = Vm::of_machine();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("/proc/self/mem", &link).unwrap();
    let link = link.to_str().unwrap();
    assert_eq!(errno(vm.read(link)), Errno::ACCESS);
    assert_eq!(errno(vm.write(link, "x")), Errno::ACCESS);
    assert_eq!(errno(vm.open_write(link)), Errno::ACCESS);
}

#[test]
fn links_are_followed_inside_the_root() {
    let vm = Vm::new();
    std::fs::write(vm.beyond("secret"), "canary").unwrap();
    vm.put("/secret", "inside");
    vm.put("/dir/file", "file");
    vm.link("/secret", "/absolute");
    vm.link("../../secret", "/dir/climbing");
    vm.link("dir", "/directory");
    assert_eq!(vm.read("/absolute").unwrap(), b"inside");
    assert_eq!(vm.read("/dir/climbing").unwrap(), b"inside");
    assert_eq!(vm.read("/directory/file").unwrap(), b"file");
    vm.link(vm.beyond("secret").to_str().unwrap(), "/outward");
    assert_eq!(errno(vm.read("/outward")), Errno::NOENT);
}

#[test]
fn what_is_no_file_is_refused() {
    let vm = Vm::new();
    vm.mkdir("/dir", false).unwrap();
    make_fifo(&vm.outside("/fifo"));
    let _socket = std::os::unix::net::UnixListener::bind(vm.outside("/socket")).unwrap();
    let failure = vm.read("/dir").unwrap_err();
    assert_eq!((failure.errno, failure.call), (Errno::ISDIR.raw_os_error(), FileCall::Read));
    assert_eq!(errno(vm.read("/fifo")), Errno::INVAL);
    assert_eq!(errno(vm.read("/socket")), Errno::INVAL);
    let failure = vm.read("/absent").unwrap_err();
    assert_eq!((failure.errno, failure.call), (Errno::NOENT.raw_os_error(), FileCall::Open));
    assert_eq!(*failure.path, *b"/absent");
    vm.put("/file", "");
    assert_eq!(errno(vm.read("/file/below")), Errno::NOTDIR);
    vm.link("loop", "/loop");
    assert_eq!(errno(vm.read("/loop")), Errno::LOOP);
    assert_eq!(errno(Vm::of_machine().read("/dev/null")), Errno::INVAL);
}

#[test]
fn only_absolute_plain_paths_are_taken() {
    let vm = Vm::new();
    vm.put("/a/b", "b");
    for refused in ["", "a", "./a", "/a/../a/b", "/..", "/a\0b"] {
        assert_eq!(errno(vm.read(refused)), Errno::INVAL, "{refused:?}");
        assert_eq!(errno(vm.write(refused, "")), Errno::INVAL, "{refused:?}");
        assert_eq!(errno(vm.rename("/a", refused)), Errno::INVAL, "{refused:?}");
        assert_eq!(errno(vm.delete(refused, true)), Errno::INVAL, "{refused:?}");
    }
    assert_eq!(vm.read("//a/./b").unwrap(), b"b");
    assert_eq!(vm.readdir("/a/").unwrap(), ["b"]);
    assert_eq!(errno(vm.read(format!("/{}", "x".repeat(256)))), Errno::NAMETOOLONG);
    assert_eq!(errno(vm.read("/x".repeat(2100))), Errno::NAMETOOLONG);
}

#[test]
fn names_may_be_any_bytes() {
    let vm = Vm::new();
    let name = b"/caf\xe9 \n\"\xff";
    vm.write(name, "x").unwrap();
    assert_eq!(vm.read(name).unwrap(), b"x");
    let outcome = vm.call(FileRequest::ReadDir { path: bytes("/") }).unwrap();
    assert_eq!(outcome.response, FileResponse::Names(vec![bytes(&name[1..])]));
}

#[test]
fn stat_tells_what_the_kernel_tells() {
    let vm = Vm::new();
    vm.put("/file", vec![1; 5000]);
    std::fs::set_permissions(vm.outside("/file"), std::fs::Permissions::from_mode(0o640)).unwrap();
    std::fs::hard_link(vm.outside("/file"), vm.outside("/second")).unwrap();
    vm.link("file", "/link");
    let expected = vm.outside("/file").metadata().unwrap();
    for path in ["/file", "/link"] {
        let stat = vm.stat(path).unwrap();
        assert_eq!(stat.mode, 0o100640);
        assert_eq!((stat.size_bytes, stat.blocks, stat.nlink), (5000, expected.blocks(), 2));
        assert_eq!((stat.dev, stat.ino), (expected.dev(), expected.ino()));
        assert_eq!((stat.uid, stat.gid), (expected.uid(), expected.gid()));
        assert_eq!(stat.mtime_ns, expected.mtime() * 1_000_000_000 + expected.mtime_nsec());
        assert!(stat.birthtime_ns > 0 && stat.ctime_ns >= stat.birthtime_ns);
    }
    assert_eq!(vm.stat("/").unwrap().mode & 0o170000, 0o040000);
    assert_eq!(errno(vm.stat("/absent")), Errno::NOENT);
    assert_eq!(Vm::of_machine().stat("/dev/null").unwrap().rdev, rustix::fs::makedev(1, 3));
}

#[test]
fn exists_never_fails_for_what_is_not_there() {
    let vm = Vm::new();
    vm.put("/file", "");
    vm.link("file", "/link");
    vm.link("nowhere", "/dangling");
    vm.link("circle", "/circle");
    assert!(vm.exists("/") && vm.exists("/file") && vm.exists("/link"));
    for absent in ["/absent", "/dangling", "/file/below", "/circle", &format!("/{}", "x".repeat(300))] {
        assert!(!vm.exists(absent), "{absent}");
    }
}
