//! writeFile in one piece and through a descriptor, and mkdir.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, Ordering};

use agentos_guest_protocol::filesystem::{FileCall, FileRequest, FileResponse, WriteTicket};
use rustix::fs::{CWD, Gid, Uid, XattrFlags, chownat, getxattr, setxattr};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::thread::CapabilitySet;

use super::support::{Mounted, Vm, bytes, errno, is_root, make_fifo, skip, tiny_tmpfs};
use crate::filesystem::Root;
use crate::filesystem::calls::FileSystem;
use crate::filesystem::path::GuestPath;
use crate::filesystem::progress::Progress;
use crate::filesystem::root::Backing;
use crate::filesystem::stage::Staged;
use crate::filesystem::streams::Pumps;
use crate::filesystem::write::OpenWrites;

#[test]
fn parents_are_made_and_modes_are_the_usual_ones() {
    let vm = Vm::new();
    vm.write("/a/b/c", "one").unwrap();
    assert_eq!(vm.content("/a/b/c"), b"one");
    assert_eq!(vm.outside("/a/b/c").metadata().unwrap().mode(), 0o100644);
    assert_eq!(vm.outside("/a/b").metadata().unwrap().mode(), 0o040755);
    vm.write("/a/b/c", "").unwrap();
    assert_eq!(vm.content("/a/b/c"), b"");
    assert_eq!(vm.tree(), ["a", "a/b", "a/b/c"]);
}

#[test]
fn a_replaced_file_keeps_mode_and_attributes_but_no_set_id_bits() {
    let vm = Vm::new();
    vm.put("/file", "old");
    let file = vm.outside("/file");
    setxattr(&file, "user.note", b"kept", XattrFlags::empty()).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o6751)).unwrap();
    let before = file.metadata().unwrap().ino();
    vm.write("/file", "new").unwrap();
    assert_eq!(vm.content("/file"), b"new");
    let after = file.metadata().unwrap();
    assert_ne!(after.ino(), before, "the file was to be replaced");
    assert_eq!(after.mode() & 0o7777, 0o751);
    let mut value = [0; 16];
    let len = getxattr(&file, "user.note", &mut value).unwrap();
    assert_eq!(&value[..len], b"kept");
}

#[test]
fn a_replaced_file_keeps_its_owner() {
    const NAME: &str = "a_replaced_file_keeps_its_owner";
    if !is_root() {
        return skip(NAME, "files of others take CAP_CHOWN");
    }
    let vm = Vm::new();
    vm.put("/file", "old");
    chownat(
        CWD,
        vm.outside("/file"),
        Some(Uid::from_raw(1234)),
        Some(Gid::from_raw(4321)),
        rustix::fs::AtFlags::empty(),
    )
    .unwrap();
    vm.write("/file", "new").unwrap();
    let after = vm.outside("/file").metadata().unwrap();
    assert_eq!((after.uid(), after.gid()), (1234, 4321));
}

#[test]
fn a_file_whose_owner_cant_be_given_is_written_in_place() {
    const NAME: &str = "a_file_whose_owner_cant_be_given_is_written_in_place";
    if !is_root() {
        return skip(NAME, "files of others take CAP_CHOWN");
    }
    let vm = Vm::new();
    vm.put("/file", "a longer old content");
    let file = vm.outside("/file");
    chownat(CWD, &file, Some(Uid::from_raw(1234)), None, rustix::fs::AtFlags::empty()).unwrap();
    let before = file.metadata().unwrap().ino();
    // Capabilities are a thread's own.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut sets = rustix::thread::capabilities(None).unwrap();
            sets.effective -= CapabilitySet::CHOWN;
            rustix::thread::set_capabilities(None, sets).unwrap();
            vm.write("/file", "new").unwrap();
        });
    });
    let after = file.metadata().unwrap();
    assert_eq!((after.uid(), after.ino()), (1234, before));
    assert_eq!(vm.content("/file"), b"new");
    assert_eq!(vm.tree(), ["file"]);
}

#[test]
fn links_are_written_through() {
    let vm = Vm::new();
    vm.put("/dir/target", "old");
    vm.link("dir/target", "/link");
    vm.link("/link", "/dir/second");
    vm.write("/dir/second", "new").unwrap();
    assert_eq!(vm.content("/dir/target"), b"new");
    vm.link("dir/made", "/dangling");
    vm.write("/dangling", "made").unwrap();
    assert_eq!(vm.content("/dir/made"), b"made");
    assert!(vm.outside("/dangling").is_symlink() && vm.outside("/link").is_symlink());
    vm.link("circle", "/circle");
    assert_eq!(errno(vm.write("/circle", "")), Errno::LOOP);
    vm.link("dir/..", "/dots");
    assert_eq!(errno(vm.write("/dots", "")), Errno::ISDIR);
}

#[test]
fn links_never_lead_a_write_outside() {
    let vm = Vm::new();
    let canary = vm.beyond("canary");
    std::fs::write(&canary, "untouched").unwrap();
    vm.mkdir("/dir", false).unwrap();
    vm.link("../../canary", "/dir/climbing");
    vm.link(canary.to_str().unwrap(), "/absolute");
    vm.link("../..", "/dir/up");
    vm.write("/dir/climbing", "x").unwrap();
    assert_eq!(vm.content("/canary"), b"x");
    assert_eq!(errno(vm.write("/absolute", "x")), Errno::NOENT);
    vm.write("/dir/up/canary", "y").unwrap();
    assert_eq!(vm.content("/canary"), b"y");
    assert_eq!(std::fs::read(canary).unwrap(), b"untouched");
}

#[test]
fn a_file_with_two_names_stays_one_file() {
    let vm = Vm::new();
    vm.put("/one", "a longer old content");
    std::fs::hard_link(vm.outside("/one"), vm.outside("/two")).unwrap();
    vm.write("/one", "new").unwrap();
    assert_eq!(vm.content("/two"), b"new");
    let (ticket, mut sink) = opened(&vm, "/two");
    sink.write_all(&[b'x'; 300_000]).unwrap();
    assert_eq!(vm.content("/one"), b"new", "nothing is written before the commit");
    drop(sink);
    vm.commit(ticket).unwrap();
    assert_eq!(vm.content("/one"), [b'x'; 300_000]);
    assert_eq!(vm.tree(), ["one", "two"]);
    assert_eq!(vm.outside("/one").metadata().unwrap().nlink(), 2);
}

#[test]
fn a_mounted_file_is_written_in_place() {
    let vm = Vm::new();
    vm.put("/source", "old");
    vm.put("/target", "below");
    let name = "a_mounted_file_is_written_in_place";
    let Some(mount) = Mounted::bind(name, &vm.outside("/source"), &vm.outside("/target")) else { return };
    vm.write("/target", "new").unwrap();
    assert_eq!(vm.content("/source"), b"new");
    assert_eq!(errno(vm.delete("/target", false)), Errno::BUSY);
    assert_eq!(errno(vm.rename("/target", "/elsewhere")), Errno::BUSY);
    drop(mount);
    assert_eq!(vm.content("/target"), b"below");
}

#[test]
fn a_read_only_mount_says_so() {
    let vm = Vm::new();
    vm.mkdir("/mnt", false).unwrap();
    let flags = MountFlags::RDONLY;
    let Some(_mount) = Mounted::over("a_read_only_mount_says_so", &vm.outside("/mnt"), flags) else { return };
    vm.put("/file", "x");
    assert_eq!(errno(vm.write("/mnt/a", "")), Errno::ROFS);
    assert_eq!(errno(vm.mkdir("/mnt/a", true)), Errno::ROFS);
    assert_eq!(errno(vm.rename("/file", "/mnt/a")), Errno::ROFS);
    assert_eq!(vm.content("/file"), b"x");
}

#[test]
fn devices_take_what_is_written() {
    let vm = Vm::of_machine();
    vm.write("/dev/null", "gone").unwrap();
    assert_eq!(errno(vm.write("/dev/full", "x")), Errno::NOSPC);
    let (ticket, mut sink) = opened(&vm, "/dev/null");
    sink.write_all(&[0; 300_000]).unwrap();
    drop(sink);
    vm.commit(ticket).unwrap();
}

#[test]
fn what_holds_no_content_is_refused() {
    let vm = Vm::new();
    vm.mkdir("/dir", false).unwrap();
    make_fifo(&vm.outside("/fifo"));
    let _socket = std::os::unix::net::UnixListener::bind(vm.outside("/socket")).unwrap();
    vm.put("/file", "");
    for (path, expected) in [
        ("/", Errno::ISDIR),
        ("/dir", Errno::ISDIR),
        ("/fifo", Errno::INVAL),
        ("/socket", Errno::INVAL),
        ("/file/below", Errno::NOTDIR),
        ("/file/far/below", Errno::NOTDIR),
    ] {
        assert_eq!(errno(vm.write(path, "x")), expected, "{path}");
        assert_eq!(errno(vm.open_write(path)), expected, "{path}");
    }
    assert_eq!(errno(vm.write(format!("/{}", "n".repeat(256)), "")), Errno::NAMETOOLONG);
    assert_eq!(vm.tree(), ["dir", "fifo", "file", "socket"]);
}

#[test]
fn a_closed_directory_refuses_new_files_and_lets_old_ones_be_written() {
    let vm = Vm::new();
    vm.put("/dir/file", "old");
    std::fs::set_permissions(vm.outside("/dir"), std::fs::Permissions::from_mode(0o555)).unwrap();
    let closed = || {
        // Root isn't stopped by modes unless it gives up the right to ignore them.
        if is_root() {
            let mut sets = rustix::thread::capabilities(None).unwrap();
            sets.effective -= CapabilitySet::DAC_OVERRIDE;
            rustix::thread::set_capabilities(None, sets).unwrap();
        }
        vm.write("/dir/file", "new").unwrap();
        let (ticket, mut sink) = opened(&vm, "/dir/file");
        sink.write_all(b"newer").unwrap();
        drop(sink);
        vm.commit(ticket).unwrap();
        assert_eq!(errno(vm.write("/dir/other", "")), Errno::ACCESS);
        assert_eq!(errno(vm.delete("/dir/file", false)), Errno::ACCESS);
        assert_eq!(errno(vm.mkdir("/dir/sub", false)), Errno::ACCESS);
    };
    std::thread::scope(|scope| scope.spawn(closed).join().unwrap());
    assert_eq!(vm.content("/dir/file"), b"newer");
    std::fs::set_permissions(vm.outside("/dir"), std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn opened(vm: &Vm, path: &str) -> (WriteTicket, std::fs::File) {
    let (ticket, descriptor) = vm.open_write(path).unwrap();
    (ticket, descriptor.into())
}

#[test]
fn a_streamed_write_shows_at_its_commit() {
    let vm = Vm::new();
    vm.put("/file", "old");
    std::fs::set_permissions(vm.outside("/file"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let (ticket, mut sink) = opened(&vm, "/file");
    let content: Vec<u8> = (0..3_000_000u32).map(|index| (index % 253) as u8).collect();
    sink.write_all(&content).unwrap();
    assert_eq!(vm.content("/file"), b"old");
    drop(sink);
    vm.commit(ticket).unwrap();
    assert_eq!(vm.content("/file"), content);
    assert_eq!(vm.outside("/file").metadata().unwrap().mode() & 0o777, 0o600);
    assert_eq!(vm.tree(), ["file"]);
    assert_eq!(errno(vm.commit(ticket)), Errno::BADF);
}

#[test]
fn an_aborted_write_leaves_nothing() {
    let vm = Vm::new();
    vm.put("/file", "old");
    let (ticket, mut sink) = opened(&vm, "/file");
    sink.write_all(b"lost").unwrap();
    vm.abort(ticket).unwrap();
    assert_eq!(vm.content("/file"), b"old");
    assert_eq!(vm.tree(), ["file"]);
    assert_eq!(errno(vm.abort(ticket)), Errno::BADF);
}

/// What a write to a file system that may hang goes through; here to one that doesn't.
struct Distrusted {
    writes: OpenWrites,
    pumps: Pumps,
    root: Root,
}

impl Distrusted {
    fn new(root: Root) -> Self {
        Self { writes: OpenWrites::default(), pumps: Pumps::default(), root }
    }

    fn open(&self, path: &str) -> (WriteTicket, std::fs::File) {
        let path = GuestPath::parse(path.as_bytes()).unwrap();
        let staged = Staged::new(&self.root, self.root.target(&path).unwrap()).unwrap();
        let outcome = self.writes.admit(&path, staged, Backing::Other, &self.pumps).unwrap();
        match (outcome.response, outcome.descriptor) {
            (FileResponse::WriteOpened { ticket }, Some(descriptor)) => (ticket, descriptor.into()),
            other => panic!("an open answered {other:?}"),
        }
    }
}

#[test]
fn a_write_through_a_pipe_is_whole_at_its_commit() {
    let vm = Vm::new();
    let distrusted = Distrusted::new(vm.root());
    let content: Vec<u8> = (0..3_000_000u32).map(|index| (index % 253) as u8).collect();
    let (ticket, mut sink) = distrusted.open("/file");
    assert!(std::os::unix::fs::FileTypeExt::is_fifo(&sink.metadata().unwrap().file_type()));
    sink.write_all(&content).unwrap();
    drop(sink);
    distrusted.writes.commit(ticket, &Progress::default()).unwrap();
    assert_eq!(vm.content("/file"), content);
    let (ticket, mut sink) = distrusted.open("/file");
    sink.write_all(b"lost").unwrap();
    drop(sink);
    distrusted.writes.abort(ticket).unwrap();
    assert_eq!((vm.content("/file"), vm.tree()), (content, vec!["file".to_owned()]));
}

#[test]
fn a_write_through_a_pipe_learns_of_a_full_disk() {
    let test = "a_write_through_a_pipe_learns_of_a_full_disk";
    let Some(mount) = tiny_tmpfs(test, "256k", "40") else { return };
    let distrusted = Distrusted::new(Root::new(mount.try_clone().unwrap()));
    let (ticket, mut sink) = distrusted.open("/file");
    let error = sink.write_all(&[b'x'; 1_000_000]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    drop(sink);
    assert_eq!(errno(distrusted.writes.commit(ticket, &Progress::default())), Errno::NOSPC);
    let request = FileRequest::ReadDir { path: bytes("/") };
    let listed = FileSystem::new(Root::new(mount), None).handle(&request, &Progress::default()).unwrap();
    assert_eq!(listed.response, FileResponse::Names(Vec::new()));
}

#[test]
fn a_file_that_vanishes_while_it_is_written_comes_back_new() {
    let vm = Vm::new();
    vm.put("/file", "old");
    std::fs::set_permissions(vm.outside("/file"), std::fs::Permissions::from_mode(0o600)).unwrap();
    vm.put("/one", "");
    std::fs::hard_link(vm.outside("/one"), vm.outside("/two")).unwrap();
    let (plain, mut plain_sink) = opened(&vm, "/file");
    let (linked, mut linked_sink) = opened(&vm, "/two");
    plain_sink.write_all(b"plain").unwrap();
    linked_sink.write_all(b"linked").unwrap();
    for gone in ["/file", "/one", "/two"] {
        vm.delete(gone, false).unwrap();
    }
    drop((plain_sink, linked_sink));
    vm.commit(plain).unwrap();
    vm.commit(linked).unwrap();
    assert_eq!((vm.content("/file"), vm.content("/two")), (b"plain".to_vec(), b"linked".to_vec()));
    for path in ["/file", "/two"] {
        assert_eq!(vm.outside(path).metadata().unwrap().mode() & 0o777, 0o644, "{path}");
    }
    assert_eq!(vm.tree(), ["file", "two"]);
}

#[test]
fn a_name_that_becomes_a_directory_is_not_replaced() {
    let vm = Vm::new();
    let (ticket, sink) = opened(&vm, "/name");
    drop(sink);
    vm.mkdir("/name", false).unwrap();
    assert_eq!(errno(vm.commit(ticket)), Errno::ISDIR);
    assert_eq!(vm.tree(), ["name"]);
}

#[test]
fn open_writes_are_bounded_and_end_with_the_file_system() {
    let vm = Vm::new();
    let open: Vec<_> = (0..64).map(|index| opened(&vm, &format!("/f{index}"))).collect();
    let failure = vm.open_write("/more").unwrap_err();
    assert_eq!((failure.errno, failure.call), (Errno::MFILE.raw_os_error(), FileCall::Open));
    vm.abort(open[7].0).unwrap();
    let (ticket, _) = opened(&vm, "/more");
    vm.commit(ticket).unwrap();
    vm.files.abort_writes();
    assert_eq!(vm.tree(), ["more"]);
}

#[test]
fn readers_see_the_old_content_or_the_new_one() {
    let vm = Vm::new();
    let contents: Vec<Vec<u8>> = (0..4u8).map(|fill| vec![fill; 20_000 + usize::from(fill) * 1000]).collect();
    vm.put("/file", &contents[0]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seen = vm.content("/file");
                    assert!(contents.contains(&seen), "{} bytes of {:?}", seen.len(), seen.first());
                }
            });
        }
        for round in 0..500 {
            vm.write("/file", &contents[round % contents.len()]).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(vm.tree(), ["file"]);
}

#[test]
fn mkdir_makes_one_directory() {
    let vm = Vm::new();
    vm.mkdir("/a", false).unwrap();
    let failure = vm.mkdir("/a", false).unwrap_err();
    assert_eq!((failure.errno, failure.call), (Errno::EXIST.raw_os_error(), FileCall::Mkdir));
    assert_eq!(errno(vm.mkdir("/", false)), Errno::EXIST);
    assert_eq!(errno(vm.mkdir("/b/c", false)), Errno::NOENT);
    vm.link("nowhere", "/dangling");
    assert_eq!(errno(vm.mkdir("/dangling", false)), Errno::EXIST);
}

#[test]
fn mkdir_recursive_makes_what_is_missing() {
    let vm = Vm::new();
    vm.mkdir("/a/b/c", true).unwrap();
    vm.mkdir("/a/b/c", true).unwrap();
    vm.mkdir("/", true).unwrap();
    vm.link("a", "/link");
    vm.mkdir("/link/d/e", true).unwrap();
    assert_eq!(vm.list("/", None, &[]), ["/a/", "/a/b/", "/a/b/c/", "/a/d/", "/a/d/e/", "/link@"]);
    vm.put("/file", "");
    assert_eq!(errno(vm.mkdir("/file", true)), Errno::EXIST);
    assert_eq!(errno(vm.mkdir("/file/below", true)), Errno::NOTDIR);
    vm.link("nowhere", "/dangling");
    assert_eq!(errno(vm.mkdir("/dangling/below", true)), Errno::NOENT);
}
