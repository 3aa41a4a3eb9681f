//! Full disks.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use agentos_guest_protocol::filesystem::{FileRequest, FileResponse};
use rustix::fs::fstatvfs;
use rustix::io::Errno;

use super::support::{bytes, errno, tiny_tmpfs};
use crate::filesystem::Root;
use crate::filesystem::calls::{FileSystem, Outcome};
use crate::filesystem::progress::Progress;

/// A file system of 256 KiB and 40 files.
struct Tiny {
    files: FileSystem,
    mount: OwnedFd,
}

impl Tiny {
    fn new(test: &str) -> Option<Self> {
        let mount = tiny_tmpfs(test, "256k", "40")?;
        let root = Root::new(mount.as_fd().try_clone_to_owned().unwrap());
        Some(Self { files: FileSystem::new(root, None), mount })
    }

    fn call(&self, request: FileRequest) -> Result<Outcome, agentos_guest_protocol::filesystem::FileFailure> {
        self.files.handle(&request, &Progress::default())
    }

    fn write(&self, path: &str, len: usize) -> Result<(), Errno> {
        let request = FileRequest::Write { path: bytes(path), content: bytes(vec![b'x'; len]) };
        self.call(request).map(drop).map_err(|failure| Errno::from_raw_os_error(failure.errno))
    }

    fn names(&self) -> Vec<String> {
        match self.call(FileRequest::ReadDir { path: bytes("/") }).unwrap().response {
            FileResponse::Names(names) => {
                names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    fn len(&self, path: &str) -> u64 {
        match self.call(FileRequest::Stat { path: bytes(path) }).unwrap().response {
            FileResponse::Stat(stat) => stat.size_bytes,
            other => panic!("{other:?}"),
        }
    }

    fn free_blocks(&self) -> u64 {
        fstatvfs(&self.mount).unwrap().f_bfree
    }
}

#[test]
fn a_full_disk_keeps_the_old_file_and_no_temporary_one() {
    let Some(tiny) = Tiny::new("a_full_disk_keeps_the_old_file_and_no_temporary_one") else { return };
    tiny.write("/file", 150_000).unwrap();
    let free = tiny.free_blocks();
    assert_eq!(tiny.write("/file", 200_000), Err(Errno::NOSPC));
    assert_eq!(tiny.write("/other", 200_000), Err(Errno::NOSPC));
    assert_eq!((tiny.names(), tiny.len("/file")), (vec!["file".to_owned()], 150_000));
    assert_eq!(tiny.free_blocks(), free, "what a failed write took is given back");
    tiny.write("/small", 1000).unwrap();
}

#[test]
fn a_full_disk_keeps_a_file_that_is_written_in_place() {
    let Some(tiny) = Tiny::new("a_full_disk_keeps_a_file_that_is_written_in_place") else { return };
    tiny.write("/one", 150_000).unwrap();
    rustix::fs::linkat(&tiny.mount, "one", &tiny.mount, "two", rustix::fs::AtFlags::empty()).unwrap();
    tiny.write("/filler", 50_000).unwrap();
    let free = tiny.free_blocks();
    assert_eq!(tiny.write("/two", 250_000), Err(Errno::NOSPC));
    assert_eq!(tiny.len("/one"), 150_000);
    assert_eq!(tiny.free_blocks(), free);
    tiny.write("/two", 160_000).unwrap();
    assert_eq!(tiny.len("/one"), 160_000);
}

#[test]
fn a_streamed_write_learns_of_the_full_disk_and_leaves_nothing() {
    let Some(tiny) = Tiny::new("a_streamed_write_learns_of_the_full_disk_and_leaves_nothing") else { return };
    let outcome = tiny.call(FileRequest::OpenWrite { path: bytes("/file") }).unwrap();
    let FileResponse::WriteOpened { ticket } = outcome.response else { panic!("{outcome:?}") };
    let mut sink = std::fs::File::from(outcome.descriptor.unwrap());
    let error = sink.write_all(&[b'x'; 300_000]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::NOSPC.raw_os_error()));
    drop(sink);
    tiny.call(FileRequest::AbortWrite { ticket }).unwrap();
    assert!(tiny.names().is_empty());
}

#[test]
fn a_disk_out_of_inodes_refuses_and_recovers() {
    let Some(tiny) = Tiny::new("a_disk_out_of_inodes_refuses_and_recovers") else { return };
    let made = (0..100).take_while(|index| tiny.write(&format!("/f{index}"), 1).is_ok()).count();
    assert!((20..100).contains(&made), "{made} files");
    let refused = tiny.call(FileRequest::Mkdir { path: bytes("/a/b"), recursive: true });
    assert_eq!(errno(refused), Errno::NOSPC);
    assert_eq!(tiny.names().len(), made);
    tiny.call(FileRequest::Delete { path: bytes("/f0"), recursive: false }).unwrap();
    tiny.write("/again", 1).unwrap();
}

#[test]
fn a_move_to_a_full_disk_leaves_the_source_whole() {
    const NAME: &str = "a_move_to_a_full_disk_leaves_the_source_whole";
    let vm = super::support::Vm::new();
    vm.mkdir("/mnt", false).unwrap();
    let Some(tiny) = tiny_tmpfs(NAME, "64k", "40") else { return };
    let flags = rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&tiny, "", rustix::fs::CWD, vm.outside("/mnt"), flags).unwrap();
    vm.put("/tree/a", vec![1; 40_000]);
    vm.put("/tree/b", vec![2; 40_000]);
    let moved = vm.rename("/tree", "/mnt/tree");
    let left = vm.tree();
    rustix::mount::unmount(vm.outside("/mnt"), rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(errno(moved), Errno::NOSPC);
    assert_eq!(left, ["mnt", "tree", "tree/a", "tree/b"]);
}
